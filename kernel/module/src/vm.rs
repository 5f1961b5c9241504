// SPDX-License-Identifier: GPL-2.0-only
//! What C calls in the ioctl and reader contexts.

use core::slice;

use kvmi_core::{KvmError, VmState};

use crate::{
    abi::{self, Session},
    effects::SessionEffects,
};

#[unsafe(no_mangle)]
extern "C" fn kvmi_vm_state_bytes() -> usize {
    size_of::<VmState>()
}

/// # Safety
/// `vm` has room for so many bytes and nobody else uses it yet.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_vm_state_init(vm: *mut VmState) {
    // SAFETY: the caller's promise.
    unsafe { vm.write(VmState::new()) }
}

/// # Safety
/// Promise 1.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_allow_command(vm: *mut VmState, allow: u32, id: i32) -> i32 {
    // SAFETY: promise 1; the state is atomics, so a shared reference is enough.
    abi::negated(unsafe { &*vm }.allow_command(allow, id))
}

/// # Safety
/// Promise 1.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_allow_event(vm: *mut VmState, allow: u32, id: i32) -> i32 {
    // SAFETY: promise 1.
    abi::negated(unsafe { &*vm }.allow_event(allow, id))
}

#[unsafe(no_mangle)]
extern "C" fn kvmi_check_command_feature(allow: u32, id: i32) -> i32 {
    abi::negated(kvmi_core::check_command(allow, id))
}

#[unsafe(no_mangle)]
extern "C" fn kvmi_check_event_feature(allow: u32, id: i32) -> i32 {
    abi::negated(kvmi_core::check_event(allow, id))
}

/// # Safety
/// Promise 1.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_cleanup_enabled(vm: *const VmState) -> bool {
    // SAFETY: promise 1.
    unsafe { &*vm }.cleanup_enabled()
}

/// # Safety
/// Promise 1.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_unhook_event_enabled(vm: *const VmState) -> bool {
    // SAFETY: promise 1.
    unsafe { &*vm }.unhook_event_enabled()
}

/// # Safety
/// `out` has room for [`kvmi_core::UNHOOK_EVENT_BYTES`].
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_build_unhook_event(seq: u32, out: *mut u8) {
    // SAFETY: the caller's promise.
    let out = unsafe { slice::from_raw_parts_mut(out, kvmi_core::UNHOOK_EVENT_BYTES) };
    kvmi_core::build_unhook_event(seq, out);
}

/// # Safety
/// `hdr` points to 8 bytes, `payload_bytes` to a usize.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_header_ok(hdr: *const u8, payload_bytes: *mut usize) -> bool {
    // SAFETY: the caller's promise.
    let Some(size) = kvmi_core::header_ok(unsafe { abi::message(hdr, 8) }) else {
        return false;
    };
    // SAFETY: the caller's promise.
    unsafe { payload_bytes.write(size) };
    true
}

/// # Safety
/// Promises 1, 3, 4; `out_len` and `vcpu_idx` point to values of their types.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_vm_message(
    vm: *mut VmState,
    session: *mut Session,
    msg: *const u8,
    msg_bytes: usize,
    out: *mut u8,
    out_len: *mut usize,
    vcpu_idx: *mut u16,
) -> u32 {
    // SAFETY: promises 1, 3 and 4.
    let (vm, mut effects, msg, out) = unsafe {
        (
            &*vm,
            SessionEffects::new(session),
            abi::message(msg, msg_bytes),
            abi::buffer(out),
        )
    };
    let (verdict, length, vcpu) = abi::vm_verdict(kvmi_core::vm_message(vm, &mut effects, msg, out));
    // SAFETY: the caller's promise.
    unsafe {
        out_len.write(length);
        vcpu_idx.write(vcpu);
    }
    verdict
}

/// # Safety
/// Promise 3.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_is_event_reply(msg: *const u8) -> bool {
    // SAFETY: promise 3.
    kvmi_core::is_event_reply(unsafe { abi::message(msg, 8) })
}

#[unsafe(no_mangle)]
extern "C" fn kvmi_queue_admits(count: u32, queued_bytes: usize, bytes: usize) -> bool {
    kvmi_core::queue_admits(count, queued_bytes, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn kvmi_reply_admits(waiting: u32, unanswered: u32) -> bool {
    kvmi_core::reply_admits(waiting, unanswered)
}

/// # Safety
/// Promise 3.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_build_error_reply(msg: *const u8, kvm_err: i32, out: *mut u8) -> usize {
    // SAFETY: promise 3.
    let (msg, out) = unsafe { (abi::message(msg, 8), abi::buffer(out)) };
    // C passes the value as the reply carries it, negated.
    kvmi_core::build_error_reply(msg, KvmError(kvm_err.wrapping_abs()), out)
}

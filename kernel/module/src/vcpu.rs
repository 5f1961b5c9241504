// SPDX-License-Identifier: GPL-2.0-only
//! What C calls in the vcpu and site contexts.

use kvmi_core::{VcpuState, VmState};
use zerocopy::IntoBytes;

use crate::{
    abi::{self, CInjection, COccurrence, Vcpu},
    effects::{ThisVcpu, kvmi_glue_intercepts_changed},
};

#[unsafe(no_mangle)]
extern "C" fn kvmi_vcpu_state_bytes() -> usize {
    size_of::<VcpuState>()
}

/// # Safety
/// `vcpu` has room for so many bytes and nobody else uses it yet.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_vcpu_state_init(vcpu: *mut VcpuState) {
    // SAFETY: the caller's promise.
    unsafe { vcpu.write(VcpuState::new()) }
}

/// # Safety
/// Promises 1 to 4; `out_len` points to a usize.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_vcpu_message(
    vm: *mut VmState,
    state: *mut VcpuState,
    vcpu: *mut Vcpu,
    msg: *const u8,
    msg_bytes: usize,
    out: *mut u8,
    out_len: *mut usize,
) -> u32 {
    let outcome = {
        // SAFETY: promises 1 to 4. The references end with this block, before C is told of intercepts.
        let (vm, state, mut effects, msg, out) = unsafe {
            (
                &*vm,
                &mut *state,
                ThisVcpu::new(vcpu),
                abi::message(msg, msg_bytes),
                abi::buffer(out),
            )
        };
        kvmi_core::vcpu_message(vm, state, &mut effects, msg, out)
    };
    if outcome.intercepts_changed {
        // SAFETY: promise 4. It calls back with the state, to which no reference is left.
        unsafe { kvmi_glue_intercepts_changed(vcpu) };
    }
    let (verdict, length) = abi::vcpu_verdict(outcome.verdict);
    // SAFETY: the caller's promise.
    unsafe { out_len.write(length) };
    verdict
}

/// # Safety
/// Promise 4.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_translate(vcpu: *mut Vcpu, gva: u64) -> u64 {
    // SAFETY: promise 4.
    let mut effects = unsafe { ThisVcpu::new(vcpu) };
    kvmi_core::translate(&mut effects, gva).unwrap_or(u64::MAX)
}

/// # Safety
/// Promises 1 and 2; `what` points to a value.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_record(vm: *mut VmState, state: *mut VcpuState, what: *const COccurrence) -> u32 {
    // SAFETY: promises 1 and 2, and the caller's for `what`.
    let (vm, state, what) = unsafe { (&*vm, &mut *state, &*what) };
    what.parse().map_or(abi::site(kvmi_core::Site::Pass), |what| {
        abi::site(state.record(vm, &what))
    })
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_event_wanted(vm: *const VmState, state: *const VcpuState, event: u16, reg: u32) -> bool {
    // SAFETY: promises 1 and 2.
    let (vm, state) = unsafe { (&*vm, &*state) };
    state.wanted(vm, event, reg)
}

/// # Safety
/// Promises 1 and 2; `new_val` points to a u64.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_reply_value(state: *const VcpuState, event: u16, reg: u32, new_val: *mut u64) -> bool {
    // SAFETY: promises 1 and 2.
    let Some(value) = unsafe { &*state }.reply_value(event, reg) else {
        return false;
    };
    // SAFETY: the caller's promise.
    unsafe { new_val.write(value) };
    true
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_reply_vetoes(state: *const VcpuState, event: u16, reg: u32) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.reply_vetoes(event, reg)
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_phase(state: *const VcpuState) -> u32 {
    // SAFETY: promises 1 and 2.
    abi::phase(unsafe { &*state }.phase())
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_is_quiet(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.is_quiet()
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_phase_event(state: *const VcpuState) -> u16 {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.phase_event()
}

/// # Safety
/// Promises 1 to 4.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_build_event(state: *mut VcpuState, vcpu: *mut Vcpu, seq: u32, out: *mut u8) -> usize {
    // SAFETY: promises 1 to 4.
    let (state, mut effects, out) = unsafe { (&*state, ThisVcpu::new(vcpu), abi::buffer(out)) };
    kvmi_core::build_event(state, &mut effects, seq, out)
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_event_sent(state: *mut VcpuState, seq: u32) {
    // SAFETY: promises 1 and 2.
    unsafe { &mut *state }.event_sent(seq);
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_event_void(state: *mut VcpuState) {
    // SAFETY: promises 1 and 2.
    unsafe { &mut *state }.event_void();
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_event_done(state: *mut VcpuState) {
    // SAFETY: promises 1 and 2.
    unsafe { &mut *state }.event_done();
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_event_fail_open(state: *mut VcpuState) {
    // SAFETY: promises 1 and 2.
    unsafe { &mut *state }.event_fail_open();
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_crash(state: *mut VcpuState) {
    // SAFETY: promises 1 and 2.
    unsafe { &mut *state }.crash();
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_completes_exit(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.completes_exit()
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_has_injection(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.has_injection()
}

/// # Safety
/// Promises 1 and 2; `what` points to a value.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_take_injection(state: *mut VcpuState, what: *mut CInjection) -> bool {
    // SAFETY: promises 1 and 2.
    let Some(taken) = unsafe { &mut *state }.take_injection() else {
        return false;
    };
    // SAFETY: the caller's promise.
    unsafe { what.write(taken.into()) };
    true
}

/// # Safety
/// Promises 1 and 2; `regs` points to 144 bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_take_registers(state: *mut VcpuState, regs: *mut u8) -> bool {
    // SAFETY: promises 1 and 2.
    let Some(taken) = unsafe { &mut *state }.take_registers() else {
        return false;
    };
    let bytes = taken.as_bytes();
    // SAFETY: the caller's promise; `taken` is a value of this function's own.
    unsafe { regs.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    true
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_breakpoint(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_breakpoint()
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_cr0_write(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_cr_write(0)
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_cr3_write(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_cr_write(3)
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_msr_write(state: *const VcpuState, msr: u32) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_msr_write(msr)
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_any_msr(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_any_msr()
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_descriptor(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_descriptor()
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_wants_singlestep(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.wants_singlestep()
}

/// # Safety
/// Promises 1 and 2.
#[unsafe(no_mangle)]
unsafe extern "C" fn kvmi_steps_with_interrupts(state: *const VcpuState) -> bool {
    // SAFETY: promises 1 and 2.
    unsafe { &*state }.steps_with_interrupts()
}

// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What the VMM does on the VM file descriptor.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The capability's number for KVM_CHECK_EXTENSION (P19); it answers [`crate::VERSION`] or 0.
pub const KVM_CAP_INTROSPECTION: u32 = 0x4b56_4d49;

/// Argument of HOOK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hook {
    /// A connected stream socket, unix or vsock (P16).
    pub fd: i32,
    /// `HOOK_*` bits (P10).
    pub flags: u32,
    /// The VM, as VMM and tool know it; the kernel does nothing with it.
    pub uuid: [u8; 16],
}

/// Hook flag: when the tool disappears without UNHOOK, vCPUs stop at their next event site until a new HOOK or UNHOOK.
pub const HOOK_FAIL_CLOSED: u32 = 1 << 0;
/// Hook flag: when the tool disappears without UNHOOK, vCPUs crash as after the action CRASH.
pub const HOOK_CRASH_ON_LOSS: u32 = 1 << 1;
/// Every hook flag.
pub const HOOK_FLAGS: u32 = HOOK_FAIL_CLOSED | HOOK_CRASH_ON_LOSS;

/// Argument of COMMAND and EVENT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Feature {
    /// 1: allow, 0: forbid.
    pub allow: u32,
    /// Id of a command or event; [`ALL`] for all.
    pub id: i32,
}

/// [`Feature::id`] that means every command or every event.
pub const ALL: i32 = -1;

const KVMIO: u32 = 0xae;

const fn ioc(write: bool, nr: u32, bytes: usize) -> u32 {
    ((write as u32) << 30) | ((bytes as u32) << 16) | (KVMIO << 8) | nr
}

/// Starts introspection; argument [`Hook`].
pub const KVM_INTROSPECTION_HOOK: u32 = ioc(true, 0xc8, size_of::<Hook>());
/// Ends introspection; no argument.
pub const KVM_INTROSPECTION_UNHOOK: u32 = ioc(false, 0xc9, 0);
/// Allows or forbids a command; argument [`Feature`].
pub const KVM_INTROSPECTION_COMMAND: u32 = ioc(true, 0xca, size_of::<Feature>());
/// Allows or forbids an event; argument [`Feature`].
pub const KVM_INTROSPECTION_EVENT: u32 = ioc(true, 0xcb, size_of::<Feature>());
/// Asks the tool to undo its hooks: sends the UNHOOK event; no argument.
pub const KVM_INTROSPECTION_PREUNHOOK: u32 = ioc(false, 0xcc, 0);

const _: () = {
    assert!(KVM_INTROSPECTION_HOOK == 0x4018_aec8);
    assert!(KVM_INTROSPECTION_UNHOOK == 0x0000_aec9);
    assert!(KVM_INTROSPECTION_COMMAND == 0x4008_aeca);
    assert!(KVM_INTROSPECTION_EVENT == 0x4008_aecb);
    assert!(KVM_INTROSPECTION_PREUNHOOK == 0x0000_aecc);
};

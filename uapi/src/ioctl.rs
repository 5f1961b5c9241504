// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What the VMM does on the VM file descriptor.

use crate::layout::{constants, structs};

structs! {
    /// Argument of HOOK.
    pub struct Hook = kvm_introspection_hook, 24 {
        /// A connected stream socket, unix or vsock (P16).
        pub fd: i32,
        /// KVM_INTROSPECTION_HOOK_* bits (P10).
        pub flags: u32,
        /// The VM, as VMM and tool know it; the kernel does nothing with it.
        pub uuid: [u8; 16],
    }

    /// Argument of COMMAND and EVENT.
    pub struct Feature = kvm_introspection_feature, 8 {
        /// 1: allow, 0: forbid.
        pub allow: u32,
        /// Id of a command or event; -1 for all.
        pub id: i32,
    }
}

/// [`Feature::id`] that means every command or every event.
pub const ALL: i32 = -1;

const KVMIO: u32 = 0xae;

const fn ioc(write: bool, nr: u32, bytes: usize) -> u32 {
    ((write as u32) << 30) | ((bytes as u32) << 16) | (KVMIO << 8) | nr
}

constants! {
    /// The capability, the ioctls, and the flags of HOOK.
    IOCTLS:

    /// The capability (P19): `KVM_CHECK_EXTENSION` answers [`crate::VERSION`], or 0.
    KVM_CAP_INTROSPECTION = KVM_CAP_INTROSPECTION: u32 = 0x4b564d49;
    /// Starts introspection; argument [`Hook`].
    KVM_INTROSPECTION_HOOK = KVM_INTROSPECTION_HOOK: u32 = ioc(true, 0xc8, size_of::<Hook>()),
        in C "_IOW(KVMIO, 0xc8, struct kvm_introspection_hook)";
    /// Ends introspection; no argument.
    KVM_INTROSPECTION_UNHOOK = KVM_INTROSPECTION_UNHOOK: u32 = ioc(false, 0xc9, 0), in C "_IO(KVMIO, 0xc9)";
    /// Allows or forbids a command; argument [`Feature`].
    KVM_INTROSPECTION_COMMAND = KVM_INTROSPECTION_COMMAND: u32 = ioc(true, 0xca, size_of::<Feature>()),
        in C "_IOW(KVMIO, 0xca, struct kvm_introspection_feature)";
    /// Allows or forbids an event; argument [`Feature`].
    KVM_INTROSPECTION_EVENT = KVM_INTROSPECTION_EVENT: u32 = ioc(true, 0xcb, size_of::<Feature>()),
        in C "_IOW(KVMIO, 0xcb, struct kvm_introspection_feature)";
    /// Asks the tool to undo its hooks: sends the UNHOOK event; no argument.
    KVM_INTROSPECTION_PREUNHOOK = KVM_INTROSPECTION_PREUNHOOK: u32 = ioc(false, 0xcc, 0), in C "_IO(KVMIO, 0xcc)";
    /// Flag of HOOK: when the tool is lost, vCPUs stop at their next event until UNHOOK or a new HOOK.
    KVM_INTROSPECTION_HOOK_FAIL_CLOSED = HOOK_FAIL_CLOSED: u32 = 1 << 0;
    /// Flag of HOOK: when the tool is lost, vCPUs crash as after the action CRASH.
    KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS = HOOK_CRASH_ON_LOSS: u32 = 1 << 1;
    /// Flag of HOOK: vCPUs stay stopped, and what a session before denied them stays denied, until VM_RELEASE.
    KVM_INTROSPECTION_HOOK_STOPPED = HOOK_STOPPED: u32 = 1 << 2;
    /// Every flag of HOOK.
    KVM_INTROSPECTION_HOOK_FLAGS = HOOK_FLAGS: u32 = HOOK_FAIL_CLOSED | HOOK_CRASH_ON_LOSS | HOOK_STOPPED;
}

const _: () = {
    assert!(KVM_INTROSPECTION_HOOK == 0x4018_aec8);
    assert!(KVM_INTROSPECTION_UNHOOK == 0x0000_aec9);
    assert!(KVM_INTROSPECTION_COMMAND == 0x4008_aeca);
    assert!(KVM_INTROSPECTION_EVENT == 0x4008_aecb);
    assert!(KVM_INTROSPECTION_PREUNHOOK == 0x0000_aecc);
};

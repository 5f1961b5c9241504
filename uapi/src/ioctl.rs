// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What VMM and tool do on the VM's file descriptor, and on that of a session.

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

    /// Argument of OPEN.
    pub struct Open = kvm_introspection_open, 72 {
        /// KVM_INTROSPECTION_HOOK_* and KVM_INTROSPECTION_OPEN_* bits.
        pub flags: u32,
        /// Zero.
        pub pad: u32,
        /// With OPEN_MASKED: the commands that may be used, bit n of word m for id 64 m + n.
        pub commands: [u64; 4],
        /// With OPEN_MASKED: the events that may be used, likewise.
        pub events: [u64; 4],
    }

    /// What STATUS answers; zeroes for a VM that nobody introspects.
    pub struct Status = kvm_introspection_status, 24 {
        /// KVM_INTROSPECTION_STATUS_* bits.
        pub state: u32,
        /// The flags of HOOK or OPEN.
        pub flags: u32,
        /// When the session began, in ns of CLOCK_BOOTTIME.
        pub since_ns: u64,
        /// The process that called HOOK or OPEN, as the caller numbers processes; 0: it is gone, or out of sight.
        pub pid: i32,
        /// Zero.
        pub pad: u32,
    }

    /// Argument of COMMAND and EVENT.
    pub struct Permission = kvm_introspection_feature, 8 {
        /// 1: allow, 0: forbid.
        pub allow: u32,
        /// Id of a command or event; -1 for all.
        pub id: i32,
    }
}

/// [`Permission::id`] that means every command or every event.
pub const ALL: i32 = -1;

const KVMIO: u32 = 0xae;

/// Neither `WRITES` nor `READS`: no argument.
const NONE: u32 = 0;
/// The kernel reads the argument.
const WRITES: u32 = 1;
/// The kernel writes the argument.
const READS: u32 = 2;

const fn ioc(direction: u32, nr: u32, bytes: usize) -> u32 {
    (direction << 30) | ((bytes as u32) << 16) | (KVMIO << 8) | nr
}

constants! {
    /// The capability, the ioctls, and the flags of HOOK.
    IOCTLS:

    /// The capability (P19): `KVM_CHECK_EXTENSION` answers [`crate::VERSION`], or 0.
    KVM_CAP_INTROSPECTION = KVM_CAP_INTROSPECTION: u32 = 0x4b564d49;
    /// Starts introspection; argument [`Hook`].
    KVM_INTROSPECTION_HOOK = KVM_INTROSPECTION_HOOK: u32 = ioc(WRITES, 0xc8, size_of::<Hook>()),
        in C "_IOW(KVMIO, 0xc8, struct kvm_introspection_hook)";
    /// Ends introspection; no argument.
    KVM_INTROSPECTION_UNHOOK = KVM_INTROSPECTION_UNHOOK: u32 = ioc(NONE, 0xc9, 0), in C "_IO(KVMIO, 0xc9)";
    /// Allows or forbids a command; argument [`Permission`].
    KVM_INTROSPECTION_COMMAND = KVM_INTROSPECTION_COMMAND: u32 = ioc(WRITES, 0xca, size_of::<Permission>()),
        in C "_IOW(KVMIO, 0xca, struct kvm_introspection_feature)";
    /// Allows or forbids an event; argument [`Permission`].
    KVM_INTROSPECTION_EVENT = KVM_INTROSPECTION_EVENT: u32 = ioc(WRITES, 0xcb, size_of::<Permission>()),
        in C "_IOW(KVMIO, 0xcb, struct kvm_introspection_feature)";
    /// Asks the tool to undo its hooks: sends the UNHOOK event; no argument.
    KVM_INTROSPECTION_PREUNHOOK = KVM_INTROSPECTION_PREUNHOOK: u32 = ioc(NONE, 0xcc, 0), in C "_IO(KVMIO, 0xcc)";
    /// Starts introspection and answers with the session's own descriptor; argument [`Open`].
    KVM_INTROSPECTION_OPEN = KVM_INTROSPECTION_OPEN: u32 = ioc(WRITES, 0xcd, size_of::<Open>()),
        in C "_IOW(KVMIO, 0xcd, struct kvm_introspection_open)";
    /// Tells who introspects the VM; argument [`Status`].
    KVM_INTROSPECTION_STATUS = KVM_INTROSPECTION_STATUS: u32 = ioc(READS, 0xce, size_of::<Status>()),
        in C "_IOR(KVMIO, 0xce, struct kvm_introspection_status)";
    /// Ends introspection, whoever began it; no argument.
    KVM_INTROSPECTION_FREE = KVM_INTROSPECTION_FREE: u32 = ioc(NONE, 0xcf, 0), in C "_IO(KVMIO, 0xcf)";
    /// On a session's descriptor: as its last close, whoever else holds it; no argument.
    KVM_INTROSPECTION_HANG_UP = KVM_INTROSPECTION_HANG_UP: u32 = ioc(NONE, 0xd0, 0), in C "_IO(KVMIO, 0xd0)";
    /// Flag of HOOK: when the tool is lost, vCPUs stop at their next event until UNHOOK or a new HOOK.
    KVM_INTROSPECTION_HOOK_FAIL_CLOSED = HOOK_FAIL_CLOSED: u32 = 1 << 0;
    /// Flag of HOOK: when the tool is lost, vCPUs crash as after the action CRASH.
    KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS = HOOK_CRASH_ON_LOSS: u32 = 1 << 1;
    /// Flag of HOOK: vCPUs stay stopped, and what a session before denied them stays denied, until VM_RELEASE.
    KVM_INTROSPECTION_HOOK_STOPPED = HOOK_STOPPED: u32 = 1 << 2;
    /// Every flag of HOOK.
    KVM_INTROSPECTION_HOOK_FLAGS = HOOK_FLAGS: u32 = HOOK_FAIL_CLOSED | HOOK_CRASH_ON_LOSS | HOOK_STOPPED;
    /// Flag of OPEN: takes over a session that failed closed.
    KVM_INTROSPECTION_OPEN_TAKE_OVER = OPEN_TAKE_OVER: u32 = 1 << 3;
    /// Flag of OPEN: `commands` and `events` say what may be used. Without it, all.
    KVM_INTROSPECTION_OPEN_MASKED = OPEN_MASKED: u32 = 1 << 4;
    /// Every flag of OPEN.
    KVM_INTROSPECTION_OPEN_FLAGS = OPEN_FLAGS: u32 = HOOK_FLAGS | OPEN_TAKE_OVER | OPEN_MASKED;
    /// State: there is a session.
    KVM_INTROSPECTION_STATUS_HOOKED = STATUS_HOOKED: u32 = 1 << 0;
    /// State: its tool is lost.
    KVM_INTROSPECTION_STATUS_LOST = STATUS_LOST: u32 = 1 << 1;
    /// State: it is about to end.
    KVM_INTROSPECTION_STATUS_ENDING = STATUS_ENDING: u32 = 1 << 2;
    /// State: it has a descriptor, not a socket.
    KVM_INTROSPECTION_STATUS_DESCRIPTOR = STATUS_DESCRIPTOR: u32 = 1 << 3;
    /// State: vCPUs wait for VM_RELEASE.
    KVM_INTROSPECTION_STATUS_STOPPED = STATUS_STOPPED: u32 = 1 << 4;
}

const _: () = {
    assert!(KVM_INTROSPECTION_HOOK == 0x4018_aec8);
    assert!(KVM_INTROSPECTION_UNHOOK == 0x0000_aec9);
    assert!(KVM_INTROSPECTION_COMMAND == 0x4008_aeca);
    assert!(KVM_INTROSPECTION_EVENT == 0x4008_aecb);
    assert!(KVM_INTROSPECTION_PREUNHOOK == 0x0000_aecc);
    assert!(KVM_INTROSPECTION_OPEN == 0x4048_aecd);
    assert!(KVM_INTROSPECTION_STATUS == 0x8018_aece);
    assert!(KVM_INTROSPECTION_FREE == 0x0000_aecf);
    assert!(KVM_INTROSPECTION_HANG_UP == 0x0000_aed0);
};

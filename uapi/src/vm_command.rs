// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Requests and replies of VM commands, without the headers that precede them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Reply to GET_VERSION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVersionReply {
    /// [`crate::VERSION`].
    pub version: u32,
    /// [`crate::MAX_PAYLOAD`]; 0 in old dialects.
    pub max_msg_size: u32,
    /// What this kernel and CPU offer.
    pub features: Features,
}

/// Feature bytes of [`GetVersionReply`] (P20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Features {
    /// 1 when VCPU_CONTROL_SINGLESTEP works.
    pub singlestep: u8,
    /// 0: plain v12; else [`crate::EXTENSION_LEVEL`].
    pub extension: u8,
    /// Which access restrictions can be expressed: bits of `Features`.
    pub access: u8,
    /// Zero.
    pub pad: [u8; 5],
}

impl Features {
    /// Bit of [`Features::access`]: reads can be denied.
    pub const READ_DENY: u8 = 1 << 0;
    /// Bit of [`Features::access`]: writes can be denied.
    pub const WRITE_DENY: u8 = 1 << 1;
    /// Bit of [`Features::access`]: execution can be denied.
    pub const EXEC_DENY: u8 = 1 << 2;
    /// Bit of [`Features::access`]: reads can be denied while execution is not.
    pub const EXEC_ONLY: u8 = 1 << 3;
}

/// Request of VM_CHECK_COMMAND.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmCheckCommand {
    /// Id of the command that is asked about.
    pub id: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// Request of VM_CHECK_EVENT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmCheckEvent {
    /// Id of the event that is asked about.
    pub id: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// Reply to VM_GET_INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmGetInfoReply {
    /// vCPUs online now; indices are 0 to one less.
    pub vcpu_count: u32,
    /// Zero.
    pub pad: [u32; 3],
}

/// Request of VM_CONTROL_EVENTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmControlEvents {
    /// A VM event: [`crate::event::UNHOOK`].
    pub event_id: u16,
    /// 1: send it, 0: do not.
    pub enable: u8,
    /// Zero.
    pub pad1: u8,
    /// Zero.
    pub pad2: u32,
}

/// Request of VM_READ_PHYSICAL; the reply data are `size` raw bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmReadPhysical {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Bytes to read, 1 to 4096, all in one page.
    pub size: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// Request of VM_WRITE_PHYSICAL; `size` raw bytes follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmWritePhysical {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Bytes to write, 1 to 4096, all in one page.
    pub size: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// Request of VM_PAUSE_VCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmPauseVcpu {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// 1: reply after the vCPU has left guest mode, 0: reply at once.
    pub wait: u8,
    /// Zero.
    pub pad1: u8,
    /// Zero.
    pub pad2: u32,
}

/// Request of VM_CONTROL_CLEANUP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmControlCleanup {
    /// 1 (the default): unhook removes the intercepts that the tool asked for, 0: it leaves them.
    pub enable: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Head of VM_SET_PAGE_ACCESS and of VM_GET_PAGE_ACCESS (P21); so many [`PageAccessEntry`] follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmPageAccess {
    /// Number of entries, at most [`crate::MAX_PAGE_ACCESS_ENTRIES`].
    pub count: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// One page and its access; also each entry of the reply to VM_GET_PAGE_ACCESS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageAccessEntry {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// What the guest may do: bits of `PageAccessEntry`.
    pub access: u8,
    /// Zero.
    pub pad: [u8; 7],
}

impl PageAccessEntry {
    /// Access bit: read.
    pub const READ: u8 = 1 << 0;
    /// Access bit: write.
    pub const WRITE: u8 = 1 << 1;
    /// Access bit: execute.
    pub const EXEC: u8 = 1 << 2;
}

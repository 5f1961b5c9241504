// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! The KVMI contract: messages, ids and ioctls shared by the kernel and its tools.
//!
//! Byte order is the host's. A message is a [`MsgHdr`] and `size` bytes of payload:
//!
//! | message | payload |
//! |---|---|
//! | VM command | request |
//! | vCPU command | [`VcpuHdr`], request |
//! | reply to a command | [`ErrorCode`], reply data if `err == 0` |
//! | VM event | [`EventHdr`], event data |
//! | vCPU event | [`EventHdr`], [`VcpuEvent`], event data |
//! | reply to a vCPU event | [`VcpuHdr`], [`VcpuEventReply`], event reply data |
//!
//! The C view of the same bytes is `include/kvmi.h`; [`layout`] ties the two together.

#![no_std]
#![forbid(unsafe_code)]

mod arch;
pub mod error;
pub mod event;
mod handshake;
mod header;
pub mod ioctl;
pub mod layout;
pub mod msg;
mod vcpu_command;
mod vm_command;

pub use arch::{Dtable, MsrEntry, MsrsHdr, Regs, Segment, Sregs, VcpuEventArch, Xsave};
pub use handshake::{ToolHandshake, VmmHandshake};
pub use header::{ErrorCode, EventHdr, MsgHdr, VcpuEvent, VcpuEventReply, VcpuHdr};
pub use vcpu_command::{
    VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuControlSinglestep, VcpuGetCpuid, VcpuGetCpuidReply,
    VcpuGetInfoReply, VcpuGetMtrrType, VcpuGetMtrrTypeReply, VcpuGetRegisters, VcpuGetRegistersReply, VcpuGetXcr,
    VcpuGetXcrReply, VcpuInjectException, VcpuTranslateGva, VcpuTranslateGvaReply,
};
pub use vm_command::{
    Features, GetVersionReply, PageAccessEntry, VmCheckCommand, VmCheckEvent, VmControlCleanup, VmControlEvents,
    VmGetInfoReply, VmPageAccess, VmPauseVcpu, VmReadPhysical, VmWritePhysical,
};

/// What GET_VERSION and `KVM_CHECK_EXTENSION(KVM_CAP_INTROSPECTION)` answer.
pub const VERSION: u32 = 1;
/// Largest payload of a message, in bytes; GET_VERSION's `max_msg_size`.
pub const MAX_PAYLOAD: usize = 8184;
/// Largest message, header included, in bytes.
pub const MAX_MESSAGE: usize = 8192;
/// Feature byte "extension level" of this protocol (P20); plain v12 has 0.
pub const EXTENSION_LEVEL: u8 = 1;
/// Most commands that wait for one vCPU (P15).
pub const MAX_QUEUED_COMMANDS: u32 = 1024;
/// Most bytes of commands that wait for one vCPU (P15).
pub const MAX_QUEUED_BYTES: usize = 1 << 20;
/// Most bytes that VM_READ_PHYSICAL and VM_WRITE_PHYSICAL move, all within one page.
pub const MAX_PHYSICAL: usize = 4096;
/// Most MSRs of one VCPU_GET_REGISTERS: what fits into the largest reply.
pub const MAX_MSRS: usize =
    (MAX_PAYLOAD - core::mem::size_of::<ErrorCode>() - core::mem::size_of::<VcpuGetRegistersReply>())
        / core::mem::size_of::<MsrEntry>();
/// Most entries of one VM_SET_PAGE_ACCESS or VM_GET_PAGE_ACCESS.
pub const MAX_PAGE_ACCESS_ENTRIES: usize =
    (MAX_PAYLOAD - core::mem::size_of::<VmPageAccess>()) / core::mem::size_of::<PageAccessEntry>();

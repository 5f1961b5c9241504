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
//! [`table`] has one row for each command and each event. From it, and from the descriptions of [`layout`], come the C view
//! of the same bytes, `include/kvmi.h`, and the tables of docs/protocol.md: `cargo xtask docs` writes both.

#![no_std]
#![forbid(unsafe_code)]

mod arch;
pub mod error;
pub mod event;
mod handshake;
mod header;
pub mod ioctl;
pub mod layout;
pub mod limits;
pub mod msg;
mod row;
pub mod table;
mod vcpu_command;
mod vm_command;

pub use arch::{Dtable, MsrEntry, MsrsHdr, Regs, Segment, Sregs, Xsave};
pub use handshake::{Char, ToolHandshake, VmmHandshake};
pub use header::{ErrorCode, EventHdr, MsgHdr, VcpuEvent, VcpuEventArch, VcpuEventReply, VcpuHdr};
pub use limits::{
    EXTENSION_LEVEL, MAX_MESSAGE, MAX_MSRS, MAX_OTHER_MSRS, MAX_PAGE_ACCESS_ENTRIES, MAX_PAYLOAD, MAX_PHYSICAL,
    MAX_QUEUED_BYTES, MAX_QUEUED_COMMANDS, MAX_VCPU_STATES, VERSION,
};
pub use vcpu_command::*;
pub use vm_command::*;

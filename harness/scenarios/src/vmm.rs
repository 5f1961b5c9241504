// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VMM as a scenario sees it: a process of its own, asked over a socket, killed at will.

mod exceptions;
mod exits;
mod frames;
mod guest;
mod hook;
mod packet;
mod process;
mod request;
mod slots;
mod spare;

pub(crate) use exceptions::Taken;
pub use frames::Frame;
pub use guest::Guest;
pub(crate) use guest::field;
pub use packet::{receive, send};
pub use process::Vm;
pub use request::{
    Advice, Answer, HookFd, Hypercalls, MAX_PACKET_BYTES, Mark, Permission, Refusal, Reply, Request, Until, VcpuStatus,
    VcpuWrite, VmConfig,
};
pub use spare::{end_spare, start_spare};

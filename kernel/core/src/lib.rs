// SPDX-License-Identifier: GPL-2.0-only
//! Decides what KVM introspection does; does no I/O and holds no lock.
//!
//! A message from the tool or an occurrence in the guest comes in; what to send, and what is to happen to KVM, goes
//! out: replies and events into buffers of the caller, effects through [`VmEffects`] and [`VcpuEffects`].
//!
//! - [`VmState`] is shared by the session's receive thread, the vCPU threads and the ioctls: atomics alone.
//! - [`VcpuState`] is plain data of one vCPU, used by whoever runs that vCPU.
//! - [`vm_message`] takes each message in the receive thread, [`vcpu_message`] takes in the vCPU thread those that
//!   [`VmVerdict::Queue`] sent there.
//! - [`VcpuState::record`] takes an occurrence; [`VcpuState::phase`] tells how far its event has come.
//!
//! Nothing here allocates and nothing can panic: the object that is linked into the kernel holds no panic handler, and
//! the build looks. So: no indexing, no `unwrap`, no arithmetic that could overflow.

#![no_std]
#![forbid(unsafe_code)]

mod effects;
mod event_message;
mod event_reply;
mod feature;
mod injection;
mod known;
mod msr_set;
mod mtrr;
mod occurrence;
mod page_access;
mod permission;
mod queue;
mod vcpu_command;
mod vcpu_message;
mod vcpu_query;
mod vcpu_state;
mod vm_command;
mod vm_message;
mod vm_state;
mod wire;

pub use effects::{KvmError, VcpuEffects, VmEffects};
pub use event_message::{build_event, build_unhook_event};
pub use feature::{check_command, check_event};
pub use injection::Injection;
pub use known::{COMMANDS, EVENTS};
pub use occurrence::Occurrence;
pub use queue::{build_error_reply, header_ok, is_event_reply, queue_admits, reply_admits};
pub use vcpu_message::{VcpuOutcome, VcpuVerdict, vcpu_message};
pub use vcpu_state::{Phase, Site, VcpuState};
pub use vm_message::{VmVerdict, vm_message};
pub use vm_state::VmState;

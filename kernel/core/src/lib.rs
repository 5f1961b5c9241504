// SPDX-License-Identifier: GPL-2.0-only
//! Decides what KVM introspection does; does no I/O and holds no lock.
//!
//! A message from the tool or an occurrence in the guest comes in; what to send, and what is to happen to KVM, goes
//! out: replies and events into buffers of the caller, effects through [`VmEffects`] and [`VcpuEffects`].
//!
//! - [`VmState`] is shared by the session's receive thread, the vCPU threads and the ioctls: atomics alone.
//! - [`VcpuState`] is plain data of one vCPU, used by whoever runs that vCPU.
//! - [`vm_message`] takes each message in the receive thread, [`vcpu_message()`] takes in the vCPU thread those that
//!   [`VmVerdict::Queue`] sent there.
//! - [`VcpuState::record`] takes an occurrence; [`VcpuState::phase`] tells how far its event has come.
//!
//! The folders are layers, and a dependency points downward only: `dispatch` (the way of a message), then `command` and
//! `event`, which do not know each other, then `state`; below all of them `effects` and `wire`. What a message has to be
//! like is said by its row in [`kvmi_uapi::table`].
//!
//! Nothing here allocates and nothing can panic: the object that is linked into the kernel holds no panic handler, and
//! the build looks. So: no indexing, no `unwrap`, no arithmetic that could overflow.

#![no_std]
#![forbid(unsafe_code)]

mod command;
mod dispatch;
mod effects;
mod event;
mod state;
mod wire;

pub use command::translate::translate;
pub use dispatch::{
    queue::{build_error_reply, header_ok, is_event_reply, queue_admits, reply_admits},
    vcpu::{VcpuOutcome, VcpuVerdict, vcpu_message},
    vm::{VmVerdict, vm_message},
};
pub use effects::{Control, KvmError, VcpuEffects, VmEffects};
pub use event::message::{UNHOOK_EVENT_BYTES, build_event, build_unhook_event};
pub use state::{
    feature::{check_command, check_event},
    injection::Injection,
    occurrence::Occurrence,
    vcpu::{Phase, Site, VcpuState},
    vm::VmState,
};

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Client library for KVM introspection: watch and steer a guest from outside.
//!
//! A [`Session`] is one introspected VM. It is a handle: clone it, use it from several threads. A thread of its own
//! reads the connection, so a command may wait for its reply in one thread while another takes events.
//!
//! ```no_run
//! use kvmi::{Event, Session, event};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // By the VM's name, or its VMM's process id. Whatever this program dies of, the VM is as before then.
//! let session = Session::attach("web")?;
//! println!("version {}", session.version()?.version);
//!
//! for vcpu in 0..session.vcpu_count()? {
//!     session.vcpu(vcpu).control_event(event::CR, true)?;
//!     session.vcpu(vcpu).control_cr(3, true)?;
//! }
//! // Events as they come, until the connection is closed.
//! for event in session.events() {
//!     match event? {
//!         // The vCPU stands still until the reply; commands to it work meanwhile.
//!         Event::Cr(cr) => {
//!             println!("vCPU {} cr{}: {:#x} -> {:#x}", cr.vcpu, cr.data.cr, cr.data.old_value, cr.data.new_value);
//!             cr.proceed()?;
//!         }
//!         // The VMM asks the tool to go.
//!         Event::Unhook(_) => break,
//!         other => other.proceed()?,
//!     }
//! }
//! session.close();
//! # Ok(())
//! # }
//! ```
//!
//! - **VMs**: [`host::list`] finds them, [`Session::attach`] begins a session on one. A VMM that begins it itself connects
//!   to a [`Listener`].
//! - **Commands**: methods of [`Session`] and [`Vcpu`], which wait; or [`Session::submit`] with a type of [`command`],
//!   which gives a [`Pending`] to wait for later. Any number may be under way.
//! - **Events**: [`Session::events`], which waits for as long as the connection is there; [`Session::next_event`], which
//!   waits for a limited time. Each kind has an answer type of its own, with which only the legal answers can be expressed.
//!   An event is answered once, and one that is dropped lets the guest run on as without a tool ([`OpenEvent`]). To keep its
//!   vCPU where it is, hold it ([`OpenEvent::hold`]).
//! - **Errors**: [`Error`]. What the kernel answered is a [`KvmError`]; why the connection is closed is a [`CloseReason`],
//!   in each error that follows and from [`Session::closed`].
//! - **Bytes**: [`message`] builds them, [`Session::send_raw`] and [`RawConnection`] send whatever they are given.
//! - **Transcript**: [`SessionOptions::transcript`] sees each message, which prints as one line.
//!
//! The connection is a session's own descriptor, or a stream socket, unix or vsock ([`Stream`],
//! [`Address`]).

mod address;
pub mod command;
mod error;
mod event_kind;
mod event_open;
pub mod handshake;
pub mod host;
pub mod ioctls;
mod listener;
pub mod message;
mod options;
mod pending;
mod raw;
mod reader;
mod session;
mod stream;
mod ticket;
mod transcript;
mod vcpu;
mod vm;
mod writer;

pub use address::{Address, AddressError};
pub use error::{CloseReason, Error, KvmError, ProtocolError};
pub use event_kind::{Acknowledge, CreateVcpu, Decision, EventKind, Hypercall, Pause, WriteDecision};
pub use event_open::{Event, Events, OpenEvent, Unhook, Unknown};
pub use kvmi_uapi::{
    self as uapi, MsrEntry, PageAccessEntry, Regs, Segment, Sregs, VcpuEventArch, VcpuRunState, event, msg,
};
pub use listener::Listener;
pub use message::Message;
pub use options::SessionOptions;
pub use pending::Pending;
pub use raw::RawConnection;
pub use session::Session;
pub use stream::{Descriptor, Stream};
pub use ticket::Held;
pub use transcript::{Direction, Entry};
pub use vcpu::{Registers, Vcpu};

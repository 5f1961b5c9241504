// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bare-metal guests (L2) for the lab's scenarios, and what they share with the VMM and the scenarios.
//!
//! Each program in `src/bin` is one guest: 64-bit, identity mapped, without devices but two ports and the [`Mailbox`], a page of
//! guest memory in which each vCPU has a slot. A scenario writes a command into the slot and rings ([`DOORBELL_VECTOR`]); the guest
//! carries it out and writes the result next to it. [`layout`] says where everything lies. The VMM sets up long mode, page tables, GDT
//! and a stack for each vCPU, and enters the program with the vCPU's index in RDI.
//!
//! Built for bare metal with a compiler that has its library source:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc cargo build -p kvmi-guests --bins --release -Zbuild-std=core --target x86_64-unknown-none
//! ```
//!
//! `build.rs` gives the linker script; `.cargo/config.toml` names the linker and the relocation model. One static ELF64 per
//! program comes out in `target/x86_64-unknown-none/release`. Built for the host the programs are empty, so that lints see them and this
//! library serves the VMM and the scenarios.

#![no_std]

#[macro_use]
mod numbered;

mod access;
pub mod layout;
mod mailbox;
mod nested;
pub mod protected;
mod routine;
#[cfg(target_arch = "x86_64")]
pub mod runtime;

pub use access::Access;
pub use mailbox::{DescriptorOp, Mailbox, MemoryOp, Op, RepeatOp, Slot, StoreOp};
pub use nested::{Level, NestedOp, Operand};
pub use routine::Routine;

/// The port to which a guest writes text for the VMM's log, a byte at a time.
pub const CONSOLE_PORT: u16 = 0x3f8;

/// The port by which a guest marks an instant: the VMM notes the time of each 32-bit write and its value. Reading it gives
/// how often it was read before, 32 bits each time.
pub const MARK_PORT: u16 = 0x500;

/// The interrupt that tells a halted vCPU that its slot holds a new command.
pub const DOORBELL_VECTOR: u8 = 0x40;

/// A vector whose handler does nothing but count ([`Slot::counted_interrupts`]): for INT n and for interrupts of the VMM's.
pub const COUNTED_VECTOR: u8 = 0x30;

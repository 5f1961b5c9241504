// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What stands before the data of a message.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::VcpuEventArch;

/// Begins each message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsgHdr {
    /// What it is: an id of [`crate::msg`].
    pub id: u16,
    /// Bytes of payload after this header, at most [`crate::MAX_PAYLOAD`].
    pub size: u16,
    /// Chosen by the tool for a command, by the kernel for an event; the answer carries the same.
    pub seq: u32,
}

/// Begins the payload of each reply to a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorCode {
    /// 0 or a negated value of [`crate::error`].
    pub err: i32,
    /// Zero.
    pub pad: u32,
}

/// Begins the payload of each vCPU command and of each reply to a vCPU event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuHdr {
    /// Index of the vCPU, not its APIC id.
    pub vcpu: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// Begins the payload of each event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventHdr {
    /// Which event: an id of [`crate::event`].
    pub event: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// State of the vCPU, in each vCPU event after [`EventHdr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuEvent {
    /// Bytes of this structure (544); event data begins after so many, also in later versions.
    pub size: u16,
    /// Index of the vCPU that the event is about.
    pub vcpu: u16,
    /// Zero.
    pub pad: u32,
    /// Registers as the event found them.
    pub arch: VcpuEventArch,
}

/// The tool's decision, after [`VcpuHdr`] in the reply to a vCPU event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuEventReply {
    /// One of [`crate::event::CONTINUE`], [`crate::event::RETRY`], [`crate::event::CRASH`].
    pub action: u8,
    /// Id of the event that is answered; another one than was sent closes the connection (P14).
    pub event: u8,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

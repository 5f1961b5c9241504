// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What stands before the data of a message.

use crate::{VcpuEventArch, layout::structs};

structs! {
    /// Begins each message.
    pub struct MsgHdr = kvmi_msg_hdr, 8 {
        /// What it is: an id of [`crate::msg`].
        pub id: u16,
        /// Bytes of payload after this header, at most [`crate::MAX_PAYLOAD`].
        pub size: u16,
        /// Chosen by the tool for a command, by the kernel for an event; the answer carries the same.
        pub seq: u32,
    }

    /// Begins the payload of each reply to a command.
    pub struct ErrorCode = kvmi_error_code, 8 {
        /// 0 or a negated value of [`crate::error`].
        pub err: i32,
        /// Zero.
        pub pad: u32,
    }

    /// Begins the payload of each vCPU command and of each reply to a vCPU event.
    pub struct VcpuHdr = kvmi_vcpu_hdr, 8 {
        /// Index of the vCPU, not its APIC id.
        pub vcpu: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Begins the payload of each event.
    pub struct EventHdr = kvmi_event_hdr, 8 {
        /// Which event: an id of [`crate::event`].
        pub event: u16,
        /// Zero.
        pub pad: [u16; 3],
    }

    /// State of the vCPU, in each vCPU event after [`EventHdr`].
    pub struct VcpuEvent = kvmi_vcpu_event, 544 {
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
    pub struct VcpuEventReply = kvmi_vcpu_event_reply, 8 {
        /// One of [`crate::event::CONTINUE`], [`crate::event::RETRY`], [`crate::event::CRASH`].
        pub action: u8,
        /// Id of the event that is answered; another one than was sent closes the connection (P14).
        pub event: u8,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }
}

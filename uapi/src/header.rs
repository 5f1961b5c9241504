// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What stands before the data of a message.

use crate::{Regs, Sregs, layout::structs};

structs! {
    /// Begins each message.
    pub struct MsgHdr = kvmi_msg_hdr, 8 {
        /// What it is: a message id.
        pub id: u16,
        /// Bytes of payload after this header, at most [`crate::MAX_PAYLOAD`].
        pub size: u16,
        /// Chosen by the tool for a command, by the kernel for an event; the answer carries the same.
        pub seq: u32,
    }

    /// Begins the payload of each reply to a command.
    pub struct ErrorCode = kvmi_error_code, 8 {
        /// 0, or an error value, negated.
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
        /// Which event, by its id.
        pub event: u16,
        /// Zero.
        pub pad: [u16; 3],
    }

    /// The x86 part of each vCPU event, 536 bytes.
    pub struct VcpuEventArch = kvmi_vcpu_event_arch, 536 {
        /// Operand mode in bytes: 2, 4 or 8.
        pub mode: u8,
        /// Zero.
        pub pad: [u8; 7],
        /// General registers.
        pub regs: Regs,
        /// Special registers.
        pub sregs: Sregs,
        /// MSR SYSENTER_CS.
        pub sysenter_cs: u64,
        /// MSR SYSENTER_ESP.
        pub sysenter_esp: u64,
        /// MSR SYSENTER_EIP.
        pub sysenter_eip: u64,
        /// MSR EFER.
        pub efer: u64,
        /// MSR STAR.
        pub star: u64,
        /// MSR LSTAR.
        pub lstar: u64,
        /// MSR CSTAR.
        pub cstar: u64,
        /// MSR PAT.
        pub pat: u64,
        /// MSR KERNEL_GS_BASE.
        pub shadow_gs: u64,
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

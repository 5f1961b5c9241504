// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What the tool may answer to events, and the data that they carry. Ids and what belongs to them: [`crate::table`].

use crate::layout::{constants, structs};

pub use crate::table::event_ids::*;

constants! {
    /// Actions: what the tool may answer to a vCPU event.
    ACTIONS:

    /// Complete what the guest was about to do, with the value of the reply where there is one.
    KVMI_EVENT_ACTION_CONTINUE = CONTINUE: u8 = 0;
    /// Do nothing more: enter the guest at its RIP.
    KVMI_EVENT_ACTION_RETRY = RETRY: u8 = 1;
    /// The vCPU executes nothing more until UNHOOK; `KVM_RUN` returns `KVM_EXIT_SHUTDOWN` each time (P2).
    KVMI_EVENT_ACTION_CRASH = CRASH: u8 = 2;
}

constants! {
    /// The guest's signal to the tool.
    HYPERCALL_REGISTERS:

    /// Number of the hypercall that is a signal to the tool: RAX or EAX.
    KVMI_HYPERCALL_NUMBER = HYPERCALL_NUMBER: u64 = 34;
    /// Its first argument: RDI or EBX. The second, RSI or ECX, is 0.
    KVMI_HYPERCALL_GUEST_REQUEST = HYPERCALL_GUEST_REQUEST: u64 = 24;
}

constants! {
    /// Registers that DESCRIPTOR is about.
    DESCRIPTORS:

    /// SIDT, LIDT.
    KVMI_DESCRIPTOR_IDTR = DESCRIPTOR_IDTR: u8 = 1;
    /// SGDT, LGDT.
    KVMI_DESCRIPTOR_GDTR = DESCRIPTOR_GDTR: u8 = 2;
    /// SLDT, LLDT.
    KVMI_DESCRIPTOR_LDTR = DESCRIPTOR_LDTR: u8 = 3;
    /// STR, LTR.
    KVMI_DESCRIPTOR_TR = DESCRIPTOR_TR: u8 = 4;
}

structs! {
    /// Data of BREAKPOINT.
    pub struct Breakpoint = kvmi_vcpu_event_breakpoint, 16 {
        /// Guest physical address of the instruction.
        pub gpa: u64,
        /// Length of the instruction in bytes: 1 (0xcc), more with prefixes; 0xcd 0x03 is a software interrupt to both
        /// vendors and raises no event.
        pub insn_len: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// Data of CR.
    pub struct Cr = kvmi_vcpu_event_cr, 24 {
        /// Which register: 0, 3 or 4.
        pub cr: u8,
        /// Zero.
        pub pad: [u8; 7],
        /// Value before.
        pub old_value: u64,
        /// Value that the guest writes.
        pub new_value: u64,
    }

    /// Data of the reply to CR.
    pub struct CrReply = kvmi_vcpu_event_cr_reply, 8 {
        /// Value to be taken instead, validated as if the guest wrote it (P7).
        pub new_val: u64,
    }

    /// Data of TRAP.
    pub struct Trap = kvmi_vcpu_event_trap, 16 {
        /// Vector.
        pub nr: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u16,
        /// Error code, if the exception has one.
        pub error_code: u32,
        /// CR2, for a page fault.
        pub address: u64,
    }

    /// Data of XSETBV.
    pub struct Xsetbv = kvmi_vcpu_event_xsetbv, 24 {
        /// Which register: 0.
        pub xcr: u8,
        /// Zero.
        pub pad: [u8; 7],
        /// Value before.
        pub old_value: u64,
        /// Value that is in place now.
        pub new_value: u64,
    }

    /// Data of DESCRIPTOR.
    pub struct Descriptor = kvmi_vcpu_event_descriptor, 8 {
        /// Which register: KVMI_DESCRIPTOR_*.
        pub descriptor: u8,
        /// 0: the guest reads it; 1: the guest loads it.
        pub write: u8,
        /// Zero.
        pub pad: [u8; 6],
    }

    /// Data of MSR.
    pub struct Msr = kvmi_vcpu_event_msr, 24 {
        /// Which MSR.
        pub msr: u32,
        /// Zero.
        pub pad: u32,
        /// Value before.
        pub old_value: u64,
        /// Value that the guest writes.
        pub new_value: u64,
    }

    /// Data of the reply to MSR.
    pub struct MsrReply = kvmi_vcpu_event_msr_reply, 8 {
        /// Value to be taken instead, validated as if the guest wrote it (P7).
        pub new_val: u64,
    }

    /// Data of PF.
    pub struct Pf = kvmi_vcpu_event_pf, 24 {
        /// Guest virtual address, all ones when unknown.
        pub gva: u64,
        /// Guest physical address.
        pub gpa: u64,
        /// The kind of access: one bit of KVMI_PAGE_ACCESS_*.
        pub access: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u16,
        /// Zero.
        pub pad3: u32,
    }

    /// Data of SINGLESTEP.
    pub struct Singlestep = kvmi_vcpu_event_singlestep, 8 {
        /// Always 0; in v12 it is 1 when another exit came first.
        pub failed: u8,
        /// Zero.
        pub pad: [u8; 7],
    }
}

// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Event ids, what the tool may answer, and the data that events carry.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VM event: the VMM asks the tool to undo its hooks and close.
pub const UNHOOK: u16 = 0;
/// Answer to VM_PAUSE_VCPU.
pub const PAUSE: u16 = 1;
/// The guest signals to the tool.
pub const HYPERCALL: u16 = 3;
/// The guest executed int3.
pub const BREAKPOINT: u16 = 5;
/// The guest changes a control register.
pub const CR: u16 = 7;
/// What became of an injected exception.
pub const TRAP: u16 = 9;
/// The guest changed XCR0.
pub const XSETBV: u16 = 11;
/// The guest touches a descriptor table register.
pub const DESCRIPTOR: u16 = 13;
/// The guest changes an MSR.
pub const MSR: u16 = 15;
/// The guest touches a restricted page.
pub const PF: u16 = 17;
/// The guest executed one instruction.
pub const SINGLESTEP: u16 = 19;

/// Every event with its name.
pub const ALL: &[(u16, &str)] = &[
    (UNHOOK, "UNHOOK"),
    (PAUSE, "PAUSE"),
    (HYPERCALL, "HYPERCALL"),
    (BREAKPOINT, "BREAKPOINT"),
    (CR, "CR"),
    (TRAP, "TRAP"),
    (XSETBV, "XSETBV"),
    (DESCRIPTOR, "DESCRIPTOR"),
    (MSR, "MSR"),
    (PF, "PF"),
    (SINGLESTEP, "SINGLESTEP"),
];

/// Action: go on as if the tool were not there, with the values of the reply.
pub const CONTINUE: u8 = 0;
/// Action: enter the guest again at its RIP.
pub const RETRY: u8 = 1;
/// Action: the guest runs no further instruction; the VMM sees a shutdown (P2).
pub const CRASH: u8 = 2;

/// The hypercall that is a signal to the tool: number in RAX (EAX).
pub const HYPERCALL_NUMBER: u64 = 34;
/// The hypercall that is a signal to the tool: first argument, RDI (EBX); the second is 0.
pub const HYPERCALL_GUEST_REQUEST: u64 = 24;

/// DESCRIPTOR is about IDTR.
pub const DESCRIPTOR_IDTR: u8 = 1;
/// DESCRIPTOR is about GDTR.
pub const DESCRIPTOR_GDTR: u8 = 2;
/// DESCRIPTOR is about LDTR.
pub const DESCRIPTOR_LDTR: u8 = 3;
/// DESCRIPTOR is about TR.
pub const DESCRIPTOR_TR: u8 = 4;

/// Data of BREAKPOINT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Breakpoint {
    /// Guest physical address of the instruction.
    pub gpa: u64,
    /// Length of the instruction in bytes: 1 (0xcc), more with prefixes; 0xcd 0x03 is a software interrupt to both vendors and raises no event.
    pub insn_len: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Data of CR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cr {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CrReply {
    /// Value to be taken instead, validated as if the guest wrote it (P7).
    pub new_val: u64,
}

/// Data of TRAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Trap {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Xsetbv {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Which register: [`DESCRIPTOR_IDTR`] and so on.
    pub descriptor: u8,
    /// 0: the guest reads it; 1: the guest loads it.
    pub write: u8,
    /// Zero.
    pub pad: [u8; 6],
}

/// Data of MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Msr {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsrReply {
    /// Value to be taken instead, validated as if the guest wrote it (P7).
    pub new_val: u64,
}

/// Data of PF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Pf {
    /// Guest virtual address, all ones when unknown.
    pub gva: u64,
    /// Guest physical address.
    pub gpa: u64,
    /// One access bit of [`crate::PageAccessEntry`]: the kind of access.
    pub access: u8,
    /// Zero.
    pub pad1: u8,
    /// Zero.
    pub pad2: u16,
    /// Zero.
    pub pad3: u32,
}

/// Data of SINGLESTEP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Singlestep {
    /// 1 when another exit came before the instruction was through.
    pub failed: u8,
    /// Zero.
    pub pad: [u8; 7],
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page of memory by which a scenario and a guest talk.

use core::mem::{offset_of, size_of};
use core::sync::atomic::AtomicU64;

use crate::layout;

/// What one vCPU and the scenario say to each other. All fields are zero at the start.
#[repr(C, align(256))]
#[derive(Debug, Default)]
pub struct Slot {
    /// Scenario: how many commands it has given; a change is a new command.
    pub rung: AtomicU64,
    /// Scenario: what to do, an [`Op`] of the program.
    pub op: AtomicU64,
    /// Scenario: the command's arguments.
    pub args: [AtomicU64; 4],
    /// Guest: the last value of `rung` whose command is finished.
    pub done: AtomicU64,
    /// Guest: the result of that command.
    pub result: AtomicU64,
    /// Guest: 1 once the vCPU's interrupt handling is set up and commands are served.
    pub ready: AtomicU64,
    /// Guest: rounds of the program's own loop, or wakes.
    pub counter: AtomicU64,
    /// Guest: hypercalls done.
    pub hypercalls: AtomicU64,
    /// Guest: hypercalls that returned something else than 0.
    pub hypercalls_refused: AtomicU64,
    /// Guest: #BP taken.
    pub breakpoints: AtomicU64,
    /// Guest: RIP that the last #BP pushed.
    pub breakpoint_rip: AtomicU64,
    /// Guest: #GP taken.
    pub protection_faults: AtomicU64,
    /// Guest: control register writes done.
    pub cr_writes: AtomicU64,
    /// Guest: how often the function at [`Slot::target`] ran to its end.
    pub target_runs: AtomicU64,
    /// Guest: address of a function whose first instruction is one byte long, for a tool to plant an int3 on. Of the program `steps`: a table of
    /// two addresses for each routine, its own and that of its list.
    pub target: AtomicU64,
    /// Guest: 256 + vector of an exception that the program did not expect, after which it halts for good; else 0.
    pub unexpected: AtomicU64,
    /// Guest: RIP of that exception.
    pub unexpected_rip: AtomicU64,
    /// Guest: where the #GP handler resumes; 0 if no fault is expected.
    pub resume: AtomicU64,
    /// Guest: interrupts of [`crate::COUNTED_VECTOR`] taken.
    pub counted_interrupts: AtomicU64,
    /// Guest: RIP that the last of them pushed.
    pub counted_rip: AtomicU64,
    /// Guest: RDI after the last hypercall.
    pub hypercall_rdi: AtomicU64,
    /// Scenario: bit n lets the guest take exception n, note it in the next five and go on where it was.
    pub tolerated: AtomicU64,
    /// Guest: exceptions taken that are tolerated.
    pub exceptions: AtomicU64,
    /// Guest: vector of the last of them.
    pub exception: AtomicU64,
    /// Guest: its error code, 0 for one without.
    pub exception_error_code: AtomicU64,
    /// Guest: CR2 when it came.
    pub exception_cr2: AtomicU64,
    /// Guest: RIP that it pushed.
    pub exception_rip: AtomicU64,
}

/// The mailbox: one slot for each vCPU.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Mailbox {
    /// Slots by vCPU index.
    pub slots: [Slot; layout::MAX_VCPUS + 1],
}

impl Slot {
    /// Guest physical address of the field at `offset` in the slot of vCPU `index`.
    #[must_use]
    pub const fn field_gpa(index: usize, offset: usize) -> u64 {
        layout::MAILBOX + offset_of!(Mailbox, slots) as u64 + (index * size_of::<Self>() + offset) as u64
    }
}

const _: () = assert!(size_of::<Slot>() == 256);
const _: () = assert!(size_of::<Mailbox>() == 4096);

numbered! {
    /// Commands of the programs. Which program knows which is said in its documentation.
    pub enum Op {
        /// Hypercall with RAX, RDI, RSI from the arguments; the result is RAX after it.
        Hypercall = 1,
        /// Executes an int3 of the program's own.
        Int3 = 2,
        /// Calls the function at [`Slot::target`] as often as argument 0 says.
        CallTarget = 3,
        /// Writes argument 1 to the control register that argument 0 names, reads it back as the result; #GP is counted and skipped.
        WriteCr = 4,
        /// Works on memory; argument 0 is a [`MemoryOp`], 1 a gpa, 2 a count of 8-byte words, 3 a value.
        Memory = 5,
        /// Executes CPUID as often as argument 0 says, between two writes to [`crate::MARK_PORT`] (1, then 2).
        Cpuid = 6,
        /// Reads the control register that argument 0 names.
        ReadCr = 7,
        /// Runs rounds of the storm until as many are done in all as argument 0 says; it is read again before each round, so that a scenario
        /// can end a storm by lowering it.
        Storm = 8,
        /// Nothing: the vCPU wakes up, answers 0 and sleeps again. Every program but `counter` knows it.
        Nothing = 9,
        /// Executes INT n in its two-byte form, n being argument 0 (3 or [`crate::COUNTED_VECTOR`]), as often as argument 1 says; the result is
        /// the address behind the instruction.
        SoftwareInterrupt = 10,
        /// Writes argument 0 to the interrupt command register of the x2APIC.
        SendIpi = 11,
        /// LMSW with argument 0; the result is CR0 after it; #GP is counted and skipped.
        Lmsw = 12,
        /// Reads 32 bits at argument 1 through the page directory pointer table at argument 0, under PAE paging; the result is what it read.
        ReadByPae = 13,
        /// Writes argument 1 to the MSR of argument 0; behind KVM's prefix for emulation if argument 2 is not 0; #GP is counted and skipped.
        WriteMsr = 14,
        /// Reads the MSR of argument 0.
        ReadMsr = 15,
        /// Writes argument 0 to XCR0, behind KVM's prefix for emulation if argument 1 is not 0; the result is XCR0 after it; #GP is counted and
        /// skipped.
        WriteXcr0 = 16,
        /// Puts argument 0 into the low half of XMM3.
        WriteXmm = 17,
        /// The low half of XMM3.
        ReadXmm = 18,
        /// Executes the instruction that argument 0, a [`DescriptorOp`], names; the result is what it stores, 0 for a load.
        Descriptor = 19,
        /// Executes what argument 0, a [`RepeatOp`], names as often as argument 1 says; the result is a value that shows the last time.
        Repeat = 20,
        /// Does what argument 0, a [`crate::NestedOp`], names, with argument 1; argument 2 is the [`crate::Level`] that does
        /// it; an INT3 before the entry into a guest and one after it if argument 3 is not 0.
        Nested = 21,
        /// Puts argument 0 into the third quarter of YMM3.
        WriteYmm = 22,
        /// The third quarter of YMM3.
        ReadYmm = 23,
        /// Executes in ring 3 the instruction that argument 0, a [`StoreOp`], names; the result is what it stores, or 0 after #GP, which is
        /// counted.
        StoreInRing3 = 24,
        /// Executes an instruction of a hypervisor's that has an operand in memory; argument 0 is a [`crate::Operand`], 1 an address.
        HypervisorOperand = 25,
        /// As [`Op::Hypercall`], with interrupts off before an STI right before it: in the shadow of that.
        ShadowedHypercall = 26,
        /// Accesses memory; argument 0 is an [`crate::Access`], 1 an address, the others what it says.
        Access = 40,
        /// Calls the [`crate::Routine`] that argument 0 names, with argument 1; its result.
        Step = 60,
    }
}

/// What [`Op::Memory`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum MemoryOp {
    /// Writes value + index into each word.
    Fill = 0,
    /// Adds all words up, wrapping; the sum is the result.
    Sum = 1,
}

numbered! {
    /// What [`Op::Descriptor`] executes.
    #[allow(missing_docs, reason = "each is an instruction's name")]
    pub enum DescriptorOp {
        Sgdt = 0,
        Sidt = 1,
        Sldt = 2,
        Str = 3,
        Lgdt = 4,
        Lidt = 5,
        Lldt = 6,
        Ltr = 7,
    }
}

numbered! {
    /// What [`Op::StoreInRing3`] executes: what CR4.UMIP keeps from ring 3.
    #[allow(missing_docs, reason = "each is an instruction's name")]
    pub enum StoreOp {
        Sgdt = 0,
        Sidt = 1,
        Sldt = 2,
        Str = 3,
        Smsw = 4,
    }
}

numbered! {
    /// What [`Op::Repeat`] executes: by itself none of it leaves the guest.
    pub enum RepeatOp {
        /// WRMSR of KERNEL_GS_BASE with the number of the round; the result is what it holds.
        KernelGsBase = 0,
        /// SGDT; the result is the base.
        Sgdt = 1,
        /// MOV to CR3, of one root and the other in turn; the result is what it holds.
        Cr3 = 2,
        /// INT3; the result is how many #BP the guest has taken in all.
        Int3 = 3,
    }
}

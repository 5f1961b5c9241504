// SPDX-License-Identifier: MIT OR Apache-2.0
//! The routines of the program `steps`.

/// What [`crate::Op::Step`] calls; it is argument 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Routine {
    /// No branch but forward ones; the result is 16.
    Straight = 0,
    /// PUSHF and POPF; the result is the flags that they showed, and CF as POPF set it in bit 32.
    Flags = 1,
    /// IRET; the result is the flags behind it.
    Iret = 2,
    /// SYSRET to ring 3 and SYSCALL back; the result is all flags that were seen or saved.
    Syscall = 3,
    /// MOV SS.
    MovSs = 4,
    /// STI.
    Sti = 5,
    /// REP STOSB, three times, 8 bytes above argument 1; the result is RCX.
    Rep = 6,
    /// #GP at the second instruction.
    Fault = 7,
    /// INT3, and INT with [`crate::COUNTED_VECTOR`].
    Interrupts = 8,
    /// CPUID, OUT, IN, RDMSR, MOV from CR3; the result is CR3.
    Exits = 9,
    /// HLT.
    Halt = 10,
    /// POPF sets TF; the result is 2: one #DB, in whose frame TF was set. Bit 8 is TF behind it.
    TrapFlag = 11,
    /// Writes 7 to argument 1; the result is what it reads there.
    Store = 12,
    /// ICEBP; the result is 1: one #DB, in whose frame TF was not set.
    Icebp = 13,
    /// Writes 0x200 to SYSCALL_MASK and 0x300 again; the result is what it held in between.
    SyscallMask = 14,
    /// Sets BS in DR6, and clears it again; the result is what it held, the second in the upper half.
    DebugStatus = 15,
    /// In 32-bit code without paging: a far CALL to a segment with another base, which KVM emulates, its stack ending at argument 1; the
    /// result is 2.
    FarCall = 16,
    /// PUSHF and POPF in virtual-8086 mode, PUSHF with IOPL 0 first; the result is 1, one #GP, and from bit 16 on the flags that it showed.
    Virtual8086 = 17,
    /// CALL of a task and IRET from it; the result is 2.
    TaskSwitch = 18,
    /// #NP, whose gate leads to a task; the result is 1 more than the error code, which is [`crate::protected::ABSENT`].
    TaskGate = 19,
    /// VMOVDQU to argument 1 and back, and others of AVX; the result is what it has put into each quarter of the register.
    Avx = 20,
    /// A store to argument 1, where the guest has a breakpoint; the result is 1, one #DB, and in the upper half DR6.
    DataBreakpoint = 21,
}

impl Routine {
    /// How many there are.
    pub const COUNT: usize = 22;
}

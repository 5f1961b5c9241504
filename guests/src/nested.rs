// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the program `nested` does, and where.

numbered! {
    /// What [`crate::Op::Nested`] does; it is argument 0.
    pub enum NestedOp {
        /// Nothing but to be there; the result is 1.
        Nothing = 0,
        /// INT3; the result is how many #BP the vCPU has taken in all.
        Int3 = 1,
        /// Writes [`crate::layout::OTHER_ROOT`] to CR3, then the root again, as often as argument 1 says; the result is what CR3
        /// held in between.
        Cr3 = 2,
        /// Writes argument 1 to KERNEL_GS_BASE; the result is what it holds.
        KernelGsBase = 3,
        /// SGDT as often as argument 1 says; the result is the base.
        Sgdt = 4,
        /// Writes 7 to the word at argument 1; the result is what it reads there.
        Store = 5,
        /// Writes 1 to the word at argument 1, then waits until it is 2; the result is 2.
        Wait = 6,
    }
}

numbered! {
    /// What [`crate::Op::HypervisorOperand`] executes, once, with memory at argument 1, the start of a page; it is argument 0.
    pub enum Operand {
        /// Nothing: fills the page with what the others read there. On Intel the address of a VMCS, and zeros behind it; on AMD a VMCB. The
        /// result is the first word.
        Prepare = 0,
        /// VMPTRST; the result is the address of the current VMCS.
        Vmptrst = 1,
        /// VMPTRLD.
        Vmptrld = 2,
        /// VMCLEAR.
        Vmclear = 3,
        /// VMREAD; the result is what the field holds.
        Vmread = 4,
        /// VMWRITE; the result is what the field holds afterwards.
        Vmwrite = 5,
        /// INVEPT of all contexts.
        Invept = 6,
        /// INVVPID of all contexts.
        Invvpid = 7,
        /// VMSAVE.
        Vmsave = 20,
        /// VMLOAD.
        Vmload = 21,
        /// VMRUN of a guest that makes its hypercall; 1 if it did.
        Vmrun = 22,
    }
}

numbered! {
    /// Who does it; argument 2 of [`crate::Op::Nested`].
    pub enum Level {
        /// The program itself.
        Own = 0,
        /// A guest of the program's, whose guest physical memory is the program's own.
        Nested = 1,
        /// A guest of the program's behind EPT or NPT of the program's.
        NestedPaging = 2,
    }
}

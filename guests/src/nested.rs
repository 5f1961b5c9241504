// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the program `nested` does, and where.

numbered! {
    /// What [`crate::Op::Nested`] does; it is argument 0.
    pub enum Deed {
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

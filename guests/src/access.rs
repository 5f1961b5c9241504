// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways in which the program `accesses` accesses memory.

numbered! {
    /// What [`crate::Op::Access`] does; it is argument 0, argument 1 an address.
    pub enum Access {
        /// Reads 8 bytes; they are the result.
        Read = 0,
        /// Writes argument 2, 8 bytes.
        Write = 1,
        /// Adds argument 2 to 8 bytes in one instruction, argument 3 times.
        Add = 2,
        /// The same, locked; the result is what the last one found.
        LockedAdd = 3,
        /// CMPXCHG16B, locked, of 16 bytes of zeros with argument 2; 1 if it exchanged them.
        CompareExchange = 4,
        /// REP MOVSB of argument 3 bytes from argument 2.
        Copy = 5,
        /// REP STOSQ of argument 2, argument 3 times.
        Fill = 6,
        /// MOVDQU of 16 bytes, both halves argument 2.
        StoreSse = 7,
        /// MOVDQU to XMM, and its lower half as the result.
        LoadSse = 8,
        /// PUSH of argument 2 with RSP at the address.
        Push = 9,
        /// CALL of the address; RAX is the result.
        Call = 10,
        /// INT with [`crate::COUNTED_VECTOR`] with RSP at the address.
        Interrupt = 11,
        /// CALL of argument 2 with RSP at the address.
        CallOnStack = 12,
        /// REP OUTSD of argument 2 words to [`crate::MARK_PORT`].
        Output = 13,
        /// SGDT, 10 bytes.
        StoreGdt = 14,
        /// LGDT of what SGDT has stored there.
        LoadGdt = 15,
        /// REP INSD of argument 2 words from [`crate::MARK_PORT`].
        Input = 16,
        /// Adds argument 2 to 8 bytes in one instruction, which KVM emulates: it stands behind the prefix for that.
        AddEmulated = 17,
        /// REP MOVSB of argument 3 bytes from argument 2, emulated in the same way.
        CopyEmulated = 18,
        /// CALL far through memory. At the address are four: of a `call far [rax]`, of the 10 bytes that it reads, RSP, and what LGDT loads.
        CallFar = 19,
        /// VMOVDQU of 32 bytes, each quarter argument 2.
        StoreAvx = 20,
        /// VMOVDQU to YMM, and its highest quarter as the result.
        LoadAvx = 21,
        /// VMASKMOVPD of the lower half of 32 bytes, each quarter argument 2.
        StoreHalf = 22,
        /// VMASKMOVPD from the lower half of 32 bytes, and the quarter at their address as the result.
        LoadHalf = 23,
        /// PUSH of the 8 bytes at argument 2 with RSP at the address; what RSP is then is the result.
        PushFrom = 24,
        /// CALL of the address that the 8 bytes at argument 2 are, with RSP at the address; what RSP is behind it is the result.
        CallThrough = 25,
    }
}

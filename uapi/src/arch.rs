// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! x86 state as `<linux/kvm.h>` lays it out (struct kvm_regs and its neighbours).

use crate::layout::structs;

structs! {
    /// General registers: struct kvm_regs, 144 bytes.
    pub struct Regs = kvm_regs, 144 {
        /// RAX.
        pub rax: u64,
        /// RBX.
        pub rbx: u64,
        /// RCX.
        pub rcx: u64,
        /// RDX.
        pub rdx: u64,
        /// RSI.
        pub rsi: u64,
        /// RDI.
        pub rdi: u64,
        /// RSP.
        pub rsp: u64,
        /// RBP.
        pub rbp: u64,
        /// R8.
        pub r8: u64,
        /// R9.
        pub r9: u64,
        /// R10.
        pub r10: u64,
        /// R11.
        pub r11: u64,
        /// R12.
        pub r12: u64,
        /// R13.
        pub r13: u64,
        /// R14.
        pub r14: u64,
        /// R15.
        pub r15: u64,
        /// RIP.
        pub rip: u64,
        /// RFLAGS.
        pub rflags: u64,
    }

    /// A segment register: struct kvm_segment, 24 bytes.
    pub struct Segment = kvm_segment, 24 {
        /// Linear address.
        pub base: u64,
        /// Last valid offset, in bytes.
        pub limit: u32,
        /// Visible part.
        pub selector: u16,
        /// Descriptor type, 4 bits.
        pub type_: u8,
        /// Descriptor bit P.
        pub present: u8,
        /// Descriptor privilege level.
        pub dpl: u8,
        /// Descriptor bit D/B.
        pub db: u8,
        /// Descriptor bit S: code or data rather than system.
        pub s: u8,
        /// Descriptor bit L: 64-bit code.
        pub l: u8,
        /// Descriptor bit G.
        pub g: u8,
        /// Descriptor bit AVL.
        pub avl: u8,
        /// 1 when the register holds no segment.
        pub unusable: u8,
        /// Zero.
        pub padding: u8,
    }

    /// GDTR or IDTR: struct kvm_dtable, 16 bytes.
    pub struct Dtable = kvm_dtable, 16 {
        /// Linear address.
        pub base: u64,
        /// Last valid offset, in bytes.
        pub limit: u16,
        /// Zero.
        pub padding: [u16; 3],
    }

    /// Special registers: struct kvm_sregs, 312 bytes.
    pub struct Sregs = kvm_sregs, 312 {
        /// CS.
        pub cs: Segment,
        /// DS.
        pub ds: Segment,
        /// ES.
        pub es: Segment,
        /// FS.
        pub fs: Segment,
        /// GS.
        pub gs: Segment,
        /// SS.
        pub ss: Segment,
        /// Task register.
        pub tr: Segment,
        /// LDTR.
        pub ldt: Segment,
        /// GDTR.
        pub gdt: Dtable,
        /// IDTR.
        pub idt: Dtable,
        /// CR0.
        pub cr0: u64,
        /// CR2.
        pub cr2: u64,
        /// CR3.
        pub cr3: u64,
        /// CR4.
        pub cr4: u64,
        /// CR8.
        pub cr8: u64,
        /// MSR EFER.
        pub efer: u64,
        /// MSR APIC_BASE.
        pub apic_base: u64,
        /// Bit n: interrupt vector n waits for injection.
        pub interrupt_bitmap: [u64; 4],
    }

    /// One MSR and its value: struct kvm_msr_entry, 16 bytes.
    pub struct MsrEntry = kvm_msr_entry, 16 {
        /// Which MSR.
        pub index: u32,
        /// Zero.
        pub reserved: u32,
        /// Its value.
        pub data: u64,
    }

    /// Head of struct kvm_msrs; so many [`MsrEntry`] follow.
    pub struct MsrsHdr = kvm_msrs, 8 {
        /// Number of entries that follow.
        pub nmsrs: u32,
        /// Zero.
        pub pad: u32,
    }

    /// Extended state: the fixed part of struct kvm_xsave, 4096 bytes.
    pub struct Xsave = kvm_xsave, 4096 {
        /// XSAVE area in the layout of CPUID leaf 0xd of the host.
        pub region: [u32; 1024],
    }
}

// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Requests and replies of vCPU commands, without the headers that precede them.
//!
//! VCPU_SET_REGISTERS takes [`Regs`] as they are, VCPU_GET_XSAVE and VCPU_SET_XSAVE move [`crate::Xsave`].

use crate::{MsrsHdr, Regs, Sregs, layout::structs};

structs! {
    /// Reply to VCPU_GET_INFO.
    pub struct VcpuGetInfoReply = kvmi_vcpu_get_info_reply, 8 {
        /// Guest TSC frequency in Hz; 0 when the CPU cannot control it.
        pub tsc_speed: u64,
    }

    /// Request of VCPU_CONTROL_EVENTS.
    pub struct VcpuControlEvents = kvmi_vcpu_control_events, 8 {
        /// A vCPU event, by its id.
        pub event_id: u16,
        /// 1: send it, 0: do not.
        pub enable: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u32,
    }

    /// Head of VCPU_GET_REGISTERS; so many u32 MSR indices follow.
    pub struct VcpuGetRegisters = kvmi_vcpu_get_registers, 8 {
        /// Number of MSRs, at most [`crate::MAX_MSRS`].
        pub nmsrs: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Head of the reply to VCPU_GET_REGISTERS; `msrs.nmsrs` entries of [`crate::MsrEntry`] follow.
    pub struct VcpuGetRegistersReply = kvmi_vcpu_get_registers_reply, 472 {
        /// Operand mode in bytes: 2, 4 or 8.
        pub mode: u32,
        /// Zero.
        pub pad: u32,
        /// General registers.
        pub regs: Regs,
        /// Special registers.
        pub sregs: Sregs,
        /// How many MSRs follow.
        pub msrs: MsrsHdr,
    }

    /// Request of VCPU_GET_CPUID.
    pub struct VcpuGetCpuid = kvmi_vcpu_get_cpuid, 8 {
        /// Leaf.
        pub function: u32,
        /// Sub-leaf.
        pub index: u32,
    }

    /// Reply to VCPU_GET_CPUID.
    pub struct VcpuGetCpuidReply = kvmi_vcpu_get_cpuid_reply, 16 {
        /// EAX.
        pub eax: u32,
        /// EBX.
        pub ebx: u32,
        /// ECX.
        pub ecx: u32,
        /// EDX.
        pub edx: u32,
    }

    /// Request of VCPU_CONTROL_CR.
    pub struct VcpuControlCr = kvmi_vcpu_control_cr, 8 {
        /// Which register: 0, 3 or 4.
        pub cr: u8,
        /// 1: its changes are CR events, 0: they are not.
        pub enable: u8,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Request of VCPU_INJECT_EXCEPTION.
    pub struct VcpuInjectException = kvmi_vcpu_inject_exception, 16 {
        /// Vector.
        pub nr: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u16,
        /// Used if the exception has an error code.
        pub error_code: u32,
        /// CR2, for a page fault.
        pub address: u64,
    }

    /// Request of VCPU_GET_XCR.
    pub struct VcpuGetXcr = kvmi_vcpu_get_xcr, 8 {
        /// Which register: 0.
        pub xcr: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// Reply to VCPU_GET_XCR.
    pub struct VcpuGetXcrReply = kvmi_vcpu_get_xcr_reply, 8 {
        /// Value of the register.
        pub value: u64,
    }

    /// Request of VCPU_GET_MTRR_TYPE.
    pub struct VcpuGetMtrrType = kvmi_vcpu_get_mtrr_type, 8 {
        /// Guest physical address in the page that is asked about.
        pub gpa: u64,
    }

    /// Reply to VCPU_GET_MTRR_TYPE.
    pub struct VcpuGetMtrrTypeReply = kvmi_vcpu_get_mtrr_type_reply, 8 {
        /// Memory type as in MTRRs: 0, 1, 4, 5 or 6.
        pub type_: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// Request of VCPU_CONTROL_MSR.
    pub struct VcpuControlMsr = kvmi_vcpu_control_msr, 8 {
        /// 1: its changes are MSR events, 0: they are not.
        pub enable: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u16,
        /// Which MSR. At most [`crate::MAX_OTHER_MSRS`] outside of 0 to 0x1fff and 0xc0000000 to 0xc0001fff at a time.
        pub msr: u32,
    }

    /// Request of VCPU_CONTROL_SINGLESTEP.
    pub struct VcpuControlSinglestep = kvmi_vcpu_control_singlestep, 8 {
        /// 1: step, 0: run.
        pub enable: u8,
        /// 1: interrupts, NMIs and SMIs come in between, 0: they wait.
        pub interrupts: u8,
        /// Zero.
        pub pad: [u8; 6],
    }

    /// Request of VCPU_TRANSLATE_GVA.
    pub struct VcpuTranslateGva = kvmi_vcpu_translate_gva, 24 {
        /// Guest virtual address.
        pub gva: u64,
        /// The root of the page tables, as CR3 holds it, if `by_root` is 1.
        pub root: u64,
        /// 1: by the page tables at `root`, 0: by those of the current CR3.
        pub by_root: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// Reply to VCPU_TRANSLATE_GVA.
    pub struct VcpuTranslateGvaReply = kvmi_vcpu_translate_gva_reply, 8 {
        /// Guest physical address, all ones when there is no translation.
        pub gpa: u64,
    }
}

// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Requests and replies of vCPU commands, without the headers that precede them.
//!
//! VCPU_SET_REGISTERS takes [`Regs`] as they are, VCPU_GET_XSAVE and VCPU_SET_XSAVE move [`crate::Xsave`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{MsrsHdr, Regs, Sregs};

/// Reply to VCPU_GET_INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetInfoReply {
    /// Guest TSC frequency in Hz; 0 when the CPU cannot control it.
    pub tsc_speed: u64,
}

/// Request of VCPU_CONTROL_EVENTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuControlEvents {
    /// A vCPU event of [`crate::event`].
    pub event_id: u16,
    /// 1: send it, 0: do not.
    pub enable: u8,
    /// Zero.
    pub pad1: u8,
    /// Zero.
    pub pad2: u32,
}

/// Head of VCPU_GET_REGISTERS; so many u32 MSR indices follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetRegisters {
    /// Number of MSRs, at most [`crate::MAX_MSRS`].
    pub nmsrs: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
}

/// Head of the reply to VCPU_GET_REGISTERS; `msrs.nmsrs` entries of [`crate::MsrEntry`] follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetRegistersReply {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetCpuid {
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
}

/// Reply to VCPU_GET_CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetCpuidReply {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuControlCr {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuInjectException {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetXcr {
    /// Which register: 0.
    pub xcr: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Reply to VCPU_GET_XCR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetXcrReply {
    /// Value of the register.
    pub value: u64,
}

/// Request of VCPU_GET_MTRR_TYPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetMtrrType {
    /// Guest physical address in the page that is asked about.
    pub gpa: u64,
}

/// Reply to VCPU_GET_MTRR_TYPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGetMtrrTypeReply {
    /// Memory type as in MTRRs: 0, 1, 4, 5 or 6.
    pub type_: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Request of VCPU_CONTROL_MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuControlMsr {
    /// 1: its changes are MSR events, 0: they are not.
    pub enable: u8,
    /// Zero.
    pub pad1: u8,
    /// Zero.
    pub pad2: u16,
    /// Which MSR: 0 to 0x1fff or 0xc0000000 to 0xc0001fff.
    pub msr: u32,
}

/// Request of VCPU_CONTROL_SINGLESTEP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuControlSinglestep {
    /// 1: step, 0: run.
    pub enable: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Request of VCPU_TRANSLATE_GVA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuTranslateGva {
    /// Guest virtual address.
    pub gva: u64,
}

/// Reply to VCPU_TRANSLATE_GVA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuTranslateGvaReply {
    /// Guest physical address, all ones when there is no translation.
    pub gpa: u64,
}

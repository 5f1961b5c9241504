// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPU commands.

use kvmi_uapi::{
    Regs, VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuControlSinglestep, VcpuGetCpuid, VcpuGetCpuidReply,
    VcpuGetInfoReply, VcpuGetMtrrType, VcpuGetMtrrTypeReply, VcpuGetRegisters, VcpuGetRegistersReply, VcpuGetXcr,
    VcpuGetXcrReply, VcpuInjectException, VcpuTranslateGva, VcpuTranslateGvaReply, Xsave,
};

use super::{DATA, count, list, vcpu_commands};
use crate::{Message, ProtocolError, Registers};

vcpu_commands! {
    /// VCPU_GET_INFO.
    GetVcpuInfo {} = VCPU_GET_INFO, |_c| () => VcpuGetInfoReply;

    /// VCPU_CONTROL_EVENTS.
    ControlEvents {
        /// A vCPU event.
        pub event: u16,
        /// Whether it is to be sent.
        pub enable: bool,
    } = VCPU_CONTROL_EVENTS, |c| VcpuControlEvents {
        event_id: c.event,
        enable: c.enable.into(),
        ..Default::default()
    } => ();

    /// VCPU_GET_REGISTERS.
    GetRegisters<'a> {
        /// MSRs that are asked for, at most [`kvmi_uapi::MAX_MSRS`].
        pub msrs: &'a [u32],
    } = VCPU_GET_REGISTERS, |c| VcpuGetRegisters { nmsrs: count(c.msrs), ..Default::default() }, then c.msrs
        => Registers, |_c, message| registers(message);

    /// VCPU_SET_REGISTERS.
    SetRegisters {
        /// The general registers that it is to have.
        pub regs: Regs,
    } = VCPU_SET_REGISTERS, |c| c.regs => ();

    /// VCPU_GET_CPUID.
    GetCpuid {
        /// Leaf.
        pub function: u32,
        /// Sub-leaf.
        pub index: u32,
    } = VCPU_GET_CPUID, |c| VcpuGetCpuid { function: c.function, index: c.index } => VcpuGetCpuidReply;

    /// VCPU_CONTROL_CR.
    ControlCr {
        /// Which register: 0, 3 or 4.
        pub cr: u8,
        /// Whether its changes are to be events.
        pub enable: bool,
    } = VCPU_CONTROL_CR, |c| VcpuControlCr { cr: c.cr, enable: c.enable.into(), ..Default::default() } => ();

    /// VCPU_INJECT_EXCEPTION.
    InjectException {
        /// Vector.
        pub nr: u8,
        /// Used if the exception has an error code.
        pub error_code: u32,
        /// CR2, for a page fault.
        pub address: u64,
    } = VCPU_INJECT_EXCEPTION, |c| VcpuInjectException {
        nr: c.nr,
        error_code: c.error_code,
        address: c.address,
        ..Default::default()
    } => ();

    /// VCPU_GET_XCR.
    GetXcr {
        /// Which register: 0.
        pub xcr: u8,
    } = VCPU_GET_XCR, |c| VcpuGetXcr { xcr: c.xcr, ..Default::default() } => VcpuGetXcrReply;

    /// VCPU_GET_XSAVE.
    GetXsave {} = VCPU_GET_XSAVE, |_c| () => Box<Xsave>, |_c, message| message.get(DATA).map(Box::new);

    /// VCPU_SET_XSAVE.
    SetXsave<'a> {
        /// The state that it is to have.
        pub state: &'a Xsave,
    } = VCPU_SET_XSAVE, |c| *c.state => ();

    /// VCPU_GET_MTRR_TYPE.
    GetMtrrType {
        /// Guest physical address in the page that is asked about.
        pub gpa: u64,
    } = VCPU_GET_MTRR_TYPE, |c| VcpuGetMtrrType { gpa: c.gpa } => VcpuGetMtrrTypeReply;

    /// VCPU_CONTROL_MSR.
    ControlMsr {
        /// Which MSR. Outside of 0 to 0x1fff and 0xc0000000 to 0xc0001fff at most [`kvmi_uapi::MAX_OTHER_MSRS`] at a
        /// time.
        pub msr: u32,
        /// Whether its changes are to be events.
        pub enable: bool,
    } = VCPU_CONTROL_MSR, |c| VcpuControlMsr { enable: c.enable.into(), msr: c.msr, ..Default::default() } => ();

    /// VCPU_CONTROL_SINGLESTEP.
    ControlSinglestep {
        /// Whether each of its instructions is to end in an event.
        pub enable: bool,
        /// Whether interrupts, NMIs and SMIs come in between; otherwise they wait.
        pub interrupts: bool,
    } = VCPU_CONTROL_SINGLESTEP, |c| VcpuControlSinglestep {
        enable: c.enable.into(),
        interrupts: c.interrupts.into(),
        ..Default::default()
    } => ();

    /// VCPU_TRANSLATE_GVA.
    TranslateGva {
        /// Guest virtual address.
        pub gva: u64,
        /// By the page tables at this root, as CR3 holds it, instead of the current ones.
        pub root: Option<u64>,
    } = VCPU_TRANSLATE_GVA, |c| VcpuTranslateGva {
        gva: c.gva,
        root: c.root.unwrap_or_default(),
        by_root: c.root.is_some().into(),
        ..Default::default()
    } => VcpuTranslateGvaReply;
}

fn registers(message: &Message) -> Result<Registers, ProtocolError> {
    let head: VcpuGetRegistersReply = message.get(DATA)?;
    let entries = DATA + size_of::<VcpuGetRegistersReply>();
    Ok(Registers {
        mode: head.mode,
        regs: head.regs,
        sregs: head.sregs,
        msrs: list(message, entries, head.msrs.nmsrs as usize)?,
    })
}

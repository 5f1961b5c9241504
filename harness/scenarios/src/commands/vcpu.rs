// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that run on a vCPU.

use std::time::Duration;

use kvmi::command::GetVcpuInfo;
use kvmi_guests::layout;
use kvmi_uapi::{MAX_MSRS, MsrEntry, VcpuGetInfoReply, VcpuGetRegisters, VcpuGetRegistersReply, msg};
use zerocopy::{FromBytes, IntoBytes};

use crate::requests::{expect_data, read_exactly};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::vcpu_get_info",
        "VCPU_GET_INFO: the TSC's frequency",
        get_info,
    ),
    scenario(
        "commands::vcpu_get_registers",
        "VCPU_GET_REGISTERS: as the VMM sees them, with MSRs",
        get_registers,
    ),
];

fn get_info(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    context.stage("answers", Duration::from_secs(10));
    let mut speeds = Vec::new();
    for vcpu in 0..2 {
        let info = wire.get(&GetVcpuInfo { vcpu }, size_of::<VcpuGetInfoReply>())?;
        speeds.push(info.tsc_speed);
    }
    check_eq!(speeds[0], speeds[1], "TSC frequencies of two vCPUs");
    check!(
        speeds[0] % 1000 == 0,
        "TSC frequency of {} Hz: KVM knows it in kHz",
        speeds[0]
    );
    // Without even a vCPU header the index reads as 0.
    check!(
        wire.vm(msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "an empty VCPU_GET_INFO was refused"
    );
    vm.exit()
}

fn get_registers(context: &mut Context) -> Result<(), Failure> {
    const MSR_EFER: u32 = 0xc000_0080;
    const MSR_STAR: u32 = 0xc000_0081;
    let id = msg::VCPU_GET_REGISTERS;
    let request = |msrs: &[u32]| {
        let head = VcpuGetRegisters {
            nmsrs: msrs.len() as u16,
            ..Default::default()
        };
        [head.as_bytes(), msrs.as_bytes()].concat()
    };
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    context.stage("answers", Duration::from_secs(10));
    let data = expect_data(wire.vcpu(1, id, &request(&[])[..])?, "VCPU_GET_REGISTERS")?;
    let got: VcpuGetRegistersReply = read_exactly(&data, "VCPU_GET_REGISTERS")?;
    vm.pause(1)?;
    let wanted = vm.regs(1)?;
    vm.resume(1)?;
    check_eq!(
        (got.mode, got.pad, got.msrs.nmsrs, got.msrs.pad),
        (8, 0, 0, 0),
        "mode, padding, MSRs, padding"
    );
    let (rip, rsp, rflags) = (got.regs.rip, got.regs.rsp, got.regs.rflags);
    check_eq!(
        (rip, rsp, rflags),
        (wanted.rip, wanted.rsp, wanted.rflags),
        "RIP, RSP, RFLAGS of a halted vCPU"
    );
    check_eq!(
        (got.regs.rax, got.regs.r15),
        (wanted.rax, wanted.r15),
        "RAX, R15 of a halted vCPU"
    );
    check_eq!((got.sregs.cr3, got.sregs.efer), (layout::ROOT, 0x500), "CR3, EFER");
    check_eq!(got.sregs.cs.selector, layout::CODE_SELECTOR, "CS");
    check_eq!(got.sregs.gdt.base, layout::GDT, "GDTR's base");
    let data = expect_data(
        wire.vcpu(0, id, &request(&[MSR_EFER, MSR_STAR])[..])?,
        "VCPU_GET_REGISTERS with MSRs",
    )?;
    let Ok((head, msrs)) = VcpuGetRegistersReply::read_from_prefix(&data) else {
        return Err(Failure::new(format!(
            "VCPU_GET_REGISTERS returned {} bytes",
            data.len()
        )));
    };
    check_eq!(head.msrs.nmsrs, 2, "MSRs in the reply");
    let msrs = <[MsrEntry; 2]>::read_from_bytes(msrs)
        .map_err(|_| Failure::new(format!("two MSRs in {} bytes", msrs.len())))?;
    check_eq!(
        (msrs[0].index, msrs[0].reserved, msrs[0].data),
        (MSR_EFER, 0, 0x500),
        "EFER"
    );
    check_eq!(
        (msrs[1].index, msrs[1].reserved, msrs[1].data),
        (MSR_STAR, 0, 0),
        "STAR"
    );
    let most = wire.vcpu(0, id, &request(&[MSR_EFER; MAX_MSRS])[..])?;
    let bytes = expect_data(most, "VCPU_GET_REGISTERS of as many MSRs as fit")?.len();
    check_eq!(bytes, 472 + 16 * MAX_MSRS, "bytes of the reply");
    vm.exit()
}

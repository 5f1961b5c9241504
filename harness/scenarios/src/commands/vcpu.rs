// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that run on a vCPU, and VM_PAUSE_VCPU's errors.

use std::time::Duration;

use kvmi_guests::layout;
use kvmi_uapi::error::{EAGAIN, EINVAL, EOPNOTSUPP, EPERM};
use kvmi_uapi::{
    MAX_MSRS, MsrEntry, Regs, VcpuControlCr, VcpuControlEvents, VcpuGetInfoReply, VcpuGetRegisters,
    VcpuGetRegistersReply, VmPauseVcpu, event, msg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::padding_is_checked;
use crate::requests::{expect_data, read_exactly};
use crate::vmm::{Permission, Vm, VmConfig};
use crate::wire::{Wire, vcpu_payload};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::vm_pause_vcpu_errors",
        "VM_PAUSE_VCPU: EINVAL and EPERM; its successes are in pause::",
        pause_errors,
    ),
    scenario(
        "commands::vcpu_get_info",
        "VCPU_GET_INFO: the TSC's frequency, and what every vCPU command checks",
        get_info,
    ),
    scenario(
        "commands::vcpu_control_events",
        "VCPU_CONTROL_EVENTS: each event on and off, and each error",
        control_events,
    ),
    scenario(
        "commands::vcpu_get_registers",
        "VCPU_GET_REGISTERS: as the VMM sees them, with MSRs, and each error",
        get_registers,
    ),
    scenario(
        "commands::vcpu_set_registers_needs_an_event",
        "VCPU_SET_REGISTERS answers EOPNOTSUPP while no event is open",
        set_registers,
    ),
    scenario(
        "commands::vcpu_control_cr",
        "VCPU_CONTROL_CR: CR0, CR3, CR4, and each error",
        control_cr,
    ),
    scenario(
        "commands::vcpu_not_initialised",
        "a vCPU before INIT and SIPI answers EAGAIN",
        not_initialised,
    ),
];

fn pause_errors(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    context.stage("errors", Duration::from_secs(10));
    for vcpu in [2, 3, 0x7fff, 0xffff] {
        check_eq!(
            wire.pause(vcpu, false)?,
            Err(EINVAL),
            "VM_PAUSE_VCPU of vCPU {vcpu}, which does not exist"
        );
    }
    let request = VmPauseVcpu {
        wait: 2,
        ..Default::default()
    };
    check_eq!(
        wire.vm(msg::VM_PAUSE_VCPU, &request)?,
        Err(EINVAL),
        "VM_PAUSE_VCPU with wait 2"
    );
    padding_is_checked(&mut wire, msg::VM_PAUSE_VCPU, &[0; 8], 3..8)?;
    check_eq!(
        vm.permit(Permission::Event, 0, event::PAUSE.into())?,
        0,
        "errno of revoking the event"
    );
    check_eq!(
        wire.pause(0, false)?,
        Err(EPERM),
        "VM_PAUSE_VCPU with the event revoked"
    );
    check_eq!(
        vm.permit(Permission::Command, 0, msg::VM_PAUSE_VCPU.into())?,
        0,
        "errno of revoking the command"
    );
    check_eq!(wire.pause(9, false)?, Err(EPERM), "VM_PAUSE_VCPU, revoked");
    wire.expect_no_event()?;
    vm.exit()
}

/// What every vCPU command checks before its own data: permission, padding of the vCPU header, index.
pub(super) fn check_vcpu_header(wire: &mut Wire, id: u16, request: &[u8], vcpus: u16) -> Result<(), Failure> {
    for at in 2..8 {
        let mut payload = vcpu_payload(0, request);
        payload[at] = 1;
        check_eq!(
            wire.vm(id, &payload[..])?,
            Err(EINVAL),
            "command {id} with byte {at} of the vCPU header not zero"
        );
    }
    for vcpu in [vcpus, 0x7fff, 0xffff] {
        check_eq!(
            wire.vcpu(vcpu, id, request)?,
            Err(EINVAL),
            "command {id} for vCPU {vcpu}, which does not exist"
        );
    }
    Ok(())
}

/// Padding within a vCPU command's own data.
pub(super) fn check_vcpu_padding(
    wire: &mut Wire,
    id: u16,
    request: &[u8],
    pads: std::ops::Range<usize>,
) -> Result<(), Failure> {
    padding_is_checked(wire, id, &vcpu_payload(0, request), pads.start + 8..pads.end + 8)
}

/// Revokes a vCPU command: EPERM comes before everything else that could be wrong with it.
pub(super) fn check_revoked(vm: &Vm, wire: &mut Wire, id: u16, request: &[u8]) -> Result<(), Failure> {
    check_eq!(vm.permit(Permission::Command, 0, id.into())?, 0, "errno of revoking");
    check_eq!(wire.vcpu(0xffff, id, request)?, Err(EPERM), "command {id}, revoked");
    Ok(())
}

fn get_info(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    context.stage("answers", Duration::from_secs(10));
    let mut speeds = Vec::new();
    for vcpu in 0..2 {
        let data = expect_data(wire.vcpu(vcpu, msg::VCPU_GET_INFO, &[0u8; 0])?, "VCPU_GET_INFO")?;
        speeds.push(read_exactly::<VcpuGetInfoReply>(&data, "VCPU_GET_INFO")?.tsc_speed);
    }
    check_eq!(speeds[0], speeds[1], "TSC frequencies of two vCPUs");
    check!(
        speeds[0] % 1000 == 0,
        "TSC frequency of {} Hz: KVM knows it in kHz",
        speeds[0]
    );
    context.stage("errors", Duration::from_secs(10));
    check_vcpu_header(&mut wire, msg::VCPU_GET_INFO, &[], 2)?;
    // Without even a vCPU header the index reads as 0.
    check!(
        wire.vm(msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "an empty VCPU_GET_INFO was refused"
    );
    check_eq!(
        vm.permit(Permission::Command, 0, msg::VCPU_GET_INFO.into())?,
        0,
        "errno of revoking"
    );
    check_eq!(
        wire.vcpu(77, msg::VCPU_GET_INFO, &[0u8; 0])?,
        Err(EPERM),
        "VCPU_GET_INFO, revoked"
    );
    vm.exit()
}

fn control_events(context: &mut Context) -> Result<(), Failure> {
    let id = msg::VCPU_CONTROL_EVENTS;
    let request = |event_id, enable| VcpuControlEvents {
        event_id,
        enable,
        ..Default::default()
    };
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("answers", Duration::from_secs(10));
    for event in [
        event::PAUSE,
        event::HYPERCALL,
        event::BREAKPOINT,
        event::CR,
        event::TRAP,
        event::XSETBV,
        event::DESCRIPTOR,
        event::MSR,
    ] {
        for on in [true, true, false] {
            wire.control_event(0, event, on)?;
        }
    }
    context.stage("errors", Duration::from_secs(10));
    for event in [event::UNHOOK, 2, 4, 21, 129, 0xffff] {
        check_eq!(
            wire.vcpu(0, id, &request(event, 1))?,
            Err(EINVAL),
            "event {event}, which is no vCPU event"
        );
    }
    check_eq!(wire.vcpu(0, id, &request(event::CR, 2))?, Err(EINVAL), "enable 2");
    check_vcpu_padding(&mut wire, id, request(event::CR, 1).as_bytes(), 3..8)?;
    check_vcpu_header(&mut wire, id, request(event::CR, 1).as_bytes(), 1)?;
    check_eq!(
        vm.permit(Permission::Event, 0, event::CR.into())?,
        0,
        "errno of revoking the event"
    );
    check_eq!(wire.vcpu(0, id, &request(event::CR, 1))?, Err(EPERM), "a revoked event");
    check_eq!(
        wire.vcpu(0, id, &request(event::CR, 2))?,
        Err(EINVAL),
        "a revoked event with enable 2"
    );
    check_eq!(
        vm.permit(Permission::Command, 0, id.into())?,
        0,
        "errno of revoking the command"
    );
    check_eq!(
        wire.vcpu(0, id, &request(event::CR, 2))?,
        Err(EPERM),
        "VCPU_CONTROL_EVENTS, revoked"
    );
    vm.exit()
}

fn get_registers(context: &mut Context) -> Result<(), Failure> {
    const MSR_EFER: u32 = 0xc000_0080;
    const MSR_STAR: u32 = 0xc000_0081;
    const NO_MSR: u32 = 0x1234_5678;
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
    let got = wire.registers(1)?;
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
    context.stage("errors", Duration::from_secs(10));
    check_eq!(
        wire.vcpu(0, id, &request(&[MSR_EFER; MAX_MSRS + 1])[..])?,
        Err(EINVAL),
        "one MSR too many"
    );
    check_eq!(
        wire.vcpu(0, id, &request(&[MSR_EFER, NO_MSR])[..])?,
        Err(EINVAL),
        "an unknown MSR"
    );
    let short = request(&[MSR_EFER, MSR_STAR]);
    check_eq!(
        wire.vcpu(0, id, &short[..short.len() - 1])?,
        Err(EINVAL),
        "fewer indices than announced"
    );
    check_vcpu_padding(&mut wire, id, &request(&[]), 2..8)?;
    check_vcpu_header(&mut wire, id, &request(&[]), 2)?;
    check_eq!(vm.permit(Permission::Command, 0, id.into())?, 0, "errno of revoking");
    check_eq!(
        wire.vcpu(0, id, &request(&[NO_MSR])[..])?,
        Err(EPERM),
        "VCPU_GET_REGISTERS, revoked"
    );
    vm.exit()
}

fn set_registers(context: &mut Context) -> Result<(), Failure> {
    let id = msg::VCPU_SET_REGISTERS;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("errors", Duration::from_secs(10));
    let before = wire.registers(0)?.regs;
    let mut regs: Regs = before;
    regs.r15 ^= 0x5555;
    check_eq!(
        wire.vcpu(0, id, &regs)?,
        Err(EOPNOTSUPP),
        "VCPU_SET_REGISTERS without an open event"
    );
    check_vcpu_header(&mut wire, id, regs.as_bytes(), 1)?;
    check_eq!(wire.registers(0)?.regs, before, "registers after it");
    context.stage("a short message in an event", Duration::from_secs(10));
    check_eq!(wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
    let event = wire.expect_event(event::PAUSE, 0)?;
    check_eq!(
        wire.vcpu(0, id, &regs.as_bytes()[..143])?,
        Err(EINVAL),
        "143 of 144 bytes of registers"
    );
    wire.reply(&event, event::CONTINUE)?;
    check_eq!(wire.registers(0)?.regs, before, "registers after it");
    check_eq!(vm.permit(Permission::Command, 0, id.into())?, 0, "errno of revoking");
    check_eq!(wire.vcpu(0, id, &regs)?, Err(EPERM), "VCPU_SET_REGISTERS, revoked");
    vm.exit()
}

fn control_cr(context: &mut Context) -> Result<(), Failure> {
    let id = msg::VCPU_CONTROL_CR;
    let request = |cr, enable| VcpuControlCr {
        cr,
        enable,
        ..Default::default()
    };
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("answers", Duration::from_secs(10));
    for cr in [0, 3, 4] {
        for on in [true, true, false, false] {
            wire.control_cr(0, cr, on)?;
        }
    }
    context.stage("errors", Duration::from_secs(10));
    for cr in [1, 2, 5, 8, 32, 0xff] {
        check_eq!(
            wire.vcpu(0, id, &request(cr, 1))?,
            Err(EINVAL),
            "VCPU_CONTROL_CR of CR{cr}"
        );
    }
    check_eq!(
        wire.vcpu(0, id, &request(3, 2))?,
        Err(EINVAL),
        "VCPU_CONTROL_CR with enable 2"
    );
    check_vcpu_padding(&mut wire, id, request(3, 1).as_bytes(), 2..8)?;
    check_vcpu_header(&mut wire, id, request(3, 1).as_bytes(), 1)?;
    check_eq!(vm.permit(Permission::Command, 0, id.into())?, 0, "errno of revoking");
    check_eq!(
        wire.vcpu(0, id, &request(1, 1))?,
        Err(EPERM),
        "VCPU_CONTROL_CR, revoked"
    );
    vm.exit()
}

fn not_initialised(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm_with(&VmConfig {
        uninitialised_aps: true,
        ..VmConfig::new("halt", 2)
    })?;
    vm.run()?;
    let mut wire = context.hook(&vm)?;
    context.stage("ask both", Duration::from_secs(10));
    check!(
        wire.vcpu(0, msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "vCPU 0 was refused"
    );
    check_eq!(
        wire.vcpu(1, msg::VCPU_GET_INFO, &[0u8; 0])?,
        Err(EAGAIN),
        "VCPU_GET_INFO of vCPU 1"
    );
    check_eq!(
        wire.vcpu(2, msg::VCPU_GET_INFO, &[0u8; 0])?,
        Err(EINVAL),
        "VCPU_GET_INFO of vCPU 2"
    );
    check_eq!(wire.vcpu_count()?, 2, "vCPUs");
    vm.exit()
}

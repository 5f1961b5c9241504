// SPDX-License-Identifier: MIT OR Apache-2.0
//! VCPU_CONTROL_MSR and VCPU_INJECT_EXCEPTION: what they answer. What they do is in events::.

use std::time::Duration;

use kvmi_uapi::error::{EBUSY, EINVAL, EPERM};
use kvmi_uapi::{VcpuControlMsr, VcpuInjectException, event, msg};
use zerocopy::IntoBytes;

use super::vcpu::{check_revoked, check_vcpu_header, check_vcpu_padding};
use crate::vmm::{Permission, VcpuWrite, Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::vcpu_control_msr",
        "VCPU_CONTROL_MSR: both ranges, the VMM's filter, and each error",
        control_msr,
    ),
    scenario(
        "commands::vcpu_inject_exception",
        "VCPU_INJECT_EXCEPTION: each error; its successes are in events::",
        inject_exception,
    ),
];

const KERNEL_GS_BASE: u32 = 0xc000_0102;

fn control_msr(context: &mut Context) -> Result<(), Failure> {
    let id = msg::VCPU_CONTROL_MSR;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("answers", Duration::from_secs(10));
    wire.control_event(0, event::MSR, true)?;
    // Among them some that KVM does not know, writes to which raise #GP.
    for msr in [
        0,
        0x10,
        0x174,
        0x830,
        0x1fff,
        0xc000_0000,
        0xc000_0080,
        KERNEL_GS_BASE,
        0xc000_1fff,
    ] {
        for on in [true, true, false, false] {
            check_eq!(
                wire.control_msr(0, msr, on)?,
                Ok(vec![]),
                "VCPU_CONTROL_MSR of {msr:#x}"
            );
        }
    }
    context.stage("the VMM's filter", Duration::from_secs(10));
    check_eq!(
        wire.control_msr(0, KERNEL_GS_BASE, true)?,
        Ok(vec![]),
        "VCPU_CONTROL_MSR"
    );
    vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
    check_eq!(
        wire.control_msr(0, KERNEL_GS_BASE, true)?,
        Err(EPERM),
        "VCPU_CONTROL_MSR of what the VMM denies"
    );
    check_eq!(
        wire.control_msr(0, KERNEL_GS_BASE - 1, true)?,
        Ok(vec![]),
        "VCPU_CONTROL_MSR of its neighbour"
    );
    check_eq!(
        wire.control_msr(0, KERNEL_GS_BASE, false)?,
        Ok(vec![]),
        "switching it off"
    );
    vm.deny_msr_write(None)?;
    check_eq!(
        wire.control_msr(0, KERNEL_GS_BASE, true)?,
        Ok(vec![]),
        "VCPU_CONTROL_MSR, no more denied"
    );
    context.stage("errors", Duration::from_secs(10));
    for msr in [0x2000, 0x4000_0000, 0x4b56_4d00, 0xbfff_ffff, 0xc000_2000, 0xffff_ffff] {
        for on in [true, false] {
            check_eq!(
                wire.control_msr(0, msr, on)?,
                Err(EINVAL),
                "VCPU_CONTROL_MSR of {msr:#x}"
            );
        }
    }
    let request = VcpuControlMsr {
        enable: 1,
        msr: KERNEL_GS_BASE,
        ..Default::default()
    };
    let twice = VcpuControlMsr { enable: 2, ..request };
    check_eq!(wire.vcpu(0, id, &twice)?, Err(EINVAL), "VCPU_CONTROL_MSR with enable 2");
    check_vcpu_padding(&mut wire, id, request.as_bytes(), 1..4)?;
    check_vcpu_header(&mut wire, id, request.as_bytes(), 1)?;
    check_revoked(&vm, &mut wire, id, twice.as_bytes())?;
    vm.exit()
}

/// Has the VMM put something on its way into the guest while the tool's command waits.
fn while_delivering(vm: &Vm, wire: &mut Wire, by: VcpuWrite) -> Result<(), Failure> {
    vm.pause(0)?;
    let request = VcpuInjectException {
        nr: 6,
        ..Default::default()
    };
    let seq = wire.send(
        msg::VCPU_INJECT_EXCEPTION,
        &crate::wire::vcpu_payload(0, request.as_bytes()),
    )?;
    // What is answered after it: it is with the vCPU.
    wire.expect_version()?;
    check_eq!(vm.write(0, by)?, 0, "errno of {by:?}");
    vm.resume(0)?;
    check_eq!(wire.answer(seq)?, Err(EBUSY), "VCPU_INJECT_EXCEPTION after {by:?}");
    Ok(())
}

fn inject_exception(context: &mut Context) -> Result<(), Failure> {
    const UNDEFINED: u8 = 6;
    let id = msg::VCPU_INJECT_EXCEPTION;
    context.stage("start", Duration::from_secs(20));
    // It does not halt: what the VMM has on its way is delivered when the vCPU runs.
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    vm.guest.set_field(0, field!(tolerated), 1 << UNDEFINED)?;
    context.stage("errors", Duration::from_secs(10));
    // NMI; #BP and #OF, which instructions raise; reserved; no exceptions at all.
    for nr in [2, 3, 4, 9, 15, 20, 21, 31, 32, 0x80, 0xff] {
        check_eq!(wire.inject(0, nr, 0, 0)?, Err(EINVAL), "VCPU_INJECT_EXCEPTION of {nr}");
    }
    check_eq!(
        wire.inject(0, 13, 0x1_0000, 0)?,
        Err(EINVAL),
        "an error code of 17 bits"
    );
    let request = VcpuInjectException {
        nr: UNDEFINED,
        ..Default::default()
    };
    check_vcpu_padding(&mut wire, id, request.as_bytes(), 1..4)?;
    check_vcpu_header(&mut wire, id, request.as_bytes(), 1)?;
    context.stage("an interrupt is on its way", Duration::from_secs(10));
    while_delivering(
        &vm,
        &mut wire,
        VcpuWrite::InjectedInterrupt(kvmi_guests::COUNTED_VECTOR),
    )?;
    context.wait_for("the interrupt", || {
        Ok(vm.guest.field(0, field!(counted_interrupts))? == 1)
    })?;
    context.stage("an exception is on its way", Duration::from_secs(10));
    while_delivering(&vm, &mut wire, VcpuWrite::PendingException(UNDEFINED))?;
    context.wait_for("the exception", || Ok(vm.guest.field(0, field!(exceptions))? == 1))?;
    wire.expect_no_event()?;
    context.stage("no permission", Duration::from_secs(10));
    check_eq!(
        vm.permit(Permission::Event, 0, event::TRAP.into())?,
        0,
        "errno of revoking the event"
    );
    check_eq!(
        wire.inject(0, 2, 0, 0)?,
        Err(EPERM),
        "VCPU_INJECT_EXCEPTION with TRAP revoked"
    );
    check_revoked(&vm, &mut wire, id, request.as_bytes())?;
    check_eq!(
        vm.guest.field(0, field!(exceptions))?,
        1,
        "exceptions that the guest took"
    );
    vm.exit()
}

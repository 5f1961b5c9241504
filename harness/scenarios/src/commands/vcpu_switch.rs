// SPDX-License-Identifier: MIT OR Apache-2.0
//! VCPU_CONTROL_MSR: what it answers. What it does is in events::.

use std::time::Duration;

use kvmi_uapi::error::EPERM;
use kvmi_uapi::event;

use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "commands::vcpu_control_msr",
    "VCPU_CONTROL_MSR: both ranges, what is in neither, and the VMM's filter",
    control_msr,
)];

const KERNEL_GS_BASE: u32 = 0xc000_0102;

fn control_msr(context: &mut Context) -> Result<(), Failure> {
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
        0x2000,
        0x4000_0000,
        0x4b56_4d01,
        0xc001_0015,
        u32::MAX,
    ] {
        for on in [true, true, false, false] {
            wire.control_msr(0, msr, on)?;
        }
    }
    context.stage("the VMM's filter", Duration::from_secs(10));
    wire.control_msr(0, KERNEL_GS_BASE, true)?;
    vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
    check_eq!(
        wire.try_control_msr(0, KERNEL_GS_BASE, true)?,
        Err(EPERM),
        "VCPU_CONTROL_MSR of what the VMM denies"
    );
    // Its neighbour may be watched, and it need not be.
    wire.control_msr(0, KERNEL_GS_BASE - 1, true)?;
    wire.control_msr(0, KERNEL_GS_BASE, false)?;
    vm.deny_msr_write(None)?;
    wire.control_msr(0, KERNEL_GS_BASE, true)?;
    vm.exit()
}

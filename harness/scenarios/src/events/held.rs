// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU that a tool holds for long: its guest's clock says so.

use std::time::{Duration, Instant};

use kvmi_guests::{Op, layout};
use kvmi_uapi::event::{CONTINUE, PAUSE};

use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "events::held_long_tells_the_clock",
    "a vCPU that is held for longer than the limit: its kvmclock says that it was stopped, as after KVM_KVMCLOCK_CTRL",
    held_long,
)];

/// `MSR_KVM_SYSTEM_TIME_NEW`; bit 0 of what is written switches it on.
const SYSTEM_TIME: u64 = 0x4b56_4d01;
/// Where the guest has it.
const CLOCK: u64 = layout::SCRATCH + 0x8_0000;
/// `flags` of `struct pvclock_vcpu_time_info`, and PVCLOCK_GUEST_STOPPED in it.
const FLAGS: u64 = CLOCK + 29;
const STOPPED: u8 = 1 << 1;
/// More than docs/protocol.md, section 7, lets pass.
const LONG: Duration = Duration::from_millis(300);

fn held_long(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("accesses", 1)?;
    let flags = || {
        let mut byte = [0];
        vm.guest.read(FLAGS, &mut byte)?;
        Ok::<_, Failure>(byte[0] & STOPPED)
    };
    vm.carry_out(context, 0, Op::WriteMsr, [SYSTEM_TIME, CLOCK | 1, 0, 0])?;
    vm.carry_out(context, 0, Op::Nothing, [0; 4])?;
    check_eq!(flags()?, 0, "the flag of a guest that nobody held");
    context.stage("hold it", Duration::from_secs(20));
    check_eq!(wire.pause(0, true)?, Ok(vec![]), "VM_PAUSE_VCPU");
    let pause = wire.expect_event(PAUSE, 0)?;
    let begin = Instant::now();
    context.wait_for("the limit to pass", || Ok(begin.elapsed() > LONG))?;
    wire.reply(&pause, CONTINUE)?;
    vm.carry_out(context, 0, Op::Nothing, [0; 4])?;
    check!(flags()? == STOPPED, "the clock does not say that the guest was stopped");
    vm.exit()
}

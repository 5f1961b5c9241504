// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events that the VMM voids, more than a tool keeps up with.

use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, HYPERCALL};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::field;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::void_200_times",
        "200 events are voided before the tool answers any: each reply is taken, the last one counts",
        void_200_times,
    ),
    scenario(
        "events::too_many_replies",
        "one reply more than there are events is refused by the vCPU, two more close the connection at once",
        too_many_replies,
    ),
];

fn void_200_times(context: &mut Context) -> Result<(), Failure> {
    const VOID: usize = 200;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("void", Duration::from_secs(60));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let mut events = Vec::new();
    for _ in 0..VOID {
        events.push(wire.expect_event(HYPERCALL, 0)?);
        vm.pause(0)?;
        vm.change_regs(0)?;
        vm.resume(0)?;
    }
    events.push(wire.expect_event(HYPERCALL, 0)?);
    context.stage("answer them all while the vCPU is out", Duration::from_secs(20));
    vm.pause(0)?;
    for event in &events {
        wire.reply(event, CONTINUE)?;
    }
    // The reader takes one message after the other: this answer shows that no reply closed the connection.
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    vm.resume(0)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 1, "hypercalls that returned");
    wire.expect_no_event()?;
    vm.exit()
}

fn too_many_replies(context: &mut Context) -> Result<(), Failure> {
    for (excess, closes_at_once) in [(1, false), (2, true)] {
        context.stage(&format!("{excess} too many: start"), Duration::from_secs(20));
        let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
        wire.control_event(0, HYPERCALL, true)?;
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        vm.pause(0)?;
        context.stage(&format!("{excess} too many: reply"), Duration::from_secs(10));
        for _ in 0..=excess {
            wire.reply(&event, CONTINUE)?;
        }
        if !closes_at_once {
            check_eq!(wire.vcpu_count()?, 1, "vCPUs, with the connection open");
            vm.resume(0)?;
        }
        wire.expect_closed()?;
        if closes_at_once {
            vm.resume(0)?;
        }
        vm.finished(context, 0, number)?;
        check_eq!(vm.guest.field(0, field!(hypercalls))?, 1, "hypercalls that returned");
        vm.exit()?;
    }
    Ok(())
}

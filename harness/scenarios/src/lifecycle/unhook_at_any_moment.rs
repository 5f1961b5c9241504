// SPDX-License-Identifier: MIT OR Apache-2.0
//! UNHOOK while vCPUs do nothing but cause events: it falls anywhere into the recording, sending and answering of one.

use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::{BREAKPOINT, CONTINUE, CR, Cr, HYPERCALL};

use crate::vmm::field;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "unhook::at_any_moment",
    "UNHOOK in a storm of events, 10 times, each after a few answers: it returns, the connection ends, every vCPU goes on",
    at_any_moment,
)];

const TIMES: u64 = 10;

const VCPUS: usize = 2;

/// How many events a session answers, at most.
const ANSWERS: u64 = 7;

fn watch_all(wire: &mut Wire) -> Result<(), Failure> {
    for vcpu in 0..VCPUS as u16 {
        for event in [HYPERCALL, BREAKPOINT, CR] {
            wire.control_event(vcpu, event, true)?;
        }
        wire.control_cr(vcpu, 3, true)?;
    }
    Ok(())
}

/// Lets what an event tells of happen.
fn answer_one(wire: &mut Wire) -> Result<(), Failure> {
    let event = wire.event()?;
    if event.id == CR {
        let value = event.data::<Cr>()?.new_value;
        return wire.reply_with(&event, CONTINUE, &value.to_ne_bytes());
    }
    wire.reply(&event, CONTINUE)
}

fn at_any_moment(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("storm", VCPUS)?;
    let mut numbers = Vec::new();
    for vcpu in 0..VCPUS {
        numbers.push(vm.command(vcpu, Op::Storm, [u64::MAX, 0, 0, 0])?);
    }
    for time in 1..=TIMES {
        context.stage(&format!("UNHOOK {time}"), Duration::from_secs(20));
        let mut wire = context.hook(&vm)?;
        watch_all(&mut wire)?;
        for _ in 0..context.seed.wrapping_add(time * 5) % (ANSWERS + 1) {
            answer_one(&mut wire)?;
        }
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        wire.expect_closed_perhaps_cut()?;
        for vcpu in 0..VCPUS {
            let before = vm.guest.field(vcpu, field!(cr_writes))?;
            context.wait_for(&format!("vCPU {vcpu} to go on"), || {
                vm.no_exception(vcpu)?;
                Ok(vm.guest.field(vcpu, field!(cr_writes))? > before + 1)
            })?;
        }
    }
    context.stage("calm", Duration::from_secs(20));
    for (vcpu, &number) in numbers.iter().enumerate() {
        vm.guest.set_field(vcpu, field!(args), 0)?;
        vm.finished(context, vcpu, number)?;
    }
    vm.exit()
}

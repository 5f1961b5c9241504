// SPDX-License-Identifier: MIT OR Apache-2.0
//! INT n while BREAKPOINT events are on: no event, and the guest's handler runs once for each.

use std::time::Duration;

use kvmi_guests::{COUNTED_VECTOR, Op};
use kvmi_uapi::event::{BREAKPOINT, CONTINUE};

use crate::vmm::{Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "events::software_interrupts",
    "INT n, INT 3 in its two-byte form too, with BREAKPOINT on: no event, the handler runs once for each, signals or not",
    software_interrupts,
)];

/// How often the guest executes each.
const TIMES: u64 = 1000;

/// What an INT n shows in the guest.
struct Kind {
    name: &'static str,
    vector: u64,
    /// Offset of the field that counts the handler's runs.
    taken: usize,
    /// Offset of the field with the RIP that was pushed.
    rip: usize,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "INT 0x30",
        vector: COUNTED_VECTOR as u64,
        taken: field!(counted_interrupts),
        rip: field!(counted_rip),
    },
    Kind {
        name: "INT 3 (cd 03)",
        vector: 3,
        taken: field!(breakpoints),
        rip: field!(breakpoint_rip),
    },
];

/// One INT3 (cc): an event, then the guest's #BP.
fn int3_is_an_event(context: &Context, vm: &Vm, wire: &mut Wire) -> Result<(), Failure> {
    let before = vm.guest.field(0, field!(breakpoints))?;
    let number = vm.command(0, Op::Int3, [0; 4])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, before, "#BP before the reply");
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    check_eq!(
        vm.guest.field(0, field!(breakpoints))?,
        before + 1,
        "#BP after the reply"
    );
    Ok(())
}

fn software_interrupts(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    wire.control_event(0, BREAKPOINT, true)?;
    for Kind {
        name,
        vector,
        taken,
        rip,
    } in KINDS
    {
        for with_signals in [false, true] {
            let how = if with_signals { "with signals" } else { "undisturbed" };
            context.stage(&format!("{name}, {how}"), Duration::from_secs(30));
            int3_is_an_event(context, &vm, &mut wire)?;
            let before = vm.guest.field(0, taken)?;
            let number = vm.command(0, Op::SoftwareInterrupt, [vector, TIMES, 0, 0])?;
            while with_signals && vm.guest.field(0, field!(done))? != number {
                vm.signal(0)?;
            }
            let behind = vm.finished(context, 0, number)?;
            check_eq!(vm.guest.field(0, taken)? - before, TIMES, "runs of {name}'s handler");
            check_eq!(vm.guest.field(0, rip)?, behind, "RIP that {name} pushed");
            wire.expect_no_event()?;
        }
    }
    int3_is_an_event(context, &vm, &mut wire)?;
    vm.exit()
}

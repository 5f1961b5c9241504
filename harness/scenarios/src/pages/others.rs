// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several vCPUs: while one is let through the others stay restricted.

use std::time::Duration;

use kvmi_guests::{Access, Op, layout};
use kvmi_uapi::event::{CONTINUE, PF, Pf, RETRY};

use super::{ALL, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::others_stay_restricted",
        "three vCPUs write the same page: each write of each is told, none slips through while another is let through",
        others,
    ),
    scenario(
        "pages::restricted_while_running",
        "a page that vCPUs write all the time is restricted: none writes it once the reply is there",
        while_running,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x3_0000;

fn others(context: &mut Context) -> Result<(), Failure> {
    const VCPUS: usize = 3;
    const EACH: u64 = 100;
    let mut watched = Watched::start(context, VCPUS)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    context.stage("write", Duration::from_secs(60));
    let numbers = (0..VCPUS)
        .map(|vcpu| {
            let args = [Access::LockedAdd as u64, PLACE, 1, EACH];
            watched.vm.command(vcpu, Op::Access, args)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut told = [0; VCPUS];
    for n in 0..EACH * VCPUS as u64 {
        let event = watched.wire.event()?;
        check_eq!(event.id, PF, "event");
        let data = event.data::<Pf>()?;
        check_eq!((data.access, data.gpa), (W, PLACE), "access and gpa");
        told[usize::from(event.vcpu)] += 1;
        // Whoever was let through has written once and no more; it may still be about to.
        let sum = watched.word(PLACE)?;
        check!(sum <= n, "{sum} writes when {n} were let through");
        watched.wire.reply(&event, CONTINUE)?;
    }
    for (vcpu, number) in numbers.into_iter().enumerate() {
        watched.vm.finished(context, vcpu, number)?;
    }
    check_eq!(told, [EACH; VCPUS], "events by vCPU");
    check_eq!(watched.word(PLACE)?, EACH * VCPUS as u64, "the sum");
    watched.wire.expect_no_event()?;
    watched.vm.exit()
}

fn while_running(context: &mut Context) -> Result<(), Failure> {
    const VCPUS: usize = 2;
    // More than they do before the restriction comes.
    const EACH: u64 = 2_000_000;
    let mut watched = Watched::start(context, VCPUS)?;
    for round in 0..5 {
        context.stage(&format!("round {round}"), Duration::from_secs(30));
        let start = round * EACH * VCPUS as u64;
        let numbers = (0..VCPUS)
            .map(|vcpu| {
                let args = [Access::LockedAdd as u64, PLACE, 1, EACH];
                watched.vm.command(vcpu, Op::Access, args)
            })
            .collect::<Result<Vec<_>, _>>()?;
        context.wait_for("the vCPUs to write", || Ok(watched.word(PLACE)? > start + 100))?;
        watched.wire.restrict(&[(PLACE, R | X)])?;
        let sum = watched.word(PLACE)?;
        let events = (0..VCPUS)
            .map(|_| watched.wire.event())
            .collect::<Result<Vec<_>, _>>()?;
        check_eq!(watched.word(PLACE)?, sum, "the sum since the reply");
        watched.wire.restrict(&[(PLACE, ALL)])?;
        for event in &events {
            check_eq!(event.id, PF, "event");
            watched.wire.reply(event, RETRY)?;
        }
        for (vcpu, number) in numbers.into_iter().enumerate() {
            watched.vm.finished(context, vcpu, number)?;
        }
        watched.wire.expect_no_event()?;
        check_eq!(watched.word(PLACE)?, start + EACH * VCPUS as u64, "the sum in the end");
    }
    watched.vm.exit()
}

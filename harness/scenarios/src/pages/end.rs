// SPDX-License-Identifier: MIT OR Apache-2.0
//! Restrictions end with the session, however it ends, at whatever moment.

use std::time::Duration;

use kvmi_guests::{Access, Op, layout};
use kvmi_uapi::event::{CONTINUE, CRASH, PF};

use super::{ALL, R, W, Watched, X};
use crate::vmm::Until;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::unhook_lifts_all",
        "UNHOOK lifts every restriction, whatever VM_CONTROL_CLEANUP said; a next session starts without",
        unhook_lifts_all,
    ),
    scenario(
        "pages::unhook_with_event_open",
        "UNHOOK while accesses wait for the tool: they happen, untold",
        unhook_with_event_open,
    ),
    scenario(
        "pages::tool_lost",
        "a tool that vanishes with an access open: the session fails open and the guest goes on",
        tool_lost,
    ),
    scenario(
        "pages::vmm_killed",
        "the VMM is killed while vCPUs are let through in a storm",
        vmm_killed,
    ),
    scenario("pages::crash", "CRASH in reply to PF: the access never happens", crash),
];

const PLACE: u64 = layout::SCRATCH + 0x5_0000;

fn unhook_lifts_all(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    for enable in [0, 1] {
        context.stage(&format!("cleanup {enable}"), Duration::from_secs(10));
        watched.wire.control_cleanup(enable == 1)?;
        watched.wire.restrict(&[(PLACE, 0), (PLACE + 4096, R)])?;
        watched.told(context, (Access::Write, [PLACE, 1, 0]), &[(W, PLACE)])?;
        check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
        let write = [Access::Write as u64, PLACE, 2, 0];
        watched.vm.carry_out(context, 0, Op::Access, write)?;
        check_eq!(watched.word(PLACE)?, 2, "the word");
        watched.wire = context.hook(&watched.vm)?;
        watched.wire.control_event(0, PF, true)?;
        check_eq!(
            watched.wire.page_access(&[PLACE, PLACE + 4096])?,
            [ALL, ALL],
            "access in the next session"
        );
        watched.silent(context, Access::Write, [PLACE, 3, 0])?;
    }
    watched.vm.exit()
}

fn unhook_with_event_open(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 2)?;
    for round in 1..=5 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        watched.wire.restrict(&[(PLACE, R | X)])?;
        let numbers = [0, 1].map(|vcpu| {
            let args = [Access::LockedAdd as u64, PLACE, 1, 10];
            watched.vm.command(vcpu, Op::Access, args)
        });
        for _ in 0..2 {
            check_eq!(watched.wire.event()?.id, PF, "event");
        }
        check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
        for (vcpu, number) in numbers.into_iter().enumerate() {
            watched.vm.finished(context, vcpu, number?)?;
        }
        check_eq!(watched.word(PLACE)?, 20 * round, "the sum");
        watched.wire = context.hook(&watched.vm)?;
        for vcpu in 0..2 {
            watched.wire.control_event(vcpu, PF, true)?;
        }
    }
    watched.vm.exit()
}

fn tool_lost(context: &mut Context) -> Result<(), Failure> {
    let Watched { vm, mut wire, .. } = Watched::start(context, 1)?;
    wire.restrict(&[(PLACE, R | X)])?;
    context.stage("vanish", Duration::from_secs(10));
    let args = [Access::Add as u64, PLACE, 1, 10];
    let number = vm.command(0, Op::Access, args)?;
    wire.expect_event(PF, 0)?;
    drop(wire);
    vm.finished(context, 0, number)?;
    let mut sum = [0; 8];
    vm.guest.read(PLACE, &mut sum)?;
    check_eq!(u64::from_ne_bytes(sum), 10, "the sum");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.carry_out(context, 0, Op::Access, args)?;
    vm.exit()
}

fn vmm_killed(context: &mut Context) -> Result<(), Failure> {
    for round in 0..5 {
        let mut watched = Watched::start(context, 2)?;
        // Half of them without a tool that is asked, so that they step all the time.
        watched.wire.control_event(1, PF, false)?;
        watched.wire.restrict(&[(PLACE, R | X)])?;
        context.stage(&format!("round {round}"), Duration::from_secs(20));
        for vcpu in [0, 1] {
            let args = [Access::LockedAdd as u64, PLACE, 1, 1 << 40];
            watched.vm.command(vcpu, Op::Access, args)?;
        }
        for _ in 0..20 * (round + 1) {
            let event = watched.wire.expect_event(PF, 0)?;
            watched.wire.reply(&event, CONTINUE)?;
        }
        watched.vm.kill()?;
        watched.wire.expect_closed_perhaps_cut()?;
    }
    Ok(())
}

fn crash(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    context.stage("crash", Duration::from_secs(10));
    watched.begin(Access::Write, [PLACE, 1, 0])?;
    let event = watched.expect(W, PLACE)?;
    watched.wire.reply(&event, CRASH)?;
    watched.vm.wait(0, Until::Exit("shutdown".to_owned(), 1))?;
    check_eq!(watched.word(PLACE)?, 0, "the word");
    watched.vm.exit()
}

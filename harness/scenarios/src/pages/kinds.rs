// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is denied and what is not, for each access that can be expressed.

use std::time::Duration;

use kvmi::command::GetVersion;
use kvmi_guests::{Access, layout};
use kvmi_uapi::event::{CONTINUE, PF, RETRY};
use kvmi_uapi::{Features, GetVersionReply};

use super::{ALL, PAGE, R, W, Watched, X, code_that_returns};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::kinds",
        "reads, writes and fetches that are denied are told with gpa, gva and kind, once; what is allowed is not told",
        kinds,
    ),
    scenario(
        "pages::retry",
        "RETRY without more asks again and nothing has happened; after the restriction is lifted it happens silently",
        retry,
    ),
    scenario(
        "pages::without_the_event",
        "without PF enabled on the vCPU, denied accesses complete silently",
        without_the_event,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x8000;

/// What the hardware can express, as GET_VERSION says.
pub(super) fn features(wire: &mut Wire) -> Result<u8, Failure> {
    let version = wire.get(&GetVersion, size_of::<GetVersionReply>())?;
    Ok(version.features.access)
}

/// Each access that can be expressed and restricts something.
pub(super) fn restrictions(features: u8) -> Vec<u8> {
    let mut access = vec![R | X, R, R | W, 0];
    if features & Features::EXEC_ONLY != 0 {
        access.push(X);
    }
    access
}

fn kinds(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let code = code_that_returns(0x1234_5678);
    watched.vm.guest.write(PLACE + 0x100, &code)?;
    for access in restrictions(features(&mut watched.wire)?) {
        context.stage(&format!("access {access}"), Duration::from_secs(10));
        watched.wire.restrict(&[(PLACE, access)])?;
        let told = |kind, at: &[u64]| -> Vec<(u8, u64)> {
            let denied = access & kind == 0;
            at.iter().filter(|_| denied).map(|&gpa| (kind, gpa)).collect()
        };
        for value in [1, 2] {
            watched.told(context, (Access::Write, [PLACE + 8, value, 0]), &told(W, &[PLACE + 8]))?;
            check_eq!(watched.word(PLACE + 8)?, value, "the word that the guest wrote");
            let read = watched.told(context, (Access::Read, [PLACE + 8, 0, 0]), &told(R, &[PLACE + 8]))?;
            check_eq!(read, value, "the word that the guest read");
            // Two instructions: each is fetched.
            let fetched = told(X, &[PLACE + 0x100, PLACE + 0x10a]);
            let result = watched.told(context, (Access::Call, [PLACE + 0x100, 0, 0]), &fetched)?;
            check_eq!(result, 0x1234_5678, "the result of the code");
        }
        // The pages beside it are not restricted.
        watched.silent(context, Access::Write, [PLACE - 8, 1, 0])?;
        watched.silent(context, Access::Write, [PLACE + PAGE, 1, 0])?;
        watched.wire.restrict(&[(PLACE, ALL)])?;
        watched.silent(context, Access::Write, [PLACE, 1, 0])?;
        watched.silent(context, Access::Call, [PLACE + 0x100, 0, 0])?;
    }
    watched.vm.exit()
}

fn retry(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    context.stage("three times in vain", Duration::from_secs(10));
    let number = watched.begin(Access::Add, [PLACE, 5, 1])?;
    for _ in 0..3 {
        let event = watched.expect(W, PLACE)?;
        check_eq!(watched.word(PLACE)?, 0, "the word while the event is open");
        watched.wire.reply(&event, RETRY)?;
    }
    let event = watched.expect(W, PLACE)?;
    check_eq!(watched.word(PLACE)?, 0, "the word after RETRY");
    context.stage("lift and retry", Duration::from_secs(10));
    watched.wire.restrict(&[(PLACE, ALL)])?;
    watched.wire.reply(&event, RETRY)?;
    watched.vm.finished(context, 0, number)?;
    check_eq!(watched.word(PLACE)?, 5, "the word in the end");
    watched.wire.expect_no_event()?;
    context.stage("lift and continue", Duration::from_secs(10));
    watched.wire.restrict(&[(PLACE, R | X)])?;
    let number = watched.begin(Access::Add, [PLACE, 5, 1])?;
    let event = watched.expect(W, PLACE)?;
    watched.wire.restrict(&[(PLACE, ALL)])?;
    watched.wire.reply(&event, CONTINUE)?;
    watched.vm.finished(context, 0, number)?;
    check_eq!(watched.word(PLACE)?, 10, "the word after CONTINUE");
    watched.wire.expect_no_event()?;
    watched.vm.exit()
}

fn without_the_event(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.control_event(0, PF, false)?;
    watched.vm.guest.write(PLACE + 0x100, &code_that_returns(77))?;
    watched.wire.restrict(&[(PLACE, 0), (PLACE + PAGE, 0)])?;
    context.stage("accesses", Duration::from_secs(10));
    for value in 1..=5 {
        watched.silent(context, Access::Write, [PLACE + PAGE - 4, value, 0])?;
        check_eq!(
            watched.silent(context, Access::Read, [PLACE + PAGE - 4, 0, 0])?,
            value,
            "the word across two pages"
        );
        check_eq!(
            watched.silent(context, Access::Call, [PLACE + 0x100, 0, 0])?,
            77,
            "the result of the code"
        );
        watched.silent(context, Access::Fill, [PLACE + 0x200, value, 32])?;
        check_eq!(watched.word(PLACE + 0x200 + 31 * 8)?, value, "the last word filled");
    }
    watched.vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever the instruction: each access is told, let through, and happens once.

use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_uapi::event::{CONTINUE, RETRY};

use super::{ALL, PAGE, R, W, Watched, X, code_that_returns};
use crate::vmm::field;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::crossing",
        "an access across two pages: told for each of them that is restricted",
        crossing,
    ),
    scenario(
        "pages::string",
        "REP MOVSB and REP STOSQ: each round is told, from both sides",
        string,
    ),
    scenario(
        "pages::read_modify_write",
        "ADD to memory: a write, done once",
        read_modify_write,
    ),
    scenario(
        "pages::atomic",
        "LOCK XADD and LOCK CMPXCHG16B: a write each, done once",
        atomic,
    ),
    scenario("pages::sse", "MOVDQU to and from a page that denies it", sse),
    scenario(
        "pages::stack",
        "PUSH, CALL and the delivery of an interrupt on a stack that denies writes",
        stack,
    ),
    scenario(
        "pages::fetch_across",
        "an instruction across two pages that may not be executed: told for each",
        fetch_across,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x1_0000;

fn crossing(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let (first, second) = (PLACE, PLACE + PAGE);
    let place = second - 4;
    for (restricted, told) in [
        (vec![first], vec![(W, place)]),
        (vec![second], vec![(W, second)]),
        (vec![first, second], vec![(W, place), (W, second)]),
    ] {
        context.stage(&format!("{restricted:x?}"), Duration::from_secs(10));
        let set = |access| restricted.iter().map(|&gpa| (gpa, access)).collect::<Vec<_>>();
        watched.wire.restrict(&set(R | X))?;
        for value in [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00] {
            let number = watched.begin(Access::Write, [place, value, 0])?;
            let before = watched.word(place)?;
            watched.let_all_through(&told, |watched| {
                check_eq!(watched.word(place)?, before, "the word while an event is open");
                Ok(())
            })?;
            watched.vm.finished(context, 0, number)?;
            watched.wire.expect_no_event()?;
            check_eq!(watched.word(place)?, value, "the word across two pages");
        }
        watched.wire.restrict(&set(ALL))?;
    }
    watched.vm.exit()
}

fn string(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 16;
    let mut watched = Watched::start(context, 1)?;
    let (from, to) = (PLACE + 0x20, PLACE + PAGE + 0x10);
    watched.vm.guest.write(from, b"sixteen bytes!!!")?;
    context.stage("copy to a restricted page", Duration::from_secs(10));
    watched.wire.restrict(&[(to, R | X)])?;
    let writes: Vec<_> = (0..ROUNDS).map(|i| (W, to + i)).collect();
    watched.told(context, (Access::Copy, [to, from, ROUNDS]), &writes)?;
    let mut got = [0; 16];
    watched.vm.guest.read(to, &mut got)?;
    check_eq!(&got, b"sixteen bytes!!!", "what was copied");

    context.stage("copy from a restricted page to another", Duration::from_secs(10));
    watched.wire.restrict(&[(from, 0)])?;
    watched.vm.guest.write(to, &[0; 16])?;
    let both: Vec<_> = (0..ROUNDS).flat_map(|i| [(R, from + i), (W, to + i)]).collect();
    watched.told(context, (Access::Copy, [to, from, ROUNDS]), &both)?;
    watched.vm.guest.read(to, &mut got)?;
    check_eq!(&got, b"sixteen bytes!!!", "what was copied again");

    context.stage("fill over the end of a restricted page", Duration::from_secs(10));
    let end = to - 0x10 + PAGE;
    let writes: Vec<_> = (0..4).map(|i| (W, end - 32 + 8 * i)).collect();
    watched.told(context, (Access::Fill, [end - 32, 0xabcd, 8]), &writes)?;
    for i in 0..8 {
        check_eq!(watched.word(end - 32 + 8 * i)?, 0xabcd, "word {i} of the fill");
    }
    watched.vm.exit()
}

fn read_modify_write(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    for access in [R | X, 0] {
        context.stage(&format!("access {access}"), Duration::from_secs(10));
        watched.vm.guest.write(PLACE, &[0; 64])?;
        watched.wire.restrict(&[(PLACE, access)])?;
        watched.told_read_modify_write(context, (Access::Add, [PLACE, 3, 4]), PLACE, 4)?;
        check_eq!(watched.word(PLACE)?, 12, "the sum");
        watched.wire.restrict(&[(PLACE, ALL)])?;
    }
    watched.vm.exit()
}

fn atomic(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    for access in [R | X, 0] {
        context.stage(&format!("access {access}"), Duration::from_secs(10));
        watched.vm.guest.write(PLACE, &[0; 64])?;
        watched.wire.restrict(&[(PLACE, access)])?;
        let last = watched.told_read_modify_write(context, (Access::LockedAdd, [PLACE, 3, 4]), PLACE, 4)?;
        check_eq!((watched.word(PLACE)?, last), (12, 9), "the sum, and before the last");
        let at = PLACE + 0x20;
        for (done, wanted) in [(1, 9), (0, 9)] {
            let value = 8 + done;
            let result = watched.told_read_modify_write(context, (Access::CompareExchange, [at, value, 0]), at, 1)?;
            check_eq!(
                (result, watched.word(at)?, watched.word(at + 8)?),
                (done, wanted, wanted),
                "whether it exchanged, and what is there"
            );
        }
        watched.wire.restrict(&[(PLACE, ALL)])?;
    }
    watched.vm.exit()
}

fn sse(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    context.stage("store and load", Duration::from_secs(10));
    watched.wire.restrict(&[(PLACE, 0)])?;
    for value in [5, 6] {
        watched.told(
            context,
            (Access::StoreSse, [PLACE + 0x18, value, 0]),
            &[(W, PLACE + 0x18)],
        )?;
        check_eq!(
            (watched.word(PLACE + 0x18)?, watched.word(PLACE + 0x20)?),
            (value, value),
            "both halves"
        );
        let loaded = watched.told(context, (Access::LoadSse, [PLACE + 0x18, 0, 0]), &[(R, PLACE + 0x18)])?;
        check_eq!(loaded, value, "the lower half");
    }
    context.stage("store across two pages", Duration::from_secs(10));
    watched.wire.restrict(&[(PLACE, ALL), (PLACE + PAGE, R)])?;
    let told = [(W, PLACE + PAGE)];
    watched.told(context, (Access::StoreSse, [PLACE + PAGE - 8, 7, 0]), &told)?;
    check_eq!(
        (watched.word(PLACE + PAGE - 8)?, watched.word(PLACE + PAGE)?),
        (7, 7),
        "both halves"
    );
    watched.vm.exit()
}

fn stack(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    // The lowest page of the vCPU's own stack: the program does not get there, and its handlers know the vCPU by the stack.
    let page = layout::STACKS;
    let top = page + 0x800;
    watched.wire.restrict(&[(page, R | X)])?;
    context.stage("push", Duration::from_secs(10));
    watched.told(context, (Access::Push, [top, 0x77, 0]), &[(W, top - 8)])?;
    check_eq!(watched.word(top - 8)?, 0x77, "what was pushed");

    context.stage("call", Duration::from_secs(10));
    watched.vm.guest.write(PLACE, &code_that_returns(9))?;
    let result = watched.told(context, (Access::CallOnStack, [top, PLACE, 0]), &[(W, top - 8)])?;
    check_eq!(result, 9, "what the function returned");

    context.stage("interrupt", Duration::from_secs(10));
    let number = watched.begin(Access::Interrupt, [top, 0, 0])?;
    // SS, RSP, RFLAGS, CS, RIP, from the top down; the CPU may look at the ends of what it is about to write first.
    let (event, data) = watched.pf()?;
    check!(
        data.access == W && (top - 40..top).contains(&data.gpa),
        "PF of {data:x?} for the frame below {top:#x}"
    );
    check_eq!(
        watched.vm.guest.field(0, field!(counted_interrupts))?,
        0,
        "interrupts while the event is open"
    );
    watched.wire.reply(&event, CONTINUE)?;
    // The frame is there and the handler stands on its first instruction, which pushes, too.
    let (event, data) = watched.pf()?;
    check_eq!((data.access, data.gpa), (W, top - 48), "what the handler pushes first");
    check_eq!(event.arch.regs.rsp, top - 40, "RSP in the handler");
    let rflags = watched.word(top - 24)?;
    check_eq!(rflags & 1 << 8, 0, "TF in the frame's RFLAGS {rflags:#x}");
    watched.wire.restrict(&[(page, ALL)])?;
    watched.wire.reply(&event, RETRY)?;
    watched.vm.finished(context, 0, number)?;
    check_eq!(
        watched.vm.guest.field(0, field!(counted_interrupts))?,
        1,
        "interrupts taken"
    );
    watched.wire.expect_no_event()?;
    watched.vm.exit()
}

fn fetch_across(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let (first, second) = (PLACE, PLACE + PAGE);
    // Four bytes of the ten-byte instruction in the first page.
    let start = second - 4;
    watched.vm.guest.write(start, &code_that_returns(0xfedc))?;
    for (restricted, told) in [
        (vec![(first, R)], vec![(X, start)]),
        (vec![(second, R)], vec![(X, second), (X, second + 6)]),
        (
            vec![(first, R), (second, R)],
            vec![(X, start), (X, second), (X, second + 6)],
        ),
        (
            vec![(first, 0), (second, 0)],
            vec![(X, start), (X, second), (X, second + 6)],
        ),
    ] {
        context.stage(&format!("{restricted:x?}"), Duration::from_secs(10));
        watched.wire.restrict(&restricted)?;
        for _ in 0..2 {
            let result = watched.told(context, (Access::Call, [start, 0, 0]), &told)?;
            check_eq!(result, 0xfedc, "the result of the code");
        }
        watched.wire.restrict(&[(first, ALL), (second, ALL)])?;
    }
    watched.vm.exit()
}

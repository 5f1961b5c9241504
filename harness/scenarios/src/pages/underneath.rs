// SPDX-License-Identifier: MIT OR Apache-2.0
//! Restrictions and what L1's kernel does with the guest's memory by itself: pages that are alike become one, pages move to other
//! frames, huge pages are made and split.

use std::fs;
use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_uapi::event::CONTINUE;

use super::memory::{huge_pages_mapped, mount_debugfs};
use super::{ALL, PAGE, R, W, Watched, X, code_that_returns};
use crate::requests::expect_data;
use crate::vmm::{Advice, Frame};
use crate::wire::Event;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::host_merges",
        "KSM makes one page of four that are alike: their restrictions hold, and a write that is let through leaves the others alone",
        merged,
    ),
    scenario(
        "pages::host_moves",
        "L1's kernel moves the guest's pages to other frames, an event open or not: their restrictions hold",
        moved,
    ),
    scenario(
        "pages::host_collapses",
        "L1's kernel makes a huge page of restricted ones, and splits it: their restrictions hold all the while",
        collapsed,
    ),
];

const SLOT: u64 = layout::ANONYMOUS_SLOT;
const NOT_WRITTEN: u64 = SLOT;
const NOT_EXECUTED: u64 = SLOT + PAGE;
const NOTHING: u64 = SLOT + 2 * PAGE;
const FREE: u64 = SLOT + 3 * PAGE;
/// The pages, and what each may be.
const PAGES: [(u64, u8); 4] = [(NOT_WRITTEN, R | X), (NOT_EXECUTED, R | W), (NOTHING, 0), (FREE, ALL)];
const BYTES: u64 = PAGES.len() as u64 * PAGE;

/// What the code at the beginning of each page returns; its second instruction.
const RESULT: u64 = 0x5eed;
const RETURN: u64 = 10;
/// Where in a page the word lies that is written.
const WORD: u64 = 0x800;

/// A guest with a slot of that many bytes, the first pages of which are alike and restricted.
fn with_pages(context: &mut Context, bytes: u64) -> Result<Watched, Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.vm.add_slot(SLOT, bytes)?;
    for (page, _) in PAGES {
        let code = code_that_returns(RESULT);
        check_eq!(
            watched.wire.write_physical(page, &code)?,
            Ok(vec![]),
            "code at {page:#x}"
        );
        // So that the page is mapped, with all accesses.
        watched.silent(context, Access::Write, [page + WORD, 0, 0])?;
    }
    watched.wire.restrict(&PAGES)?;
    hold(&mut watched, context)?;
    Ok(watched)
}

/// Fails unless each page is as restricted as it was made: what it denies is told, what it allows is not. Nothing is written.
#[track_caller]
fn hold(watched: &mut Watched, context: &Context) -> Result<(), Failure> {
    let (pages, access): (Vec<_>, Vec<_>) = PAGES.into_iter().unzip();
    check_eq!(watched.wire.page_access(&pages)?, access, "access");
    for (page, access) in PAGES {
        let fetches = [(X, page), (X, page + RETURN)];
        let told = if access & X == 0 { &fetches[..] } else { &[] };
        let result = watched.told(context, (Access::Call, [page, 0, 0]), told)?;
        check_eq!(result, RESULT, "what the code at {page:#x} returned");
        let reads = [(R, page)];
        let told = if access & R == 0 { &reads[..] } else { &[] };
        let code = watched.told(context, (Access::Read, [page, 0, 0]), told)?;
        check_eq!(
            code.to_le_bytes()[..],
            code_that_returns(RESULT)[..8],
            "bytes at {page:#x}"
        );
    }
    Ok(())
}

/// Begins a write to a page that denies it; the event, which is open, and the command's number.
#[track_caller]
fn begin_write(watched: &mut Watched, page: u64, value: u64) -> Result<(u64, Event), Failure> {
    let number = watched.begin(Access::Write, [page + WORD, value, 0])?;
    Ok((number, watched.expect(W, page + WORD)?))
}

/// Lets such a write through.
#[track_caller]
fn end_write(watched: &mut Watched, context: &Context, (number, event): (u64, Event)) -> Result<(), Failure> {
    watched.wire.reply(&event, CONTINUE)?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()
}

/// Writes a word into each page, told or not as it is restricted.
#[track_caller]
fn write_words(watched: &mut Watched, context: &Context, words: [u64; PAGES.len()]) -> Result<(), Failure> {
    for ((page, access), value) in PAGES.into_iter().zip(words) {
        let writes = [(W, page + WORD)];
        let told = if access & W == 0 { &writes[..] } else { &[] };
        watched.told(context, (Access::Write, [page + WORD, value, 0]), told)?;
    }
    check_words(watched, words)
}

/// The word of each page, as the tool reads it.
#[track_caller]
fn check_words(watched: &mut Watched, words: [u64; PAGES.len()]) -> Result<(), Failure> {
    for ((page, _), value) in PAGES.into_iter().zip(words) {
        let bytes = expect_data(watched.wire.read_physical(page + WORD, 8)?, "VM_READ_PHYSICAL")?;
        check_eq!(bytes, value.to_le_bytes(), "the word in {page:#x}");
    }
    Ok(())
}

fn frames(watched: &Watched) -> Result<Vec<Frame>, Failure> {
    watched.vm.frames(SLOT, PAGES.len() as u64)
}

/// A setting of KSM's.
fn set_ksm(name: &str, value: &str) -> Result<(), Failure> {
    Ok(fs::write(format!("/sys/kernel/mm/ksm/{name}"), value)?)
}

/// A figure of KSM's.
fn ksm(name: &str) -> Result<u64, Failure> {
    Ok(fs::read_to_string(format!("/sys/kernel/mm/ksm/{name}"))?
        .trim()
        .parse()?)
}

const ALL_ONE: [usize; 4] = [0; 4];
const FIRST_APART: [usize; 4] = [0, 1, 1, 1];
const ALL_APART: [usize; 4] = [0, 1, 2, 3];

/// For each of the four pages, the first of them that is in the same frame.
fn sharing(watched: &Watched) -> Result<Vec<usize>, Failure> {
    let frames = frames(watched)?;
    let first = |frame| frames.iter().position(|other| other == frame).unwrap_or(usize::MAX);
    Ok(frames.iter().map(first).collect())
}

#[track_caller]
fn check_sharing(watched: &Watched, wanted: [usize; 4]) -> Result<(), Failure> {
    check_eq!(sharing(watched)?, wanted, "which page each is one with");
    Ok(())
}

/// Has KSM look until all four pages are one, and then no more.
fn merge(watched: &Watched, context: &Context) -> Result<(), Failure> {
    set_ksm("run", "1")?;
    context.wait_for("KSM to make one page of four", || Ok(sharing(watched)? == ALL_ONE))?;
    set_ksm("run", "0")?;
    check_eq!(
        (ksm("pages_shared")?, ksm("pages_sharing")?),
        (1, 3),
        "pages shared, and shared with"
    );
    Ok(())
}

fn merged(context: &mut Context) -> Result<(), Failure> {
    let mut watched = with_pages(context, BYTES)?;
    watched.vm.advise(SLOT, BYTES, Advice::Mergeable)?;
    set_ksm("sleep_millisecs", "0")?;
    set_ksm("smart_scan", "0")?;
    context.stage("merge", Duration::from_secs(30));
    merge(&watched, context)?;
    hold(&mut watched, context)?;
    check_sharing(&watched, ALL_ONE)?;

    context.stage("a write that is let through", Duration::from_secs(20));
    let write = begin_write(&mut watched, NOT_WRITTEN, 1)?;
    check_sharing(&watched, ALL_ONE)?;
    end_write(&mut watched, context, write)?;
    check_sharing(&watched, FIRST_APART)?;
    check_words(&mut watched, [1, 0, 0, 0])?;
    hold(&mut watched, context)?;

    context.stage("writes to each", Duration::from_secs(20));
    write_words(&mut watched, context, [5, 6, 7, 8])?;
    check_sharing(&watched, ALL_APART)?;
    hold(&mut watched, context)?;

    context.stage("merge while an event is open", Duration::from_secs(30));
    write_words(&mut watched, context, [9; 4])?;
    let write = begin_write(&mut watched, NOT_WRITTEN, 2)?;
    merge(&watched, context)?;
    end_write(&mut watched, context, write)?;
    check_sharing(&watched, FIRST_APART)?;
    check_words(&mut watched, [2, 9, 9, 9])?;
    hold(&mut watched, context)?;

    context.stage("part them all", Duration::from_secs(30));
    write_words(&mut watched, context, [9; 4])?;
    merge(&watched, context)?;
    set_ksm("run", "2")?;
    check_sharing(&watched, ALL_APART)?;
    hold(&mut watched, context)?;
    write_words(&mut watched, context, [1, 2, 3, 4])?;
    watched.vm.exit()
}

/// Has L1's kernel move the pages.
#[track_caller]
fn move_pages(watched: &Watched) -> Result<(), Failure> {
    let before = frames(watched)?;
    watched.vm.advise(SLOT, BYTES, Advice::SoftOffline)?;
    let after = frames(watched)?;
    let stayed = after.iter().filter(|&frame| before.contains(frame)).count();
    check_eq!(stayed, 0, "frames that hold the pages as before");
    Ok(())
}

fn moved(context: &mut Context) -> Result<(), Failure> {
    let mut watched = with_pages(context, BYTES)?;
    for round in 1..=3 {
        context.stage(&format!("round {round}"), Duration::from_secs(20));
        move_pages(&watched)?;
        hold(&mut watched, context)?;
        write_words(&mut watched, context, [round; 4])?;
        let write = begin_write(&mut watched, NOT_WRITTEN, round + 100)?;
        move_pages(&watched)?;
        end_write(&mut watched, context, write)?;
        check_words(&mut watched, [round + 100, round, round, round])?;
        hold(&mut watched, context)?;
    }
    watched.vm.exit()
}

fn collapsed(context: &mut Context) -> Result<(), Failure> {
    const HUGE: u64 = 2 << 20;
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "never")?;
    mount_debugfs()?;
    let mut watched = with_pages(context, HUGE)?;
    let are_huge = |watched: &Watched| -> Result<Vec<bool>, Failure> {
        Ok(frames(watched)?.iter().map(|frame| frame.is_huge).collect())
    };
    check_eq!(
        are_huge(&watched)?,
        [false; 4],
        "whether the pages are huge ones' at the start"
    );
    let mapped = huge_pages_mapped()?;
    let lifted = PAGES.map(|(page, _)| (page, ALL));
    for round in 1..=2 {
        context.stage(&format!("round {round}: make a huge page"), Duration::from_secs(20));
        let write = begin_write(&mut watched, NOT_WRITTEN, round)?;
        watched.vm.advise(SLOT, HUGE, Advice::Collapse)?;
        check_eq!(are_huge(&watched)?, [true; 4], "whether the pages are a huge one's");
        end_write(&mut watched, context, write)?;
        hold(&mut watched, context)?;
        check_eq!(
            huge_pages_mapped()?,
            mapped,
            "huge pages that KVM maps with restrictions in it"
        );
        write_words(&mut watched, context, [round, 2, 3, 4])?;

        context.stage(&format!("round {round}: lift and restrict"), Duration::from_secs(20));
        watched.wire.restrict(&lifted)?;
        watched.silent(context, Access::Write, [NOTHING + WORD, 30, 0])?;
        check_eq!(
            huge_pages_mapped()?,
            mapped + 1,
            "huge pages that KVM maps without restrictions"
        );
        watched.wire.restrict(&PAGES)?;
        hold(&mut watched, context)?;
        check_words(&mut watched, [round, 2, 30, 4])?;

        context.stage(&format!("round {round}: split it"), Duration::from_secs(20));
        let write = begin_write(&mut watched, NOT_WRITTEN, 40)?;
        watched.vm.split(SLOT, HUGE)?;
        check_eq!(are_huge(&watched)?, [false; 4], "whether the pages are huge ones'");
        end_write(&mut watched, context, write)?;
        hold(&mut watched, context)?;
        check_words(&mut watched, [40, 2, 30, 4])?;
        watched.wire.restrict(&lifted)?;
        watched.silent(context, Access::Write, [NOTHING + WORD, 50, 0])?;
        check_eq!(
            huge_pages_mapped()?,
            mapped,
            "huge pages that KVM maps of the split one"
        );
        watched.wire.restrict(&PAGES)?;
    }
    watched.vm.exit()
}

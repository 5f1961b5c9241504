// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's page tables in pages that deny writes: what the CPU does there by itself is not told, what the guest does is.

use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_lab_control::Backend;
use kvmi_uapi::event::{CONTINUE, PF, Pf};

use super::{PAGE, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::page_table",
        "the CPU's own walk through a page table that denies writes is let through untold; the guest's write is told",
        walk,
    ),
    scenario(
        "pages::page_table_of_itself",
        "a page table that denies writes and maps itself, written by way of itself: told on VMX, which can tell the write from the walk",
        of_itself,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x1_0000;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// 2 MiB that the program does not use.
const RANGE: u64 = 0x1800_0000;

/// Has the page table at PLACE map the range, whose first page is this one.
fn map_range(watched: &Watched, page: u64) -> Result<(), Failure> {
    const PRESENT_WRITABLE: u64 = 3;
    let entry = layout::PAGE_DIRECTORY + 8 * (RANGE >> 21);
    for (gpa, points_to) in [(PLACE, page), (entry, PLACE)] {
        let word = points_to | PRESENT_WRITABLE;
        watched.vm.guest.write(gpa, &word.to_ne_bytes())?;
    }
    Ok(())
}

fn walk(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let (table, page) = (PLACE, PLACE + PAGE);
    map_range(&watched, page)?;
    watched.wire.restrict(&[(table, R | X)])?;
    context.stage("walk", Duration::from_secs(10));
    for value in [3, 4] {
        watched.silent(context, Access::Write, [RANGE + 0x10, value, 0])?;
        check_eq!(watched.word(page + 0x10)?, value, "the word in the page");
        let read = watched.silent(context, Access::Read, [RANGE + 0x10, 0, 0])?;
        check_eq!(read, value, "the word read");
    }
    let flags = watched.word(table)? & (ACCESSED | DIRTY);
    check_eq!(
        flags,
        ACCESSED | DIRTY,
        "what the CPU has set in the page table's entry"
    );
    context.stage("the guest's own write", Duration::from_secs(10));
    watched.told(context, (Access::Write, [table + 8, 0, 0]), &[(W, table + 8)])?;
    context.stage("both", Duration::from_secs(10));
    watched.wire.restrict(&[(page, 0)])?;
    // The gva is not where the page lies.
    let number = watched.begin(Access::Write, [RANGE + 0x10, 9, 0])?;
    let event = watched.wire.expect_event(PF, 0)?;
    let data = event.data::<Pf>()?;
    check_eq!((data.access, data.gpa), (W, page + 0x10), "access and gpa");
    check!([RANGE + 0x10, u64::MAX].contains(&data.gva), "gva {:#x}", data.gva);
    watched.wire.reply(&event, CONTINUE)?;
    watched.vm.finished(context, 0, number)?;
    check_eq!(watched.word(page + 0x10)?, 9, "the word in the page");
    watched.wire.expect_no_event()?;
    watched.vm.exit()
}

fn of_itself(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    map_range(&watched, PLACE)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    for value in [5, 6] {
        context.stage(&format!("write {value}"), Duration::from_secs(10));
        let (gva, gpa) = (RANGE + 0x800, PLACE + 0x800);
        let before = watched.word(gpa)?;
        let number = watched.begin(Access::Write, [gva, value, 0])?;
        // On SVM the CPU's walk cannot be let through without the instruction's own write (protocol.md, PF).
        if watched.backend == Backend::Vmx {
            let event = watched.wire.expect_event(PF, 0)?;
            let data = event.data::<Pf>()?;
            check_eq!((data.access, data.gpa, data.gva), (W, gpa, gva), "access, gpa and gva");
            check_eq!(watched.word(gpa)?, before, "the word while the event is open");
            watched.wire.reply(&event, CONTINUE)?;
        }
        watched.vm.finished(context, 0, number)?;
        check_eq!(watched.word(gpa)?, value, "the word that was written");
        let flags = watched.word(PLACE)? & (ACCESSED | DIRTY);
        check_eq!(flags, ACCESSED | DIRTY, "the flags of the page table's entry");
        watched.wire.expect_no_event()?;
    }
    watched.vm.exit()
}

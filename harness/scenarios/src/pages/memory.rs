// SPDX-License-Identifier: MIT OR Apache-2.0
//! Restrictions and what else happens to guest memory: slots, dirty logging, huge pages.

use std::fs;
use std::time::Duration;

use kvmi_guests::{Access, Op, layout};
use kvmi_uapi::error::EINVAL;
use rustix::mount::{MountFlags, mount};

use super::{ALL, PAGE, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::slot_remade",
        "the memory slot is deleted and made again: its restrictions hold",
        slot_remade,
    ),
    scenario(
        "pages::dirty_log",
        "with dirty logging on, restrictions hold and what is let through is logged",
        dirty_log,
    ),
    scenario(
        "pages::huge_pages",
        "one restriction splits a huge page; when the last goes the huge page comes back",
        huge_pages,
    ),
    scenario(
        "pages::read_only_slot",
        "a read-only slot stays read-only whatever the access",
        read_only_slot,
    ),
    scenario(
        "pages::slot_gone",
        "a slot goes: its pages are MMIO and no PF; it comes again: its restrictions hold",
        slot_gone,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x4_0000;

fn slot_remade(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X), (PLACE + PAGE, 0)])?;
    for round in 1..=3 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        watched.told(context, (Access::Write, [PLACE, round, 0]), &[(W, PLACE)])?;
        watched.vm.pause(0)?;
        watched.vm.remake_ram()?;
        watched.vm.resume(0)?;
        check_eq!(
            watched.wire.page_access(&[PLACE, PLACE + PAGE, PLACE + 2 * PAGE])?,
            [R | X, 0, ALL],
            "access after the slot was made again"
        );
        watched.told(context, (Access::Write, [PLACE + 8, round, 0]), &[(W, PLACE + 8)])?;
        watched.told(context, (Access::Read, [PLACE + PAGE, 0, 0]), &[(R, PLACE + PAGE)])?;
        watched.silent(context, Access::Write, [PLACE + 2 * PAGE, 1, 0])?;
        check_eq!(watched.word(PLACE + 8)?, round, "the word");
    }
    context.stage("beyond any slot", Duration::from_secs(10));
    check_eq!(
        watched.wire.set_page_access(&[(layout::RAM_BYTES, R)])?,
        Err(EINVAL),
        "a page in no slot"
    );
    watched.vm.exit()
}

fn dirty_log(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    watched.told(context, (Access::Write, [PLACE, 1, 0]), &[(W, PLACE)])?;
    watched.vm.log_dirty(true)?;
    watched.vm.dirty_gfns()?;
    for round in 1..=3 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        watched.silent(context, Access::Read, [PLACE, 0, 0])?;
        check!(
            !watched.vm.dirty_gfns()?.contains(&(PLACE / PAGE)),
            "a page that was read is dirty"
        );
        watched.told(context, (Access::Write, [PLACE, round, 0]), &[(W, PLACE)])?;
        watched.silent(context, Access::Write, [PLACE + PAGE, round, 0])?;
        let dirty = watched.vm.dirty_gfns()?;
        for gpa in [PLACE, PLACE + PAGE] {
            check!(
                dirty.contains(&(gpa / PAGE)),
                "{gpa:#x} was written and is not dirty: {dirty:x?}"
            );
        }
    }
    context.stage("off", Duration::from_secs(10));
    watched.vm.log_dirty(false)?;
    watched.told(context, (Access::Write, [PLACE, 7, 0]), &[(W, PLACE)])?;
    watched.vm.exit()
}

/// Where KVM says how much it has mapped.
pub(super) fn mount_debugfs() -> Result<(), Failure> {
    Ok(mount(
        "debugfs",
        "/sys/kernel/debug",
        "debugfs",
        MountFlags::empty(),
        None,
    )?)
}

/// What KVM has mapped by 2 MiB pages, in all VMs.
pub(super) fn huge_pages_mapped() -> Result<u64, Failure> {
    let text = fs::read_to_string("/sys/kernel/debug/kvm/pages_2m")?;
    Ok(text.trim().parse()?)
}

fn huge_pages(context: &mut Context) -> Result<(), Failure> {
    const HUGE: u64 = 2 << 20;
    let slot = layout::ANONYMOUS_SLOT;
    context.stage("huge pages in L1", Duration::from_secs(10));
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;
    mount_debugfs()?;
    let mut watched = Watched::start(context, 1)?;
    watched.vm.add_slot(slot, 4 * HUGE)?;
    for i in 0..4 {
        watched.silent(context, Access::Write, [slot + i * HUGE, 1, 0])?;
    }
    let before = huge_pages_mapped()?;
    check!(before >= 4, "{before} huge pages are mapped, the slot has 4");
    context.stage("split", Duration::from_secs(10));
    let pages = [slot + HUGE + 5 * PAGE, slot + HUGE + 6 * PAGE, slot + 3 * HUGE];
    watched.wire.restrict(&pages.map(|gpa| (gpa, R | X)))?;
    let touch_all = |watched: &mut Watched, context: &Context| -> Result<(), Failure> {
        for i in 0..4 {
            watched.silent(context, Access::Write, [slot + i * HUGE + 9 * PAGE, 1, 0])?;
        }
        Ok(())
    };
    touch_all(&mut watched, context)?;
    check_eq!(
        huge_pages_mapped()?,
        before - 2,
        "huge pages with restrictions in two ranges"
    );
    for gpa in pages {
        watched.told(context, (Access::Write, [gpa, 1, 0]), &[(W, gpa)])?;
    }
    context.stage("lift all but one", Duration::from_secs(10));
    watched.wire.restrict(&[(pages[0], ALL), (pages[2], ALL)])?;
    touch_all(&mut watched, context)?;
    check_eq!(huge_pages_mapped()?, before - 1, "huge pages with one restriction left");
    watched.told(context, (Access::Write, [pages[1], 1, 0]), &[(W, pages[1])])?;
    context.stage("lift the last", Duration::from_secs(10));
    watched.wire.restrict(&[(pages[1], ALL)])?;
    touch_all(&mut watched, context)?;
    check_eq!(huge_pages_mapped()?, before, "huge pages without restrictions");
    watched.vm.exit()
}

fn read_only_slot(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let slot = layout::READ_ONLY_SLOT;
    watched.vm.add_read_only_slot(0x4000)?;
    watched.wire.restrict(&[(slot, R)])?;
    context.stage("read", Duration::from_secs(10));
    let word = watched.silent(context, Access::Read, [slot, 0, 0])?;
    check_eq!(word, 0xa5a5_a5a5_a5a5_a5a5, "the word");
    context.stage("write", Duration::from_secs(10));
    // Told, let through, and then what it is without a tool: the VMM's business, and no write.
    let number = watched.begin(Access::Write, [slot, 1, 0])?;
    watched.let_through(W, slot)?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    let exits = watched.vm.status(0)?.exits("mmio");
    check_eq!(exits, 1, "MMIO exits");
    check_eq!(
        watched
            .vm
            .carry_out(context, 0, Op::Access, [Access::Read as u64, slot, 0, 0])?,
        word,
        "the word after the write"
    );
    watched.vm.exit()
}

fn slot_gone(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let slot = layout::ANONYMOUS_SLOT;
    let (hidden, kept) = (slot, slot + PAGE);
    watched.vm.add_slot(slot, 2 << 20)?;
    watched.wire.restrict(&[(hidden, 0), (kept, R | X)])?;
    for round in 1..=2 {
        context.stage(&format!("round {round}: the slot is there"), Duration::from_secs(10));
        watched.told(context, (Access::Write, [hidden, round, 0]), &[(W, hidden)])?;
        let read = watched.told(context, (Access::Read, [hidden, 0, 0]), &[(R, hidden)])?;
        check_eq!(read, round, "the word read");
        watched.told(context, (Access::Write, [kept, round, 0]), &[(W, kept)])?;
        check_eq!(
            watched.silent(context, Access::Read, [kept, 0, 0])?,
            round,
            "the other word"
        );

        context.stage(&format!("round {round}: the slot is gone"), Duration::from_secs(10));
        watched.vm.pause(0)?;
        watched.vm.delete_slot(slot)?;
        watched.vm.resume(0)?;
        let before = watched.vm.status(0)?.exits("mmio");
        // Each twice: the second time KVM knows it for MMIO.
        for gpa in [hidden, hidden, kept, kept] {
            watched.silent(context, Access::Read, [gpa, 0, 0])?;
            watched.silent(context, Access::Write, [gpa, 1, 0])?;
        }
        check_eq!(watched.vm.status(0)?.exits("mmio") - before, 8, "MMIO exits");
        check_eq!(
            watched.wire.page_access(&[hidden, kept])?,
            [0, R | X],
            "access where no slot is"
        );
        watched.vm.pause(0)?;
        watched.vm.add_slot(slot, 2 << 20)?;
        watched.vm.resume(0)?;
    }
    context.stage("lift", Duration::from_secs(10));
    watched.told(context, (Access::Read, [hidden, 0, 0]), &[(R, hidden)])?;
    watched.wire.restrict(&[(hidden, ALL), (kept, ALL)])?;
    watched.silent(context, Access::Write, [hidden, 1, 0])?;
    watched.silent(context, Access::Write, [kept, 1, 0])?;
    watched.vm.exit()
}

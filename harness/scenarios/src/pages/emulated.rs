// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that KVM emulates: what it reads and writes for the guest is told as what the CPU does.

use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_uapi::event::{CONTINUE, DESCRIPTOR, DESCRIPTOR_GDTR, Descriptor, RETRY};

use super::{ALL, PAGE, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::descriptor_tables",
        "SGDT to and LGDT from pages that deny it, with DESCRIPTOR on: that once, then PF for each page, then it is done",
        descriptor_tables,
    ),
    scenario(
        "pages::string_output",
        "REP OUTSD from a page that may not be read: each round is told, and comes out once",
        string_output,
    ),
    scenario(
        "pages::string_input",
        "REP INSD to pages that may not be written: nothing that the port gave is lost, whatever the reply",
        string_input,
    ),
    scenario(
        "pages::emulated_crossing",
        "an emulated ADD across two pages: neither is written before both are let through",
        emulated_crossing,
    ),
    scenario(
        "pages::emulated_string",
        "an emulated REP MOVSB: each round is told, from both sides",
        emulated_string,
    ),
    scenario(
        "pages::emulated_beside_walk",
        "SGDT to the page table by which it was fetched itself: what the CPU's walk is let do the emulator is not",
        emulated_beside_walk,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x6_0000;

impl Watched {
    /// The next event, which must be about the GDT; let go on.
    #[track_caller]
    fn expect_gdt(&mut self, load: bool) -> Result<(), Failure> {
        let event = self.wire.expect_event(DESCRIPTOR, 0)?;
        let data = event.data::<Descriptor>()?;
        check_eq!(
            (data.descriptor, data.write),
            (DESCRIPTOR_GDTR, load.into()),
            "descriptor and write of DESCRIPTOR"
        );
        self.wire.reply(&event, CONTINUE)
    }

    /// Ten bytes of guest memory, as SGDT stores them.
    fn table_register(&self, gpa: u64) -> Result<[u8; 10], Failure> {
        let mut bytes = [0; 10];
        self.vm.guest.read(gpa, &mut bytes)?;
        Ok(bytes)
    }
}

fn descriptor_tables(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.control_event(0, DESCRIPTOR, true)?;
    let second = PLACE + PAGE;
    let wanted = [&(5 * 8 - 1u16).to_le_bytes()[..], &layout::GDT.to_le_bytes()].concat();
    for (place, restricted, told) in [
        (PLACE, vec![PLACE], vec![PLACE]),
        (second - 4, vec![PLACE], vec![second - 4]),
        (second - 4, vec![second], vec![second]),
        (second - 4, vec![PLACE, second], vec![second - 4, second]),
    ] {
        context.stage(&format!("{place:#x} of {restricted:x?}"), Duration::from_secs(10));
        let set = |access| restricted.iter().map(|&gpa| (gpa, access)).collect::<Vec<_>>();
        watched.wire.restrict(&set(0))?;
        for (what, kind) in [(Access::StoreGdt, W), (Access::LoadGdt, R)] {
            let before = if kind == W {
                [0xee; 10]
            } else {
                watched.table_register(place)?
            };
            watched.vm.guest.write(place, &before)?;
            let number = watched.begin(what, [place, 0, 0])?;
            watched.expect_gdt(kind == R)?;
            for &gpa in &told {
                let event = watched.expect(kind, gpa)?;
                check_eq!(
                    watched.table_register(place)?,
                    before,
                    "the bytes while an event is open"
                );
                watched.wire.reply(&event, CONTINUE)?;
            }
            watched.vm.finished(context, 0, number)?;
            watched.wire.expect_no_event()?;
            check_eq!(watched.table_register(place)?[..], wanted[..], "what SGDT stored");
        }
        watched.wire.restrict(&set(ALL))?;
    }
    context.stage("without either event", Duration::from_secs(10));
    watched.wire.restrict(&[(PLACE, 0)])?;
    watched.wire.control_event(0, kvmi_uapi::event::PF, false)?;
    let number = watched.begin(Access::StoreGdt, [PLACE, 0, 0])?;
    watched.expect_gdt(false)?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.control_event(0, DESCRIPTOR, false)?;
    watched.silent(context, Access::LoadGdt, [PLACE, 0, 0])?;
    watched.vm.exit()
}

fn string_output(context: &mut Context) -> Result<(), Failure> {
    const VALUES: [u32; 3] = [11, 12, 13];
    let mut watched = Watched::start(context, 1)?;
    let bytes = VALUES.map(u32::to_le_bytes).concat();
    watched.vm.guest.write(PLACE, &bytes)?;
    watched.wire.restrict(&[(PLACE, 0)])?;
    context.stage("output", Duration::from_secs(10));
    let told = [0, 4, 8].map(|at| (R, PLACE + at));
    watched.told(context, (Access::Output, [PLACE, VALUES.len() as u64, 0]), &told)?;
    let marks = watched.vm.status(0)?.marks;
    check_eq!(
        marks.iter().map(|mark| mark.value).collect::<Vec<_>>(),
        VALUES,
        "marks that the VMM saw"
    );
    watched.vm.exit()
}

fn string_input(context: &mut Context) -> Result<(), Failure> {
    const WORDS: usize = 8;
    let mut watched = Watched::start(context, 1)?;
    let (first, second) = (PLACE, PLACE + PAGE);
    let mut read_before = 0;
    for (place, told) in [
        // KVM reads several words of the port at once, and writes them at once.
        (first + 0x10, vec![first + 0x10]),
        (second - 8, vec![second - 8, second]),
        (second - 4, vec![second - 4, second, second + 12]),
    ] {
        for action in [CONTINUE, RETRY] {
            context.stage(&format!("{place:#x}, reply {action}"), Duration::from_secs(10));
            watched.wire.restrict(&[(first, R | X), (second, R | X)])?;
            watched.vm.guest.write(place, &[0xee; 4 * WORDS])?;
            let number = watched.begin(Access::Input, [place, WORDS as u64, 0])?;
            let event = watched.expect(W, told[0])?;
            if action == RETRY {
                watched.wire.restrict(&[(first, ALL)])?;
            }
            watched.wire.reply(&event, action)?;
            for &gpa in &told[1..] {
                watched.let_through(W, gpa)?;
            }
            watched.vm.finished(context, 0, number)?;
            watched.wire.expect_no_event()?;
            let mut bytes = [0; 4 * WORDS];
            watched.vm.guest.read(place, &mut bytes)?;
            let words: Vec<_> = bytes
                .chunks(4)
                .filter_map(|word| word.try_into().ok())
                .map(u32::from_le_bytes)
                .collect();
            let wanted: Vec<_> = (read_before..).take(WORDS).collect();
            check_eq!(words, wanted, "what the guest read from the port");
            read_before += WORDS as u32;
            check_eq!(watched.vm.status(0)?.inputs, read_before, "words that the VMM gave");
        }
    }
    watched.vm.exit()
}

fn emulated_crossing(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    modules::emulate_by_prefix()?;
    let second = PLACE + PAGE;
    let place = second - 4;
    let mut sum = 0x0102_0304_0506_0708u64;
    watched.vm.guest.write(place, &sum.to_ne_bytes())?;
    for (restricted, told) in [
        (vec![PLACE], vec![(W, place)]),
        (vec![second], vec![(W, second)]),
        (vec![PLACE, second], vec![(W, place), (W, second)]),
    ] {
        context.stage(&format!("{restricted:x?}"), Duration::from_secs(10));
        let set = |access| restricted.iter().map(|&gpa| (gpa, access)).collect::<Vec<_>>();
        watched.wire.restrict(&set(R | X))?;
        let number = watched.begin(Access::AddEmulated, [place, 0x1111_1111_1111_1111, 0])?;
        for &(kind, gpa) in &told {
            let event = watched.expect(kind, gpa)?;
            check_eq!(watched.word(place)?, sum, "the word while an event is open");
            watched.wire.reply(&event, CONTINUE)?;
        }
        watched.vm.finished(context, 0, number)?;
        watched.wire.expect_no_event()?;
        sum += 0x1111_1111_1111_1111;
        check_eq!(watched.word(place)?, sum, "the sum");
        watched.wire.restrict(&set(ALL))?;
    }
    watched.vm.exit()
}

fn emulated_string(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 12;
    let mut watched = Watched::start(context, 1)?;
    modules::emulate_by_prefix()?;
    let (from, to) = (PLACE + 0x20, PLACE + PAGE + 0x10);
    watched.vm.guest.write(from, b"twelve bytes")?;
    context.stage("copy", Duration::from_secs(10));
    watched.wire.restrict(&[(from, 0), (to, R | X)])?;
    let both: Vec<_> = (0..ROUNDS).flat_map(|i| [(R, from + i), (W, to + i)]).collect();
    watched.told(context, (Access::CopyEmulated, [to, from, ROUNDS]), &both)?;
    let mut got = [0; ROUNDS as usize];
    watched.vm.guest.read(to, &mut got)?;
    check_eq!(&got, b"twelve bytes", "what was copied");
    watched.vm.exit()
}

fn emulated_beside_walk(context: &mut Context) -> Result<(), Failure> {
    const PRESENT_WRITABLE: u64 = 3;
    // A 2 MiB range that the program does not use, mapped by a page table of its own.
    const RANGE: u64 = 0x1800_0000;
    let mut watched = Watched::start(context, 1)?;
    watched.wire.control_event(0, DESCRIPTOR, true)?;
    let (table, page) = (PLACE, PLACE + PAGE);
    let place = table + 0x800;
    let entry = layout::PAGE_DIRECTORY + 8 * (RANGE >> 21);
    for (gpa, points_to) in [(table, page), (entry, table)] {
        let word = points_to | PRESENT_WRITABLE;
        watched.vm.guest.write(gpa, &word.to_ne_bytes())?;
    }
    // sgdt [place]; ret
    let code = [&[0x0f, 0x01, 0x04, 0x25][..], &(place as u32).to_le_bytes(), &[0xc3]].concat();
    watched.vm.guest.write(page, &code)?;
    watched.wire.restrict(&[(table, R | X)])?;
    context.stage("sgdt", Duration::from_secs(10));
    let number = watched.begin(Access::Call, [RANGE, 0, 0])?;
    watched.expect_gdt(false)?;
    watched.let_through(W, place)?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    watched.vm.exit()
}

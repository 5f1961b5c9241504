// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that KVM emulates: what it reads and writes for the guest is told as what the CPU does.

use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_uapi::event::{CONTINUE, DESCRIPTOR, DESCRIPTOR_GDTR, Descriptor, RETRY};

use super::{ALL, PAGE, R, W, Watched, X};
use crate::vmm::Until;
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
    scenario(
        "pages::pushed_from_device",
        "PUSH of what the VMM has to give, onto a page that denies writes: RSP falls once",
        pushed_from_device,
    ),
    scenario(
        "pages::copied_from_device",
        "REP MOVSB from a device to a page that denies writes: the device is read once for each byte, whatever the reply",
        copied_from_device,
    ),
    scenario(
        "pages::called_through_device",
        "CALL of an address that the VMM has to give, onto a page that denies writes: it returns to behind the CALL",
        called_through_device,
    ),
    scenario(
        "pages::call_from_device_stack",
        "a far CALL whose first push is the VMM's business and whose second is denied; signals while the tool thinks",
        call_from_device_stack,
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

fn pushed_from_device(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    // Of no slot.
    let device = layout::ANONYMOUS_SLOT;
    let top = PLACE + PAGE / 2;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    for action in [CONTINUE, RETRY] {
        context.stage(&format!("push, reply {action}"), Duration::from_secs(10));
        let number = watched.begin(Access::PushFrom, [top, device, 0])?;
        let event = watched.expect(W, top - 8)?;
        check_eq!(event.arch.regs.rsp, top, "RSP while the event is open");
        check_eq!(watched.wire.registers(0)?.regs, event.arch.regs, "registers");
        watched.wire.reply(&event, action)?;
        if action == RETRY {
            watched.let_through(W, top - 8)?;
        }
        check_eq!(watched.vm.finished(context, 0, number)?, top - 8, "RSP behind the push");
        watched.wire.expect_no_event()?;
    }
    watched.vm.exit()
}

fn copied_from_device(context: &mut Context) -> Result<(), Failure> {
    const BYTES: u8 = 6;
    let mut watched = Watched::start(context, 1)?;
    let device = layout::ANONYMOUS_SLOT;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    let mut read_before = 0;
    for action in [CONTINUE, RETRY] {
        context.stage(&format!("copy, reply {action}"), Duration::from_secs(10));
        let number = watched.begin(Access::Copy, [PLACE, device, BYTES.into()])?;
        for i in 0..BYTES {
            let event = watched.expect(W, PLACE + u64::from(i))?;
            watched.wire.reply(&event, action)?;
            if action == RETRY {
                watched.let_through(W, PLACE + u64::from(i))?;
            }
        }
        watched.vm.finished(context, 0, number)?;
        watched.wire.expect_no_event()?;
        let mut bytes = [0; BYTES as usize];
        watched.vm.guest.read(PLACE, &mut bytes)?;
        let wanted: Vec<_> = (read_before..).take(bytes.len()).collect();
        check_eq!(bytes[..], wanted[..], "what the guest read from the device");
        read_before += BYTES;
        check_eq!(
            watched.vm.status(0)?.device_reads,
            u32::from(read_before),
            "reads that the VMM saw"
        );
    }
    watched.vm.exit()
}

fn called_through_device(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let device = layout::ANONYMOUS_SLOT;
    // Not at the place in its page at which the device is read.
    let top = PLACE + PAGE / 2;
    // What the device gives: how often it was read before. RET is there.
    watched.vm.guest.write(0, &[0xc3; 8])?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    for action in [CONTINUE, RETRY] {
        context.stage(&format!("call, reply {action}"), Duration::from_secs(10));
        let number = watched.begin(Access::CallThrough, [top, device, 0])?;
        let event = watched.expect(W, top - 8)?;
        check_eq!(event.arch.regs.rsp, top, "RSP while the event is open");
        watched.wire.reply(&event, action)?;
        if action == RETRY {
            watched.let_through(W, top - 8)?;
        }
        check_eq!(watched.vm.finished(context, 0, number)?, top, "RSP behind the call");
        watched.wire.expect_no_event()?;
    }
    check_eq!(watched.vm.status(0)?.device_reads, 2, "reads that the VMM saw");
    watched.vm.exit()
}

fn call_from_device_stack(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    // KVM takes an operand for the one that has faulted where it lies at the same place in its page.
    let (code, target, four) = (PLACE + 2 * PAGE, PLACE + 3 * PAGE + 0x20, PLACE + 4 * PAGE);
    // The slot is one page: what is above it is the VMM's.
    let stack = layout::ANONYMOUS_SLOT;
    watched.vm.add_slot(stack, PAGE)?;
    let rsp = stack + PAGE + 8;
    // call far [rax]
    watched.vm.guest.write(code, &[0x48, 0xff, 0x18])?;
    let limit = (5 * 8 - 1u16).to_le_bytes();
    let addresses = [code, target, rsp, 0].map(u64::to_le_bytes).concat();
    watched
        .vm
        .guest
        .write(four, &[&addresses[..24], &limit, &layout::GDT.to_le_bytes()].concat())?;
    watched.wire.restrict(&[(stack, R | X)])?;
    context.stage("call", Duration::from_secs(10));
    let writes_before = watched.vm.status(0)?.exits("mmio");
    let number = watched.begin(Access::CallFar, [four, 0, 0])?;
    let event = watched.expect(W, stack + PAGE - 8)?;
    context.stage("signals", Duration::from_secs(10));
    for times in 1..=3 {
        watched.vm.signal(0)?;
        watched.vm.wait(0, Until::Interrupted(times))?;
    }
    watched.wire.reply(&event, CONTINUE)?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    let writes = watched.vm.status(0)?.exits("mmio") - writes_before;
    check_eq!(writes, 1, "writes that the VMM saw");
    watched.wire.restrict(&[(stack, ALL)])?;
    let pushed = watched.silent(context, Access::Read, [stack + PAGE - 8, 0, 0])?;
    check_eq!(pushed, code + 3, "the address that was pushed");
    watched.vm.exit()
}

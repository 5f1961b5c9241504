// SPDX-License-Identifier: MIT OR Apache-2.0
//! XSETBV and DESCRIPTOR events.

use std::time::Duration;

use kvmi_guests::{DescriptorOp, Op, layout};
use kvmi_uapi::Regs;
use kvmi_uapi::event::{
    self, CONTINUE, DESCRIPTOR_GDTR, DESCRIPTOR_IDTR, DESCRIPTOR_LDTR, DESCRIPTOR_TR, Descriptor, RETRY, Xsetbv,
};

use crate::vmm::field;
use crate::{Context, Failure, Scenario, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::xsetbv",
        "XSETBV: the new value is in place, RIP stands on the instruction; no change or illegal value, no event",
        |c| xsetbv(c, false),
    ),
    scenario(
        "events::xsetbv_emulated",
        "the same inside the instruction emulator",
        |c| {
            modules::emulate_by_prefix()?;
            xsetbv(c, true)
        },
    ),
    scenario(
        "events::xsetbv_void",
        "a void XSETBV event is not sent again: XCR0 has changed already",
        xsetbv_void,
    ),
    scenario(
        "events::descriptor",
        "DESCRIPTOR: each of the eight instructions, CONTINUE and RETRY",
        descriptor,
    ),
];

fn xsetbv(context: &mut Context, emulated: bool) -> Result<(), Failure> {
    let args = |value| [value, emulated.into(), 0, 0];
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    context.stage("off", Duration::from_secs(10));
    check_eq!(vm.carry_out(context, 0, Op::WriteXcr0, args(3))?, 3, "XCR0");
    wire.expect_no_event()?;
    wire.control_event(0, event::XSETBV, true)?;
    for (old, new) in [(3, 1), (1, 3)] {
        context.stage(&format!("from {old} to {new}"), Duration::from_secs(10));
        let number = vm.command(0, Op::WriteXcr0, args(new))?;
        let event = wire.expect_event(event::XSETBV, 0)?;
        let data = event.data::<Xsetbv>()?;
        check_eq!((data.xcr, data.pad), (0, [0; 7]), "register, padding");
        check_eq!((data.old_value, data.new_value), (old, new), "old and new value");
        check_eq!(wire.xcr0(0)?, new, "XCR0 while the event is open");
        let mut code = [0; 3];
        vm.guest.read(event.arch.regs.rip, &mut code)?;
        check_eq!(code, [0x0f, 0x01, 0xd1], "the instruction at the event's RIP");
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, new, "XCR0");
        wire.expect_no_event()?;
    }
    context.stage("no change", Duration::from_secs(10));
    check_eq!(vm.carry_out(context, 0, Op::WriteXcr0, args(3))?, 3, "XCR0");
    wire.expect_no_event()?;
    context.stage("illegal", Duration::from_secs(10));
    // SSE without x87; a bit that no CPU has.
    for illegal in [2, 3 | 1 << 62] {
        check_eq!(vm.carry_out(context, 0, Op::WriteXcr0, args(illegal))?, 3, "XCR0");
    }
    check_eq!(vm.guest.field(0, field!(protection_faults))?, 2, "#GP");
    wire.expect_no_event()?;
    vm.exit()
}

fn xsetbv_void(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    wire.control_event(0, event::XSETBV, true)?;
    context.stage("void", Duration::from_secs(10));
    let number = vm.command(0, Op::WriteXcr0, [3, 0, 0, 0])?;
    let event = wire.expect_event(event::XSETBV, 0)?;
    vm.pause(0)?;
    vm.change_regs(0)?;
    vm.resume(0)?;
    check_eq!(vm.finished(context, 0, number)?, 3, "XCR0");
    wire.reply(&event, CONTINUE)?;
    wire.registers(0)?;
    wire.expect_no_event()?;
    vm.exit()
}

/// What an event says of each instruction: register, and whether it is a load.
fn meaning(op: DescriptorOp) -> (u8, u8) {
    match op {
        DescriptorOp::Sgdt => (DESCRIPTOR_GDTR, 0),
        DescriptorOp::Sidt => (DESCRIPTOR_IDTR, 0),
        DescriptorOp::Sldt => (DESCRIPTOR_LDTR, 0),
        DescriptorOp::Str => (DESCRIPTOR_TR, 0),
        DescriptorOp::Lgdt => (DESCRIPTOR_GDTR, 1),
        DescriptorOp::Lidt => (DESCRIPTOR_IDTR, 1),
        DescriptorOp::Lldt => (DESCRIPTOR_LDTR, 1),
        DescriptorOp::Ltr => (DESCRIPTOR_TR, 1),
    }
}

fn descriptor(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    let mut unwatched = Vec::new();
    context.stage("off", Duration::from_secs(10));
    for op in DescriptorOp::ALL {
        unwatched.push(vm.carry_out(context, 0, Op::Descriptor, [op as u64, 0, 0, 0])?);
    }
    check_eq!(unwatched[0], layout::GDT, "what SGDT stored");
    check_eq!(unwatched[3], u64::from(layout::TSS_SELECTOR), "what STR stored");
    wire.expect_no_event()?;
    wire.control_event(0, event::DESCRIPTOR, true)?;
    for (op, unwatched) in DescriptorOp::ALL.into_iter().zip(&unwatched) {
        context.stage(&format!("{op:?}"), Duration::from_secs(10));
        let before = wire.registers(0)?.sregs;
        let number = vm.command(0, Op::Descriptor, [op as u64, 0, 0, 0])?;
        // The guest executes it anew, and anew it is an event.
        let first = wire.expect_event(event::DESCRIPTOR, 0)?;
        wire.reply(&first, RETRY)?;
        let event = wire.expect_event(event::DESCRIPTOR, 0)?;
        check_eq!(event.arch.regs.rip, first.arch.regs.rip, "RIP after RETRY");
        let data = event.data::<Descriptor>()?;
        check_eq!((data.descriptor, data.write), meaning(op), "register, load");
        check_eq!(data.pad, [0; 6], "padding");
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, *unwatched, "what {op:?} stored");
        wire.expect_no_event()?;
        let after = wire.registers(0)?.sregs;
        check_eq!((after.gdt, after.idt), (before.gdt, before.idt), "GDTR, IDTR");
        check_eq!(
            (after.tr.base, after.tr.selector),
            (before.tr.base, before.tr.selector),
            "TR"
        );
    }
    context.stage("the tool does it itself", Duration::from_secs(10));
    let number = vm.command(0, Op::Descriptor, [DescriptorOp::Str as u64, 0, 0, 0])?;
    let event = wire.expect_event(event::DESCRIPTOR, 0)?;
    let mut code = [0; 4];
    vm.guest.read(event.arch.regs.rip, &mut code)?;
    // STR of a 64-bit register: REX.W 0f 00 /1, with the register in the last three bits.
    check_eq!(
        (code[1], code[2], code[3] & 0xf8),
        (0x0f, 0x00, 0xc8),
        "the instruction at the event's RIP"
    );
    let mut regs: Regs = event.arch.regs;
    regs.rip += 4;
    wire.set_registers(0, &regs)?;
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    context.stage("off again", Duration::from_secs(10));
    wire.control_event(0, event::DESCRIPTOR, false)?;
    for (op, unwatched) in DescriptorOp::ALL.into_iter().zip(&unwatched) {
        let stored = vm.carry_out(context, 0, Op::Descriptor, [op as u64, 0, 0, 0])?;
        check_eq!(stored, *unwatched, "what {op:?} stored");
    }
    wire.expect_no_event()?;
    vm.exit()
}

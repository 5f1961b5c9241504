// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions whose delivery a restricted page interrupts: the tool is asked in the middle of it, and the exception is neither lost nor
//! taken twice.

use std::time::Duration;

use kvmi_guests::{COUNTED_VECTOR, Op};
use kvmi_uapi::error::EBUSY;
use kvmi_uapi::event::{self, CONTINUE, PF, Pf, RETRY, Trap};

use super::{ALL, PAGE, R, X};
use crate::vmm::{Taken, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::injected_onto_the_stack",
        "an exception that the tool injects, onto a stack that denies writes: TRAP tells of it, PF interrupts it, the guest takes it once",
        |c| injected(c, Place::Stack),
    ),
    scenario(
        "pages::injected_through_the_idt",
        "the same with an IDT that denies reads",
        |c| injected(c, Place::Idt),
    ),
    scenario(
        "pages::own_exception_interrupted",
        "the guest's own #BP, onto a stack that denies writes: no exception of the tool's takes its place",
        own_exception,
    ),
    scenario(
        "pages::int_n_interrupted",
        "INT n, onto a stack that denies writes: PF interrupts it, the guest takes it once and returns behind it",
        software_interrupt,
    ),
];

const PAGE_FAULT: u8 = 14;
const ERROR_CODE: u32 = 2;
const ADDRESS: u64 = 0xdead_b000;
const FRAME_BYTES: u64 = 6 * 8;
/// Of INT n.
const INT_BYTES: u64 = 2;

/// What is in the way.
#[derive(Clone, Copy)]
enum Place {
    Stack,
    Idt,
}

/// The guest's way on, each access let through, until it has done what it was told to. Its handlers, too, use the page.
fn pump(
    context: &Context,
    wire: &mut Wire,
    what: &str,
    is_over: impl Fn() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    context.wait_for(what, || {
        wire.expect_version()?;
        while wire.has_event() {
            let event = wire.expect_event(PF, 0)?;
            wire.reply(&event, CONTINUE)?;
        }
        is_over()
    })
}

fn injected(context: &mut Context, place: Place) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    vm.tolerate(&[PAGE_FAULT.into()])?;
    wire.control_event(0, PF, true)?;
    // The guest sleeps, and so stays where it is.
    let state = wire.registers(0)?;
    let (first, end, access) = match place {
        // The frame begins at a multiple of 16.
        Place::Stack => (state.regs.rsp - FRAME_BYTES - 15, state.regs.rsp, R | X),
        Place::Idt => {
            let gate = state.sregs.idt.base + 16 * u64::from(PAGE_FAULT);
            (gate, gate + 16, 0)
        }
    };
    let page = (end - 1) / PAGE * PAGE;
    for (taken, action) in (1..).zip([CONTINUE, RETRY]) {
        context.stage(&format!("answer {action}"), Duration::from_secs(30));
        wire.restrict(&[(page, access)])?;
        check_eq!(
            wire.inject(0, PAGE_FAULT, ERROR_CODE, ADDRESS)?,
            Ok(vec![]),
            "VCPU_INJECT_EXCEPTION"
        );
        let trap = wire.expect_event(event::TRAP, 0)?;
        let told = trap.data::<Trap>()?;
        check_eq!(
            (told.nr, told.error_code, told.address),
            (PAGE_FAULT, ERROR_CODE, ADDRESS),
            "what TRAP tells"
        );
        wire.reply(&trap, CONTINUE)?;
        let event = wire.expect_event(PF, 0)?;
        let gpa = event.data::<Pf>()?.gpa;
        check!(
            (first..end).contains(&gpa),
            "PF at {gpa:#x}, not in {first:#x}..{end:#x}"
        );
        check_eq!(event.arch.regs.rip, trap.arch.regs.rip, "RIP in mid-delivery");
        check_eq!(vm.exceptions()?, taken - 1, "exceptions so far");
        check_eq!(
            wire.inject(0, PAGE_FAULT, ERROR_CODE, ADDRESS)?,
            Err(EBUSY),
            "a second one in mid-delivery"
        );
        if action == RETRY {
            wire.restrict(&[(page, ALL)])?;
        }
        wire.reply(&event, action)?;
        pump(context, &mut wire, "the guest to take its exception", || {
            Ok(vm.exceptions()? == taken)
        })?;
        let wanted = Taken {
            vector: PAGE_FAULT.into(),
            error_code: ERROR_CODE.into(),
            cr2: ADDRESS,
            rip: trap.arch.regs.rip,
        };
        check_eq!(vm.exception()?, wanted, "what the guest found");
        context.stage("the guest goes on", Duration::from_secs(30));
        let number = vm.command(0, Op::Nothing, [0; 4])?;
        pump(context, &mut wire, "the guest to carry out a command", || {
            vm.no_exception(0)?;
            Ok(vm.guest.field(0, field!(done))? == number)
        })?;
        check_eq!(vm.exceptions()?, taken, "exceptions in all");
        wire.restrict(&[(page, ALL)])?;
    }
    vm.exit()
}

fn own_exception(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    wire.control_event(0, PF, true)?;
    wire.control_event(0, event::BREAKPOINT, true)?;
    context.stage("interrupt", Duration::from_secs(30));
    let number = vm.command(0, Op::Int3, [0; 4])?;
    let breakpoint = wire.expect_event(event::BREAKPOINT, 0)?;
    let rsp = breakpoint.arch.regs.rsp;
    let page = (rsp - 1) / PAGE * PAGE;
    wire.restrict(&[(page, R | X)])?;
    wire.reply(&breakpoint, CONTINUE)?;
    let event = wire.expect_event(PF, 0)?;
    let gpa = event.data::<Pf>()?.gpa;
    check!(
        (rsp - FRAME_BYTES - 15..rsp).contains(&gpa),
        "PF at {gpa:#x}, not below {rsp:#x}"
    );
    check_eq!(
        wire.inject(0, PAGE_FAULT, ERROR_CODE, ADDRESS)?,
        Err(EBUSY),
        "VCPU_INJECT_EXCEPTION in mid-delivery"
    );
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 0, "#BP so far");
    wire.reply(&event, CONTINUE)?;
    pump(context, &mut wire, "the guest to go on", || {
        vm.no_exception(0)?;
        Ok(vm.guest.field(0, field!(done))? == number)
    })?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 1, "#BP in the guest");
    vm.exit()
}

fn software_interrupt(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    wire.control_event(0, PF, true)?;
    wire.control_event(0, event::BREAKPOINT, true)?;
    context.stage("find the stack", Duration::from_secs(10));
    let number = vm.command(0, Op::Int3, [0; 4])?;
    let breakpoint = wire.expect_event(event::BREAKPOINT, 0)?;
    wire.reply(&breakpoint, CONTINUE)?;
    vm.finished(context, 0, number)?;
    context.stage("interrupt", Duration::from_secs(30));
    wire.restrict(&[((breakpoint.arch.regs.rsp - 1) / PAGE * PAGE, R | X)])?;
    let number = vm.command(0, Op::SoftwareInterrupt, [COUNTED_VECTOR.into(), 1, 0, 0])?;
    let mut told_at = Vec::new();
    context.wait_for("the guest to go on", || {
        wire.expect_version()?;
        while wire.has_event() {
            let event = wire.expect_event(PF, 0)?;
            told_at.push(event.arch.regs.rip);
            wire.reply(&event, CONTINUE)?;
        }
        vm.no_exception(0)?;
        Ok(vm.guest.field(0, field!(done))? == number)
    })?;
    let behind = vm.finished(context, 0, number)?;
    check!(
        told_at.contains(&(behind - INT_BYTES)),
        "no PF at INT n, which ends at {behind:#x}, but at {told_at:#x?}"
    );
    check_eq!(
        vm.guest.field(0, field!(counted_interrupts))?,
        1,
        "runs of INT n's handler"
    );
    check_eq!(vm.guest.field(0, field!(counted_rip))?, behind, "RIP that INT n pushed");
    vm.exit()
}

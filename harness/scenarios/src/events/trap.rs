// SPDX-License-Identifier: MIT OR Apache-2.0
//! Injected exceptions and the TRAP events that tell of them.

use std::time::Duration;

use kvmi::command::InjectException;
use kvmi_guests::Op;
use kvmi_uapi::Regs;
use kvmi_uapi::error::EBUSY;
use kvmi_uapi::event::{self, CONTINUE, CRASH, RETRY, Trap};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Taken, Until, Vm, field};
use crate::wire::{Event, Wire};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::trap",
        "an injected exception: TRAP tells of it, then the guest takes it, with its error code and CR2",
        trap,
    ),
    scenario(
        "events::trap_before_pause",
        "TRAP comes before a PAUSE that was asked for earlier, and a second injection has to wait for it",
        before_pause,
    ),
    scenario(
        "events::trap_after_retry",
        "an exception injected in a BREAKPOINT event that is answered RETRY is taken at its RIP",
        after_retry,
    ),
    scenario(
        "events::trap_of_another",
        "an exception injected in a BREAKPOINT event that is answered CONTINUE: TRAP tells of the guest's #BP",
        of_another,
    ),
    scenario(
        "events::trap_registers_and_crash",
        "registers set in a TRAP event are those that the exception finds; CRASH keeps it from the guest",
        registers_and_crash,
    ),
    scenario(
        "events::trap_of_a_void_event",
        "an exception injected in an event that the VMM voids goes with it",
        of_a_void_event,
    ),
    scenario(
        "events::trap_not_in_smm",
        "a vCPU in SMM takes no exception of the tool's; behind RSM it does",
        not_in_smm,
    ),
];

const UNDEFINED: u64 = 6;
const PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;

fn expect_trap(wire: &mut Wire, nr: u64, error_code: u32, address: u64) -> Result<Event, Failure> {
    let event = wire.expect_event(event::TRAP, 0)?;
    let data = event.data::<Trap>()?;
    check_eq!((data.pad1, data.pad2), (0, 0), "padding");
    check_eq!(
        (u64::from(data.nr), data.error_code, data.address),
        (nr, error_code, address),
        "vector, error code and address in TRAP"
    );
    Ok(event)
}

/// A hooked guest that takes these exceptions and goes on.
fn tolerant(context: &mut Context, guest: &str) -> Result<(Vm, Wire), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, wire) = context.hooked_vm(guest, 1)?;
    vm.tolerate(&[UNDEFINED, PROTECTION, PAGE_FAULT, 0, 1, 5, 7, 10, 11, 12, 16, 17, 19])?;
    Ok((vm, wire))
}

fn trap(context: &mut Context) -> Result<(), Failure> {
    const CODE: u32 = 0x1238;
    const ADDRESS: u64 = 0xdead_b000;
    let (vm, mut wire) = tolerant(context, "halt")?;
    let mut count = 0;
    let mut cr2 = 0;
    // Those without an error code are asked for with one, which is nobody's then.
    for nr in [UNDEFINED, PROTECTION, PAGE_FAULT, 0, 1, 5, 7, 10, 11, 12, 16, 17, 19] {
        context.stage(&format!("exception {nr}"), Duration::from_secs(10));
        let code = if matches!(nr, 10..=14 | 17) { CODE } else { 0 };
        let address = if nr == PAGE_FAULT { ADDRESS } else { 0 };
        check_eq!(
            wire.inject(0, nr as u8, CODE, ADDRESS)?,
            Ok(vec![]),
            "VCPU_INJECT_EXCEPTION"
        );
        let event = expect_trap(&mut wire, nr, code, address)?;
        check_eq!(vm.exceptions()?, count, "exceptions before the reply");
        wire.reply(&event, CONTINUE)?;
        count += 1;
        vm.wait_for_exceptions(context, count)?;
        if nr == PAGE_FAULT {
            cr2 = ADDRESS;
        }
        let wanted = Taken {
            vector: nr,
            error_code: code.into(),
            cr2,
            rip: event.arch.regs.rip,
        };
        check_eq!(vm.exception()?, wanted, "what the guest found");
        wire.expect_no_event()?;
    }
    check_eq!(vm.carry_out(context, 0, Op::Nothing, [0; 4])?, 0, "the guest's answer");
    vm.exit()
}

fn before_pause(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = tolerant(context, "halt")?;
    context.stage("in one go", Duration::from_secs(10));
    // While the vCPU is out, what both lead to waits.
    vm.pause(0)?;
    check_eq!(wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
    let inject = |nr| InjectException {
        vcpu: 0,
        nr,
        error_code: 0,
        address: 0,
    };
    let first = wire.submit(&inject(UNDEFINED as u8))?;
    let second = wire.submit(&inject(7))?;
    // What is answered after them: they are with the vCPU.
    wire.expect_version()?;
    vm.resume(0)?;
    check_eq!(wire.answer(first)?, Ok(vec![]), "the first injection");
    check_eq!(wire.answer(second)?, Err(EBUSY), "the second injection");
    let trap = expect_trap(&mut wire, UNDEFINED, 0, 0)?;
    check_eq!(wire.inject(0, 7, 0, 0)?, Err(EBUSY), "an injection while TRAP is open");
    wire.reply(&trap, CONTINUE)?;
    let pause = wire.expect_event(event::PAUSE, 0)?;
    check_eq!(
        wire.inject(0, 7, 0, 0)?,
        Err(EBUSY),
        "an injection while the guest has not taken the first"
    );
    check_eq!(vm.exceptions()?, 0, "exceptions so far");
    wire.reply(&pause, CONTINUE)?;
    vm.wait_for_exceptions(context, 1)?;
    check_eq!(vm.exception()?.vector, UNDEFINED, "vector");
    check_eq!(wire.inject(0, 7, 0, 0)?, Ok(vec![]), "an injection afterwards");
    let trap = expect_trap(&mut wire, 7, 0, 0)?;
    wire.reply(&trap, CONTINUE)?;
    vm.wait_for_exceptions(context, 2)?;
    vm.exit()
}

/// A guest at an int3 planted on its target, whose BREAKPOINT event is open and in which #UD was injected; the command's number.
fn at_breakpoint(context: &mut Context) -> Result<(Vm, Wire, Event, u64, u8), Failure> {
    let (vm, mut wire) = tolerant(context, "breakpoint")?;
    let target = vm.guest.field(0, field!(target))?;
    wire.control_event(0, event::BREAKPOINT, true)?;
    let original = wire.plant_int3(target)?;
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    let event = wire.expect_event(event::BREAKPOINT, 0)?;
    check_eq!(
        wire.inject(0, UNDEFINED as u8, 0, 0)?,
        Ok(vec![]),
        "VCPU_INJECT_EXCEPTION in an event"
    );
    check_eq!(wire.inject(0, UNDEFINED as u8, 0, 0)?, Err(EBUSY), "a second one");
    wire.expect_no_event()?;
    Ok((vm, wire, event, number, original))
}

fn after_retry(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, event, number, original) = at_breakpoint(context)?;
    context.stage("retry", Duration::from_secs(10));
    let target = event.arch.regs.rip;
    check_eq!(
        wire.write_physical(target, &[original])?,
        Ok(vec![]),
        "taking the int3 out"
    );
    wire.reply(&event, RETRY)?;
    let trap = expect_trap(&mut wire, UNDEFINED, 0, 0)?;
    check_eq!(trap.arch.regs.rip, target, "RIP in TRAP");
    wire.reply(&trap, CONTINUE)?;
    vm.finished(context, 0, number)?;
    check_eq!(vm.exceptions()?, 1, "exceptions");
    check_eq!(vm.exception()?.rip, target, "RIP that the exception pushed");
    check_eq!(vm.guest.field(0, field!(target_runs))?, 1, "runs of the target");
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 0, "#BP in the guest");
    vm.exit()
}

fn of_another(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, event, number, _) = at_breakpoint(context)?;
    context.stage("continue", Duration::from_secs(10));
    wire.reply(&event, CONTINUE)?;
    let trap = expect_trap(&mut wire, 3, 0, 0)?;
    wire.reply(&trap, CONTINUE)?;
    vm.finished(context, 0, number)?;
    check_eq!(vm.exceptions()?, 0, "exceptions but #BP");
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 1, "#BP in the guest");
    check_eq!(vm.guest.field(0, field!(target_runs))?, 1, "runs of the target");
    vm.exit()
}

fn registers_and_crash(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = tolerant(context, "breakpoint")?;
    // The target does nothing but count: a guest that is sent there comes back to where it was.
    context.stage("registers", Duration::from_secs(10));
    check_eq!(
        wire.inject(0, UNDEFINED as u8, 0, 0)?,
        Ok(vec![]),
        "VCPU_INJECT_EXCEPTION"
    );
    let trap = expect_trap(&mut wire, UNDEFINED, 0, 0)?;
    let mut regs: Regs = trap.arch.regs;
    // As a call of the target would be, from where the vCPU sleeps.
    regs.rsp -= 8;
    vm.guest.write(regs.rsp, &regs.rip.to_le_bytes())?;
    regs.rip = vm.guest.field(0, field!(target))?;
    let slot = kvmi_guests::Slot::field_gpa(0, 0);
    // The target counts where RDI says: it would not, had RDI not been set.
    check!(regs.rdi != slot, "RDI is what it is to be set to");
    regs.rdi = slot;
    wire.set_registers(0, &regs)?;
    wire.reply(&trap, CONTINUE)?;
    vm.wait_for_exceptions(context, 1)?;
    check_eq!(vm.exception()?.rip, regs.rip, "RIP that the exception found");
    context.wait_for("the target to run", || Ok(vm.guest.field(0, field!(target_runs))? == 1))?;
    context.stage("crash", Duration::from_secs(10));
    check_eq!(
        wire.inject(0, UNDEFINED as u8, 0, 0)?,
        Ok(vec![]),
        "VCPU_INJECT_EXCEPTION"
    );
    let trap = expect_trap(&mut wire, UNDEFINED, 0, 0)?;
    wire.reply(&trap, CRASH)?;
    vm.wait(0, Until::Exit("shutdown".to_owned(), 1))?;
    check_eq!(vm.exceptions()?, 1, "exceptions that the guest took");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

fn of_a_void_event(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = tolerant(context, "hypercall")?;
    wire.control_event(0, event::HYPERCALL, true)?;
    context.stage("void", Duration::from_secs(10));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let void = wire.expect_event(event::HYPERCALL, 0)?;
    check_eq!(
        wire.inject(0, UNDEFINED as u8, 0, 0)?,
        Ok(vec![]),
        "VCPU_INJECT_EXCEPTION"
    );
    vm.pause(0)?;
    vm.change_regs(0)?;
    vm.resume(0)?;
    let anew = wire.expect_event(event::HYPERCALL, 0)?;
    for event in [&void, &anew] {
        wire.reply(event, CONTINUE)?;
    }
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    check_eq!(vm.exceptions()?, 0, "exceptions");
    wire.expect_no_event()?;
    vm.exit()
}

fn not_in_smm(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = tolerant(context, "halt")?;
    vm.prepare_smm()?;
    context.stage("into SMM", Duration::from_secs(20));
    vm.enter_smm(context)?;
    check_eq!(
        wire.inject(0, PROTECTION as u8, 0, 0)?,
        Err(EBUSY),
        "VCPU_INJECT_EXCEPTION"
    );
    context.stage("out of SMM", Duration::from_secs(20));
    vm.leave_smm()?;
    check_eq!(
        vm.carry_out(context, 0, Op::Nothing, [0; 4])?,
        0,
        "the answer after RSM"
    );
    wire.expect_no_event()?;
    check_eq!(vm.exceptions()?, 0, "exceptions so far");
    check_eq!(
        wire.inject(0, PROTECTION as u8, 0, 0)?,
        Ok(vec![]),
        "VCPU_INJECT_EXCEPTION"
    );
    let event = expect_trap(&mut wire, PROTECTION, 0, 0)?;
    wire.reply(&event, CONTINUE)?;
    vm.wait_for_exceptions(context, 1)?;
    vm.exit()
}

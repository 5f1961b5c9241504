// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps outside of 64-bit mode, and restricted pages there: each routine begins and ends in it.

use std::time::Duration;

use kvmi_guests::{Op, Routine, layout, protected};
use kvmi_lab_control::Lane;
use kvmi_uapi::PageAccessEntry;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, PF, Pf};

use super::instructions::{once, told_by_both};
use super::{Stepped, TRAP_FLAG};
use crate::{Context, Failure, Scenario, check_eq, modules, scenario};

/// Why tasks are not switched there.
const NO_TASK_SWITCH: &[(Lane, &str)] = &[(
    Lane::SvmTcg,
    "QEMU switches tasks of a guest by itself, without the exit that KVM asks for",
)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "step::far_call",
        "out of 64-bit mode and back, and a far CALL that KVM emulates to a segment with another base: each instruction is told",
        |c| {
            modules::emulate_by_prefix()?;
            check_eq!(once(c, Routine::FarCall, STACK_END)?, 2, "the result");
            Ok(())
        },
    ),
    scenario(
        "step::virtual_86",
        "PUSHF in virtual-8086 mode: #GP with IOPL 0, no TF with IOPL 3",
        virtual_8086,
    ),
    scenario(
        "step::task_switch",
        "CALL of a task and IRET from it are one instruction each",
        |c| {
            check_eq!(once(c, Routine::TaskSwitch, 0)?, 2, "the result");
            Ok(())
        },
    )
    .not_on(NO_TASK_SWITCH),
    scenario(
        "step::task_gate",
        "a fault whose gate leads to a task: the next event is at its first instruction",
        |c| {
            check_eq!(once(c, Routine::TaskGate, 0)?, TASK_GATE_RESULT, "the result");
            Ok(())
        },
    ),
    scenario(
        "step::fetch_of_tasks",
        "the same in a page that may not be executed: each instruction is told by PF, then by SINGLESTEP",
        |c| {
            let results = told_by_both(c, &[Routine::TaskSwitch, Routine::TaskGate])?;
            check_eq!(results, [2, TASK_GATE_RESULT], "the results");
            Ok(())
        },
    )
    .not_on(NO_TASK_SWITCH),
    scenario(
        "pages::far_call_emulated",
        "a far CALL that KVM emulates, to a segment with another base, onto a stack that denies writes: told once",
        far_call,
    ),
    scenario(
        "pages::task_gate",
        "an error code that KVM pushes while it switches tasks, onto a stack that denies writes: not told, and there",
        task_gate,
    )
    .not_on(NO_TASK_SWITCH),
];

const PAGE: u64 = 4096;
/// The end of a stack, in the middle of a page that the program does not use.
const STACK_END: u64 = layout::SCRATCH + 0x800;
const NOT_WRITTEN: u8 = PageAccessEntry::READ | PageAccessEntry::EXEC;
const TASK_GATE_RESULT: u64 = protected::ABSENT as u64 + 1;

fn virtual_8086(context: &mut Context) -> Result<(), Failure> {
    const IOPL: u64 = 3 << 12;
    let mut stepped = Stepped::start(context)?;
    context.stage("unstepped", Duration::from_secs(10));
    let unstepped = stepped.run_unstepped(context, Routine::Virtual8086, 0)?;
    check_eq!(unstepped & 0xffff, 1, "#GP of PUSHF");
    check_eq!(
        unstepped >> 16 & (IOPL | TRAP_FLAG),
        IOPL,
        "IOPL and TF that PUSHF showed"
    );
    context.stage("stepped", Duration::from_secs(20));
    let result = stepped.run_as_listed(context, Routine::Virtual8086, 0)?;
    check_eq!(result, unstepped, "the result, stepped");
    stepped.vm.exit()
}

/// Has the guest begin a routine, and denies writes of a page at its first hypercall; the command's number.
fn begin_denied(stepped: &mut Stepped, routine: Routine, arg: u64, page: u64) -> Result<u64, Failure> {
    stepped.wire.control_event(0, PF, true)?;
    let number = stepped.vm.command(0, Op::Step, [routine as u64, arg, 0, 0])?;
    let event = stepped.wire.expect_event(HYPERCALL, 0)?;
    stepped.wire.restrict(&[(page, NOT_WRITTEN)])?;
    stepped.wire.reply(&event, CONTINUE)?;
    Ok(number)
}

/// The result of such a routine, of which all has been told.
fn end_denied(stepped: &mut Stepped, context: &Context, number: u64) -> Result<u64, Failure> {
    let event = stepped.wire.expect_event(HYPERCALL, 0)?;
    stepped.finish_at(context, &event, number)
}

fn far_call(context: &mut Context) -> Result<(), Failure> {
    /// CS and EIP.
    const FRAME: u64 = 8;
    modules::emulate_by_prefix()?;
    let mut stepped = Stepped::start(context)?;
    context.stage("call", Duration::from_secs(20));
    for _ in 0..2 {
        let page = STACK_END / PAGE * PAGE;
        let number = begin_denied(&mut stepped, Routine::FarCall, STACK_END, page)?;
        let event = stepped.wire.expect_event(PF, 0)?;
        let data = event.data::<Pf>()?;
        check_eq!(
            (data.access, data.gpa),
            (PageAccessEntry::WRITE, STACK_END - FRAME / 2),
            "access and gpa of PF"
        );
        stepped.wire.reply(&event, CONTINUE)?;
        check_eq!(end_denied(&mut stepped, context, number)?, 2, "the result");
        let code = stepped.word(STACK_END - FRAME)? >> 32;
        check_eq!(code, u64::from(protected::CODE_32), "CS on the stack");
        stepped.wire.restrict(&[(page, NOT_WRITTEN | PageAccessEntry::WRITE)])?;
    }
    stepped.vm.exit()
}

fn task_gate(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("fault", Duration::from_secs(20));
    for _ in 0..2 {
        let number = begin_denied(&mut stepped, Routine::TaskGate, 0, protected::PAGE)?;
        check_eq!(
            end_denied(&mut stepped, context, number)?,
            TASK_GATE_RESULT,
            "one more than the error code"
        );
        stepped
            .wire
            .restrict(&[(protected::PAGE, NOT_WRITTEN | PageAccessEntry::WRITE)])?;
    }
    stepped.vm.exit()
}

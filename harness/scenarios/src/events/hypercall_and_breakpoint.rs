// SPDX-License-Identifier: MIT OR Apache-2.0
//! HYPERCALL, BREAKPOINT, CRASH, and registers in an event.

use std::time::Duration;

use kvmi::command::ControlEvents;
use kvmi_guests::{Op, layout};
use kvmi_uapi::Regs;
use kvmi_uapi::error::EBUSY;
use kvmi_uapi::event::{BREAKPOINT, Breakpoint, CONTINUE, CRASH, HYPERCALL, RETRY};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Until, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::hypercall",
        "the guest's signal becomes an event and returns 0; other hypercalls do not",
        hypercall,
    ),
    scenario(
        "events::breakpoint_continue",
        "BREAKPOINT, CONTINUE: the guest takes its #BP",
        breakpoint_continue,
    ),
    scenario(
        "events::breakpoint_retry",
        "BREAKPOINT, RETRY: the guest executes what is there now",
        breakpoint_retry,
    ),
    scenario(
        "events::breakpoint_or_guest_debug",
        "BREAKPOINT and the VMM's software breakpoints exclude each other",
        guest_debug,
    ),
    scenario(
        "events::registers_read",
        "an event's registers are those that VCPU_GET_REGISTERS gives",
        registers_read,
    ),
    scenario(
        "events::registers_set",
        "registers set in an event are the guest's after the reply",
        registers_set,
    ),
    scenario(
        "events::crash",
        "CRASH: KVM_RUN returns a shutdown and the vCPU runs nothing more",
        crash,
    ),
];

fn hypercall(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 2)?;
    context.stage("off", Duration::from_secs(10));
    let result = vm.carry_out(context, 0, Op::Hypercall, GUEST_REQUEST)?;
    check_eq!(result as i64, -1000, "RAX without the event");
    wire.expect_no_event()?;
    context.stage("on", Duration::from_secs(10));
    wire.control_event(0, HYPERCALL, true)?;
    for round in 1..=3 {
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        check_eq!(
            (event.arch.mode, event.data.len()),
            (8, 0),
            "operand mode and length of the data"
        );
        let (rax, rdi, rsi) = (event.arch.regs.rax, event.arch.regs.rdi, event.arch.regs.rsi);
        check_eq!([rax, rdi, rsi, 0], GUEST_REQUEST, "RAX, RDI, RSI");
        check!(
            vm.guest.field(0, field!(hypercalls))? == round,
            "the guest went on before the reply"
        );
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    }
    context.stage("not ours", Duration::from_secs(10));
    for args in [[1, 24, 0, 0], [34, 24, 1, 0], [34, 23, 0, 0], [0x1_0000_0022, 24, 0, 0]] {
        vm.carry_out(context, 0, Op::Hypercall, args)?;
        wire.expect_no_event()?;
    }
    context.stage("the other vCPU's is off", Duration::from_secs(10));
    let result = vm.carry_out(context, 1, Op::Hypercall, GUEST_REQUEST)?;
    check_eq!(result as i64, -1000, "RAX on vCPU 1");
    wire.control_event(0, HYPERCALL, false)?;
    let result = vm.carry_out(context, 0, Op::Hypercall, GUEST_REQUEST)?;
    check_eq!(result as i64, -1000, "RAX with the event off again");
    wire.expect_no_event()?;
    vm.exit()
}

fn breakpoint_continue(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    let target = vm.guest.field(0, field!(target))?;
    context.stage("the guest's own", Duration::from_secs(10));
    wire.control_event(0, BREAKPOINT, true)?;
    let number = vm.command(0, Op::Int3, [0; 4])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    let data = event.data::<Breakpoint>()?;
    check_eq!(
        (data.gpa, data.insn_len, data.pad),
        (event.arch.regs.rip, 1, [0; 7]),
        "gpa, length, padding"
    );
    let mut byte = [0];
    vm.guest.read(data.gpa, &mut byte)?;
    check_eq!(byte, [0xcc], "the instruction at the event's gpa");
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 0, "#BP before the reply");
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 1, "#BP after the reply");
    check_eq!(
        vm.guest.field(0, field!(breakpoint_rip))?,
        data.gpa + 1,
        "RIP that #BP pushed"
    );
    context.stage("a planted one", Duration::from_secs(10));
    wire.plant_int3(target)?;
    for round in 1..=3 {
        let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
        let event = wire.expect_event(BREAKPOINT, 0)?;
        check_eq!(
            (event.arch.regs.rip, event.data::<Breakpoint>()?.gpa),
            (target, target),
            "RIP and gpa"
        );
        wire.reply(&event, CONTINUE)?;
        vm.finished(context, 0, number)?;
        check_eq!(vm.guest.field(0, field!(breakpoints))?, 1 + round, "#BP");
        check_eq!(vm.guest.field(0, field!(target_runs))?, round, "runs of the target");
    }
    context.stage("off", Duration::from_secs(10));
    wire.control_event(0, BREAKPOINT, false)?;
    vm.carry_out(context, 0, Op::Int3, [0; 4])?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 5, "#BP without the event");
    wire.expect_no_event()?;
    vm.exit()
}

fn breakpoint_retry(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    let target = vm.guest.field(0, field!(target))?;
    wire.control_event(0, BREAKPOINT, true)?;
    for round in 1..=3 {
        context.stage(&format!("retry {round}"), Duration::from_secs(10));
        let original = wire.plant_int3(target)?;
        let number = vm.command(0, Op::CallTarget, [2, 0, 0, 0])?;
        let event = wire.expect_event(BREAKPOINT, 0)?;
        // Still there: the same again.
        wire.reply(&event, RETRY)?;
        let event = wire.expect_event(BREAKPOINT, 0)?;
        check_eq!(event.arch.regs.rip, target, "RIP of the second event");
        check_eq!(
            wire.write_physical(target, &[original])?,
            Ok(vec![]),
            "taking the int3 out"
        );
        wire.reply(&event, RETRY)?;
        vm.finished(context, 0, number)?;
        check_eq!(vm.guest.field(0, field!(target_runs))?, 2 * round, "runs of the target");
        check_eq!(vm.guest.field(0, field!(breakpoints))?, 0, "#BP in the guest");
        wire.expect_no_event()?;
    }
    vm.exit()
}

fn guest_debug(context: &mut Context) -> Result<(), Failure> {
    const ENABLE: u32 = 1;
    const USE_SW_BP: u32 = 1 << 16;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("the tool has it", Duration::from_secs(10));
    wire.control_event(0, BREAKPOINT, true)?;
    vm.pause(0)?;
    check_eq!(
        vm.set_guest_debug(0, ENABLE | USE_SW_BP)?,
        EBUSY,
        "errno of KVM_SET_GUEST_DEBUG"
    );
    vm.resume(0)?;
    wire.control_event(0, BREAKPOINT, false)?;
    context.stage("the VMM has it", Duration::from_secs(10));
    vm.pause(0)?;
    check_eq!(
        vm.set_guest_debug(0, ENABLE | USE_SW_BP)?,
        0,
        "errno of KVM_SET_GUEST_DEBUG"
    );
    vm.resume(0)?;
    let enable = ControlEvents {
        vcpu: 0,
        event: BREAKPOINT,
        enable: true,
    };
    check_eq!(wire.ask(&enable)?, Err(EBUSY), "VCPU_CONTROL_EVENTS of BREAKPOINT");
    vm.pause(0)?;
    check_eq!(vm.set_guest_debug(0, 0)?, 0, "errno of KVM_SET_GUEST_DEBUG");
    vm.resume(0)?;
    wire.control_event(0, BREAKPOINT, true)?;
    vm.exit()
}

fn registers_read(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("read", Duration::from_secs(10));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    let read = wire.registers(0)?;
    check_eq!(read.regs, event.arch.regs, "general registers");
    check_eq!(read.sregs, event.arch.sregs, "special registers");
    check_eq!(read.mode, u32::from(event.arch.mode), "operand mode");
    let sregs = event.arch.sregs;
    check_eq!(
        (sregs.cr3, sregs.cs.selector),
        (layout::ROOT, layout::CODE_SELECTOR),
        "CR3, CS"
    );
    check_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.dpl), (1, 0, 0), "CS: L, D, DPL");
    check_eq!(
        (sregs.cr0 & 0x8000_0001, sregs.cr4 & 0x20),
        (0x8000_0001, 0x20),
        "CR0: PG, PE; CR4: PAE"
    );
    check_eq!((event.arch.efer, event.arch.efer), (sregs.efer, 0x500), "EFER");
    check_eq!(
        (event.arch.star, event.arch.lstar, event.arch.cstar),
        (0, 0, 0),
        "STAR, LSTAR, CSTAR"
    );
    check_eq!(event.arch.pat, 0x0007_0406_0007_0406, "PAT, as after a reset");
    let mut code = [0; 3];
    vm.guest.read(event.arch.regs.rip, &mut code)?;
    check!(
        matches!(code, [0x0f, 0x01, 0xc1 | 0xd9]),
        "RIP points to {code:x?}, which is no hypercall"
    );
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    vm.exit()
}

fn registers_set(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    let target = vm.guest.field(0, field!(target))?;
    wire.control_event(0, BREAKPOINT, true)?;
    context.stage("step over the planted int3 by setting RIP", Duration::from_secs(10));
    wire.plant_int3(target)?;
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    let mut regs: Regs = event.arch.regs;
    regs.rip = 0x1234;
    wire.set_registers(0, &regs)?;
    // The last one wins.
    regs.rip = target + 1;
    wire.set_registers(0, &regs)?;
    wire.reply(&event, RETRY)?;
    vm.finished(context, 0, number)?;
    check_eq!(vm.guest.field(0, field!(target_runs))?, 1, "runs of the target");
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 0, "#BP in the guest");
    context.stage("let the target count elsewhere by setting RDI", Duration::from_secs(10));
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    let mut regs: Regs = event.arch.regs;
    regs.rip = target + 1;
    // The slot of a vCPU that does not exist.
    regs.rdi += 0x100;
    wire.set_registers(0, &regs)?;
    wire.reply(&event, RETRY)?;
    vm.finished(context, 0, number)?;
    check_eq!(
        vm.guest.field(0, field!(target_runs))?,
        1,
        "runs counted in the vCPU's own slot"
    );
    check_eq!(
        vm.guest.field(1, field!(target_runs))?,
        1,
        "runs counted in the other slot"
    );
    vm.exit()
}

fn crash(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 2)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("crash", Duration::from_secs(10));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, CRASH)?;
    for times in 1..=3 {
        let status = vm.wait(0, Until::Exit("shutdown".to_owned(), times))?;
        check_eq!(status.exits("shutdown"), times, "shutdown exits of vCPU 0");
        check_eq!(
            vm.guest.field(0, field!(hypercalls))?,
            0,
            "hypercalls that returned on vCPU 0"
        );
        vm.resume(0)?;
    }
    check!(
        vm.guest.field(0, field!(done))? < number,
        "the crashed vCPU finished its command"
    );
    context.stage("the other vCPU", Duration::from_secs(10));
    check_eq!(
        vm.carry_out(context, 1, Op::Hypercall, GUEST_REQUEST)? as i64,
        -1000,
        "RAX on vCPU 1"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

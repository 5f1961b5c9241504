// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that is a hypervisor itself: the tool is told of the guest, and never of the guest's guest, which runs as it would.

use std::time::Duration;

use kvmi::command::TranslateGva;
use kvmi_guests::{Level, NestedOp, Op, Operand, layout};
use kvmi_lab_control::Backend;
use kvmi_uapi::event::{self, CONTINUE, Cr, Msr, Pf, RETRY};
use kvmi_uapi::{PageAccessEntry, VcpuTranslateGvaReply};

use crate::vmm::Vm;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "nested::untold",
        "a guest's guest: what is told of the guest is not told of it, and it gets what it should",
        |c| untold(c, Level::Nested),
    ),
    scenario(
        "nested::untold_paging",
        "the same behind EPT or NPT of the guest's own",
        |c| untold(c, Level::NestedPaging),
    ),
    scenario(
        "nested::stays_in",
        "a guest's guest that does all the time what the tool watches in the guest does not leave for it, at either level",
        stays_in,
    ),
    scenario(
        "nested::stepped_over",
        "a guest that is stepped enters its guest: the next step is told behind the return",
        |c| stepped_over(c, Level::Nested),
    ),
    scenario(
        "nested::stepped_over_paging",
        "the same behind EPT or NPT of the guest's own",
        |c| stepped_over(c, Level::NestedPaging),
    ),
    scenario(
        "nested::operands",
        "memory operands of a hypervisor's own instructions, which KVM reads and writes: told, let through once, told again after RETRY",
        operands,
    ),
    scenario(
        "nested::let_through_entry",
        "VMLAUNCH or VMRUN that is let through: the guest is not stepped afterwards",
        let_through_entry,
    ),
    scenario(
        "nested::paused",
        "PAUSE and commands while a guest's guest runs",
        paused,
    ),
    scenario(
        "nested::translated",
        "VCPU_TRANSLATE_GVA in a guest's guest, by tables that EPT or NPT of the guest's own moves: in KVM_RUN and out of it",
        translated,
    ),
    scenario(
        "nested::unhooked",
        "UNHOOK while a guest's guest runs: nothing leaves either for introspection any more",
        unhooked,
    ),
];

const ALL: u8 = PageAccessEntry::READ | PageAccessEntry::WRITE | PageAccessEntry::EXEC;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Where a deed looks that needs a word of memory.
const WORD: u64 = layout::SCRATCH;

/// What is told of the program itself, by which event and how often.
const TOLD: [(NestedOp, u16, usize); 5] = [
    (NestedOp::Cr3, event::CR, 2),
    (NestedOp::KernelGsBase, event::MSR, 1),
    (NestedOp::Sgdt, event::DESCRIPTOR, 2),
    (NestedOp::Store, event::PF, 1),
    (NestedOp::Int3, event::BREAKPOINT, 1),
];

/// The argument of a deed that is done for the `nth` time, and the result that is due.
fn due(deed: NestedOp, nth: u64) -> (u64, u64) {
    match deed {
        NestedOp::Nothing => (0, 1),
        NestedOp::Int3 => (0, nth),
        NestedOp::Cr3 => (1, layout::OTHER_ROOT),
        // Each time another value: what changes nothing is not told.
        NestedOp::KernelGsBase => (0x1000 * nth, 0x1000 * nth),
        NestedOp::Sgdt => (2, layout::GDT),
        NestedOp::Store => (WORD, 7),
        NestedOp::Wait => (WORD, 2),
    }
}

/// A guest of which all is watched.
fn watched(context: &mut Context) -> Result<(Vm, Wire), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("nested", 1)?;
    for (_, event, _) in TOLD {
        wire.control_event(0, event, true)?;
    }
    wire.control_event(0, event::HYPERCALL, true)?;
    wire.control_cr(0, 3, true)?;
    wire.control_msr(0, KERNEL_GS_BASE, true)?;
    wire.restrict(&[(WORD, PageAccessEntry::READ | PageAccessEntry::EXEC)])?;
    Ok((vm, wire))
}

fn args(deed: NestedOp, argument: u64, level: Level) -> [u64; 4] {
    [deed as u64, argument, level as u64, 0]
}

fn untold(context: &mut Context, level: Level) -> Result<(), Failure> {
    let (vm, mut wire) = watched(context)?;
    for round in 0..2 {
        // In the second, KVM shadows the guest's own EPT or NPT, and what is zapped is looked for there, too.
        for access in [ALL, PageAccessEntry::READ | PageAccessEntry::EXEC] {
            wire.restrict(&[(WORD, access)])?;
        }
        for (deed, event, times) in TOLD {
            context.stage(
                &format!("{deed:?} of the guest's guest, {round}"),
                Duration::from_secs(10),
            );
            let (argument, result) = due(deed, 2 * round + 1);
            let got = vm.carry_out(context, 0, Op::Nested, args(deed, argument, level))?;
            check_eq!(got, result, "result of {deed:?} at {level:?}");
            wire.expect_no_event()?;
            context.stage(&format!("{deed:?} of the guest, {round}"), Duration::from_secs(10));
            let (argument, result) = due(deed, 2 * round + 2);
            let number = vm.command(0, Op::Nested, args(deed, argument, Level::Own))?;
            for _ in 0..times {
                let told = wire.expect_event(event, 0)?;
                // What is to be written, where that is asked.
                let reply = match event {
                    event::CR => told.data::<Cr>()?.new_value.to_ne_bytes().to_vec(),
                    event::MSR => told.data::<Msr>()?.new_value.to_ne_bytes().to_vec(),
                    _ => Vec::new(),
                };
                wire.reply_with(&told, CONTINUE, &reply)?;
            }
            check_eq!(
                vm.finished(context, 0, number)?,
                result,
                "result of {deed:?} of the guest"
            );
            wire.expect_no_event()?;
        }
    }
    vm.exit()
}

fn stays_in(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 1000;
    const FEW: u64 = 300;
    let (vm, mut wire) = watched(context)?;
    for level in [Level::Nested, Level::NestedPaging] {
        for (deed, result) in [(NestedOp::Cr3, layout::OTHER_ROOT), (NestedOp::Sgdt, layout::GDT)] {
            context.stage(&format!("{deed:?} at {level:?}"), Duration::from_secs(10));
            let before = vm.exits(0)?;
            let got = vm.carry_out(context, 0, Op::Nested, args(deed, ROUNDS, level))?;
            check_eq!(got, result, "result of {deed:?}");
            let exits = vm.exits(0)? - before;
            check!(exits < FEW, "{exits} exits for {ROUNDS} times {deed:?} at {level:?}");
            wire.expect_no_event()?;
        }
    }
    vm.exit()
}

fn stepped_over(context: &mut Context, level: Level) -> Result<(), Failure> {
    /// The hypervisor executes some hundred instructions for one entry, its guest many more, and those leave nobody.
    const MOST: usize = 5000;
    const ROUNDS: u64 = 20_000;
    let (vm, mut wire) = watched(context)?;
    wire.control_event(0, event::SINGLESTEP, true)?;
    context.stage("step", Duration::from_secs(60));
    // The INT3 before the entry, and the one behind it.
    let exits_before = vm.exits(0)?;
    let number = vm.command(0, Op::Nested, [NestedOp::Sgdt as u64, ROUNDS, level as u64, 1])?;
    let first = wire.expect_event(event::BREAKPOINT, 0)?;
    wire.singlestep(true)?;
    wire.reply(&first, CONTINUE)?;
    let mut steps = 0;
    let mut entry = None;
    let mut behind_entry = None;
    let end = loop {
        let step = wire.event()?;
        if step.id == event::BREAKPOINT {
            break step;
        }
        check_eq!((step.id, step.vcpu), (event::SINGLESTEP, 0), "event and vCPU");
        let regs = step.arch.regs;
        check!(
            !is_nested(regs.rsp),
            "a step of the guest's guest is told, at {:#x}",
            regs.rip
        );
        if entry.is_some() && behind_entry.is_none() {
            behind_entry = Some(regs.rip);
        }
        let mut code = [0; 3];
        vm.guest.read(regs.rip, &mut code)?;
        // VMLAUNCH, VMRUN.
        if matches!(code, [0x0f, 0x01, 0xc2 | 0xd8]) {
            check_eq!(entry, None, "an entry before this one");
            entry = Some(regs.rip);
        }
        wire.reply(&step, CONTINUE)?;
        steps += 1;
        check!(steps < MOST, "{MOST} steps and no end");
    };
    check!(entry.is_some(), "no entry among {steps} steps");
    // Either vendor's instruction is three bytes long, and the program goes on behind it.
    check_eq!(
        behind_entry,
        entry.map(|rip| rip + 3),
        "RIP of the step behind the entry"
    );
    wire.singlestep(false)?;
    wire.reply(&end, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, layout::GDT, "result");
    let exits = vm.exits(0)? - exits_before;
    check!(exits < ROUNDS, "{exits} exits: the guest's guest was stepped too");
    context.stage("unstepped", Duration::from_secs(10));
    let got = vm.carry_out(context, 0, Op::Nested, args(NestedOp::Nothing, 0, level))?;
    check_eq!(got, 1, "result when nobody steps");
    wire.expect_no_event()?;
    vm.exit()
}

/// Where operands lie: a page that nothing else uses.
const OPERANDS: u64 = layout::SCRATCH + 0x3_0000;

/// What each instruction does with its operand, and where it lies in the page.
fn operands_of(backend: Backend) -> &'static [(Operand, &'static [u8], u64)] {
    const R: u8 = PageAccessEntry::READ;
    const W: u8 = PageAccessEntry::WRITE;
    match backend {
        Backend::Vmx => &[
            (Operand::Vmptrst, &[W], 0),
            (Operand::Vmptrld, &[R], 0),
            (Operand::Vmclear, &[R], 0),
            (Operand::Vmread, &[W], 0),
            (Operand::Vmwrite, &[R], 0),
            (Operand::Invept, &[R], 64),
            (Operand::Invvpid, &[R], 64),
        ],
        Backend::Svm => &[
            (Operand::Vmsave, &[W], 0),
            (Operand::Vmload, &[R], 0),
            // What the #VMEXIT writes is told at VMRUN.
            (Operand::Vmrun, &[R, W], 0),
        ],
    }
}

fn operands(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("nested", 1)?;
    let command = |what: Operand| [what as u64, OPERANDS, 0, 0];
    for &(what, kinds, offset) in operands_of(context.backend) {
        context.stage(&format!("{what:?}"), Duration::from_secs(10));
        wire.control_event(0, event::PF, true)?;
        wire.restrict(&[(OPERANDS, ALL)])?;
        let prepared = vm.carry_out(context, 0, Op::HypervisorOperand, command(Operand::Prepare))?;
        wire.restrict(&[(OPERANDS, 0)])?;
        let mut before = [0; 8];
        vm.guest.read(OPERANDS, &mut before)?;
        let number = vm.command(0, Op::HypervisorOperand, command(what))?;
        let mut told = Vec::new();
        for &kind in kinds {
            // RETRY executes it anew, with what was let through before.
            for action in [RETRY, CONTINUE] {
                let pf = wire.expect_event(event::PF, 0)?;
                let data = pf.data::<Pf>()?;
                told.push((data.access, data.gpa, action));
                let mut now = [0; 8];
                vm.guest.read(OPERANDS, &mut now)?;
                check_eq!(now, before, "the operand while PF of {what:?} is open");
                check_eq!(
                    (data.access, data.gpa),
                    (kind, OPERANDS + offset),
                    "access and gpa of PF of {what:?}, {told:x?}"
                );
                wire.reply(&pf, action)?;
            }
        }
        let result = vm.finished(context, 0, number)?;
        wire.expect_no_event()?;
        wire.restrict(&[(OPERANDS, ALL)])?;
        let mut bytes = [0; 8];
        vm.guest.read(OPERANDS, &mut bytes)?;
        let word = u64::from_ne_bytes(bytes);
        match what {
            Operand::Vmptrst | Operand::Vmread => check_eq!(word, result, "what {what:?} wrote"),
            Operand::Vmwrite => check_eq!(result, prepared, "what {what:?} read"),
            Operand::Vmrun => check_eq!(result, 1, "result of the guest's guest"),
            _ => {}
        }
        context.stage(&format!("{what:?} without the event"), Duration::from_secs(10));
        vm.carry_out(context, 0, Op::HypervisorOperand, command(Operand::Prepare))?;
        wire.restrict(&[(OPERANDS, 0)])?;
        wire.control_event(0, event::PF, false)?;
        let again = vm.carry_out(context, 0, Op::HypervisorOperand, command(what))?;
        check_eq!(again, result, "result of {what:?}");
        wire.expect_no_event()?;
    }
    vm.exit()
}

/// The page of the program that holds the instruction by which the guest's guest is entered.
fn page_of_entry(vm: &Vm, backend: Backend) -> Result<u64, Failure> {
    let entry: &[u8] = match backend {
        Backend::Vmx => &[0x0f, 0x01, 0xc2],
        Backend::Svm => &[0x0f, 0x01, 0xd8],
    };
    let mut program = vec![0; 0x1_0000];
    vm.guest.read(layout::PROGRAM, &mut program)?;
    let at = program.windows(entry.len()).position(|code| code == entry);
    let at = at.ok_or_else(|| Failure::new("the program does not enter a guest"))?;
    Ok((layout::PROGRAM + at as u64) & !0xfff)
}

fn let_through_entry(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 1000;
    const FEW: u64 = 300;
    context.stage("start", Duration::from_secs(20));
    // No event is on: each fetch of that page is let through silently, by a step.
    let (vm, mut wire) = context.hooked_vm("nested", 1)?;
    let page = page_of_entry(&vm, context.backend)?;
    for level in [Level::Nested, Level::NestedPaging] {
        context.stage(&format!("enter at {level:?}"), Duration::from_secs(10));
        wire.restrict(&[(page, PageAccessEntry::READ | PageAccessEntry::WRITE)])?;
        let before = vm.exits(0)?;
        let got = vm.carry_out(context, 0, Op::Nested, args(NestedOp::Sgdt, ROUNDS, level))?;
        check_eq!(got, layout::GDT, "result");
        // As many as that page has instructions that were executed; were the guest's guest stepped there would be ten for each round.
        let exits = vm.exits(0)? - before;
        check!(exits < 5 * ROUNDS, "{exits} exits while the guest's guest runs");
        wire.restrict(&[(page, ALL)])?;
        context.stage(&format!("after {level:?}"), Duration::from_secs(10));
        let before = vm.exits(0)?;
        vm.carry_out(context, 0, Op::Nested, args(NestedOp::Sgdt, ROUNDS, Level::Own))?;
        let exits = vm.exits(0)? - before;
        check!(exits < FEW, "{exits} exits of the guest afterwards");
        wire.expect_no_event()?;
    }
    // What a step has left behind would stay, since nothing is let through by another one.
    wire.restrict(&[(page, PageAccessEntry::READ | PageAccessEntry::WRITE)])?;
    let number = wait_in_nested(context, &vm, Level::Nested)?;
    wire.restrict(&[(page, ALL)])?;
    release(&vm)?;
    check_eq!(vm.finished(context, 0, number)?, 2, "result");
    context.stage("after the last step", Duration::from_secs(10));
    let before = vm.exits(0)?;
    vm.carry_out(context, 0, Op::Nested, args(NestedOp::Sgdt, ROUNDS, Level::Own))?;
    let exits = vm.exits(0)? - before;
    check!(exits < FEW, "{exits} exits of the guest after the last step");
    vm.exit()
}

/// Whether it is a stack pointer of the guest's guest.
fn is_nested(rsp: u64) -> bool {
    (layout::NESTED_STACK_END - 0x1000..layout::NESTED_STACK_END).contains(&rsp)
}

/// Has the guest's guest wait; the command's number.
pub(crate) fn wait_in_nested(context: &mut Context, vm: &Vm, level: Level) -> Result<u64, Failure> {
    context.stage("into the guest's guest", Duration::from_secs(10));
    let number = vm.command(0, Op::Nested, args(NestedOp::Wait, WORD + 4096, level))?;
    context.wait_for("the guest's guest", || Ok(word(vm)? == 1))?;
    Ok(number)
}

fn word(vm: &Vm) -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    vm.guest.read(WORD + 4096, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Lets it go on.
pub(crate) fn release(vm: &Vm) -> Result<(), Failure> {
    vm.guest.write(WORD + 4096, &2u64.to_ne_bytes())
}

fn paused(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = watched(context)?;
    let number = wait_in_nested(context, &vm, Level::Nested)?;
    context.stage("PAUSE", Duration::from_secs(10));
    check_eq!(wire.pause(0, true)?, Ok(vec![]), "VM_PAUSE_VCPU");
    let pause = wire.expect_event(event::PAUSE, 0)?;
    // The registers are those with which the vCPU runs.
    check!(
        is_nested(pause.arch.regs.rsp),
        "RSP of PAUSE is {:#x}",
        pause.arch.regs.rsp
    );
    check_eq!(wire.registers(0)?.regs, pause.arch.regs, "registers");
    context.stage("off and on", Duration::from_secs(10));
    for on in [false, true] {
        wire.control_event(0, event::BREAKPOINT, on)?;
        wire.control_event(0, event::DESCRIPTOR, on)?;
    }
    wire.reply(&pause, CONTINUE)?;
    context.stage("out", Duration::from_secs(10));
    release(&vm)?;
    check_eq!(vm.finished(context, 0, number)?, 2, "result");
    wire.expect_no_event()?;
    let number = vm.command(0, Op::Nested, args(NestedOp::Int3, 0, Level::Own))?;
    let told = wire.expect_event(event::BREAKPOINT, 0)?;
    wire.reply(&told, CONTINUE)?;
    vm.finished(context, 0, number)?;
    vm.exit()
}

fn translated(context: &mut Context) -> Result<(), Failure> {
    const GIB: u64 = 1 << 30;
    /// Four tables, and what the last one maps.
    const TABLES: u64 = WORD + 0x2000;
    const MAPPED: u64 = WORD + 0x123_4000;
    const NOWHERE: u64 = u64::MAX;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("nested", 1)?;
    for table in 0..3 {
        let next = GIB + TABLES + 4096 * (table + 1);
        vm.guest.write(TABLES + 4096 * table, &(next | 1).to_ne_bytes())?;
    }
    // One in each GiB, and one where the hypervisor maps nothing.
    for (index, gib) in (0u64..).zip([0, 1, 2]) {
        let entry = (gib * GIB + MAPPED) | 1;
        vm.guest.write(TABLES + 4096 * 3 + 8 * index, &entry.to_ne_bytes())?;
    }
    for (level, root, wanted) in [
        (Level::NestedPaging, GIB + TABLES, [MAPPED, MAPPED, NOWHERE]),
        // Where the tables are is no memory of the guest's.
        (Level::Nested, GIB + TABLES, [NOWHERE; 3]),
    ] {
        let number = wait_in_nested(context, &vm, level)?;
        for in_run in [true, false] {
            context.stage(&format!("{level:?}, in KVM_RUN: {in_run}"), Duration::from_secs(10));
            if !in_run {
                vm.pause(0)?;
            }
            for (index, wanted) in (0u64..).zip(wanted) {
                let request = TranslateGva {
                    vcpu: 0,
                    gva: index << 12 | 0x567,
                    root: Some(root),
                };
                let reply = wire.get(&request, size_of::<VcpuTranslateGvaReply>())?;
                let wanted = if wanted == NOWHERE { NOWHERE } else { wanted | 0x567 };
                check_eq!(reply.gpa, wanted, "page {index}");
            }
            let rip = wire.registers(0)?.regs.rip;
            let request = TranslateGva {
                vcpu: 0,
                gva: rip,
                root: None,
            };
            let reply = wire.get(&request, size_of::<VcpuTranslateGvaReply>())?;
            check_eq!(reply.gpa, rip, "where its program is");
        }
        context.stage("out", Duration::from_secs(10));
        vm.resume(0)?;
        release(&vm)?;
        check_eq!(vm.finished(context, 0, number)?, 2, "result");
    }
    wire.expect_no_event()?;
    vm.exit()
}

fn unhooked(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 1000;
    const FEW: u64 = 300;
    let (vm, wire) = watched(context)?;
    let number = wait_in_nested(context, &vm, Level::Nested)?;
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    drop(wire);
    context.stage("out", Duration::from_secs(10));
    release(&vm)?;
    check_eq!(vm.finished(context, 0, number)?, 2, "result");
    for level in [Level::Own, Level::Nested] {
        context.stage(&format!("{level:?}"), Duration::from_secs(10));
        let before = vm.exits(0)?;
        let got = vm.carry_out(context, 0, Op::Nested, args(NestedOp::Sgdt, ROUNDS, level))?;
        check_eq!(got, layout::GDT, "result");
        let exits = vm.exits(0)? - before;
        check!(exits < FEW, "{exits} exits for {ROUNDS} SGDT");
        let got = vm.carry_out(context, 0, Op::Nested, args(NestedOp::Store, WORD, level))?;
        check_eq!(got, 7, "result of the store");
    }
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that end in the ordinary way, one by one.

use std::time::Duration;

use kvmi_guests::{Op, Routine, layout};
use kvmi_lab_control::Backend;
use kvmi_uapi::PageAccessEntry;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, PF, Pf};

use super::{Stepped, TRAP_FLAG, check_rips};
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "step::straight",
        "each instruction is told once, where the guest's own symbols say",
        straight,
    ),
    scenario(
        "step::flags",
        "PUSHF shows the guest no TF that it did not set, POPF loads what it should",
        flags,
    ),
    scenario(
        "step::iret",
        "IRET is one instruction, and TF is not set behind it",
        iret,
    ),
    scenario(
        "step::syscall",
        "SYSRET to ring 3 and SYSCALL back: neither ring sees TF, R11 neither",
        syscall,
    ),
    scenario("step::mov_ss", "MOV SS and the instruction behind it are two", mov_ss),
    scenario("step::sti", "STI and the instruction behind it are two", sti),
    scenario(
        "step::rep",
        "each round of REP STOSB is told, RIP on it until the last",
        rep,
    ),
    scenario(
        "step::exits",
        "CPUID, OUT, IN, RDMSR: KVM and the VMM carry them out, and each is one instruction",
        exits,
    ),
    scenario(
        "step::trap_flag",
        "the guest's own TF: its #DB comes where it should, with TF in the frame, and TF is gone when the guest takes it off",
        trap_flag,
    ),
    scenario(
        "step::icebp",
        "ICEBP (0xf1): the next event is at the handler of #DB, which finds no TF in the frame",
        icebp,
    ),
    scenario(
        "step::syscall_mask",
        "WRMSR of SYSCALL_MASK, which KVM lets the guest write by itself: it holds what was written",
        syscall_mask,
    ),
    scenario(
        "step::data_breakpoint",
        "a breakpoint of the guest's own in data: its #DB comes behind the store, and DR6 shows it alone",
        data_breakpoint,
    ),
    scenario(
        "step::debug_status",
        "MOV to and from DR6: the guest sees BS as it set it, and not that of the steps",
        debug_status,
    ),
    scenario(
        "step::avx",
        "AVX, of which KVM's emulator knows nothing: VMOVDQU, VORPD and others are one instruction each",
        avx,
    ),
    scenario(
        "step::fetch",
        "in a page that may not be executed: each instruction is told by PF, then by SINGLESTEP, whoever carries it out",
        fetch,
    ),
];

/// What the page with the code may be: all but executed.
const NOT_EXECUTED: u8 = PageAccessEntry::READ | PageAccessEntry::WRITE;
const ALL: u8 = NOT_EXECUTED | PageAccessEntry::EXEC;
const PAGE: u64 = 4096;

fn straight(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("unstepped", Duration::from_secs(10));
    check_eq!(stepped.run_unstepped(context, Routine::Straight, 0)?, 16, "the result");
    for round in 0..3 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        check_eq!(
            stepped.run_as_listed(context, Routine::Straight, 0)?,
            16,
            "the result, stepped"
        );
        check_eq!(
            stepped.run_unstepped(context, Routine::Straight, 0)?,
            16,
            "the result afterwards"
        );
    }
    stepped.vm.exit()
}

/// Runs a routine once; its result.
pub(super) fn once(context: &mut Context, routine: Routine, arg: u64) -> Result<u64, Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("step", Duration::from_secs(20));
    let mut with_trap_flag = None;
    let seen = stepped.run(context, routine, arg, |_, event| {
        if event.arch.regs.rflags & TRAP_FLAG != 0 {
            with_trap_flag = Some(event.arch.regs.rip);
        }
        Ok(())
    })?;
    check_rips(&seen.rips, &stepped.list(routine)?, routine)?;
    check_eq!(with_trap_flag, None, "where the tool saw TF");
    context.stage("afterwards", Duration::from_secs(10));
    check_eq!(stepped.run_unstepped(context, Routine::Straight, 0)?, 16, "the result");
    stepped.vm.exit()?;
    Ok(seen.result)
}

fn flags(context: &mut Context) -> Result<(), Failure> {
    let seen = once(context, Routine::Flags, 0)?;
    check_eq!(seen & TRAP_FLAG, 0, "TF that the guest sees");
    check_eq!(
        (seen & 1, seen >> 32),
        (1, 1),
        "CF that POPF set, as PUSHF and SETC see it"
    );
    Ok(())
}

fn iret(context: &mut Context) -> Result<(), Failure> {
    check_eq!(once(context, Routine::Iret, 0)? & TRAP_FLAG, 0, "TF behind IRET");
    Ok(())
}

fn syscall(context: &mut Context) -> Result<(), Failure> {
    check_eq!(once(context, Routine::Syscall, 0)? & TRAP_FLAG, 0, "TF in any of them");
    Ok(())
}

fn mov_ss(context: &mut Context) -> Result<(), Failure> {
    once(context, Routine::MovSs, 0).map(drop)
}

fn sti(context: &mut Context) -> Result<(), Failure> {
    once(context, Routine::Sti, 0).map(drop)
}

fn rep(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("step", Duration::from_secs(20));
    let list = stepped.list(Routine::Rep)?;
    let mut rounds = Vec::new();
    let mut seen = stepped.run(context, Routine::Rep, layout::SCRATCH, |_, event| {
        if event.arch.regs.rip == list[2] {
            rounds.push(event.arch.regs.rcx);
        }
        Ok(())
    })?;
    // QEMU traps once more, when nothing is left to be done.
    if stepped.backend == Backend::Svm && rounds.last() == Some(&0) {
        rounds.pop();
        seen.rips.remove(5);
    }
    check_eq!(rounds, [3, 2, 1], "RCX before each round");
    check_rips(&seen.rips, &list, Routine::Rep)?;
    check_eq!(seen.result, 0, "RCX behind it");
    stepped.vm.exit()
}

fn exits(context: &mut Context) -> Result<(), Failure> {
    check_eq!(once(context, Routine::Exits, 0)?, layout::ROOT, "CR3");
    Ok(())
}

fn trap_flag(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("unstepped", Duration::from_secs(10));
    check_eq!(stepped.run_unstepped(context, Routine::TrapFlag, 0)?, 2, "the result");
    context.stage("stepped", Duration::from_secs(20));
    check_eq!(
        stepped.run_as_listed(context, Routine::TrapFlag, 0)?,
        2,
        "the result, stepped"
    );
    check_eq!(
        stepped.run_unstepped(context, Routine::TrapFlag, 0)?,
        2,
        "the result afterwards"
    );
    stepped.vm.exit()
}

fn icebp(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("unstepped", Duration::from_secs(10));
    check_eq!(stepped.run_unstepped(context, Routine::Icebp, 0)?, 1, "the result");
    context.stage("stepped", Duration::from_secs(20));
    check_eq!(
        stepped.run_as_listed(context, Routine::Icebp, 0)?,
        1,
        "the result, stepped"
    );
    stepped.vm.exit()
}

fn data_breakpoint(context: &mut Context) -> Result<(), Failure> {
    const B0: u64 = 0xffff_0ff1;
    let mut stepped = Stepped::start(context)?;
    let (routine, at, result) = (Routine::DataBreakpoint, layout::SCRATCH, B0 << 32 | 1);
    context.stage("unstepped", Duration::from_secs(10));
    check_eq!(stepped.run_unstepped(context, routine, at)?, result, "#DB and DR6");
    context.stage("stepped", Duration::from_secs(20));
    check_eq!(
        stepped.run_as_listed(context, routine, at)?,
        result,
        "#DB and DR6, stepped"
    );
    stepped.vm.exit()
}

fn syscall_mask(context: &mut Context) -> Result<(), Failure> {
    check_eq!(once(context, Routine::SyscallMask, 0)?, 0x200, "SYSCALL_MASK");
    Ok(())
}

fn avx(context: &mut Context) -> Result<(), Failure> {
    check_eq!(
        once(context, Routine::Avx, layout::SCRATCH)?,
        0x1234,
        "the highest half"
    );
    Ok(())
}

fn debug_status(context: &mut Context) -> Result<(), Failure> {
    const NOTHING: u64 = 0xffff_0ff0;
    const BS: u64 = 1 << 14;
    let seen = once(context, Routine::DebugStatus, 0)?;
    check_eq!(
        (seen & 0xffff_ffff, seen >> 32),
        (NOTHING | BS, NOTHING),
        "DR6 with BS and without"
    );
    Ok(())
}

fn fetch(context: &mut Context) -> Result<(), Failure> {
    let routines = [
        Routine::Flags,
        Routine::MovSs,
        Routine::Iret,
        Routine::Syscall,
        Routine::Avx,
    ];
    for (routine, result) in routines.iter().zip(told_by_both(context, &routines)?) {
        if *routine != Routine::MovSs {
            check_eq!(result & TRAP_FLAG, 0, "TF that the guest sees in {routine:?}");
        }
    }
    Ok(())
}

/// Runs routines whose pages may not be executed: each instruction is told by SINGLESTEP, then by PF. Their results.
pub(super) fn told_by_both(context: &mut Context, routines: &[Routine]) -> Result<Vec<u64>, Failure> {
    let mut results = Vec::new();
    let mut stepped = Stepped::start(context)?;
    stepped.wire.control_event(0, PF, true)?;
    for &routine in routines {
        context.stage(&format!("{routine:?}"), Duration::from_secs(20));
        let list = stepped.list(routine)?;
        let mut pages: Vec<_> = list.iter().map(|rip| rip & !(PAGE - 1)).collect();
        pages.dedup();
        let set = |access| pages.iter().map(|&page| (page, access)).collect::<Vec<_>>();
        let number = stepped
            .vm
            .command(0, Op::Step, [routine as u64, layout::SCRATCH, 0, 0])?;
        let event = stepped.wire.expect_event(HYPERCALL, 0)?;
        stepped.wire.singlestep(true)?;
        stepped.wire.restrict(&set(NOT_EXECUTED))?;
        stepped.wire.reply(&event, CONTINUE)?;
        for &rip in &list {
            let event = stepped.step()?;
            check_eq!(event.arch.regs.rip, rip, "RIP of SINGLESTEP in {routine:?}");
            stepped.wire.reply(&event, CONTINUE)?;
            let event = stepped.wire.expect_event(PF, 0)?;
            let data = event.data::<Pf>()?;
            check_eq!(
                (data.access, data.gpa, event.arch.regs.rip),
                (PageAccessEntry::EXEC, rip, rip),
                "access and gpa of PF, and RIP, in {routine:?}"
            );
            stepped.wire.reply(&event, CONTINUE)?;
        }
        let event = stepped.wire.expect_event(HYPERCALL, 0)?;
        stepped.wire.singlestep(false)?;
        stepped.wire.restrict(&set(ALL))?;
        results.push(stepped.finish_at(context, &event, number)?);
    }
    stepped.vm.exit()?;
    Ok(results)
}

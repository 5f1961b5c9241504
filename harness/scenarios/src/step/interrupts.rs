// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts: those of the instruction are delivered, all others wait.

use std::time::Duration;

use kvmi_guests::{COUNTED_VECTOR, DOORBELL_VECTOR, Routine};
use kvmi_lab_control::Lane;
use kvmi_uapi::event::CONTINUE;

use super::{Seen, Stepped, check_rips};
use crate::vmm::{VcpuWrite, Vm, VmConfig, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "step::fault",
        "an instruction that faults: the next event is at its handler, which is stepped too",
        fault,
    ),
    scenario(
        "step::software_interrupts",
        "INT3 and INT n: the next event is at the handler, which is stepped too",
        software_interrupts,
    ),
    scenario(
        "step::interrupt_waits",
        "an interrupt that is pending waits until stepping ends, and is taken then, once",
        interrupt_waits,
    ),
    scenario(
        "step::nmi_and_smi_wait",
        "an NMI and an SMI that come while the vCPU is stepped wait until stepping ends, and are taken then",
        nmi_and_smi_wait,
    ),
    scenario(
        "step::waits_before_window",
        "an interrupt that the VMM brings when it may: it may not before stepping ends",
        waits_before_window,
    ),
    scenario(
        "step::with_interrupts",
        "stepped with interrupts: one that is pending is taken in between, its handler is stepped too",
        with_interrupts,
    ),
    scenario(
        "step::nmi_and_smi_in_between",
        "stepped with interrupts: an NMI and an SMI are taken in between; SMM is not stepped",
        nmi_and_smi_in_between,
    ),
    scenario(
        "step::rsm",
        "a vCPU in SMM is not stepped; the first that is told is RSM, with RIP where SMM has interrupted the guest",
        rsm,
    ),
    scenario(
        "step::halt",
        "HLT: told, then the vCPU sleeps; an interrupt wakes it, and is taken when stepping ends",
        halt,
    ),
    scenario(
        "step::halt_in_guest",
        "HLT by which the CPU itself would halt: told, and the vCPU goes on with the next step",
        halt_in_guest,
    )
    .not_on(&[(
        Lane::SvmTcg,
        "QEMU ends by an assertion where a guest with TF halts without an exit",
    )]),
];

const BREAKPOINT_VECTOR: u64 = 3;
const PROTECTION_VECTOR: u64 = 13;

/// Steps through a routine that is elsewhere once behind each of these instructions of its list, at that vector's handler.
fn with_handlers(
    stepped: &mut Stepped,
    context: &Context,
    routine: Routine,
    leaves: &[(usize, u64)],
) -> Result<(), Failure> {
    let mut handlers = Vec::new();
    let mut outside = 0;
    let list = stepped.list(routine)?;
    let seen = stepped.run(context, routine, 0, |stepped, event| {
        if handlers.is_empty() {
            for (_, vector) in leaves {
                handlers.push(stepped.handler(event, *vector)?);
            }
        }
        outside += usize::from(!list.contains(&event.arch.regs.rip));
        Ok(())
    })?;
    let mut wanted = list;
    for ((behind, _), handler) in leaves.iter().zip(&handlers).rev() {
        wanted.insert(behind + 1, *handler);
    }
    check_rips(&seen.rips, &wanted, routine)?;
    // Each pushes and pops nine registers.
    check!(
        outside > 20 * leaves.len(),
        "{outside} instructions of handlers were told"
    );
    Ok(())
}

fn fault(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("fault", Duration::from_secs(20));
    let resume = stepped.list(Routine::Fault)?[2];
    stepped.vm.guest.set_field(0, field!(resume), resume)?;
    with_handlers(&mut stepped, context, Routine::Fault, &[(1, PROTECTION_VECTOR)])?;
    stepped.vm.guest.set_field(0, field!(resume), 0)?;
    check_eq!(stepped.vm.guest.field(0, field!(protection_faults))?, 1, "#GP taken");
    stepped.vm.exit()
}

fn software_interrupts(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    let list = stepped.list(Routine::Interrupts)?;
    for round in 1..=2 {
        context.stage(&format!("round {round}"), Duration::from_secs(20));
        with_handlers(
            &mut stepped,
            context,
            Routine::Interrupts,
            &[(1, BREAKPOINT_VECTOR), (3, COUNTED_VECTOR.into())],
        )?;
        let guest = &stepped.vm.guest;
        check_eq!(guest.field(0, field!(breakpoints))?, round, "#BP taken");
        check_eq!(guest.field(0, field!(breakpoint_rip))?, list[2], "RIP that #BP pushed");
        check_eq!(guest.field(0, field!(counted_interrupts))?, round, "interrupts taken");
        check_eq!(guest.field(0, field!(counted_rip))?, list[4], "RIP that INT n pushed");
    }
    stepped.vm.exit()
}

fn interrupt_waits(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("ring", Duration::from_secs(20));
    let mut rung = None;
    let seen = stepped.run(context, Routine::Straight, 0, |stepped, _| {
        if rung.is_none() {
            rung = Some(stepped.vm.guest.field(0, field!(counter))?);
            stepped.vm.ring(0)?;
        }
        check_eq!(
            Some(stepped.vm.guest.field(0, field!(counter))?),
            rung,
            "doorbells that the guest took"
        );
        Ok(())
    })?;
    check_rips(&seen.rips, &stepped.list(Routine::Straight)?, Routine::Straight)?;
    check_eq!(
        Some(stepped.vm.guest.field(0, field!(counter))? - 1),
        rung,
        "doorbells that the guest took afterwards, less one"
    );
    stepped.vm.exit()
}

fn waits_before_window(context: &mut Context) -> Result<(), Failure> {
    // With the PIC outside of the kernel the VMM asks for a window.
    let mut stepped = Stepped::start_with(
        context,
        &VmConfig {
            split_irqchip: true,
            ..Stepped::config()
        },
    )?;
    context.stage("an interrupt is to come", Duration::from_secs(20));
    let is_untaken = |vm: &Vm| {
        let taken = vm.guest.field(0, field!(counted_interrupts))?;
        let windows = vm.status(0)?.exits("interrupt window");
        check_eq!((taken, windows), (0, 0), "interrupts taken and windows, within steps");
        Ok::<_, Failure>(())
    };
    let mut is_wanted = false;
    let seen = stepped.run(context, Routine::Straight, 0, |stepped, _| {
        if !is_wanted {
            stepped.vm.pause(0)?;
            stepped.vm.interrupt_in_window(0, COUNTED_VECTOR)?;
            stepped.vm.resume(0)?;
            is_wanted = true;
        }
        is_untaken(&stepped.vm)
    })?;
    check_rips(&seen.rips, &stepped.list(Routine::Straight)?, Routine::Straight)?;
    context.stage("afterwards", Duration::from_secs(20));
    let vm = &stepped.vm;
    context.wait_for("the interrupt", || {
        Ok(vm.guest.field(0, field!(counted_interrupts))? == 1)
    })?;
    check_eq!(vm.status(0)?.exits("interrupt window"), 1, "windows");
    stepped.vm.exit()
}

fn nmi_and_smi_wait(context: &mut Context) -> Result<(), Failure> {
    const NMI: u64 = 2;
    let mut stepped = Stepped::start(context)?;
    let taken = |vm: &Vm| Ok::<_, Failure>((vm.exceptions()?, vm.has_entered_smm()?));
    stepped.vm.tolerate(&[NMI])?;
    stepped.vm.prepare_smm()?;
    stepped.vm.leave_smm()?;
    context.stage("step", Duration::from_secs(20));
    let mut sent = false;
    let seen = stepped.run(context, Routine::Straight, 0, |stepped, _| {
        if !sent {
            stepped.vm.pause(0)?;
            for by in [VcpuWrite::Nmi, VcpuWrite::Smi] {
                check_eq!(stepped.vm.write(0, by)?, 0, "errno of {by:?}");
            }
            stepped.vm.resume(0)?;
            sent = true;
        }
        check_eq!(
            taken(&stepped.vm)?,
            (0, false),
            "NMIs taken, and whether SMM was entered"
        );
        Ok(())
    })?;
    check_rips(&seen.rips, &stepped.list(Routine::Straight)?, Routine::Straight)?;
    context.stage("afterwards", Duration::from_secs(20));
    context.wait_for("NMI and SMI to be taken", || Ok(taken(&stepped.vm)? == (1, true)))?;
    check_eq!(stepped.vm.exception()?.vector, NMI, "the vector taken");
    check_eq!(stepped.run_as_listed(context, Routine::Straight, 0)?, 16, "the result");
    stepped.vm.exit()
}

/// Fails unless the routine was told in its order; how many of its instructions were told again in their place.
fn inside_once(seen: &Seen, list: &[u64]) -> Result<usize, Failure> {
    let mut inside: Vec<u64> = seen.rips.iter().copied().filter(|rip| list.contains(rip)).collect();
    let told = inside.len();
    inside.dedup();
    check_rips(&inside, list, Routine::Straight)?;
    Ok(told - inside.len())
}

fn with_interrupts(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    let list = stepped.list(Routine::Straight)?;
    context.stage("ring", Duration::from_secs(20));
    let mut before = 0;
    let mut handler = None;
    let mut outside = Vec::new();
    let seen = stepped.run(context, Routine::Straight, 0, |stepped, event| {
        if handler.is_none() {
            handler = Some(stepped.handler(event, DOORBELL_VECTOR.into())?);
            before = stepped.vm.guest.field(0, field!(counter))?;
            stepped.wire.singlestep_with_interrupts()?;
            stepped.vm.ring(0)?;
        } else if !list.contains(&event.arch.regs.rip) {
            outside.push(event.arch.regs.rip);
        } else if event.arch.regs.rip == list[list.len() - 2] {
            check_eq!(
                stepped.vm.guest.field(0, field!(counter))?,
                before + 1,
                "doorbells that the guest took"
            );
        }
        Ok(())
    })?;
    // Where it came is told twice: behind the instruction before, and behind the handler's IRET.
    check_eq!(
        inside_once(&seen, &list)?,
        1,
        "instructions of the routine that were told again"
    );
    check_eq!(
        outside.first().copied(),
        handler,
        "the first instruction outside of the routine"
    );
    check!(
        outside.len() > 5,
        "{} instructions of the handler were told",
        outside.len()
    );
    check_eq!(stepped.run_as_listed(context, Routine::Straight, 0)?, 16, "the result");
    stepped.vm.exit()
}

fn nmi_and_smi_in_between(context: &mut Context) -> Result<(), Failure> {
    const NMI: u64 = 2;
    let mut stepped = Stepped::start(context)?;
    let list = stepped.list(Routine::Straight)?;
    let taken = |vm: &Vm| Ok::<_, Failure>((vm.exceptions()?, vm.has_entered_smm()?));
    stepped.vm.tolerate(&[NMI])?;
    stepped.vm.prepare_smm()?;
    stepped.vm.leave_smm()?;
    context.stage("step", Duration::from_secs(20));
    let mut sent = false;
    let mut last = (0, false);
    let seen = stepped.run(context, Routine::Straight, 0, |stepped, _| {
        if !sent {
            stepped.wire.singlestep_with_interrupts()?;
            stepped.vm.pause(0)?;
            for by in [VcpuWrite::Nmi, VcpuWrite::Smi] {
                check_eq!(stepped.vm.write(0, by)?, 0, "errno of {by:?}");
            }
            stepped.vm.resume(0)?;
            sent = true;
        }
        last = taken(&stepped.vm)?;
        Ok(())
    })?;
    check_eq!(
        last,
        (1, true),
        "NMIs taken, and whether SMM was entered, before the end"
    );
    // Behind the handler's IRET, and behind RSM.
    check_eq!(
        inside_once(&seen, &list)?,
        2,
        "instructions of the routine that were told again"
    );
    check_eq!(stepped.vm.exception()?.vector, NMI, "the vector taken");
    check_eq!(stepped.run_as_listed(context, Routine::Straight, 0)?, 16, "the result");
    stepped.vm.exit()
}

fn rsm(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    stepped.vm.prepare_smm()?;
    context.stage("in SMM", Duration::from_secs(20));
    let interrupted = stepped.wire.registers(0)?.regs;
    stepped.vm.enter_smm(context)?;
    stepped.wire.singlestep(true)?;
    let inputs = stepped.vm.status(0)?.inputs;
    context.wait_for("some rounds in SMM", || Ok(stepped.vm.status(0)?.inputs > inputs + 3))?;
    stepped.wire.expect_no_event()?;
    context.stage("RSM", Duration::from_secs(20));
    stepped.vm.leave_smm()?;
    let event = stepped.step()?;
    check_eq!(event.arch.regs, interrupted, "registers behind RSM");
    stepped.wire.reply(&event, CONTINUE)?;
    let event = stepped.step()?;
    check!(
        event.arch.regs.rip != interrupted.rip,
        "RIP stays where it was behind RSM"
    );
    stepped.wire.singlestep(false)?;
    stepped.wire.reply(&event, CONTINUE)?;
    context.stage("afterwards", Duration::from_secs(20));
    check_eq!(stepped.run_as_listed(context, Routine::Straight, 0)?, 16, "the result");
    stepped.vm.exit()
}

fn halt_in_guest(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start_with(
        context,
        &VmConfig {
            halts_in_guest: true,
            ..Stepped::config()
        },
    )?;
    for round in 1..=3 {
        context.stage(&format!("halt, {round}"), Duration::from_secs(20));
        stepped.run_as_listed(context, Routine::Halt, 0)?;
    }
    stepped.vm.exit()
}

fn halt(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("halt", Duration::from_secs(20));
    let list = stepped.list(Routine::Halt)?;
    let (number, _) = stepped.begin(Routine::Halt, 0)?;
    let before = stepped.vm.guest.field(0, field!(counter))?;
    let event = stepped.steps(3)?;
    check_eq!(event.arch.regs.rip, list[2], "RIP behind HLT");
    stepped.wire.reply(&event, CONTINUE)?;
    check_eq!(
        stepped.wire.registers(0)?.regs.rip,
        list[2],
        "RIP of the vCPU that sleeps"
    );
    stepped.wire.expect_no_event()?;
    stepped.vm.ring(0)?;
    for rip in &list[3..] {
        let event = stepped.step()?;
        check_eq!(event.arch.regs.rip, *rip, "RIP after HLT");
        stepped.wire.reply(&event, CONTINUE)?;
    }
    check_eq!(
        stepped.vm.guest.field(0, field!(counter))?,
        before,
        "doorbells that the guest took"
    );
    stepped.finish(context, number)?;
    check_eq!(
        stepped.vm.guest.field(0, field!(counter))? - before,
        1,
        "doorbells that the guest took afterwards"
    );
    stepped.vm.exit()
}

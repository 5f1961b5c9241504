// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of stepping that the tool does not bring about itself: the guest runs on as if nothing had been, or not at all.

use std::time::Duration;

use kvmi::{Session, event};
use kvmi_guests::{Op, Routine};
use kvmi_uapi::event::{CONTINUE, CRASH, HYPERCALL};

use super::Stepped;
use crate::vmm::{Until, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "step::unhook",
        "UNHOOK while a vCPU is stepped, an event open or not, with and without cleanup: it runs on",
        unhook,
    ),
    scenario(
        "step::tool_lost",
        "the tool's end while a vCPU is stepped: it runs on, and the VMM may step it",
        tool_lost,
    ),
    scenario(
        "step::crash",
        "CRASH answers SINGLESTEP: the vCPU runs no further",
        crash,
    ),
    scenario(
        "step::by_the_library",
        "the client library steps: to be read as an example",
        by_the_library,
    ),
];

/// The guest runs, takes doorbells, and nothing of stepping is left.
fn runs(context: &Context, stepped: &Stepped, number: u64) -> Result<(), Failure> {
    let vm = &stepped.vm;
    check_eq!(vm.finished(context, 0, number)?, 16, "the result");
    let before = vm.guest.field(0, field!(counter))?;
    let number = vm.command(0, Op::Step, [Routine::Straight as u64, 0, 0, 0])?;
    check_eq!(vm.finished(context, 0, number)?, 16, "the result of another round");
    check!(
        vm.guest.field(0, field!(counter))? > before,
        "the guest took its doorbell"
    );
    Ok(())
}

fn unhook(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    for (cleanup, answered) in [(1, false), (1, true), (0, false), (0, true)] {
        context.stage(
            &format!("cleanup {cleanup}, answered {answered}"),
            Duration::from_secs(20),
        );
        stepped.wire.control_cleanup(cleanup == 1)?;
        let (number, _) = stepped.begin(Routine::Straight, 0)?;
        let event = stepped.steps(5)?;
        if answered {
            stepped.wire.reply(&event, CONTINUE)?;
        }
        check_eq!(stepped.vm.unhook()?, 0, "errno of UNHOOK");
        stepped.wire.expect_closed()?;
        runs(context, &stepped, number)?;
        stepped.wire = context.hook(&stepped.vm)?;
        stepped.wire.control_event(0, HYPERCALL, true)?;
        check_eq!(
            stepped.run_unstepped(context, Routine::Straight, 0)?,
            16,
            "the result in the next session"
        );
    }
    stepped.vm.exit()
}

fn tool_lost(context: &mut Context) -> Result<(), Failure> {
    /// KVM_GUESTDBG_ENABLE and KVM_GUESTDBG_SINGLESTEP.
    const VMM_STEPS: u32 = 3;
    let mut stepped = Stepped::start(context)?;
    context.stage("hang up", Duration::from_secs(20));
    let (number, _) = stepped.begin(Routine::Straight, 0)?;
    let event = stepped.steps(5)?;
    stepped.wire.reply(&event, CONTINUE)?;
    stepped.step()?;
    stepped.wire.shutdown(std::net::Shutdown::Both)?;
    runs(context, &stepped, number)?;
    stepped.vm.pause(0)?;
    check_eq!(
        stepped.vm.set_guest_debug(0, VMM_STEPS)?,
        0,
        "errno of KVM_SET_GUEST_DEBUG"
    );
    check_eq!(stepped.vm.set_guest_debug(0, 0)?, 0, "errno of KVM_SET_GUEST_DEBUG");
    stepped.vm.resume(0)?;
    check_eq!(stepped.vm.unhook()?, 0, "errno of UNHOOK");
    stepped.vm.exit()
}

fn crash(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("crash", Duration::from_secs(20));
    let (number, _) = stepped.begin(Routine::Straight, 0)?;
    let event = stepped.steps(3)?;
    stepped.wire.reply(&event, CRASH)?;
    for times in 1..=2 {
        let status = stepped.vm.wait(0, Until::Exit("shutdown".to_owned(), times))?;
        check_eq!(status.exits("shutdown"), times, "shutdown exits");
        stepped.vm.resume(0)?;
    }
    stepped.wire.expect_no_event()?;
    check!(
        stepped.vm.guest.field(0, field!(done))? < number,
        "the crashed vCPU finished its command"
    );
    check_eq!(stepped.vm.unhook()?, 0, "errno of UNHOOK");
    stepped.vm.exit()
}

fn by_the_library(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("steps", 1)?;
    let (vmm_end, tool_end) = std::os::unix::net::UnixStream::pair()?;
    vm.hook_and_allow(std::os::fd::AsFd::as_fd(&vmm_end), 0)?;
    let session = Session::from(kvmi::Stream::from(tool_end));
    let vcpu = session.vcpu(0);
    context.stage("step", Duration::from_secs(20));
    vcpu.control_event(event::HYPERCALL, true)?;
    let number = vm.command(0, Op::Step, [Routine::Straight as u64, 0, 0, 0])?;
    let start = session.next_event()?.hypercall()?;
    let mut last = start.arch.regs.rip;
    vcpu.control_singlestep(true)?;
    start.proceed()?;
    for _ in 0..5 {
        let step = session.next_event()?.singlestep()?;
        check_eq!(step.data.failed, 0, "failed");
        check!(step.arch.regs.rip > last, "RIP goes on from {last:#x}");
        last = step.arch.regs.rip;
        step.proceed()?;
    }
    let step = session.next_event()?.singlestep()?;
    vcpu.control_singlestep(false)?;
    step.proceed()?;
    session.next_event()?.hypercall()?.proceed()?;
    check_eq!(vm.finished(context, 0, number)?, 16, "the result");
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! PREUNHOOK and UNHOOK, and what is left of the tool's work afterwards: nothing.

use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::error;
use kvmi_uapi::event::{BREAKPOINT, CONTINUE, HYPERCALL, UNHOOK};

use super::{GUEST_REQUEST, wait_at_hypercall};
use crate::requests::fill_socket;
use crate::vmm::{Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, Transport, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "unhook::preunhook_honoured",
        "PREUNHOOK: the tool takes its int3 out and closes; the guest is unharmed",
        preunhook_honoured,
    ),
    scenario(
        "unhook::preunhook_ignored",
        "PREUNHOOK that the tool ignores: UNHOOK ends it; the guest is unharmed",
        preunhook_ignored,
    ),
    scenario(
        "unhook::preunhook_refused",
        "PREUNHOOK answers EFAULT without HOOK and ENOENT without the event",
        preunhook_refused,
    ),
    scenario(
        "unhook::with_event_open",
        "UNHOOK while a vCPU waits for a reply: the event is as if continued",
        with_event_open,
    ),
    scenario(
        "unhook::with_socket_full",
        "UNHOOK while the kernel waits for room in the socket: it returns, the guest goes on",
        with_socket_full,
    )
    .over(Transport::Socket),
    scenario(
        "unhook::events_do_not_outlive_a_session",
        "what one session enabled is off in the next, with and without cleanup",
        next_session_is_clean,
    ),
];

/// A hooked guest with an int3 planted on its target, which has been hit once; the target's address and its first byte.
fn planted(context: &mut Context) -> Result<(Vm, Wire, u64, u8), Failure> {
    context.stage("plant an int3", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    wire.control_event(0, BREAKPOINT, true)?;
    let target = vm.guest.field(0, field!(target))?;
    let original = wire.plant_int3(target)?;
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    check_eq!(
        vm.guest.field(0, field!(breakpoints))?,
        1,
        "#BP in the guest after CONTINUE"
    );
    Ok((vm, wire, target, original))
}

/// Fails unless the target runs `runs` more times with `breakpoints` more #BP.
fn target_runs(context: &Context, vm: &Vm, runs: u64, breakpoints: u64) -> Result<(), Failure> {
    let runs_before = vm.guest.field(0, field!(target_runs))?;
    let breakpoints_before = vm.guest.field(0, field!(breakpoints))?;
    vm.carry_out(context, 0, Op::CallTarget, [runs, 0, 0, 0])?;
    check_eq!(
        vm.guest.field(0, field!(target_runs))? - runs_before,
        runs,
        "runs of the target"
    );
    check_eq!(
        vm.guest.field(0, field!(breakpoints))? - breakpoints_before,
        breakpoints,
        "#BP in the guest"
    );
    Ok(())
}

fn preunhook_honoured(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, target, original) = planted(context)?;
    wire.control_unhook_event(true)?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    check_eq!(vm.preunhook()?, 0, "errno of PREUNHOOK");
    let event = wire.event()?;
    check_eq!(
        (event.id, event.data.len()),
        (UNHOOK, 0),
        "event and length of its data"
    );
    check_eq!(
        wire.write_physical(target, &[original])?,
        Ok(vec![]),
        "taking the int3 out"
    );
    drop(wire);
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    target_runs(context, &vm, 10, 0)?;
    vm.exit()
}

fn preunhook_ignored(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, target, original) = planted(context)?;
    wire.control_unhook_event(true)?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    check_eq!(vm.preunhook()?, 0, "errno of PREUNHOOK");
    check_eq!(wire.event()?.id, UNHOOK, "event");
    context.stage("introspection goes on", Duration::from_secs(10));
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    wire.expect_closed()?;
    // Bytes that the tool wrote are the tool's to take back. The int3 is now the guest's own affair, and it survives that.
    target_runs(context, &vm, 10, 10)?;
    context.stage("a new session takes the int3 out", Duration::from_secs(10));
    let mut wire = context.hook(&vm)?;
    check_eq!(
        wire.write_physical(target, &[original])?,
        Ok(vec![]),
        "taking the int3 out"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    target_runs(context, &vm, 10, 0)?;
    vm.exit()
}

fn preunhook_refused(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    context.stage("refuse", Duration::from_secs(10));
    check_eq!(vm.preunhook()?, error::EFAULT, "errno of PREUNHOOK without HOOK");
    let mut wire = context.hook(&vm)?;
    check_eq!(vm.preunhook()?, error::ENOENT, "errno of PREUNHOOK without the event");
    wire.expect_no_event()?;
    wire.control_unhook_event(true)?;
    check_eq!(vm.preunhook()?, 0, "errno of PREUNHOOK");
    check_eq!(wire.event()?.id, UNHOOK, "event");
    wire.control_unhook_event(false)?;
    check_eq!(
        vm.preunhook()?,
        error::ENOENT,
        "errno of PREUNHOOK with the event off again"
    );
    wire.expect_no_event()?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(vm.preunhook()?, error::EFAULT, "errno of PREUNHOOK after UNHOOK");
    vm.exit()
}

fn with_event_open(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, target, original) = planted(context)?;
    context.stage("an event opens", Duration::from_secs(10));
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    wire.expect_event(BREAKPOINT, 0)?;
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    wire.expect_closed()?;
    vm.finished(context, 0, number)?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 2, "#BP in the guest");
    check_eq!(vm.guest.field(0, field!(target_runs))?, 2, "runs of the target");
    vm.guest.write(target, &[original])?;
    target_runs(context, &vm, 10, 0)?;
    context.stage("the same with the int3 taken out meanwhile", Duration::from_secs(10));
    let mut wire = context.hook(&vm)?;
    wire.control_event(0, BREAKPOINT, true)?;
    wire.plant_int3(target)?;
    let number = vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    wire.expect_event(BREAKPOINT, 0)?;
    check_eq!(
        wire.write_physical(target, &[original])?,
        Ok(vec![]),
        "taking the int3 out"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.finished(context, 0, number)?;
    target_runs(context, &vm, 10, 0)?;
    vm.exit()
}

fn with_socket_full(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    fill_socket(&mut wire)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wait_at_hypercall(context, &vm, 0)?;
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.finished(context, 0, number)?;
    wire.expect_closed_perhaps_cut()?;
    context.stage("a new session", Duration::from_secs(10));
    check_eq!(context.hook(&vm)?.vcpu_count()?, 1, "vCPUs in a new session");
    vm.exit()
}

fn next_session_is_clean(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 1)?;
    for cleanup in [1, 0] {
        context.stage(&format!("cleanup {cleanup}"), Duration::from_secs(10));
        let mut wire = context.hook(&vm)?;
        wire.control_cleanup(cleanup == 1)?;
        wire.control_event(0, HYPERCALL, true)?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        let result = vm.carry_out(context, 0, Op::Hypercall, GUEST_REQUEST)?;
        check_eq!(result as i64, -1000, "RAX of the hypercall after UNHOOK");
        let mut wire = context.hook(&vm)?;
        let result = vm.carry_out(context, 0, Op::Hypercall, GUEST_REQUEST)?;
        check_eq!(result as i64, -1000, "RAX of the hypercall in the next session");
        wire.expect_no_event()?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    }
    vm.exit()
}

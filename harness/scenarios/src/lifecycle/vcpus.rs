// SPDX-License-Identifier: MIT OR Apache-2.0
//! What vCPUs are doing, vCPUs that are created, and vCPUs that HOOK keeps stopped.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvmi::ioctls;
use kvmi_guests::Op;
use kvmi_uapi::VcpuRunState;
use kvmi_uapi::event::{self, CONTINUE, CREATE_VCPU, HYPERCALL};
use kvmi_uapi::ioctl::HOOK_STOPPED;

use super::{GUEST_REQUEST, counts_on};
use crate::vmm::{VmConfig, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "lifecycle::vcpu_created_is_told",
        "a vCPU created after HOOK tells so, once, before its first instruction",
        created,
    ),
    scenario(
        "lifecycle::vcpu_states",
        "what vCPUs are doing: running, out, halted, waiting for INIT, held by which event, crashed",
        states,
    ),
    scenario(
        "lifecycle::hook_stopped",
        "HOOK with STOPPED: each vCPU stands still, and commands work, until VM_RELEASE",
        stopped,
    ),
    scenario(
        "lifecycle::stopped_without_tool",
        "HOOK with STOPPED, and the tool goes away, or UNHOOK comes: the guest runs on",
        stopped_without_tool,
    ),
    scenario(
        "lifecycle::vcpu_creation_fails",
        "vCPUs whose creation fails while a VM is hooked and unhooked: what a session had of them is gone with it",
        creation_fails,
    ),
];

fn creation_fails(context: &mut Context) -> Result<(), Failure> {
    const SESSIONS: u32 = 20;
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm("halt", 1)?;
    let fd = vm.steal_vm_fd()?;
    let sessions = Arc::new(AtomicU32::new(0));
    let hooking = std::thread::spawn({
        let sessions = sessions.clone();
        move || {
            for _ in 0..SESSIONS {
                let (socket, _tool) = UnixStream::pair()?;
                ioctls::hook(fd.as_fd(), socket.as_raw_fd(), 0, [0; 16])?;
                ioctls::unhook(fd.as_fd())?;
                sessions.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), std::io::Error>(())
        }
    });
    context.stage("create and hook", Duration::from_secs(60));
    // KVM finds out that the index is taken when a session has the vCPU already.
    while sessions.load(Ordering::Relaxed) < SESSIONS && !hooking.is_finished() {
        vm.add_taken_vcpu(10)?;
    }
    hooking
        .join()
        .map_err(|_| Failure::new("the thread that hooks panicked"))??;
    context.stage("a session", Duration::from_secs(20));
    let mut wire = context.hook(&vm)?;
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    vm.exit()
}

fn created(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (mut vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    context.stage("not enabled", Duration::from_secs(20));
    let untold = vm.add_vcpu()?;
    vm.carry_out(context, untold, Op::Nothing, [0; 4])?;
    wire.expect_no_event()?;
    context.stage("enabled", Duration::from_secs(20));
    wire.control_create_vcpu(true)?;
    let index = vm.add_vcpu()?;
    let event = wire.expect_event(CREATE_VCPU, index as u16)?;
    check_eq!(wire.vcpu_count()?, index as u32 + 1, "vCPUs");
    // The VMM has set it up, and it has executed nothing.
    check_eq!(
        event.arch.regs.rdi,
        index as u64,
        "RDI, in which its program finds its index"
    );
    check_eq!(
        vm.guest.field(index, field!(ready))?,
        0,
        "whether its program has begun"
    );
    wire.control_event(index as u16, HYPERCALL, true)?;
    wire.reply(&event, CONTINUE)?;
    let number = vm.command(index, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, index as u16)?;
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, index, number)?;
    wire.expect_no_event()?;
    vm.exit()
}

/// Waits until a vCPU is in this state; what else there is to it.
pub(crate) fn becomes(context: &Context, wire: &mut Wire, vcpu: usize, state: u8) -> Result<VcpuRunState, Failure> {
    let mut last = VcpuRunState::default();
    context.wait_for(&format!("vCPU {vcpu} to be in state {state}"), || {
        last = wire.vcpu_states(vcpu as u16 + 1)?[vcpu];
        Ok(last.state == state)
    })?;
    check_eq!(last.pad, 0, "padding");
    Ok(last)
}

fn states(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm_with(&VmConfig {
        uninitialised_aps: true,
        ..VmConfig::new("hypercall", 2)
    })?;
    vm.run()?;
    vm.wait_ready_on(context, 0)?;
    let mut wire = context.hook(&vm)?;
    context.stage("asleep", Duration::from_secs(10));
    let halted = becomes(context, &mut wire, 0, VcpuRunState::HALTED)?;
    check_eq!(
        (halted.event, halted.in_run),
        (0, 1),
        "event, and KVM_RUN, of one asleep"
    );
    let waiting = becomes(context, &mut wire, 1, VcpuRunState::UNINITIALISED)?;
    check_eq!((waiting.event, waiting.seq), (0, 0), "event of one that waits for INIT");
    context.stage("out", Duration::from_secs(10));
    vm.pause(1)?;
    let out = becomes(context, &mut wire, 1, VcpuRunState::UNINITIALISED)?;
    check_eq!(out.in_run, 0, "KVM_RUN of one that the VMM has taken out");
    vm.resume(1)?;
    context.stage("held", Duration::from_secs(10));
    wire.control_event(0, HYPERCALL, true)?;
    for _ in 0..2 {
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        let held = becomes(context, &mut wire, 0, VcpuRunState::HELD)?;
        check_eq!(
            (u16::from(held.event), held.seq, held.in_run),
            (HYPERCALL, event.seq, 1),
            "event, its number, and KVM_RUN, of one that is held"
        );
        // It stays so while the VMM has it.
        vm.pause(0)?;
        let held = becomes(context, &mut wire, 0, VcpuRunState::HELD)?;
        check_eq!(
            (held.seq, held.in_run),
            (event.seq, 0),
            "event and KVM_RUN outside of it"
        );
        vm.resume(0)?;
        wire.reply(&event, CONTINUE)?;
        vm.finished(context, 0, number)?;
        let halted = becomes(context, &mut wire, 0, VcpuRunState::HALTED)?;
        check_eq!((halted.event, halted.seq), (0, 0), "event of one that was let go");
    }
    context.stage("crashed", Duration::from_secs(10));
    vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, event::CRASH)?;
    becomes(context, &mut wire, 0, VcpuRunState::CRASHED)?;
    vm.exit()?;

    context.stage("running", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 2)?;
    becomes(context, &mut wire, 0, VcpuRunState::RUNS)?;
    vm.pause(0)?;
    let out = becomes(context, &mut wire, 0, VcpuRunState::OUT)?;
    check_eq!(out.in_run, 0, "KVM_RUN of one that is out");
    becomes(context, &mut wire, 1, VcpuRunState::RUNS)?;
    vm.resume(0)?;
    becomes(context, &mut wire, 0, VcpuRunState::RUNS)?;
    vm.exit()
}

fn stopped(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    counts_on(context, &vm)?;
    context.stage("stop", Duration::from_secs(10));
    let mut wire = context.hook_with(&vm, HOOK_STOPPED)?;
    let counters = |vm: &crate::vmm::Vm| -> Result<Vec<u64>, Failure> {
        (0..2).map(|vcpu| vm.guest.field(vcpu, field!(counter))).collect()
    };
    let before = counters(&vm)?;
    for vcpu in 0..2 {
        becomes(context, &mut wire, vcpu, VcpuRunState::STOPPED)?;
        // Commands work, and so do PAUSE events; neither lets it go.
        let rip = wire.registers(vcpu as u16)?.regs.rip;
        check_eq!(wire.pause(vcpu as u16, true)?, Ok(vec![]), "VM_PAUSE_VCPU");
        let event = wire.expect_event(event::PAUSE, vcpu as u16)?;
        check_eq!(event.arch.regs.rip, rip, "RIP of PAUSE");
        wire.reply(&event, CONTINUE)?;
        let again = wire.registers(vcpu as u16)?.regs.rip;
        check_eq!(again, rip, "RIP of a vCPU that stands still");
        // Nor do signals.
        vm.pause(vcpu)?;
        vm.resume(vcpu)?;
        becomes(context, &mut wire, vcpu, VcpuRunState::STOPPED)?;
    }
    check_eq!(counters(&vm)?, before, "what the guest counted since HOOK returned");
    context.stage("release", Duration::from_secs(10));
    wire.release()?;
    counts_on(context, &vm)?;
    becomes(context, &mut wire, 1, VcpuRunState::RUNS)?;
    wire.release()?;
    counts_on(context, &vm)?;
    vm.exit()
}

fn stopped_without_tool(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    for round in 0..3 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        let mut wire = context.hook_with(&vm, HOOK_STOPPED)?;
        for vcpu in 0..2 {
            becomes(context, &mut wire, vcpu, VcpuRunState::STOPPED)?;
        }
        if round == 1 {
            check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
            counts_on(context, &vm)?;
        } else {
            // It fails open.
            drop(wire);
            counts_on(context, &vm)?;
            check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        }
        check!(vm.status(0)?.exits("shutdown") == 0, "the guest crashed");
    }
    vm.exit()
}

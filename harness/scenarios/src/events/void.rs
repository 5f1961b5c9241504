// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the VMM does to a waiting vCPU that makes its event void.

use std::time::Duration;

use kvmi::command::SetRegisters;
use kvmi_guests::{COUNTED_VECTOR, Op};
use kvmi_uapi::Regs;
use kvmi_uapi::error::EINVAL;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, PAUSE};
use rustix::io::Errno;

use crate::lifecycle::{GUEST_REQUEST, counts_on};
use crate::vmm::{VcpuWrite, Vm, VmConfig, field};
use crate::wire::{Event, Wire};
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::void_by_each_write",
        "each ioctl by which the VMM changes a waiting vCPU voids its event; the instruction happens anew, once",
        each_write,
    ),
    scenario(
        "events::not_void_by_unchanged_writes",
        "a VMM that writes back what it has read, again and again, leaves the event open: its first reply counts",
        unchanged_writes,
    ),
    scenario(
        "events::void_by_interrupt",
        "KVM_INTERRUPT voids the open event: the guest takes the interrupt, then the instruction happens anew",
        interrupt,
    ),
    scenario(
        "events::not_void_by_refused_interrupt",
        "a KVM_INTERRUPT that KVM refuses leaves the event open: its first reply counts",
        refused_interrupt,
    ),
    scenario(
        "events::registers_while_an_interrupt_is_on_its_way",
        "IF clear in VCPU_SET_REGISTERS while KVM delivers an interrupt: EINVAL; one that comes later drops it; the guest goes on",
        registers_and_interrupt,
    ),
    scenario(
        "events::pause_is_never_void",
        "no ioctl that changes the vCPU voids an open PAUSE",
        pause_is_never_void,
    ),
];

/// Those that change something.
const CHANGES: [VcpuWrite; 5] = [
    VcpuWrite::ChangedRegs,
    VcpuWrite::ChangedSregs,
    VcpuWrite::ChangedDirtyRegs,
    VcpuWrite::ChangedEvents,
    VcpuWrite::ChangedMpState,
];

/// Those that change nothing.
const WRITES: [VcpuWrite; 6] = [
    VcpuWrite::Regs,
    VcpuWrite::Sregs,
    VcpuWrite::DirtyRegs,
    VcpuWrite::Events,
    VcpuWrite::MpState,
    VcpuWrite::NestedState,
];

/// RFLAGS.RF tells how the guest came to the instruction, from a handler for one; RFLAGS.ID is what the VMM changes.
const OTHER_FLAGS: u64 = 1 << 16 | 1 << 21;

/// Has the VMM write vCPU 0.
fn write(vm: &Vm, by: VcpuWrite) -> Result<(), Failure> {
    vm.pause(0)?;
    check_eq!(vm.write(0, by)?, 0, "errno of {by:?}");
    vm.resume(0)?;
    // A vCPU that was halted goes on for an interrupt.
    if by == VcpuWrite::ChangedMpState {
        vm.ring(0)?;
    }
    Ok(())
}

/// A HYPERCALL event that is void, the one in its place, and the command's number.
fn voided(wire: &mut Wire, vm: &Vm, by: VcpuWrite) -> Result<(Event, Event, u64), Failure> {
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let void = wire.expect_event(HYPERCALL, 0)?;
    write(vm, by)?;
    let anew = wire.expect_event(HYPERCALL, 0)?;
    let [before, after] = [&void, &anew].map(|event| Regs {
        rflags: event.arch.regs.rflags & !OTHER_FLAGS,
        ..event.arch.regs
    });
    check_eq!(after, before, "registers of the event after {by:?}");
    Ok((void, anew, number))
}

/// Answers both; only the second reply counts.
fn answer(context: &Context, wire: &mut Wire, vm: &Vm, events: (Event, Event, u64)) -> Result<(), Failure> {
    let (void, anew, number) = events;
    let before = vm.guest.field(0, field!(hypercalls))?;
    wire.reply(&void, CONTINUE)?;
    // The vCPU takes its messages in turn: the late reply is behind it when this is answered.
    wire.registers(0)?;
    check_eq!(
        vm.guest.field(0, field!(hypercalls))?,
        before,
        "hypercalls that returned after the late reply"
    );
    wire.reply(&anew, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    check_eq!(
        vm.guest.field(0, field!(hypercalls))?,
        before + 1,
        "hypercalls that returned"
    );
    wire.expect_no_event()
}

fn each_write(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    for by in CHANGES {
        context.stage(&format!("{by:?}"), Duration::from_secs(10));
        let events = voided(&mut wire, &vm, by)?;
        answer(context, &mut wire, &vm, events)?;
    }
    vm.exit()
}

fn unchanged_writes(context: &mut Context) -> Result<(), Failure> {
    const TIMES: usize = 5;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    for by in WRITES {
        context.stage(&format!("{by:?}"), Duration::from_secs(20));
        let before = vm.guest.field(0, field!(hypercalls))?;
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        for _ in 0..TIMES {
            write(&vm, by)?;
            check_eq!(wire.registers(0)?.regs, event.arch.regs, "registers after {by:?}");
        }
        wire.expect_no_event()?;
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
        check_eq!(
            vm.guest.field(0, field!(hypercalls))?,
            before + 1,
            "hypercalls that returned"
        );
        wire.expect_no_event()?;
    }
    vm.exit()
}

fn interrupt(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm_with(&VmConfig {
        split_irqchip: true,
        ..VmConfig::new("hypercall", 1)
    })?;
    vm.run()?;
    vm.wait_ready(context)?;
    let mut wire = context.hook(&vm)?;
    wire.control_event(0, HYPERCALL, true)?;
    for round in 1..=3 {
        context.stage(&format!("interrupt {round}"), Duration::from_secs(10));
        let events = voided(&mut wire, &vm, VcpuWrite::Interrupt(COUNTED_VECTOR.into()))?;
        check_eq!(
            vm.guest.field(0, field!(counted_interrupts))?,
            round,
            "interrupts that the guest took before the instruction"
        );
        check_eq!(
            vm.guest.field(0, field!(counted_rip))?,
            events.1.arch.regs.rip,
            "RIP at which it took the last"
        );
        answer(context, &mut wire, &vm, events)?;
        check_eq!(
            vm.guest.field(0, field!(counted_interrupts))?,
            round,
            "interrupts that the guest took"
        );
    }
    vm.exit()
}

const INTERRUPT_FLAG: u64 = 1 << 9;

/// Has the VMM bring an interrupt to vCPU 0, which waits for the tool.
fn bring_interrupt(vm: &Vm) -> Result<(), Failure> {
    vm.pause(0)?;
    check_eq!(
        vm.write(0, VcpuWrite::InjectedInterrupt(COUNTED_VECTOR))?,
        0,
        "errno of KVM_SET_VCPU_EVENTS"
    );
    vm.resume(0)
}

fn registers_and_interrupt(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    // One that is halted would take no interrupt that KVM has taken for it.
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    for round in 1..=4 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        check_eq!(wire.pause(0, true)?, Ok(vec![]), "VM_PAUSE_VCPU");
        let event = wire.expect_event(PAUSE, 0)?;
        let good = event.arch.regs;
        check_eq!(good.rflags & INTERRUPT_FLAG, INTERRUPT_FLAG, "IF of the guest");
        let without = SetRegisters {
            vcpu: 0,
            regs: Regs {
                rflags: good.rflags & !INTERRUPT_FLAG,
                ..good
            },
        };
        if round % 2 == 1 {
            bring_interrupt(&vm)?;
            check_eq!(wire.ask(&without)?, Err(EINVAL), "without IF, once it is on its way");
            wire.set_registers(0, &good)?;
        } else {
            check_eq!(wire.ask(&without)?, Ok(vec![]), "without IF, before there is any");
            bring_interrupt(&vm)?;
            wire.expect_version()?;
        }
        wire.reply(&event, CONTINUE)?;
        context.wait_for("the guest to take it", || {
            Ok(vm.guest.field(0, field!(counted_interrupts))? == round)
        })?;
        counts_on(context, &vm)?;
        check_eq!(vm.status(0)?.exits("fail_entry"), 0, "failed entries");
    }
    vm.exit()
}

fn refused_interrupt(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    // With both interrupt controllers in the kernel nobody else may queue an interrupt.
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    context.stage("interrupt", Duration::from_secs(10));
    vm.pause(0)?;
    let refused = vm.write(0, VcpuWrite::Interrupt(COUNTED_VECTOR.into()))?;
    check_eq!(refused, Errno::NXIO.raw_os_error(), "errno of KVM_INTERRUPT");
    vm.resume(0)?;
    // Were it void, this would be ignored and the vCPU would wait for the reply to another.
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    check_eq!(
        vm.guest.field(0, field!(counted_interrupts))?,
        0,
        "interrupts that the guest took"
    );
    wire.expect_no_event()?;
    vm.exit()
}

fn pause_is_never_void(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    // A counter that is halted would not count on.
    for by in CHANGES.into_iter().filter(|&by| by != VcpuWrite::ChangedMpState) {
        context.stage(&format!("{by:?}"), Duration::from_secs(10));
        check_eq!(wire.pause(0, true)?, Ok(vec![]), "VM_PAUSE_VCPU");
        let event = wire.expect_event(PAUSE, 0)?;
        let counter = vm.guest.field(0, field!(counter))?;
        write(&vm, by)?;
        wire.registers(0)?;
        check_eq!(
            vm.guest.field(0, field!(counter))?,
            counter,
            "counter of the paused vCPU after {by:?}"
        );
        wire.reply(&event, CONTINUE)?;
        counts_on(context, &vm)?;
        wire.expect_no_event()?;
    }
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab itself: guests and VMM do what the other scenarios rely on, without any introspection.

use std::time::Duration;

use kvmi_guests::{MemoryOp, Op, layout};

use crate::vmm::{Until, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "lab::guests_run",
        "every guest program runs and carries out its commands",
        guests_run,
    )
    .of_kvm_alone(),
    scenario(
        "lab::vmm_controls_vcpus",
        "signals, pausing and registers of the VMM work as scenarios use them",
        vmm_controls_vcpus,
    )
    .of_kvm_alone(),
    scenario("lab::dirty_log", "the dirty log shows what the guest wrote", dirty_log).of_kvm_alone(),
];

fn guests_run(context: &mut Context) -> Result<(), Failure> {
    context.stage("counter", Duration::from_secs(20));
    let vm = context.running_vm("counter", 4)?;
    for vcpu in 0..4 {
        context.wait_for("the guest to count", || {
            Ok(vm.guest.field(vcpu, field!(counter))? > 1000)
        })?;
    }
    vm.exit()?;

    context.stage("hypercall", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 2)?;
    // KVM_HC_VAPIC_POLL_IRQ is KVM's own and answers 0; 34 without introspection is unknown: -KVM_ENOSYS.
    check_eq!(
        vm.carry_out(context, 0, Op::Hypercall, [1, 0, 0, 0])?,
        0,
        "RAX of hypercall 1"
    );
    check_eq!(
        vm.carry_out(context, 1, Op::Hypercall, [34, 24, 0, 0])? as i64,
        -1000,
        "RAX of hypercall 34 without introspection"
    );
    vm.exit()?;

    context.stage("breakpoint", Duration::from_secs(20));
    let vm = context.running_vm("breakpoint", 1)?;
    vm.carry_out(context, 0, Op::Int3, [0; 4])?;
    vm.carry_out(context, 0, Op::CallTarget, [3, 0, 0, 0])?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, 1, "breakpoints taken");
    check_eq!(vm.guest.field(0, field!(target_runs))?, 3, "runs of the target");
    let target = vm.guest.field(0, field!(target))?;
    vm.guest.write(target, &[0xcc])?;
    vm.carry_out(context, 0, Op::CallTarget, [1, 0, 0, 0])?;
    check_eq!(
        vm.guest.field(0, field!(breakpoints))?,
        2,
        "breakpoints taken with one planted"
    );
    check_eq!(
        vm.guest.field(0, field!(target_runs))?,
        4,
        "runs of the target with one planted"
    );
    check_eq!(
        vm.guest.field(0, field!(breakpoint_rip))?,
        target + 1,
        "RIP behind the planted one"
    );
    vm.exit()?;

    context.stage("cr_writes", Duration::from_secs(20));
    let vm = context.running_vm("cr_writes", 1)?;
    let cr3 = vm.carry_out(context, 0, Op::WriteCr, [3, layout::OTHER_ROOT, 0, 0])?;
    check_eq!(cr3, layout::OTHER_ROOT, "CR3 after a write");
    let cr0 = vm.carry_out(context, 0, Op::ReadCr, [0, 0, 0, 0])?;
    // NW without CD is illegal.
    vm.carry_out(context, 0, Op::WriteCr, [0, cr0 | 1 << 29, 0, 0])?;
    check_eq!(
        vm.guest.field(0, field!(protection_faults))?,
        1,
        "#GP of an illegal CR0"
    );
    check_eq!(
        vm.carry_out(context, 0, Op::ReadCr, [0, 0, 0, 0])?,
        cr0,
        "CR0 after the #GP"
    );
    vm.exit()?;

    context.stage("memory", Duration::from_secs(20));
    let vm = context.running_vm("memory", 1)?;
    vm.carry_out(context, 0, Op::Memory, [MemoryOp::Fill as u64, layout::SCRATCH, 512, 7])?;
    let sum = vm.carry_out(context, 0, Op::Memory, [MemoryOp::Sum as u64, layout::SCRATCH, 512, 0])?;
    check_eq!(sum, 512 * 7 + 511 * 512 / 2, "sum of the pattern");
    vm.exit()?;

    context.stage("storm", Duration::from_secs(20));
    let vm = context.running_vm("storm", 2)?;
    check_eq!(
        vm.carry_out(context, 1, Op::Storm, [10, 0, 0, 0])?,
        10,
        "rounds of the storm"
    );
    check_eq!(vm.guest.field(1, field!(breakpoints))?, 10, "breakpoints of the storm");
    vm.exit()?;

    context.stage("halt", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    for wakes in 1..=3 {
        check_eq!(vm.carry_out(context, 0, Op::Nothing, [0; 4])?, 0, "result of nothing");
        check_eq!(
            vm.guest.field(0, field!(counter))?,
            wakes,
            "interrupts that woke the vCPU"
        );
    }
    vm.exit()?;

    context.stage("exits", Duration::from_secs(20));
    let vm = context.running_vm("exits", 1)?;
    vm.command(0, Op::Cpuid, [100, 0, 0, 0])?;
    let status = vm.wait(0, Until::Marks(2))?;
    check_eq!(status.marks[0].value, 1, "first mark");
    check_eq!(status.marks[1].value, 2, "second mark");
    check!(
        status.marks[1].tsc > status.marks[0].tsc,
        "the TSC stands still: {:?}",
        status.marks
    );
    vm.exit()
}

fn vmm_controls_vcpus(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.running_vm("counter", 2)?;
    context.stage("signal", Duration::from_secs(10));
    for times in 1..=10 {
        vm.signal(1)?;
        check_eq!(
            vm.wait(1, Until::Interrupted(times))?.interrupted,
            times,
            "EINTR of KVM_RUN"
        );
    }
    context.stage("pause and write registers", Duration::from_secs(10));
    vm.pause(1)?;
    let still = vm.guest.field(1, field!(counter))?;
    let mut regs = vm.regs(1)?;
    regs.r15 = 0x1234;
    vm.set_regs(1, regs)?;
    check_eq!(vm.regs(1)?.r15, 0x1234, "R15 as the VMM set it");
    check_eq!(vm.guest.field(1, field!(counter))?, still, "a paused vCPU's counter");
    vm.resume(1)?;
    context.wait_for("the guest to count on", || {
        Ok(vm.guest.field(1, field!(counter))? > still)
    })?;
    context.stage("add a vCPU", Duration::from_secs(10));
    check_eq!(vm.add_vcpu()?, 2, "index of the new vCPU");
    vm.wait_ready(context)?;
    context.stage("kill", Duration::from_secs(10));
    vm.kill()
}

fn dirty_log(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("memory", 1)?;
    context.stage("log", Duration::from_secs(10));
    vm.log_dirty(true)?;
    vm.dirty_gfns()?;
    let gpa = layout::SCRATCH + 0x5000;
    vm.carry_out(context, 0, Op::Memory, [MemoryOp::Fill as u64, gpa, 1, 1])?;
    let dirty = vm.dirty_gfns()?;
    check!(
        dirty.contains(&(gpa >> 12)),
        "gfn {:#x} is not among the dirty ones: {dirty:x?}",
        gpa >> 12
    );
    check!(
        !dirty.contains(&((gpa >> 12) + 1)),
        "the gfn after it is dirty too: {dirty:x?}"
    );
    vm.exit()
}

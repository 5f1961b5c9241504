// SPDX-License-Identifier: MIT OR Apache-2.0
//! HYPERCALL where the guest's hypercalls are another hypervisor's.

use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, HYPERCALL};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Hypercalls, Until, Vm, VmConfig};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::hypercall_or_xen",
        "a guest of Xen's: the tool's hypercall is the tool's while it wants it, and the VMM's otherwise",
        xen,
    ),
    scenario(
        "events::hypercall_or_hyperv",
        "a guest of Hyper-V's: the tool's hypercall is the tool's while it wants it, and KVM's otherwise",
        hyperv,
    ),
];

/// What Hyper-V answers to a hypercall that it does not know.
const INVALID_CODE: u64 = 2;
/// Hyper-V's MSR for the guest's name; hypercalls are Hyper-V's while it is not 0.
const GUEST_OS_ID: u64 = 0x4000_0000;
/// The exit by which the VMM gets a Xen hypercall: KVM_EXIT_XEN, which kvm-ioctls does not know.
const XEN_EXIT: &str = "Unsupported(34)";

fn hooked(context: &mut Context, hypercalls: Hypercalls) -> Result<(Vm, Wire), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm_with(&VmConfig {
        hypercalls,
        ..VmConfig::new("system", 1)
    })?;
    vm.run()?;
    vm.wait_ready(context)?;
    let wire = context.hook(&vm)?;
    Ok((vm, wire))
}

/// The guest calls and the tool answers; RAX.
fn told(context: &mut Context, vm: &Vm, wire: &mut Wire) -> Result<u64, Failure> {
    context.stage("on", Duration::from_secs(10));
    wire.control_event(0, HYPERCALL, true)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)
}

/// The guest calls, and the call comes to the VMM.
fn to_the_vmm(context: &Context, vm: &Vm, args: [u64; 4], times: u64) -> Result<(), Failure> {
    let number = vm.command(0, Op::Hypercall, args)?;
    vm.wait(0, Until::Exit(XEN_EXIT.to_owned(), times))?;
    vm.resume(0)?;
    vm.finished(context, 0, number)?;
    Ok(())
}

fn xen(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = hooked(context, Hypercalls::Xen)?;
    context.stage("off", Duration::from_secs(10));
    to_the_vmm(context, &vm, GUEST_REQUEST, 1)?;
    check_eq!(told(context, &vm, &mut wire)?, 0, "RAX");
    context.stage("another hypercall", Duration::from_secs(10));
    to_the_vmm(context, &vm, [17, 0, 0, 0], 2)?;
    check_eq!(vm.status(0)?.exits(XEN_EXIT), 2, "hypercalls that came to the VMM");
    wire.expect_no_event()?;
    vm.exit()
}

fn hyperv(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire) = hooked(context, Hypercalls::HyperV)?;
    vm.carry_out(context, 0, Op::WriteMsr, [GUEST_OS_ID, 0x8100_0000_0000_0000, 0, 0])?;
    context.stage("off", Duration::from_secs(10));
    let rax = vm.carry_out(context, 0, Op::Hypercall, GUEST_REQUEST)?;
    check_eq!(rax, INVALID_CODE, "RAX of a hypercall of Hyper-V's");
    check_eq!(told(context, &vm, &mut wire)?, 0, "RAX");
    context.stage("another hypercall", Duration::from_secs(10));
    let rax = vm.carry_out(context, 0, Op::Hypercall, [17, 0, 0, 0])?;
    check_eq!(rax, INVALID_CODE, "RAX of another hypercall of Hyper-V's");
    wire.expect_no_event()?;
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! An intercept that several want: it is there while any of them does, and goes with the last.

use std::net::Shutdown;
use std::time::Duration;

use kvmi_guests::{DescriptorOp, Op, RepeatOp};
use kvmi_lab_control::{Lane, Platform};
use kvmi_uapi::error::EBUSY;
use kvmi_uapi::event::{self, BREAKPOINT, CONTINUE, DESCRIPTOR, MSR};

use crate::lifecycle::{ROUNDS, leaves, rounds};
use crate::vmm::{Permission, Until, Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::msr_owners",
        "the intercept of an MSR is there while the tool or the VMM's filter wants it, whoever leaves first",
        msr,
    ),
    scenario(
        "events::breakpoint_owners",
        "the intercept of #BP is the tool's, then the VMM's, then nobody's; a tool that is lost leaves it to the VMM",
        breakpoint,
    )
    .not_on(&[(
        Lane::SvmTcg,
        "KVM without the tool does not intercept INT3 there, which QEMU takes for another instruction",
    )]),
    scenario(
        "events::descriptor_or_umip",
        "descriptor-table exits are there while the tool or KVM's emulation of UMIP wants them, whoever leaves first",
        umip,
    )
    .not_on(&[
        (Lane::SvmTcg, NO_UMIP),
        (Lane::SvmBochs, NO_UMIP),
        (Lane::SvmKvm, NO_UMIP),
    ]),
];

const NO_UMIP: &str = "KVM emulates UMIP with VMX alone";
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const CR4_UMIP: u64 = 1 << 11;

pub(super) fn faults(vm: &Vm) -> Result<u64, Failure> {
    vm.guest.field(0, field!(protection_faults))
}

/// The tool watches the MSR or does not. The VMM forbids the event, so that the guest is not stopped.
fn watch(wire: &mut Wire, on: bool) -> Result<(), Failure> {
    wire.control_msr(0, KERNEL_GS_BASE, on)
}

fn forbid(vm: &Vm, id: u16, allow: u32) -> Result<(), Failure> {
    check_eq!(vm.permit(Permission::Event, allow, id.into())?, 0, "errno of EVENT");
    Ok(())
}

fn msr(context: &mut Context) -> Result<(), Failure> {
    let op = RepeatOp::KernelGsBase;
    context.stage("nobody", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    wire.control_event(0, MSR, true)?;
    forbid(&vm, MSR, 0)?;
    check!(!leaves(context, &vm, op)?, "a write leaves a guest that nobody watches");
    context.stage("the tool, then the filter, which stays longer", Duration::from_secs(20));
    watch(&mut wire, true)?;
    check!(
        leaves(context, &vm, op)?,
        "a write that the tool watches does not leave the guest"
    );
    vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
    denied(context, &vm)?;
    watch(&mut wire, false)?;
    denied(context, &vm)?;
    vm.deny_msr_write(None)?;
    check!(
        !leaves(context, &vm, op)?,
        "a write leaves a guest after both have left"
    );
    context.stage("the filter leaves first", Duration::from_secs(20));
    watch(&mut wire, true)?;
    vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
    vm.deny_msr_write(None)?;
    check!(
        leaves(context, &vm, op)?,
        "the filter took the tool's intercept with it"
    );
    context.stage("UNHOOK leaves the filter alone", Duration::from_secs(20));
    vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
    wire.expect_no_event()?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    denied(context, &vm)?;
    vm.deny_msr_write(None)?;
    check!(!leaves(context, &vm, op)?, "a write leaves a guest after UNHOOK");
    vm.exit()
}

/// Each write raises #GP, which it does because it has left the guest.
fn denied(context: &Context, vm: &Vm) -> Result<(), Failure> {
    let before = faults(vm)?;
    let (_, exits) = rounds(context, vm, RepeatOp::KernelGsBase)?;
    check!(exits >= ROUNDS, "{exits} exits for {ROUNDS} writes that the VMM denies");
    check_eq!(faults(vm)? - before, ROUNDS, "#GP for as many writes");
    Ok(())
}

/// Sets or clears CR4.UMIP.
pub(super) fn set_umip(context: &Context, vm: &Vm, on: bool) -> Result<(), Failure> {
    let before = faults(vm)?;
    let cr4 = vm.carry_out(context, 0, Op::ReadCr, [4, 0, 0, 0])?;
    let wanted = if on { cr4 | CR4_UMIP } else { cr4 & !CR4_UMIP };
    let now = vm.carry_out(context, 0, Op::WriteCr, [4, wanted, 0, 0])?;
    check_eq!((now, faults(vm)? - before), (wanted, 0), "CR4 and #GP");
    Ok(())
}

fn umip(context: &mut Context) -> Result<(), Failure> {
    let op = RepeatOp::Sgdt;
    context.stage("nobody", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    check!(!leaves(context, &vm, op)?, "SGDT leaves a guest that nobody watches");
    context.stage("UMIP", Duration::from_secs(20));
    set_umip(context, &vm, true)?;
    // A CPU that has UMIP needs no help by KVM.
    let emulated = leaves(context, &vm, op)?;
    check!(
        emulated || modules::platform()? == Platform::Kvm,
        "SGDT does not leave the guest with UMIP"
    );
    context.stage("the tool as well", Duration::from_secs(20));
    wire.control_event(0, DESCRIPTOR, true)?;
    let number = vm.command(0, Op::Descriptor, [DescriptorOp::Str as u64, 0, 0, 0])?;
    let event = wire.expect_event(DESCRIPTOR, 0)?;
    let data = event.data::<event::Descriptor>()?;
    check_eq!(
        (data.descriptor, data.write),
        (event::DESCRIPTOR_TR, 0),
        "register and load of STR"
    );
    wire.reply(&event, CONTINUE)?;
    check_eq!(
        vm.finished(context, 0, number)?,
        u64::from(kvmi_guests::layout::TSS_SELECTOR),
        "what STR stored"
    );
    forbid(&vm, DESCRIPTOR, 0)?;
    check!(leaves(context, &vm, op)?, "SGDT does not leave the guest with both");
    context.stage("UMIP leaves first", Duration::from_secs(20));
    set_umip(context, &vm, false)?;
    check!(leaves(context, &vm, op)?, "UMIP took the tool's intercept with it");
    context.stage("the tool leaves first", Duration::from_secs(20));
    set_umip(context, &vm, true)?;
    forbid(&vm, DESCRIPTOR, 1)?;
    wire.control_event(0, DESCRIPTOR, false)?;
    check_eq!(
        leaves(context, &vm, op)?,
        emulated,
        "whether SGDT leaves the guest with UMIP alone"
    );
    context.stage("the tool leaves by UNHOOK", Duration::from_secs(20));
    wire.control_event(0, DESCRIPTOR, true)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(
        leaves(context, &vm, op)?,
        emulated,
        "whether SGDT leaves the guest after UNHOOK"
    );
    set_umip(context, &vm, false)?;
    check!(!leaves(context, &vm, op)?, "SGDT leaves the guest after both have left");
    vm.exit()
}

/// KVM_GUESTDBG_ENABLE and KVM_GUESTDBG_USE_SW_BP.
const VMM_BREAKS: u32 = 1 | 1 << 16;

/// `KVM_SET_GUEST_DEBUG`; its errno.
fn debug(vm: &Vm, control: u32) -> Result<i32, Failure> {
    vm.pause(0)?;
    let errno = vm.set_guest_debug(0, control)?;
    vm.resume(0)?;
    Ok(errno)
}

/// The guest's #BP is the VMM's while it debugs the guest, and the guest's own when it does no more.
fn vmm_breaks(context: &Context, vm: &Vm) -> Result<(), Failure> {
    let taken = vm.guest.field(0, field!(breakpoints))?;
    let exits = vm.status(0)?.exits("debug");
    let number = vm.command(0, Op::Repeat, [RepeatOp::Int3 as u64, 1, 0, 0])?;
    vm.wait(0, Until::Exit("debug".to_owned(), exits + 1))?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, taken, "#BP in the guest");
    check_eq!(debug(vm, 0)?, 0, "errno of KVM_SET_GUEST_DEBUG");
    vm.finished(context, 0, number)?;
    check_eq!(vm.guest.field(0, field!(breakpoints))?, taken + 1, "#BP in the guest");
    Ok(())
}

fn breakpoint(context: &mut Context) -> Result<(), Failure> {
    let op = RepeatOp::Int3;
    context.stage("nobody", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    check!(!leaves(context, &vm, op)?, "INT3 leaves a guest that nobody watches");
    context.stage("the tool", Duration::from_secs(20));
    wire.control_event(0, BREAKPOINT, true)?;
    check_eq!(debug(&vm, VMM_BREAKS)?, EBUSY, "errno of KVM_SET_GUEST_DEBUG");
    forbid(&vm, BREAKPOINT, 0)?;
    check!(
        leaves(context, &vm, op)?,
        "INT3 that the tool watches does not leave the guest"
    );
    forbid(&vm, BREAKPOINT, 1)?;
    wire.control_event(0, BREAKPOINT, false)?;
    check!(
        !leaves(context, &vm, op)?,
        "INT3 leaves the guest after the tool has left"
    );
    context.stage("the VMM", Duration::from_secs(20));
    check_eq!(debug(&vm, VMM_BREAKS)?, 0, "errno of KVM_SET_GUEST_DEBUG");
    vmm_breaks(context, &vm)?;
    check!(
        !leaves(context, &vm, op)?,
        "INT3 leaves the guest after the VMM has left"
    );
    context.stage("the tool is lost", Duration::from_secs(20));
    wire.control_event(0, BREAKPOINT, true)?;
    wire.shutdown(Shutdown::Both)?;
    context.wait_for("KVM to know that the tool is lost", || Ok(debug(&vm, VMM_BREAKS)? == 0))?;
    vmm_breaks(context, &vm)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check!(!leaves(context, &vm, op)?, "INT3 leaves the guest after UNHOOK");
    vm.exit()
}

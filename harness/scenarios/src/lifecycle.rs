// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooking and unhooking.

mod cleanup;
mod leaks;
mod preunhook_full;
mod refused;
mod socket_lock;
pub(crate) use socket_lock::readers_in_a_command;
mod socket_timeouts;
mod unhook;
mod unhook_at_any_moment;
mod vcpus;
pub(crate) use vcpus::becomes;

use std::time::Duration;

use kvmi::command::{CheckCommand, CheckEvent, GetInfo, GetVcpuInfo, GetVersion};
use kvmi::ioctls;
use kvmi_guests::Op;
use kvmi_uapi::event::HYPERCALL;
use kvmi_uapi::ioctl::{self, KVM_CAP_INTROSPECTION};
use kvmi_uapi::{EXTENSION_LEVEL, GetVersionReply, MAX_PAYLOAD, VERSION, event, msg};

use crate::vmm::{Permission, Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(crate) use cleanup::{ROUNDS, leaves, rounds};

/// The hypercall that becomes a HYPERCALL event: RAX, RDI, RSI.
pub(crate) const GUEST_REQUEST: [u64; 4] = [event::HYPERCALL_NUMBER, event::HYPERCALL_GUEST_REQUEST, 0, 0];

pub(crate) fn scenarios() -> Vec<Scenario> {
    let own = [
        scenario(
            "lifecycle::hook_then_unhook",
            "HOOK, a first command, UNHOOK, and again; the guest counts on",
            hook_then_unhook,
        ),
        scenario(
            "lifecycle::permissions",
            "commands and events are granted and revoked one by one and all at once",
            permissions,
        ),
        scenario(
            "lifecycle::vcpu_added_while_hooked",
            "a vCPU created after HOOK is introspectable from its first instruction",
            vcpu_added,
        ),
    ];
    [
        &own[..],
        refused::SCENARIOS,
        socket_timeouts::SCENARIOS,
        socket_lock::SCENARIOS,
        leaks::SCENARIOS,
        unhook::SCENARIOS,
        unhook_at_any_moment::SCENARIOS,
        cleanup::SCENARIOS,
        preunhook_full::SCENARIOS,
        vcpus::SCENARIOS,
    ]
    .concat()
}

/// Waits until the kernel has noticed that the tool is gone.
pub(crate) fn wait_for_loss(context: &Context, vm: &Vm) -> Result<(), Failure> {
    let fd = vm.steal_vm_fd()?;
    context.wait_for("the kernel to notice the loss", || {
        Ok(ioctls::status(&fd)?.state & ioctl::STATUS_LOST != 0)
    })
}

/// Fails unless the guest goes on counting.
pub(crate) fn counts_on(context: &Context, vm: &Vm) -> Result<(), Failure> {
    for vcpu in 0..vm.vcpus() {
        let before = vm.guest.field(vcpu, field!(counter))?;
        context.wait_for(&format!("vCPU {vcpu} to count on"), || {
            Ok(vm.guest.field(vcpu, field!(counter))? > before)
        })?;
    }
    Ok(())
}

/// Waits until the vCPU is at its hypercall instruction.
pub(crate) fn wait_at_hypercall(context: &Context, vm: &Vm, vcpu: usize) -> Result<(), Failure> {
    context.wait_for("the vCPU to reach its hypercall", || {
        vm.pause(vcpu)?;
        let regs = vm.regs(vcpu)?;
        vm.resume(vcpu)?;
        let mut code = [0; 3];
        vm.guest.read(regs.rip, &mut code)?;
        Ok(matches!(code, [0x0f, 0x01, 0xc1 | 0xd9]) && regs.rax == GUEST_REQUEST[0])
    })
}

fn check_version(wire: &mut Wire) -> Result<(), Failure> {
    let reply = wire.get(&GetVersion, size_of::<GetVersionReply>())?;
    check_eq!(reply.version, VERSION, "version");
    check_eq!(reply.max_msg_size, MAX_PAYLOAD as u32, "max_msg_size");
    check_eq!(reply.features.extension, EXTENSION_LEVEL, "extension level");
    check_eq!(reply.features.pad, [0; 5], "feature bytes without a meaning");
    Ok(())
}

fn hook_then_unhook(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    check_eq!(
        vm.check_extension(KVM_CAP_INTROSPECTION)?,
        i64::from(VERSION),
        "KVM_CHECK_EXTENSION"
    );
    for round in 1..=2 {
        context.stage(&format!("hook {round}"), Duration::from_secs(10));
        let mut wire = context.bare_hook(&vm, 0)?;
        check_version(&mut wire)?;
        counts_on(context, &vm)?;
        context.stage(&format!("unhook {round}"), Duration::from_secs(10));
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        wire.expect_closed()?;
        counts_on(context, &vm)?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK of a VM that is not hooked");
    }
    vm.exit()
}

fn check_command(wire: &mut Wire, id: u16) -> Result<i32, Failure> {
    Ok(wire.ask(&CheckCommand { id })?.err().unwrap_or(0))
}

fn check_event(wire: &mut Wire, id: u16) -> Result<i32, Failure> {
    Ok(wire.ask(&CheckEvent { id })?.err().unwrap_or(0))
}

fn permissions(context: &mut Context) -> Result<(), Failure> {
    use kvmi_uapi::error::{EFAULT, EINVAL, ENOENT, EPERM};
    const QUERIES: [u16; 3] = [msg::GET_VERSION, msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT];
    let command = |id: u16| i32::from(id);

    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    context.stage("not hooked", Duration::from_secs(10));
    for what in [Permission::Command, Permission::Event] {
        check_eq!(
            vm.permit(what, 1, ioctl::ALL)?,
            EFAULT,
            "errno of {what:?} without HOOK"
        );
    }
    let mut wire = context.bare_hook(&vm, 0)?;

    context.stage("nothing but queries after HOOK", Duration::from_secs(10));
    for id in QUERIES {
        check_eq!(check_command(&mut wire, id)?, 0, "VM_CHECK_COMMAND of query {id}");
    }
    for id in [
        msg::VM_GET_INFO,
        msg::VM_READ_PHYSICAL,
        msg::VCPU_GET_INFO,
        msg::VCPU_CONTROL_CR,
    ] {
        check_eq!(check_command(&mut wire, id)?, EPERM, "VM_CHECK_COMMAND of {id}");
    }
    check_eq!(wire.ask(&GetInfo)?, Err(EPERM), "VM_GET_INFO");
    check_eq!(wire.ask(&GetVcpuInfo { vcpu: 0 })?, Err(EPERM), "VCPU_GET_INFO");
    for id in [
        event::UNHOOK,
        event::PAUSE,
        event::HYPERCALL,
        event::BREAKPOINT,
        event::CR,
    ] {
        check_eq!(check_event(&mut wire, id)?, EPERM, "VM_CHECK_EVENT of {id}");
    }
    for id in [0, 1, 1000, u16::MAX] {
        check_eq!(
            check_command(&mut wire, id)?,
            ENOENT,
            "VM_CHECK_COMMAND of {id}, which is none"
        );
    }
    for id in [2, 4, 21, u16::MAX] {
        check_eq!(
            check_event(&mut wire, id)?,
            ENOENT,
            "VM_CHECK_EVENT of {id}, which is none"
        );
    }

    context.stage("one by one", Duration::from_secs(10));
    check_eq!(
        vm.permit(Permission::Command, 1, command(msg::VM_GET_INFO))?,
        0,
        "errno of granting VM_GET_INFO"
    );
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    check_eq!(
        check_command(&mut wire, msg::VM_READ_PHYSICAL)?,
        EPERM,
        "VM_CHECK_COMMAND of VM_READ_PHYSICAL"
    );
    check_eq!(
        vm.permit(Permission::Event, 1, command(event::PAUSE))?,
        0,
        "errno of granting PAUSE"
    );
    check_eq!(check_event(&mut wire, event::PAUSE)?, 0, "VM_CHECK_EVENT of PAUSE");
    check_eq!(check_event(&mut wire, event::CR)?, EPERM, "VM_CHECK_EVENT of CR");
    check_eq!(
        vm.permit(Permission::Command, 0, command(msg::VM_GET_INFO))?,
        0,
        "errno of revoking VM_GET_INFO"
    );
    check_eq!(wire.ask(&GetInfo)?, Err(EPERM), "VM_GET_INFO, revoked");
    check_eq!(
        vm.permit(Permission::Event, 0, command(event::PAUSE))?,
        0,
        "errno of revoking PAUSE"
    );
    check_eq!(
        check_event(&mut wire, event::PAUSE)?,
        EPERM,
        "VM_CHECK_EVENT of PAUSE, revoked"
    );

    context.stage("all at once", Duration::from_secs(10));
    for what in [Permission::Command, Permission::Event] {
        check_eq!(
            vm.permit(what, 1, ioctl::ALL)?,
            0,
            "errno of granting all with {what:?}"
        );
    }
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    check_eq!(check_event(&mut wire, event::CR)?, 0, "VM_CHECK_EVENT of CR");
    for what in [Permission::Command, Permission::Event] {
        check_eq!(
            vm.permit(what, 0, ioctl::ALL)?,
            0,
            "errno of revoking all with {what:?}"
        );
    }
    check_eq!(
        check_command(&mut wire, msg::VM_GET_INFO)?,
        EPERM,
        "VM_CHECK_COMMAND of VM_GET_INFO"
    );
    check_eq!(check_event(&mut wire, event::CR)?, EPERM, "VM_CHECK_EVENT of CR");
    check_version(&mut wire)?;

    context.stage("refused", Duration::from_secs(10));
    for id in QUERIES {
        check_eq!(
            vm.permit(Permission::Command, 0, command(id))?,
            EPERM,
            "errno of revoking query {id}"
        );
        check_eq!(check_command(&mut wire, id)?, 0, "VM_CHECK_COMMAND of query {id}");
    }
    for id in [-2, i32::MIN, i32::MAX, 0, 1, 31, 255] {
        check_eq!(
            vm.permit(Permission::Command, 1, id)?,
            EINVAL,
            "errno of COMMAND {id}, which is none"
        );
    }
    for id in [-2, i32::MIN, i32::MAX, 2, 20, 21, 255] {
        check_eq!(
            vm.permit(Permission::Event, 1, id)?,
            EINVAL,
            "errno of EVENT {id}, which is none"
        );
    }
    for what in [Permission::Command, Permission::Event] {
        check_eq!(
            vm.permit(what, 2, ioctl::ALL)?,
            EINVAL,
            "errno of {what:?} with allow 2"
        );
    }
    vm.exit()
}

fn vcpu_added(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (mut vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    check_eq!(wire.vcpu_count()?, 1, "vCPUs before");
    context.stage("add", Duration::from_secs(20));
    let index = vm.add_vcpu()?;
    let vcpu = index as u16;
    check_eq!(wire.vcpu_count()?, 2, "vCPUs after");
    vm.wait_ready(context)?;
    context.stage("every event is off", Duration::from_secs(10));
    let result = vm.carry_out(context, index, Op::Hypercall, GUEST_REQUEST)?;
    check_eq!(result as i64, -1000, "RAX of the hypercall without its event");
    wire.expect_no_event()?;
    context.stage("commands and events", Duration::from_secs(10));
    let cr3 = wire.registers(vcpu)?.sregs.cr3;
    check_eq!(cr3, kvmi_guests::layout::ROOT, "CR3 of the new vCPU");
    wire.control_event(vcpu, HYPERCALL, true)?;
    let number = vm.command(index, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, vcpu)?;
    check!(event.arch.mode == 8, "operand mode {}", event.arch.mode);
    wire.reply(&event, event::CONTINUE)?;
    check_eq!(vm.finished(context, index, number)?, 0, "RAX of the hypercall");
    context.stage("unhook", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(
        vm.carry_out(context, index, Op::Nothing, [0; 4])?,
        0,
        "the guest's answer after UNHOOK"
    );
    vm.exit()
}

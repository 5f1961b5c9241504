// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands and what they answer when all is well; conformance:: has their errors.

pub(crate) mod charged;
mod framing;
mod memory;
mod outside;
mod queue;
mod vcpu;
mod vcpu_query;
mod vcpu_switch;

use std::time::Duration;

use kvmi_uapi::error::{EINVAL, ENOENT, EPERM};
use kvmi_uapi::{Features, GetVersionReply, MAX_PAYLOAD, event, ioctl, msg};

use crate::requests::{expect_data, read_exactly};
use crate::vmm::{Permission, Vm};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let own = [
        scenario(
            "commands::get_version",
            "GET_VERSION: version, message size and features",
            get_version,
        ),
        scenario(
            "commands::check",
            "VM_CHECK_COMMAND and VM_CHECK_EVENT: 0, EINVAL, ENOENT, EPERM in that order",
            check_commands,
        ),
        scenario("commands::vm_get_info", "VM_GET_INFO counts vCPUs", vm_get_info),
    ];
    [
        &own[..],
        memory::SCENARIOS,
        vcpu::SCENARIOS,
        vcpu_query::SCENARIOS,
        vcpu_switch::SCENARIOS,
        framing::SCENARIOS,
        queue::SCENARIOS,
        outside::SCENARIOS,
        charged::SCENARIOS,
    ]
    .concat()
}

/// Takes a vCPU out of `KVM_RUN` with the reply to a PAUSE in its queue. It takes that when it runs again, and what is sent
/// now waits for it.
pub(crate) fn keep_out(vm: &Vm, wire: &mut Wire, vcpu: u16) -> Result<(), Failure> {
    check_eq!(wire.pause(vcpu, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
    let pause = wire.expect_event(event::PAUSE, vcpu)?;
    vm.pause(vcpu.into())?;
    wire.reply(&pause, event::CONTINUE)
}

/// Sends this request with each of its bytes at the offsets set to a non-zero value in turn; each must be answered with EINVAL.
pub(crate) fn padding_is_checked(
    wire: &mut Wire,
    id: u16,
    request: &[u8],
    pads: std::ops::Range<usize>,
) -> Result<(), Failure> {
    for at in pads {
        let mut bytes = request.to_vec();
        bytes[at] = 0x80;
        check_eq!(
            wire.vm(id, &bytes[..])?,
            Err(EINVAL),
            "command {id} with byte {at} not zero"
        );
    }
    Ok(())
}

fn get_version(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    let mut wire = context.bare_hook(&vm, 0)?;
    context.stage("ask", Duration::from_secs(10));
    let data = expect_data(wire.vm(msg::GET_VERSION, &[0u8; 0])?, "GET_VERSION")?;
    let reply = read_exactly::<GetVersionReply>(&data, "GET_VERSION")?;
    check_eq!(reply.version, 1, "version");
    check_eq!(reply.max_msg_size, MAX_PAYLOAD as u32, "max_msg_size");
    check_eq!(reply.features.extension, kvmi_uapi::EXTENSION_LEVEL, "extension level");
    // The CPU of each lane can.
    check_eq!(reply.features.singlestep, 1, "singlestep");
    let known = Features::READ_DENY | Features::WRITE_DENY | Features::EXEC_DENY | Features::EXEC_ONLY;
    check_eq!(reply.features.access & !known, 0, "access bits without a meaning");
    check_eq!(reply.features.pad, [0; 5], "feature bytes without a meaning");
    // The request has no data; what comes along is from a newer tool and ignored.
    check_eq!(
        wire.vm(msg::GET_VERSION, &[0xffu8; 64])?,
        Ok(data),
        "GET_VERSION with a tail"
    );
    vm.exit()
}

fn check_commands(context: &mut Context) -> Result<(), Failure> {
    const COMMANDS: [u16; 27] = [
        2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 27, 29, 128, 130, 132,
    ];
    const EVENTS: [u16; 12] = [
        event::UNHOOK,
        event::PAUSE,
        event::HYPERCALL,
        event::BREAKPOINT,
        event::CR,
        event::TRAP,
        event::XSETBV,
        event::DESCRIPTOR,
        event::MSR,
        event::PF,
        event::SINGLESTEP,
        event::CREATE_VCPU,
    ];
    let query = |id: u16| [id.to_ne_bytes(), [0; 2], [0; 2], [0; 2]].concat();
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    let mut wire = context.hook(&vm)?;
    context.stage("allowed", Duration::from_secs(10));
    for id in COMMANDS {
        check_eq!(
            wire.vm(msg::VM_CHECK_COMMAND, &query(id)[..])?,
            Ok(vec![]),
            "VM_CHECK_COMMAND of {id}"
        );
    }
    for id in EVENTS {
        check_eq!(
            wire.vm(msg::VM_CHECK_EVENT, &query(id)[..])?,
            Ok(vec![]),
            "VM_CHECK_EVENT of {id}"
        );
    }
    context.stage("no such", Duration::from_secs(10));
    for id in [0, 1, 22, 24, 26, 31, 127, 131, 0x7fff, 0xffff] {
        check_eq!(
            wire.vm(msg::VM_CHECK_COMMAND, &query(id)[..])?,
            Err(ENOENT),
            "VM_CHECK_COMMAND of {id}"
        );
    }
    for id in [2, 4, 6, 21, 127, 128, 131, 0xffff] {
        check_eq!(
            wire.vm(msg::VM_CHECK_EVENT, &query(id)[..])?,
            Err(ENOENT),
            "VM_CHECK_EVENT of {id}"
        );
    }
    context.stage(
        "padding comes before ENOENT, ENOENT before EPERM",
        Duration::from_secs(10),
    );
    for id in [msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT] {
        padding_is_checked(&mut wire, id, &query(0xffff), 2..8)?;
    }
    for what in [Permission::Command, Permission::Event] {
        check_eq!(vm.permit(what, 0, ioctl::ALL)?, 0, "errno of revoking all");
    }
    for id in COMMANDS {
        let query_command = matches!(id, msg::GET_VERSION | msg::VM_CHECK_COMMAND | msg::VM_CHECK_EVENT);
        let wanted = if query_command { Ok(vec![]) } else { Err(EPERM) };
        check_eq!(
            wire.vm(msg::VM_CHECK_COMMAND, &query(id)[..])?,
            wanted,
            "VM_CHECK_COMMAND of {id}"
        );
    }
    for id in EVENTS {
        check_eq!(
            wire.vm(msg::VM_CHECK_EVENT, &query(id)[..])?,
            Err(EPERM),
            "VM_CHECK_EVENT of {id}"
        );
    }
    check_eq!(
        wire.vm(msg::VM_CHECK_COMMAND, &query(0xffff)[..])?,
        Err(ENOENT),
        "VM_CHECK_COMMAND of none"
    );
    vm.exit()
}

fn vm_get_info(context: &mut Context) -> Result<(), Failure> {
    for vcpus in [1, 4] {
        context.stage(&format!("{vcpus} vCPUs"), Duration::from_secs(20));
        let (vm, mut wire) = context.hooked_vm("halt", vcpus)?;
        check_eq!(wire.vcpu_count()?, vcpus as u32, "vCPUs");
        vm.exit()?;
    }
    Ok(())
}

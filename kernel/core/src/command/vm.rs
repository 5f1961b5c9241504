// SPDX-License-Identifier: GPL-2.0-only
//! VM commands.

use kvmi_uapi::{
    EXTENSION_LEVEL, Features, GetVersionReply, MAX_PAYLOAD, MAX_PHYSICAL, MAX_VCPU_STATES, VERSION, VcpuRunState,
    VmCheckCommand, VmCheckEvent, VmControlCleanup, VmControlEvents, VmGetInfoReply, VmGetVcpuStates, VmPauseVcpu,
    VmReadPhysical, VmWritePhysical,
    error::ENOENT,
    event,
    table::{self, Event, VmCommand},
};

use super::{allowed, check, page_access, valid};
use crate::{
    effects::{KvmError, VmEffects},
    state::vm::VmState,
    wire::{self, Message, REPLY_HEAD, put},
};

const PAGE_MASK: u64 = 4095;

/// Carries out a command and writes its reply; returns the reply's length, None when the connection is to be closed.
pub(crate) fn run<E: VmEffects>(
    vm: &VmState,
    effects: &mut E,
    command: VmCommand,
    message: Message<'_>,
    out: &mut [u8],
) -> Option<usize> {
    if let Err(refusal) = check(vm, message, out) {
        return refusal;
    }
    let hdr = message.hdr;
    match command {
        VmCommand::GET_VERSION => wire::reply(out, hdr, Ok(version(effects))),
        VmCommand::VM_CHECK_COMMAND => wire::reply(out, hdr, check_command(vm, message.request())),
        VmCommand::VM_CHECK_EVENT => wire::reply(out, hdr, check_event(vm, message.request())),
        VmCommand::VM_GET_INFO => wire::reply(out, hdr, Ok(info(effects))),
        VmCommand::VM_CONTROL_EVENTS => wire::reply(out, hdr, control_events(vm, message.request())),
        VmCommand::VM_READ_PHYSICAL => read_physical(effects, message, out),
        VmCommand::VM_WRITE_PHYSICAL => write_physical(effects, message, out),
        VmCommand::VM_PAUSE_VCPU => wire::reply(out, hdr, pause_vcpu(vm, effects, message.request())),
        VmCommand::VM_CONTROL_CLEANUP => wire::reply(out, hdr, control_cleanup(vm, message.request())),
        VmCommand::VM_SET_PAGE_ACCESS => page_access::set(effects, message, out),
        VmCommand::VM_GET_PAGE_ACCESS => page_access::get(effects, message, out),
        VmCommand::VM_GET_VCPU_STATES => vcpu_states(effects, message, out),
        VmCommand::VM_RELEASE => {
            effects.release();
            wire::reply(out, hdr, Ok(()))
        }
    }
}

fn version<E: VmEffects>(effects: &mut E) -> GetVersionReply {
    GetVersionReply {
        version: VERSION,
        max_msg_size: MAX_PAYLOAD as u32,
        features: Features {
            singlestep: u8::from(effects.singlestep()),
            extension: EXTENSION_LEVEL,
            access: effects.access_bits(),
            pad: [0; 5],
        },
    }
}

fn info<E: VmEffects>(effects: &mut E) -> VmGetInfoReply {
    VmGetInfoReply {
        vcpu_count: effects.vcpu_count(),
        pad: [0; 3],
    }
}

fn check_command(vm: &VmState, request: VmCheckCommand) -> Result<(), KvmError> {
    usable(table::command(request.id).is_some(), vm.command_allowed(request.id))
}

fn check_event(vm: &VmState, request: VmCheckEvent) -> Result<(), KvmError> {
    usable(table::event(request.id).is_some(), vm.event_allowed(request.id))
}

fn control_events(vm: &VmState, request: VmControlEvents) -> Result<(), KvmError> {
    let id = request.event_id;
    valid(request.enable <= 1 && table::event(id).is_some_and(Event::is_switched_for_vm))?;
    allowed(vm.event_allowed(id))?;
    vm.enable_event(id, request.enable == 1);
    Ok(())
}

/// Writes the states where they lie in the reply.
fn vcpu_states<E: VmEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    let request: VmGetVcpuStates = message.request();
    let count = usize::from(request.count);
    let end = u32::from(request.first).checked_add(u32::from(request.count))?;
    if let Err(err) = valid(count <= MAX_VCPU_STATES && end <= effects.vcpu_count()) {
        return wire::finish(out, message.hdr, Err(err), 0);
    }
    let mut at = REPLY_HEAD;
    for vcpu in request.first..u16::try_from(end).ok()? {
        put(out, at, &effects.vcpu_state(vcpu))?;
        at = at.checked_add(size_of::<VcpuRunState>())?;
    }
    wire::finish(out, message.hdr, Ok(()), at.checked_sub(REPLY_HEAD)?)
}

fn read_physical<E: VmEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    let request: VmReadPhysical = message.request();
    let size = usize::from(request.size);
    let outcome = match valid(in_one_page(request.gpa, size)) {
        Ok(()) => effects.read_physical(request.gpa, out.get_mut(REPLY_HEAD..)?.get_mut(..size)?),
        Err(err) => Err(err),
    };
    wire::finish(out, message.hdr, outcome, size)
}

fn write_physical<E: VmEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    let request: VmWritePhysical = message.request();
    let size = usize::from(request.size);
    let data = message.skip(size_of::<VmWritePhysical>()).payload.get(..size)?;
    let outcome = match valid(in_one_page(request.gpa, size)) {
        Ok(()) => effects.write_physical(request.gpa, data),
        Err(err) => Err(err),
    };
    wire::finish(out, message.hdr, outcome, 0)
}

fn pause_vcpu<E: VmEffects>(vm: &VmState, effects: &mut E, request: VmPauseVcpu) -> Result<(), KvmError> {
    valid(request.wait <= 1 && u32::from(request.vcpu) < effects.vcpu_count())?;
    allowed(vm.event_allowed(event::PAUSE))?;
    effects.pause_vcpu(request.vcpu, request.wait == 1)
}

fn control_cleanup(vm: &VmState, request: VmControlCleanup) -> Result<(), KvmError> {
    valid(request.enable <= 1)?;
    vm.set_cleanup(request.enable == 1);
    Ok(())
}

/// 1 to 4096 bytes that do not cross a page.
fn in_one_page(gpa: u64, size: usize) -> bool {
    let offset = (gpa & PAGE_MASK) as usize;
    size >= 1 && offset.checked_add(size).is_some_and(|end| end <= MAX_PHYSICAL)
}

fn usable(known: bool, is_allowed: bool) -> Result<(), KvmError> {
    if !known {
        return Err(KvmError(ENOENT));
    }
    allowed(is_allowed)
}

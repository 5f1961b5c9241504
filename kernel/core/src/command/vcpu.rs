// SPDX-License-Identifier: GPL-2.0-only
//! vCPU commands. The vCPU header was checked when they came in.

use kvmi_uapi::{
    MAX_MSRS, MsrEntry, MsrsHdr, VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuControlSinglestep,
    VcpuGetRegisters, VcpuGetRegistersReply,
    error::{EBUSY, EINVAL, EOPNOTSUPP},
    event,
    table::{self, VcpuCommand},
};

use super::{allowed, check, injection, registers, translate, valid, vcpu_query};
use crate::{
    effects::{KvmError, REGS_BYTES, SREGS_BYTES, VcpuEffects},
    state::{vcpu::VcpuState, vm::VmState},
    wire::{self, Message, REPLY_HEAD, area, put},
};

/// Carries out a command, whose message comes without the vCPU header, and writes its reply; returns the reply's
/// length, None when the connection is to be closed.
pub(crate) fn run<E: VcpuEffects>(
    vm: &VmState,
    state: &mut VcpuState,
    effects: &mut E,
    command: VcpuCommand,
    message: Message<'_>,
    out: &mut [u8],
) -> Option<usize> {
    if let Err(refusal) = check(vm, message, out) {
        return refusal;
    }
    let hdr = message.hdr;
    match command {
        VcpuCommand::VCPU_GET_INFO => wire::reply(out, hdr, Ok(vcpu_query::get_info(effects))),
        VcpuCommand::VCPU_CONTROL_EVENTS => {
            wire::reply(out, hdr, control_events(vm, state, effects, message.request()))
        }
        VcpuCommand::VCPU_GET_REGISTERS => get_registers(effects, message, out),
        VcpuCommand::VCPU_SET_REGISTERS => wire::reply(out, hdr, registers::set(state, effects, message)),
        VcpuCommand::VCPU_GET_CPUID => wire::reply(out, hdr, vcpu_query::get_cpuid(effects, message.request())),
        VcpuCommand::VCPU_CONTROL_CR => wire::reply(out, hdr, control_cr(state, message.request())),
        VcpuCommand::VCPU_INJECT_EXCEPTION => {
            wire::reply(out, hdr, injection::inject(state, effects, message.request()))
        }
        VcpuCommand::VCPU_GET_XCR => wire::reply(out, hdr, vcpu_query::get_xcr(effects, message.request())),
        VcpuCommand::VCPU_GET_XSAVE => vcpu_query::get_xsave(effects, message, out),
        VcpuCommand::VCPU_SET_XSAVE => wire::reply(out, hdr, vcpu_query::set_xsave(effects, message)),
        VcpuCommand::VCPU_GET_MTRR_TYPE => wire::reply(out, hdr, vcpu_query::get_mtrr_type(effects, message.request())),
        VcpuCommand::VCPU_CONTROL_MSR => wire::reply(out, hdr, control_msr(state, effects, message.request())),
        VcpuCommand::VCPU_CONTROL_SINGLESTEP => {
            wire::reply(out, hdr, control_singlestep(state, effects, message.request()))
        }
        VcpuCommand::VCPU_TRANSLATE_GVA => wire::reply(out, hdr, translate::command(effects, message.request())),
    }
}

fn control_events<E: VcpuEffects>(
    vm: &VmState,
    state: &mut VcpuState,
    effects: &mut E,
    request: VcpuControlEvents,
) -> Result<(), KvmError> {
    let id = request.event_id;
    valid(request.enable <= 1 && table::event(id).is_some_and(|event| !event.is_switched_for_vm()))?;
    allowed(vm.event_allowed(id))?;
    let enable = request.enable == 1;
    if id == event::DESCRIPTOR {
        effects.descriptor_exits()?;
    }
    if id == event::BREAKPOINT {
        match (enable, state.event_enabled(id)) {
            (true, false) => effects.breakpoint_free()?,
            (false, false) => return Err(KvmError(EBUSY)),
            (_, true) => {}
        }
    }
    state.enable_event(id, enable);
    Ok(())
}

fn control_cr(state: &mut VcpuState, request: VcpuControlCr) -> Result<(), KvmError> {
    valid(request.enable <= 1 && matches!(request.cr, 0 | 3 | 4))?;
    state.enable_cr(request.cr, request.enable == 1);
    Ok(())
}

fn control_msr<E: VcpuEffects>(
    state: &mut VcpuState,
    effects: &mut E,
    request: VcpuControlMsr,
) -> Result<(), KvmError> {
    valid(request.enable <= 1)?;
    let enable = request.enable == 1;
    if enable {
        effects.msr_write_allowed(request.msr)?;
    }
    if state.enable_msr(request.msr, enable) {
        Ok(())
    } else {
        Err(KvmError(EBUSY))
    }
}

fn control_singlestep<E: VcpuEffects>(
    state: &mut VcpuState,
    effects: &mut E,
    request: VcpuControlSinglestep,
) -> Result<(), KvmError> {
    valid(request.enable <= 1 && request.interrupts <= 1)?;
    if !effects.can_singlestep() {
        return Err(KvmError(EOPNOTSUPP));
    }
    let enable = request.enable == 1;
    if enable && !state.singlestep {
        effects.singlestep_free()?;
    }
    state.singlestep = enable;
    state.steps_with_interrupts = enable && request.interrupts == 1;
    Ok(())
}

/// Writes everything where it lies in the reply: 8 KiB have no place on a kernel stack.
fn get_registers<E: VcpuEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    const REGS: usize = REPLY_HEAD + core::mem::offset_of!(VcpuGetRegistersReply, regs);
    const SREGS: usize = REPLY_HEAD + core::mem::offset_of!(VcpuGetRegistersReply, sregs);
    const MSRS: usize = REPLY_HEAD + core::mem::offset_of!(VcpuGetRegistersReply, msrs);
    const ENTRIES: usize = REPLY_HEAD + size_of::<VcpuGetRegistersReply>();

    let indices = match msr_indices(&message) {
        Ok(indices) => indices,
        Err(err) => return wire::finish(out, message.hdr, Err(err), 0),
    };
    put(out, REPLY_HEAD, &[u32::from(effects.mode()), 0])?;
    effects.regs(area::<REGS_BYTES>(out, REGS)?);
    effects.sregs(area::<SREGS_BYTES>(out, SREGS)?);

    let mut nmsrs = 0u32;
    let mut end = ENTRIES;
    for index in indices.chunks_exact(size_of::<u32>()) {
        let index = u32::from_ne_bytes(index.try_into().ok()?);
        let data = match effects.msr(index) {
            Ok(data) => data,
            Err(err) => return wire::finish(out, message.hdr, Err(err), 0),
        };
        put(
            out,
            end,
            &MsrEntry {
                index,
                reserved: 0,
                data,
            },
        )?;
        end = end.checked_add(size_of::<MsrEntry>())?;
        nmsrs = nmsrs.checked_add(1)?;
    }
    put(out, MSRS, &MsrsHdr { nmsrs, pad: 0 })?;
    wire::finish(out, message.hdr, Ok(()), end.checked_sub(REPLY_HEAD)?)
}

/// The bytes of the MSR indices that the request lists.
fn msr_indices<'a>(message: &Message<'a>) -> Result<&'a [u8], KvmError> {
    let request: VcpuGetRegisters = message.request();
    let nmsrs = usize::from(request.nmsrs);
    valid(nmsrs <= MAX_MSRS)?;
    let bytes = nmsrs.saturating_mul(size_of::<u32>());
    message
        .skip(size_of::<VcpuGetRegisters>())
        .payload
        .get(..bytes)
        .ok_or(KvmError(EINVAL))
}

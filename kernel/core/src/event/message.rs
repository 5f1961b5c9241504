// SPDX-License-Identifier: GPL-2.0-only
//! Events as messages.

use kvmi_uapi::{
    EventHdr, MsgHdr, VcpuEvent,
    event::{self, Breakpoint, Cr, Descriptor, Msr, Pf, Singlestep, Trap, Xsetbv},
    msg,
};
use zerocopy::{Immutable, IntoBytes};

use crate::{
    effects::{ARCH_BYTES, VcpuEffects},
    state::{
        occurrence::Occurrence,
        vcpu::{Phase, VcpuState},
    },
    wire::{area, put},
};

const EVENT_HDR: usize = size_of::<MsgHdr>();
const VCPU_EVENT: usize = EVENT_HDR + size_of::<EventHdr>();
const ARCH: usize = VCPU_EVENT + core::mem::offset_of!(VcpuEvent, arch);
const DATA: usize = VCPU_EVENT + size_of::<VcpuEvent>();

/// Length of the UNHOOK event.
pub const UNHOOK_EVENT_BYTES: usize = VCPU_EVENT;

/// Writes the UNHOOK event with sequence number `seq`; returns its length, 0 when there is no room.
pub fn build_unhook_event(seq: u32, out: &mut [u8]) -> usize {
    head(out, msg::VM_EVENT, seq, event::UNHOOK, VCPU_EVENT).unwrap_or(0)
}

/// Writes the recorded event with sequence number `seq`; returns its length, 0 when none is recorded or there is no
/// room. The vCPU's phase stays as it is.
pub fn build_event<E: VcpuEffects>(state: &VcpuState, effects: &mut E, seq: u32, out: &mut [u8]) -> usize {
    match state.occurrence {
        Some(what) if state.phase == Phase::Recorded => build(&what, effects, seq, out).unwrap_or(0),
        _ => 0,
    }
}

fn build<E: VcpuEffects>(what: &Occurrence, effects: &mut E, seq: u32, out: &mut [u8]) -> Option<usize> {
    let length = match *what {
        Occurrence::Pause | Occurrence::Hypercall | Occurrence::CreateVcpu => Some(DATA),
        Occurrence::Breakpoint { gpa, insn_len } => data(
            out,
            &Breakpoint {
                gpa,
                insn_len,
                ..Default::default()
            },
        ),
        Occurrence::Cr { cr, old, new } => data(
            out,
            &Cr {
                cr,
                old_value: old,
                new_value: new,
                ..Default::default()
            },
        ),
        Occurrence::Pf { gpa, gva, access } => data(
            out,
            &Pf {
                gva,
                gpa,
                access,
                ..Default::default()
            },
        ),
        Occurrence::Trap {
            nr,
            error_code,
            address,
        } => data(
            out,
            &Trap {
                nr,
                error_code,
                address,
                ..Default::default()
            },
        ),
        Occurrence::Xsetbv { old, new } => data(
            out,
            &Xsetbv {
                xcr: 0,
                old_value: old,
                new_value: new,
                ..Default::default()
            },
        ),
        Occurrence::Descriptor { descriptor, write } => data(
            out,
            &Descriptor {
                descriptor,
                write: u8::from(write),
                ..Default::default()
            },
        ),
        Occurrence::Msr { msr, old, new } => data(
            out,
            &Msr {
                msr,
                old_value: old,
                new_value: new,
                ..Default::default()
            },
        ),
        Occurrence::Singlestep => data(out, &Singlestep::default()),
    }?;
    // struct kvmi_vcpu_event without its arch part, which KVM fills in where it lies.
    put(out, VCPU_EVENT, &[size_of::<VcpuEvent>() as u16, effects.index(), 0, 0])?;
    effects.arch(area::<ARCH_BYTES>(out, ARCH)?);
    head(out, msg::VCPU_EVENT, seq, what.event(), length)
}

fn data<T: IntoBytes + Immutable>(out: &mut [u8], data: &T) -> Option<usize> {
    put(out, DATA, data)?;
    DATA.checked_add(size_of::<T>())
}

fn head(out: &mut [u8], id: u16, seq: u32, event: u16, length: usize) -> Option<usize> {
    let size = u16::try_from(length.checked_sub(EVENT_HDR)?).ok()?;
    put(out, 0, &MsgHdr { id, size, seq })?;
    put(out, EVENT_HDR, &EventHdr { event, pad: [0; 3] })?;
    Some(length)
}

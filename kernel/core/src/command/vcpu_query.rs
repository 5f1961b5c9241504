// SPDX-License-Identifier: GPL-2.0-only
//! vCPU commands about what a vCPU holds beside its registers: CPUID, XCR0, extended state, memory types.

use kvmi_uapi::{
    VcpuGetCpuid, VcpuGetCpuidReply, VcpuGetInfoReply, VcpuGetMtrrType, VcpuGetMtrrTypeReply, VcpuGetXcr,
    VcpuGetXcrReply, Xsave, error::EINVAL,
};

use super::{mtrr, valid};
use crate::{
    effects::{KvmError, VcpuEffects, XSAVE_BYTES},
    wire::{self, Message, REPLY_HEAD, area},
};

pub(crate) fn get_info<E: VcpuEffects>(effects: &mut E) -> VcpuGetInfoReply {
    VcpuGetInfoReply {
        tsc_speed: effects.tsc_hz(),
    }
}

pub(crate) fn get_cpuid<E: VcpuEffects>(effects: &mut E, request: VcpuGetCpuid) -> Result<VcpuGetCpuidReply, KvmError> {
    let [eax, ebx, ecx, edx] = effects.cpuid(request.function, request.index)?;
    Ok(VcpuGetCpuidReply { eax, ebx, ecx, edx })
}

pub(crate) fn get_xcr<E: VcpuEffects>(effects: &mut E, request: VcpuGetXcr) -> Result<VcpuGetXcrReply, KvmError> {
    valid(request.xcr == 0)?;
    Ok(VcpuGetXcrReply { value: effects.xcr0() })
}

/// Has the state written where it lies in the reply.
pub(crate) fn get_xsave<E: VcpuEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    let outcome = effects.xsave(area::<XSAVE_BYTES>(out, REPLY_HEAD)?);
    wire::finish(out, message.hdr, outcome, XSAVE_BYTES)
}

pub(crate) fn set_xsave<E: VcpuEffects>(effects: &mut E, message: Message<'_>) -> Result<(), KvmError> {
    let state = message.payload.first_chunk::<XSAVE_BYTES>().ok_or(KvmError(EINVAL))?;
    effects.set_xsave(state)
}

pub(crate) fn get_mtrr_type<E: VcpuEffects>(
    effects: &mut E,
    request: VcpuGetMtrrType,
) -> Result<VcpuGetMtrrTypeReply, KvmError> {
    let type_ = mtrr::memory_type(effects, request.gpa)?;
    Ok(VcpuGetMtrrTypeReply { type_, pad: [0; 7] })
}

const _: () = assert!(size_of::<Xsave>() == XSAVE_BYTES);

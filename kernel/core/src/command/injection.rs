// SPDX-License-Identifier: GPL-2.0-only
//! VCPU_INJECT_EXCEPTION.

use kvmi_uapi::{VcpuInjectException, error::EBUSY};

use super::valid;
use crate::{
    effects::{KvmError, VcpuEffects},
    state::{injection::Injection, vcpu::VcpuState},
};

/// #PF.
const PAGE_FAULT: u8 = 14;

/// Bit n: exception n exists on both vendors and is the hardware's own, so that it can be injected at any instruction.
/// #BP and #OF come from an instruction, whose length they need; 2 is NMI; hardware refuses what it does not know.
const INJECTABLE: u32 = vectors(&[0, 1, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19]);

/// Bit n: exception n has an error code.
const HAS_ERROR_CODE: u32 = vectors(&[8, 10, 11, 12, 13, 14, 17]);

const fn vectors(list: &[u8]) -> u32 {
    match list {
        [first, rest @ ..] => 1 << *first | vectors(rest),
        [] => 0,
    }
}

fn is_in(set: u32, nr: u8) -> bool {
    set & 1u32.checked_shl(u32::from(nr)).unwrap_or(0) != 0
}

pub(crate) fn inject<E: VcpuEffects>(
    state: &mut VcpuState,
    effects: &mut E,
    request: VcpuInjectException,
) -> Result<(), KvmError> {
    let error_code = is_in(HAS_ERROR_CODE, request.nr).then_some(request.error_code);
    // VMX has room for 16 bits, and no exception of both vendors uses more.
    let fits = error_code.is_none_or(|code| code <= u32::from(u16::MAX));
    valid(is_in(INJECTABLE, request.nr) && fits)?;
    if state.owes_trap() || state.wants_singlestep() {
        return Err(KvmError(EBUSY));
    }
    effects.injection_free()?;
    state.injection = Some(Injection {
        nr: request.nr,
        error_code,
        address: if request.nr == PAGE_FAULT { request.address } else { 0 },
    });
    Ok(())
}

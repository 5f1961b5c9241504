// SPDX-License-Identifier: GPL-2.0-only
//! The memory type that the guest's MTRRs give a page. KVM keeps the registers and makes no use of them.

use crate::effects::{KvmError, VcpuEffects};

const MTRR_CAP: u32 = 0xfe;
const VARIABLE_BASE: u32 = 0x200;
const VARIABLE_MASK: u32 = 0x201;
const DEFAULT_TYPE: u32 = 0x2ff;

/// Fixed ranges: the first address, its first MSR, and the size of each of the eight ranges that an MSR holds as a
/// power of two.
const FIXED: [(u64, u32, u32); 3] = [(0xc_0000, 0x268, 12), (0x8_0000, 0x258, 14), (0, 0x250, 16)];
const FIXED_END: u64 = 0x10_0000;

/// DEFAULT_TYPE: the fixed ranges count.
const FIXED_ENABLED: u64 = 1 << 10;
/// DEFAULT_TYPE: MTRRs count at all.
const ENABLED: u64 = 1 << 11;
/// A variable range's mask: the range counts.
const VALID: u64 = 1 << 11;

const UNCACHEABLE: u8 = 0;
const WRITE_THROUGH: u8 = 4;
const WRITE_BACK: u8 = 6;

/// CPUID leaf 1, EDX: the guest has MTRRs.
const CPUID_MTRR: u32 = 1 << 12;

/// The type of the page at `gpa`, as MTRRs encode it.
///
/// # Errors
/// Those of reading an MSR, which a vCPU with MTRRs does not have.
pub(crate) fn memory_type<E: VcpuEffects>(effects: &mut E, gpa: u64) -> Result<u8, KvmError> {
    // Without MTRRs all memory is as a CPU without them has it.
    if !effects.cpuid(1, 0).is_ok_and(|[.., edx]| edx & CPUID_MTRR != 0) {
        return Ok(WRITE_BACK);
    }
    let default = effects.msr(DEFAULT_TYPE)?;
    if default & ENABLED == 0 {
        return Ok(UNCACHEABLE);
    }
    if gpa < FIXED_END && default & FIXED_ENABLED != 0 {
        return fixed(effects, gpa);
    }
    Ok(variable(effects, gpa)?.unwrap_or(default as u8))
}

fn fixed<E: VcpuEffects>(effects: &mut E, gpa: u64) -> Result<u8, KvmError> {
    let (first, msr, shift) = FIXED
        .into_iter()
        .find(|(first, ..)| gpa >= *first)
        .unwrap_or((0, 0x250, 16));
    let range = gpa.saturating_sub(first).wrapping_shr(shift);
    let value = effects.msr(msr.saturating_add((range / 8) as u32))?;
    Ok(value
        .to_le_bytes()
        .into_iter()
        .nth((range % 8) as usize)
        .unwrap_or(UNCACHEABLE))
}

/// None where no variable range covers the page.
fn variable<E: VcpuEffects>(effects: &mut E, gpa: u64) -> Result<Option<u8>, KvmError> {
    let count = effects.msr(MTRR_CAP)? as u8;
    let mut found = None;
    for index in 0..u32::from(count) {
        let at = index.saturating_mul(2);
        let base = effects.msr(VARIABLE_BASE.saturating_add(at))?;
        let mask = effects.msr(VARIABLE_MASK.saturating_add(at))?;
        if mask & VALID == 0 || (gpa ^ base) & mask & !0xfff != 0 {
            continue;
        }
        found = Some(found.map_or(base as u8, |other| both(other, base as u8)));
    }
    Ok(found)
}

/// Where two ranges overlap. What the manuals leave undefined is uncacheable, the one type that is always right.
fn both(one: u8, other: u8) -> u8 {
    match (one, other) {
        (one, other) if one == other => one,
        (WRITE_THROUGH, WRITE_BACK) | (WRITE_BACK, WRITE_THROUGH) => WRITE_THROUGH,
        _ => UNCACHEABLE,
    }
}

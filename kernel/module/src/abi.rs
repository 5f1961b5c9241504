// SPDX-License-Identifier: GPL-2.0-only
//! Types that cross the seam, as C has them.

use core::slice;

use kvmi_core::{KvmError, Occurrence, Phase, Site, VcpuVerdict, VmVerdict};
use kvmi_uapi::{MAX_MESSAGE, event};

/// struct kvm_introspection.
#[repr(C)]
pub(crate) struct Session {
    opaque: [u8; 0],
}

/// struct kvm_vcpu_introspection.
#[repr(C)]
pub(crate) struct Vcpu {
    opaque: [u8; 0],
}

/// struct kvmi_occurrence.
#[repr(C)]
pub(crate) struct COccurrence {
    pub(crate) event: u16,
    pub(crate) cr: u8,
    pub(crate) insn_len: u8,
    pub(crate) pad: u32,
    pub(crate) a: u64,
    pub(crate) b: u64,
}

impl COccurrence {
    /// None for an event that is no occurrence in the guest, and for another register than CR0, CR3 and CR4.
    pub(crate) fn parse(&self) -> Option<Occurrence> {
        Some(match (self.event, self.cr) {
            (event::PAUSE, _) => Occurrence::Pause,
            (event::HYPERCALL, _) => Occurrence::Hypercall,
            (event::BREAKPOINT, _) => Occurrence::Breakpoint {
                gpa: self.a,
                insn_len: self.insn_len,
            },
            (event::CR, cr @ (0 | 3 | 4)) => Occurrence::Cr {
                cr,
                old: self.a,
                new: self.b,
            },
            _ => return None,
        })
    }
}

/// enum kvmi_verdict.
pub(crate) mod verdict {
    pub(crate) const ANSWERED: u32 = 0;
    pub(crate) const QUEUE: u32 = 1;
    pub(crate) const CLOSE: u32 = 2;
    pub(crate) const REPLIED: u32 = 3;
}

/// enum kvmi_verdict, length of the reply in bytes, index of the vCPU.
pub(crate) fn vm_verdict(verdict: VmVerdict) -> (u32, usize, u16) {
    match verdict {
        VmVerdict::Answered(length) => (verdict::ANSWERED, length, 0),
        VmVerdict::Queue(vcpu) => (verdict::QUEUE, 0, vcpu),
        VmVerdict::Close => (verdict::CLOSE, 0, 0),
    }
}

/// enum kvmi_verdict and length of the reply in bytes.
pub(crate) fn vcpu_verdict(verdict: VcpuVerdict) -> (u32, usize) {
    match verdict {
        VcpuVerdict::Answered(length) => (verdict::ANSWERED, length),
        VcpuVerdict::Replied => (verdict::REPLIED, 0),
        VcpuVerdict::Close => (verdict::CLOSE, 0),
    }
}

/// enum kvmi_site.
pub(crate) fn site(site: Site) -> u32 {
    match site {
        Site::Pass => 0,
        Site::Defer => 1,
        Site::Continue => 2,
        Site::Retry => 3,
    }
}

/// enum kvmi_phase.
pub(crate) fn phase(phase: Phase) -> u32 {
    match phase {
        Phase::Idle => 0,
        Phase::Recorded => 1,
        Phase::Sent => 2,
        Phase::ReplyHere => 3,
        Phase::Crashed => 4,
    }
}

/// 0 or a negated error, as C returns them.
pub(crate) fn negated(outcome: Result<(), KvmError>) -> i32 {
    outcome.map_or_else(|KvmError(err)| 0i32.wrapping_sub(err), |()| 0)
}

/// The reverse of [`negated`].
pub(crate) fn outcome(negated: i32) -> Result<(), KvmError> {
    if negated == 0 {
        Ok(())
    } else {
        Err(KvmError(negated.wrapping_abs()))
    }
}

/// A message that C holds.
///
/// # Safety
/// Promise 3 for `msg`.
pub(crate) unsafe fn message<'a>(msg: *const u8, bytes: usize) -> &'a [u8] {
    // SAFETY: the caller's promise; the length is at most the buffer's.
    unsafe { slice::from_raw_parts(msg, bytes.min(MAX_MESSAGE)) }
}

/// A buffer that C wants a message in.
///
/// # Safety
/// Promise 3 for `out`.
pub(crate) unsafe fn buffer<'a>(out: *mut u8) -> &'a mut [u8] {
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts_mut(out, MAX_MESSAGE) }
}

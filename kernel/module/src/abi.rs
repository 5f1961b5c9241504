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
    pub(crate) access: u8,
    pub(crate) pad: [u8; 3],
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
            (event::PF, _) => Occurrence::Pf {
                gpa: self.a,
                gva: self.b,
                access: self.access,
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

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs, mem::offset_of, path::Path, process::Command};

    use super::*;

    /// Has C check the values and the layout that this file repeats.
    #[test]
    fn header_agrees() {
        let constants = [
            ("KVMI_ANSWERED", verdict::ANSWERED),
            ("KVMI_QUEUE", verdict::QUEUE),
            ("KVMI_CLOSE", verdict::CLOSE),
            ("KVMI_REPLIED", verdict::REPLIED),
            ("KVMI_SITE_PASS", site(Site::Pass)),
            ("KVMI_SITE_DEFER", site(Site::Defer)),
            ("KVMI_SITE_CONTINUE", site(Site::Continue)),
            ("KVMI_SITE_RETRY", site(Site::Retry)),
            ("KVMI_IDLE", phase(Phase::Idle)),
            ("KVMI_RECORDED", phase(Phase::Recorded)),
            ("KVMI_SENT", phase(Phase::Sent)),
            ("KVMI_REPLY_HERE", phase(Phase::ReplyHere)),
            ("KVMI_CRASHED", phase(Phase::Crashed)),
            ("KVMI_BUFFER_BYTES", MAX_MESSAGE as u32),
            ("sizeof(enum kvmi_verdict)", 4),
            ("sizeof(enum kvmi_site)", 4),
            ("sizeof(enum kvmi_phase)", 4),
            ("sizeof(struct kvmi_occurrence)", size_of::<COccurrence>() as u32),
            (
                "offsetof(struct kvmi_occurrence, event)",
                offset_of!(COccurrence, event) as u32,
            ),
            (
                "offsetof(struct kvmi_occurrence, cr)",
                offset_of!(COccurrence, cr) as u32,
            ),
            (
                "offsetof(struct kvmi_occurrence, insn_len)",
                offset_of!(COccurrence, insn_len) as u32,
            ),
            (
                "offsetof(struct kvmi_occurrence, access)",
                offset_of!(COccurrence, access) as u32,
            ),
            (
                "offsetof(struct kvmi_occurrence, pad)",
                offset_of!(COccurrence, pad) as u32,
            ),
            ("offsetof(struct kvmi_occurrence, a)", offset_of!(COccurrence, a) as u32),
            ("offsetof(struct kvmi_occurrence, b)", offset_of!(COccurrence, b) as u32),
        ];
        let dir = tempfile::tempdir().unwrap();
        // What seam.h takes from the kernel's <linux/types.h>.
        fs::create_dir(dir.path().join("linux")).unwrap();
        let types = "#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n\
            typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64; typedef int32_t s32;\n";
        fs::write(dir.path().join("linux/types.h"), types).unwrap();
        let mut source = "#include \"seam.h\"\n".to_owned();
        for (what, value) in constants {
            writeln!(source, "_Static_assert({what} == {value}, \"{what}\");").unwrap();
        }
        let file = dir.path().join("checks.c");
        fs::write(&file, source).unwrap();
        let out = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Werror", "-fsyntax-only", "-I"])
            .arg(dir.path())
            .arg("-I")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../glue"))
            .arg(&file)
            .output()
            .expect("cc runs (install gcc)");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    #[test]
    fn occurrences_are_checked() {
        let what = |event, cr| COccurrence {
            event,
            cr,
            insn_len: 2,
            access: 4,
            pad: [0; 3],
            a: 5,
            b: 6,
        };
        assert_eq!(what(event::PAUSE, 9).parse(), Some(Occurrence::Pause));
        assert_eq!(what(event::HYPERCALL, 9).parse(), Some(Occurrence::Hypercall));
        assert_eq!(
            what(event::BREAKPOINT, 9).parse(),
            Some(Occurrence::Breakpoint { gpa: 5, insn_len: 2 })
        );
        assert_eq!(
            what(event::CR, 4).parse(),
            Some(Occurrence::Cr { cr: 4, old: 5, new: 6 })
        );
        assert_eq!(
            what(event::PF, 9).parse(),
            Some(Occurrence::Pf {
                gpa: 5,
                gva: 6,
                access: 4
            })
        );
        for (event, cr) in [(event::CR, 8), (event::UNHOOK, 0), (event::MSR, 0), (9999, 0)] {
            assert_eq!(what(event, cr).parse(), None);
        }
    }

    #[test]
    fn errors_cross_negated() {
        assert_eq!(negated(Ok(())), 0);
        assert_eq!(negated(Err(KvmError(22))), -22);
        assert_eq!(outcome(-22), Err(KvmError(22)));
        assert_eq!(outcome(0), Ok(()));
    }
}

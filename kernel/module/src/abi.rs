// SPDX-License-Identifier: GPL-2.0-only
//! Types that cross the seam, as C has them.

use core::slice;

use kvmi_core::{Injection, KvmError, Occurrence, Phase, Site, VcpuVerdict, VmVerdict};
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
    pub(crate) which: u8,
    pub(crate) detail: u8,
    pub(crate) code: u32,
    pub(crate) a: u64,
    pub(crate) b: u64,
}

impl COccurrence {
    /// None for an event that is no occurrence in the guest, and for a register that it cannot be about.
    pub(crate) fn parse(&self) -> Option<Occurrence> {
        Some(match (self.event, self.which) {
            (event::PAUSE, _) => Occurrence::Pause,
            (event::HYPERCALL, _) => Occurrence::Hypercall,
            (event::BREAKPOINT, _) => Occurrence::Breakpoint {
                gpa: self.a,
                insn_len: self.detail,
            },
            (event::CR, cr @ (0 | 3 | 4)) => Occurrence::Cr {
                cr,
                old: self.a,
                new: self.b,
            },
            (event::PF, _) => Occurrence::Pf {
                gpa: self.a,
                gva: self.b,
                access: self.detail,
            },
            (event::TRAP, nr) => Occurrence::Trap {
                nr,
                error_code: self.code,
                address: self.a,
            },
            (event::XSETBV, 0) => Occurrence::Xsetbv {
                old: self.a,
                new: self.b,
            },
            (event::DESCRIPTOR, descriptor @ event::DESCRIPTOR_IDTR..=event::DESCRIPTOR_TR) => Occurrence::Descriptor {
                descriptor,
                write: self.detail != 0,
            },
            (event::MSR, _) => Occurrence::Msr {
                msr: self.code,
                old: self.a,
                new: self.b,
            },
            (event::SINGLESTEP, _) => Occurrence::Singlestep,
            (event::CREATE_VCPU, _) => Occurrence::CreateVcpu,
            _ => return None,
        })
    }
}

/// struct kvmi_injection.
#[repr(C)]
pub(crate) struct CInjection {
    nr: u8,
    has_error_code: u8,
    pad: u16,
    error_code: u32,
    address: u64,
}

impl From<Injection> for CInjection {
    fn from(what: Injection) -> Self {
        Self {
            nr: what.nr,
            has_error_code: u8::from(what.error_code.is_some()),
            pad: 0,
            error_code: what.error_code.unwrap_or(0),
            address: what.address,
        }
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
            ("KVMI_UNHOOK_EVENT_BYTES", kvmi_core::UNHOOK_EVENT_BYTES as u32),
            ("sizeof(enum kvmi_verdict)", 4),
            ("sizeof(enum kvmi_site)", 4),
            ("sizeof(enum kvmi_phase)", 4),
            ("sizeof(struct kvmi_occurrence)", size_of::<COccurrence>() as u32),
            ("sizeof(struct kvmi_injection)", size_of::<CInjection>() as u32),
        ];
        let fields = [
            ("occurrence, event", offset_of!(COccurrence, event)),
            ("occurrence, which", offset_of!(COccurrence, which)),
            ("occurrence, detail", offset_of!(COccurrence, detail)),
            ("occurrence, code", offset_of!(COccurrence, code)),
            ("occurrence, a", offset_of!(COccurrence, a)),
            ("occurrence, b", offset_of!(COccurrence, b)),
            ("injection, nr", offset_of!(CInjection, nr)),
            ("injection, has_error_code", offset_of!(CInjection, has_error_code)),
            ("injection, pad", offset_of!(CInjection, pad)),
            ("injection, error_code", offset_of!(CInjection, error_code)),
            ("injection, address", offset_of!(CInjection, address)),
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
        for (field, at) in fields {
            let what = format!("offsetof(struct kvmi_{field})");
            writeln!(source, "_Static_assert({what} == {at}, \"{what}\");").unwrap();
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
        let what = |event, which| COccurrence {
            event,
            which,
            detail: 2,
            code: 7,
            a: 5,
            b: 6,
        };
        let wanted = [
            (event::PAUSE, 9, Occurrence::Pause),
            (event::HYPERCALL, 9, Occurrence::Hypercall),
            (event::BREAKPOINT, 9, Occurrence::Breakpoint { gpa: 5, insn_len: 2 }),
            (event::CR, 4, Occurrence::Cr { cr: 4, old: 5, new: 6 }),
            (
                event::TRAP,
                14,
                Occurrence::Trap {
                    nr: 14,
                    error_code: 7,
                    address: 5,
                },
            ),
            (event::XSETBV, 0, Occurrence::Xsetbv { old: 5, new: 6 }),
            (
                event::DESCRIPTOR,
                4,
                Occurrence::Descriptor {
                    descriptor: 4,
                    write: true,
                },
            ),
            (event::SINGLESTEP, 9, Occurrence::Singlestep),
            (event::CREATE_VCPU, 9, Occurrence::CreateVcpu),
            (event::MSR, 9, Occurrence::Msr { msr: 7, old: 5, new: 6 }),
            (
                event::PF,
                9,
                Occurrence::Pf {
                    gpa: 5,
                    gva: 6,
                    access: 2,
                },
            ),
        ];
        for (event, which, occurrence) in wanted {
            assert_eq!(what(event, which).parse(), Some(occurrence));
        }
        for (event, which) in [
            (event::CR, 8),
            (event::XSETBV, 1),
            (event::DESCRIPTOR, 0),
            (event::DESCRIPTOR, 5),
            (event::UNHOOK, 0),
            (9999, 0),
        ] {
            assert_eq!(what(event, which).parse(), None);
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPU commands that read or write what a vCPU holds (docs/protocol.md, 4.2).

use kvmi_guests::layout;
use kvmi_uapi::error::{EINVAL, ENOENT, EOPNOTSUPP};
use kvmi_uapi::{
    MAX_MSRS, Regs, VcpuGetCpuid, VcpuGetMtrrType, VcpuGetRegisters, VcpuGetXcr, VcpuTranslateGva, event, msg,
};
use zerocopy::IntoBytes;

use super::{Command, Fixture};
use crate::conformance::{Aspect, here, never, there};
use crate::{Context, Failure, check_eq};

const VCPU_GET_INFO: Command = Command::new::<{ msg::VCPU_GET_INFO }>(
    "conformance::vcpu_get_info",
    Vec::new,
    &[there(Aspect::Works, "commands::vcpu_get_info")],
);

fn msrs(msrs: &[u32]) -> Vec<u8> {
    let head = VcpuGetRegisters {
        nmsrs: msrs.len() as u16,
        ..Default::default()
    };
    [head.as_bytes(), msrs.as_bytes()].concat()
}

const EFER: u32 = 0xc000_0080;
const NO_MSR: u32 = 0x1234_5678;

const VCPU_GET_REGISTERS: Command = Command::new::<{ msg::VCPU_GET_REGISTERS }>(
    "conformance::vcpu_get_registers",
    || msrs(&[]),
    &[
        here(Aspect::Error(EINVAL), "`nmsrs` above 481", |stand, _| {
            stand.works(&msrs(&[EFER; MAX_MSRS]), "481 MSRs")?;
            stand.refused(&msrs(&[EFER; MAX_MSRS + 1]), "482 MSRs")
        }),
        here(Aspect::Error(EINVAL), "fewer indices than it says", |stand, _| {
            let whole = msrs(&[EFER, EFER]);
            stand.refused(&whole[..whole.len() - 1], "one byte less than two indices")
        }),
        here(
            Aspect::Error(EINVAL),
            "an MSR that the guest does not have",
            |stand, _| stand.refused(&msrs(&[EFER, NO_MSR]), "an unknown MSR"),
        ),
        there(Aspect::Works, "commands::vcpu_get_registers"),
        there(Aspect::Works, "events::registers_read"),
    ],
);

/// Sets R15 while an event is open, and back: each event shows what was set in the one before.
fn in_an_event(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    let mut r15 = stand.wire.registers(0)?.regs.r15;
    for _ in 0..3 {
        check_eq!(stand.wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
        let event = stand.wire.expect_event(event::PAUSE, 0)?;
        check_eq!(event.arch.regs.r15, r15, "R15");
        r15 = !r15;
        let new = Regs { r15, ..event.arch.regs };
        stand.works(new.as_bytes(), "registers in an event")?;
        stand.wire.reply(&event, event::CONTINUE)?;
    }
    Ok(())
}

const VCPU_SET_REGISTERS: Command = Command::new::<{ msg::VCPU_SET_REGISTERS }>(
    "conformance::vcpu_set_registers",
    || {
        Regs {
            rflags: 2,
            ..Regs::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(Aspect::Works, "registers while an event is open", in_an_event),
        here(
            Aspect::Error(EINVAL),
            "a message that is too short, event or not",
            |stand, _| {
                let request = stand.good();
                stand.refused(&request[..request.len() - 1], "143 of 144 bytes")?;
                check_eq!(stand.wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
                let event = stand.wire.expect_event(event::PAUSE, 0)?;
                stand.refused(&request[..request.len() - 1], "143 of 144 bytes in an event")?;
                stand.wire.reply(&event, event::CONTINUE)
            },
        ),
        here(
            Aspect::Error(EINVAL),
            "an RIP or RFLAGS that a CPU cannot have",
            |stand, _| {
                check_eq!(stand.wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
                let event = stand.wire.expect_event(event::PAUSE, 0)?;
                let good = event.arch.regs;
                for bad in [
                    Regs { rip: 1 << 48, ..good },
                    Regs {
                        rflags: good.rflags | 1 << 17,
                        ..good
                    },
                    Regs { rflags: 0, ..good },
                ] {
                    stand.refused(bad.as_bytes(), &format!("RIP {:#x}, RFLAGS {:#x}", bad.rip, bad.rflags))?;
                }
                stand.wire.reply(&event, event::CONTINUE)
            },
        ),
        here(Aspect::Error(EOPNOTSUPP), "no event waits for its reply", |stand, _| {
            let before = stand.wire.registers(0)?.regs;
            stand.refused(&stand.good(), "registers without an event")?;
            check_eq!(stand.wire.registers(0)?.regs, before, "registers after it");
            Ok(())
        }),
        there(Aspect::Works, "events::registers_set"),
        there(Aspect::Works, "events::hypercall_registers_set"),
    ],
);

const VCPU_GET_CPUID: Command = Command::new::<{ msg::VCPU_GET_CPUID }>(
    "conformance::vcpu_get_cpuid",
    || VcpuGetCpuid::default().as_bytes().to_vec(),
    &[
        here(
            Aspect::Error(ENOENT),
            "a leaf or sub-leaf that is not in the table",
            |stand, _| {
                for (function, index) in [(0x3fff_ffff, 0), (0x1234_5678, 0), (u32::MAX, u32::MAX), (0xd, 63)] {
                    let request = VcpuGetCpuid { function, index };
                    stand.refused(request.as_bytes(), &format!("leaf {function:#x} {index:#x}"))?;
                }
                Ok(())
            },
        ),
        there(Aspect::Works, "commands::vcpu_get_cpuid"),
    ],
);

const VCPU_GET_XCR: Command = Command::new::<{ msg::VCPU_GET_XCR }>(
    "conformance::vcpu_get_xcr",
    || VcpuGetXcr::default().as_bytes().to_vec(),
    &[
        here(Aspect::Error(EINVAL), "a register that is not XCR0", |stand, _| {
            [1, 2, 0x80, 0xff]
                .iter()
                .try_for_each(|&xcr: &u8| stand.refused(&stand.good_but(0, &[xcr]), &format!("XCR{xcr}")))
        }),
        there(Aspect::Works, "commands::vcpu_get_xcr"),
    ],
);

const XSAVE_BYTES: usize = 4096;
const LARGER: &str = "no lane's guest can use AMX, the state that has more than 4096 bytes";

pub(super) const COMMANDS: &[Command] = &[
    VCPU_GET_INFO,
    VCPU_GET_REGISTERS,
    VCPU_SET_REGISTERS,
    VCPU_GET_CPUID,
    VCPU_GET_XCR,
    VCPU_GET_XSAVE,
    VCPU_SET_XSAVE,
    VCPU_GET_MTRR_TYPE,
    VCPU_TRANSLATE_GVA,
];

const VCPU_GET_XSAVE: Command = Command::new::<{ msg::VCPU_GET_XSAVE }>(
    "conformance::vcpu_get_xsave",
    Vec::new,
    &[
        never(Aspect::Error(EOPNOTSUPP), LARGER),
        there(Aspect::Works, "commands::vcpu_xsave"),
    ],
);

/// Offsets of MXCSR and XSTATE_BV.
const MXCSR: usize = 24;
const XSTATE_BV: usize = 512;
/// The bit of XSTATE_BV for XMM registers and MXCSR.
const SSE: u8 = 2;

const VCPU_SET_XSAVE: Command = Command::new::<{ msg::VCPU_SET_XSAVE }>(
    "conformance::vcpu_set_xsave",
    // Every component in its initial state.
    || vec![0; XSAVE_BYTES],
    &[
        here(Aspect::Error(EINVAL), "a message that is too short", |stand, _| {
            stand.refused(&[0; XSAVE_BYTES - 1], "4095 of 4096 bytes")
        }),
        here(
            Aspect::Error(EINVAL),
            "components that KVM does not know",
            |stand, _| {
                stand.refused(
                    &stand.good_but(XSTATE_BV, &(1u64 << 62).to_le_bytes()),
                    "bit 62 of XSTATE_BV",
                )
            },
        ),
        here(Aspect::Error(EINVAL), "reserved bits of MXCSR", |stand, _| {
            let mut request = stand.good_but(MXCSR, &[0xff; 4]);
            request[XSTATE_BV] = SSE;
            stand.refused(&request, "MXCSR of ones")
        }),
        never(Aspect::Error(EOPNOTSUPP), LARGER),
        there(Aspect::Works, "commands::vcpu_xsave"),
    ],
);

const VCPU_GET_MTRR_TYPE: Command = Command::new::<{ msg::VCPU_GET_MTRR_TYPE }>(
    "conformance::vcpu_get_mtrr_type",
    || VcpuGetMtrrType { gpa: layout::SCRATCH }.as_bytes().to_vec(),
    &[there(Aspect::Works, "commands::vcpu_get_mtrr_type")],
);

/// Where the program lies, by the current tables or others.
fn translate(root: Option<u64>) -> Vec<u8> {
    VcpuTranslateGva {
        gva: layout::PROGRAM,
        root: root.unwrap_or_default(),
        by_root: root.is_some().into(),
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

const VCPU_TRANSLATE_GVA: Command = Command::new::<{ msg::VCPU_TRANSLATE_GVA }>(
    "conformance::vcpu_translate_gva",
    || translate(None),
    &[
        here(Aspect::Error(EINVAL), "`by_root` above 1", |stand, _| {
            let mut request = translate(None);
            request[16] = 2;
            stand.refused(&request, "by_root 2")
        }),
        here(Aspect::Error(EINVAL), "a root beyond physical addresses", |stand, _| {
            stand.refused(&translate(Some(1 << 52)), "a root with bit 52")
        }),
        there(Aspect::Error(EOPNOTSUPP), "reset::no_root_without_paging"),
        there(Aspect::Works, "commands::vcpu_translate_gva"),
        there(Aspect::Works, "commands::vcpu_translate_gva_whoever_may"),
    ],
);

// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPU commands that switch something on, or put something into the guest (docs/protocol.md, 4.2).

use kvmi_guests::COUNTED_VECTOR;
use kvmi_uapi::error::{EBUSY, EINVAL, EOPNOTSUPP, EPERM};
use kvmi_uapi::{
    MAX_OTHER_MSRS, VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuControlSinglestep, VcpuInjectException,
    event, msg,
};
use zerocopy::IntoBytes;

use super::{Command, Fixture};
use crate::conformance::{Aspect, Case, Shown, here, there};
use crate::nested::{release, wait_in_nested};
use crate::vmm::{Permission, VcpuWrite, field};
use crate::wire::vcpu_payload;
use crate::{Context, Failure, check_eq};

pub(super) const COMMANDS: &[Command] = &[
    VCPU_CONTROL_EVENTS,
    VCPU_CONTROL_CR,
    VCPU_CONTROL_MSR,
    VCPU_CONTROL_SINGLESTEP,
    VCPU_INJECT_EXCEPTION,
];

/// An exception that the guest takes and goes on.
pub(in crate::conformance) const UNDEFINED: u8 = 6;

/// KVM_GUESTDBG_ENABLE with KVM_GUESTDBG_USE_SW_BP, and with KVM_GUESTDBG_SINGLESTEP.
const VMM_BREAKS: u32 = 1 | 1 << 16;
const VMM_STEPS: u32 = 1 | 1 << 1;

/// A request while the VMM debugs the guest.
fn refused_while_debugged(stand: &mut Fixture, control: u32, request: &[u8]) -> Result<(), Failure> {
    let debug = |stand: &mut Fixture, control| {
        stand.while_out(|stand| {
            check_eq!(stand.vm.set_guest_debug(0, control)?, 0, "errno of KVM_SET_GUEST_DEBUG");
            Ok(())
        })
    };
    debug(stand, control)?;
    stand.refused(request, "a VMM that debugs the guest")?;
    debug(stand, 0)
}

fn control_event(event_id: u16, enable: u8) -> Vec<u8> {
    VcpuControlEvents {
        event_id,
        enable,
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

const VCPU_CONTROL_EVENTS: Command = Command::new::<{ msg::VCPU_CONTROL_EVENTS }>(
    "conformance::vcpu_control_events",
    || control_event(event::CR, 1),
    &[
        here(Aspect::Works, "each event, on, on, and off", |stand, _| {
            let of_vm = [event::UNHOOK, event::CREATE_VCPU];
            let events = event::ALL.iter().map(|(id, _)| *id).filter(|id| !of_vm.contains(id));
            for (id, enable) in events.flat_map(|id| [(id, 1), (id, 1), (id, 0)]) {
                stand.works(&control_event(id, enable), &format!("event {id}, {enable}"))?;
            }
            Ok(())
        }),
        here(Aspect::Error(EINVAL), "`enable` above 1", |stand, _| {
            stand.refused(&control_event(event::CR, 2), "enable 2")
        }),
        here(Aspect::Error(EINVAL), "no event that it switches", |stand, _| {
            [event::UNHOOK, event::CREATE_VCPU, 2, 4, 21, 131, 0xffff]
                .iter()
                .try_for_each(|&id| stand.refused(&control_event(id, 1), &format!("event {id}")))
        }),
        here(
            Aspect::Error(EPERM),
            "the VMM does not allow the event, on or off",
            |stand, _| {
                for enable in [0, 1] {
                    stand.refused_without(Permission::Event, event::CR, &control_event(event::CR, enable))?;
                }
                Ok(())
            },
        ),
        here(
            Aspect::Error(EBUSY),
            "BREAKPOINT, on, while the VMM has software breakpoints",
            |stand, _| refused_while_debugged(stand, VMM_BREAKS, &control_event(event::BREAKPOINT, 1)),
        ),
        here(Aspect::Error(EBUSY), "BREAKPOINT, off, which is off", |stand, _| {
            stand.refused(&control_event(event::BREAKPOINT, 0), "BREAKPOINT that is off")
        }),
        there(Aspect::Error(EBUSY), "events::breakpoint_or_guest_debug"),
        Case {
            about: Aspect::Error(EOPNOTSUPP),
            what: "DESCRIPTOR on a CPU that cannot tell",
            vmx: Shown::Never("no lane's CPU lacks descriptor-table exiting"),
            svm: Shown::Never("every CPU with SVM can tell"),
        },
    ],
);

const VCPU_CONTROL_CR: Command = Command::new::<{ msg::VCPU_CONTROL_CR }>(
    "conformance::vcpu_control_cr",
    || {
        VcpuControlCr {
            cr: 3,
            enable: 1,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(Aspect::Works, "CR0, CR3 and CR4, on, on, and off", |stand, _| {
            for (cr, enable) in [0, 3, 4].into_iter().flat_map(|cr| [(cr, 1), (cr, 1), (cr, 0)]) {
                stand.works(&stand.good_but(0, &[cr, enable]), &format!("CR{cr}, {enable}"))?;
            }
            Ok(())
        }),
        here(Aspect::Error(EINVAL), "`enable` above 1", |stand, _| {
            stand.refused(&stand.good_but(1, &[2]), "enable 2")
        }),
        here(
            Aspect::Error(EINVAL),
            "another register than CR0, CR3 and CR4",
            |stand, _| {
                [1, 2, 5, 8, 32, 0xff]
                    .iter()
                    .try_for_each(|&cr: &u8| stand.refused(&stand.good_but(0, &[cr]), &format!("CR{cr}")))
            },
        ),
    ],
);

const KERNEL_GS_BASE: u32 = 0xc000_0102;

fn control_msr(msr: u32, enable: u8) -> Vec<u8> {
    VcpuControlMsr {
        enable,
        msr,
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

const VCPU_CONTROL_MSR: Command = Command::new::<{ msg::VCPU_CONTROL_MSR }>(
    "conformance::vcpu_control_msr",
    || control_msr(KERNEL_GS_BASE, 1),
    &[
        here(Aspect::Error(EINVAL), "`enable` above 1", |stand, _| {
            stand.refused(&control_msr(KERNEL_GS_BASE, 2), "enable 2")
        }),
        here(
            Aspect::Error(EBUSY),
            "as many MSRs outside of the two ranges are watched as may be",
            |stand, _| {
                let others = (0x4000_0000..).take(MAX_OTHER_MSRS);
                for msr in others.clone() {
                    stand.works(&control_msr(msr, 1), &format!("MSR {msr:#x}"))?;
                }
                for msr in [0x2000, 0x4b56_4d00, 0xc001_0015, u32::MAX] {
                    stand.refused(&control_msr(msr, 1), &format!("MSR {msr:#x}"))?;
                    stand.works(&control_msr(msr, 0), &format!("MSR {msr:#x}, off"))?;
                }
                for msr in others {
                    stand.works(&control_msr(msr, 0), &format!("MSR {msr:#x}"))?;
                }
                Ok(())
            },
        ),
        here(
            Aspect::Error(EPERM),
            "the VMM's MSR filter denies the write",
            |stand, _| {
                stand.vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
                stand.refused(&control_msr(KERNEL_GS_BASE, 1), "an MSR that the filter denies")?;
                stand.works(&control_msr(KERNEL_GS_BASE, 0), "the same, off")?;
                stand.vm.deny_msr_write(None)?;
                stand.works(&stand.good(), "the same without the filter")?;
                Ok(())
            },
        ),
        there(Aspect::Works, "commands::vcpu_control_msr"),
    ],
);

fn with_interrupts(enable: u8, interrupts: u8) -> Vec<u8> {
    VcpuControlSinglestep {
        enable,
        interrupts,
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

fn singlestep(enable: u8) -> Vec<u8> {
    VcpuControlSinglestep {
        enable,
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

const VCPU_CONTROL_SINGLESTEP: Command = Command::new::<{ msg::VCPU_CONTROL_SINGLESTEP }>(
    "conformance::vcpu_control_singlestep",
    || singlestep(0),
    &[
        here(Aspect::Works, "on, on, and off, while the guest sleeps", |stand, _| {
            for enable in [1, 1, 0] {
                stand.works(&singlestep(enable), &format!("{enable}"))?;
            }
            Ok(())
        }),
        here(
            Aspect::Error(EPERM),
            "the VMM does not allow SINGLESTEP, on, off, or neither",
            |stand, _| {
                for enable in [0, 1, 2] {
                    stand.refused_without(Permission::Event, event::SINGLESTEP, &singlestep(enable))?;
                }
                Ok(())
            },
        ),
        here(Aspect::Error(EINVAL), "`enable` or `interrupts` above 1", |stand, _| {
            stand.refused(&singlestep(2), "enable 2")?;
            stand.refused(&with_interrupts(1, 2), "interrupts 2")
        }),
        Case {
            about: Aspect::Error(EOPNOTSUPP),
            what: "a CPU that cannot step",
            vmx: Shown::Never("no lane's CPU lacks the monitor trap flag"),
            svm: Shown::Never("every CPU with SVM can: it is done by TF"),
        },
        here(Aspect::Error(EBUSY), "on, while the VMM steps the guest", |stand, _| {
            refused_while_debugged(stand, VMM_STEPS, &singlestep(1))
        }),
        there(Aspect::Error(EBUSY), "step::one_owner"),
        there(Aspect::Works, "step::with_interrupts"),
    ],
);

/// What comes of a request to a vCPU that is out, with `by` on its way into the guest.
fn injected_while(stand: &mut Fixture, by: VcpuWrite, context: &Context) -> Result<(), Failure> {
    let taken = |stand: &Fixture| -> Result<u64, Failure> {
        Ok(stand.vm.exceptions()? + stand.vm.guest.field(0, field!(counted_interrupts))?)
    };
    let before = taken(stand)?;
    let good = stand.good();
    let mut seq = 0;
    stand.while_out(|stand| {
        check_eq!(stand.vm.write(0, by)?, 0, "errno of {by:?}");
        seq = stand.wire.send(stand.command.id, &vcpu_payload(0, &good))?;
        Ok(())
    })?;
    let answer = stand.wire.answer(seq)?;
    stand.is_refused(&answer, &format!("{by:?}"))?;
    context.wait_for("the guest to take it", || {
        stand.vm.no_exception(0)?;
        Ok(taken(stand)? == before + 1)
    })
}

/// Switched on and off before the guest could execute anything.
fn injected_while_stepped(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    let good = stand.good();
    let mut seqs = Vec::new();
    stand.while_out(|stand| {
        let step = msg::VCPU_CONTROL_SINGLESTEP;
        for (id, request) in [
            (step, &singlestep(1)),
            (stand.command.id, &good),
            (step, &singlestep(0)),
        ] {
            seqs.push(stand.wire.send(id, &vcpu_payload(0, request))?);
        }
        Ok(())
    })?;
    let answers = seqs
        .into_iter()
        .map(|seq| stand.wire.answer(seq))
        .collect::<Result<Vec<_>, _>>()?;
    check_eq!(
        (&answers[0], &answers[2]),
        (&Ok(vec![]), &Ok(vec![])),
        "VCPU_CONTROL_SINGLESTEP"
    );
    stand.is_refused(&answers[1], "a vCPU that is stepped")
}

/// Another VM takes the place of the stand's for a while: one whose guest has a guest.
fn injected_while_nested(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    let (vm, wire) = context.hooked_vm("nested", 1)?;
    let (vm, wire) = (
        std::mem::replace(&mut stand.vm, vm),
        std::mem::replace(&mut stand.wire, wire),
    );
    let number = wait_in_nested(context, &stand.vm, kvmi_guests::Level::Nested)?;
    stand.refused(&stand.good(), "a vCPU that runs its guest's own guest")?;
    release(&stand.vm)?;
    stand.vm.finished(context, 0, number)?;
    stand.wire.expect_no_event()?;
    stand.wire = wire;
    std::mem::replace(&mut stand.vm, vm).exit()
}

fn injected_twice(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    let good = stand.good();
    let mut seqs = Vec::new();
    let taken = stand.vm.exceptions()?;
    stand.while_out(|stand| {
        for _ in 0..2 {
            seqs.push(stand.wire.send(stand.command.id, &vcpu_payload(0, &good))?);
        }
        Ok(())
    })?;
    check_eq!(stand.wire.answer(seqs[0])?, Ok(vec![]), "the first injection");
    let second = stand.wire.answer(seqs[1])?;
    stand.is_refused(&second, "a second while the first is to come")?;
    let trap = stand.wire.expect_event(event::TRAP, 0)?;
    stand.refused(&good, "another while TRAP is open")?;
    stand.wire.reply(&trap, event::CONTINUE)?;
    stand.vm.wait_for_exceptions(context, taken + 1)
}

const VCPU_INJECT_EXCEPTION: Command = Command::new::<{ msg::VCPU_INJECT_EXCEPTION }>(
    "conformance::vcpu_inject_exception",
    || {
        VcpuInjectException {
            nr: UNDEFINED,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(Aspect::Error(EPERM), "the VMM does not allow TRAP", |stand, _| {
            stand.refused_without(Permission::Event, event::TRAP, &stand.good())?;
            let nmi = stand.good_but(0, &[2]);
            stand.refused_without(Permission::Event, event::TRAP, &nmi)
        }),
        here(
            Aspect::Error(EINVAL),
            "`nr` is no exception that can be injected",
            |stand, _| {
                // NMI; #BP and #OF, which instructions raise; reserved; no exceptions at all.
                [2, 3, 4, 9, 15, 20, 21, 31, 32, 0x80, 0xff]
                    .iter()
                    .try_for_each(|&nr: &u8| stand.refused(&stand.good_but(0, &[nr]), &format!("exception {nr}")))
            },
        ),
        here(Aspect::Error(EINVAL), "an error code above 0xffff", |stand, _| {
            let request = VcpuInjectException {
                nr: 13,
                error_code: 0x1_0000,
                ..Default::default()
            };
            stand.refused(request.as_bytes(), "an error code of 17 bits")
        }),
        here(
            Aspect::Error(EBUSY),
            "an earlier one, or its TRAP, is still to come",
            injected_twice,
        ),
        here(Aspect::Error(EBUSY), "an interrupt is on its way", |stand, context| {
            injected_while(stand, VcpuWrite::InjectedInterrupt(COUNTED_VECTOR), context)
        }),
        here(Aspect::Error(EBUSY), "an exception is on its way", |stand, context| {
            injected_while(stand, VcpuWrite::PendingException(UNDEFINED), context)
        }),
        here(Aspect::Error(EBUSY), "an NMI is on its way", |stand, context| {
            injected_while(stand, VcpuWrite::InjectedNmi, context)
        }),
        here(Aspect::Error(EBUSY), "the vCPU is stepped", injected_while_stepped),
        here(
            Aspect::Error(EBUSY),
            "the vCPU runs its guest's own guest",
            injected_while_nested,
        ),
        there(Aspect::Error(EBUSY), "events::trap_not_in_smm"),
        there(Aspect::Error(EBUSY), "reset::no_injection"),
        there(Aspect::Works, "events::trap"),
    ],
)
// A guest that does not halt: what the VMM has on its way is delivered when the vCPU runs.
.in_guest("counter");

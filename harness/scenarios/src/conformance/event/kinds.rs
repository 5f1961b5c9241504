// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each event: how it comes to be, and what is its own (docs/protocol.md, 5).

use kvmi_guests::{Access, DescriptorOp, Op, layout};
use kvmi_uapi::error::ENOENT;
use kvmi_uapi::event::{self, CONTINUE, RETRY};
use kvmi_uapi::{PageAccessEntry, VcpuEventReply};

use super::replies::{NEEDS_ENABLING, NEEDS_PERMISSION};
use super::{Event, Fixture, nothing, run};
use crate::conformance::command::UNDEFINED;
use crate::conformance::{Aspect, here, never, there};
use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Permission, field};
use crate::{Context, Failure, check_eq};

/// A vCPU event that the tool enables by its number alone, told of by the number of the guest's command.
const fn plain<const ID: u16>(
    name: &'static str,
    guest: &'static str,
    occur: fn(&mut Fixture, &Context) -> Result<u64, Failure>,
) -> Event {
    Event {
        id: ID,
        scenario: name,
        run: run::<ID>,
        guest,
        enable,
        occur,
        once: nothing,
        over: finished,
        own: &[],
    }
}

fn enable(stand: &mut Fixture, _: &Context) -> Result<(), Failure> {
    stand.wire.control_event(0, stand.event.id, true)
}

fn needs_no_enabling(_: &mut Fixture, _: &Context) -> Result<(), Failure> {
    Ok(())
}

fn finished(stand: &Fixture, context: &Context, number: u64) -> Result<(), Failure> {
    stand.vm.finished(context, 0, number)?;
    Ok(())
}

pub(in crate::conformance) static EVENTS: &[Event] = &[
    UNHOOK,
    PAUSE,
    Event {
        own: &[
            NEEDS_PERMISSION,
            NEEDS_ENABLING,
            there(Aspect::Works, "events::hypercall"),
        ],
        ..plain::<{ event::HYPERCALL }>("conformance::event_hypercall", "hypercall", |stand, _| {
            stand.vm.command(0, Op::Hypercall, GUEST_REQUEST)
        })
    },
    Event {
        own: &[
            NEEDS_PERMISSION,
            NEEDS_ENABLING,
            there(Aspect::Works, "events::breakpoint_continue"),
            there(Aspect::Works, "events::breakpoint_retry"),
        ],
        ..plain::<{ event::BREAKPOINT }>("conformance::event_breakpoint", "breakpoint", |stand, _| {
            stand.vm.command(0, Op::Int3, [0; 4])
        })
    },
    CR,
    TRAP,
    XSETBV,
    Event {
        own: &[
            NEEDS_PERMISSION,
            NEEDS_ENABLING,
            there(Aspect::Works, "events::descriptor"),
        ],
        ..plain::<{ event::DESCRIPTOR }>("conformance::event_descriptor", "system", |stand, _| {
            stand.vm.command(0, Op::Descriptor, [DescriptorOp::Str as u64, 0, 0, 0])
        })
    },
    MSR,
    PF,
    SINGLESTEP,
    CREATE_VCPU,
];

/// Has no reply, and is about no vCPU.
const UNHOOK: Event = Event {
    enable: |stand, _| stand.wire.control_unhook_event(true),
    occur: |stand, _| {
        check_eq!(stand.vm.preunhook()?, 0, "errno of PREUNHOOK");
        Ok(0)
    },
    own: &[
        here(Aspect::Works, "it arises by PREUNHOOK", |stand, context| {
            stand.raise(context)?;
            stand.seen += 1;
            Ok(())
        }),
        here(
            Aspect::Error(ENOENT),
            "PREUNHOOK while the VMM does not allow it",
            |stand, context| {
                (stand.event.enable)(stand, context)?;
                let permit = |stand: &Fixture, allow| stand.vm.permit(Permission::Event, allow, event::UNHOOK.into());
                check_eq!(permit(stand, 0)?, 0, "errno of EVENT");
                preunhook_refused(stand)?;
                check_eq!(permit(stand, 1)?, 0, "errno of EVENT");
                stand.raise(context)?;
                Ok(())
            },
        ),
        here(
            Aspect::Error(ENOENT),
            "PREUNHOOK while the tool has not enabled it",
            |stand, _| preunhook_refused(stand),
        ),
        here(Aspect::Closes, "a reply to it", |stand, context| {
            let (event, _) = stand.raise(context)?;
            let reply = VcpuEventReply {
                action: CONTINUE,
                event: event.id as u8,
                ..Default::default()
            };
            stand.wire.reply_raw(event.seq, 0, &reply, &[])?;
            stand.wire.expect_closed()?;
            stand.seen += 1;
            Ok(())
        }),
        there(Aspect::Works, "unhook::preunhook_honoured"),
        there(Aspect::Works, "unhook::preunhook_ignored"),
    ],
    over: |_, _, _| Ok(()),
    ..plain::<{ event::UNHOOK }>("conformance::event_unhook", "halt", |_, _| Ok(0))
};

fn preunhook_refused(stand: &mut Fixture) -> Result<(), Failure> {
    check_eq!(stand.vm.preunhook()?, ENOENT, "errno of PREUNHOOK");
    stand.wire.expect_no_event()?;
    stand.seen += 1;
    Ok(())
}

const PAUSE: Event = Event {
    enable: needs_no_enabling,
    own: &[
        never(
            Aspect::Works,
            "it needs no enabling; without permission VM_PAUSE_VCPU is refused",
        ),
        there(Aspect::Works, "pause::with_wait"),
        there(Aspect::Works, "pause::halted"),
    ],
    // The guest carries something out when it runs again.
    over: |stand, context, _| {
        stand.vm.carry_out(context, 0, Op::Nothing, [0; 4])?;
        Ok(())
    },
    ..plain::<{ event::PAUSE }>("conformance::event_pause", "halt", |stand, _| {
        check_eq!(stand.wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
        Ok(0)
    })
};

/// Toggled between two values that the program is content with.
fn toggled(stand: &mut Fixture, now: u64, values: [u64; 2]) -> u64 {
    stand.value = if now == values[0] { values[1] } else { values[0] };
    stand.value
}

const CR: Event = Event {
    enable: |stand, _| {
        stand.wire.control_event(0, event::CR, true)?;
        stand.wire.control_cr(0, 3, true)
    },
    own: &[
        NEEDS_PERMISSION,
        NEEDS_ENABLING,
        there(Aspect::Works, "events::cr0"),
        there(Aspect::Works, "events::cr3"),
        there(Aspect::Works, "events::cr4"),
        there(Aspect::Works, "events::cr_needs_both_switches"),
    ],
    ..plain::<{ event::CR }>("conformance::event_cr", "cr_writes", |stand, context| {
        let now = stand.vm.carry_out(context, 0, Op::ReadCr, [3, 0, 0, 0])?;
        let value = toggled(stand, now, [layout::ROOT, layout::OTHER_ROOT]);
        stand.vm.command(0, Op::WriteCr, [3, value, 0, 0])
    })
};

const TRAP: Event = Event {
    enable: |stand, _| stand.vm.tolerate(&[UNDEFINED.into()]),
    own: &[
        never(
            Aspect::Works,
            "it needs no enabling; without permission VCPU_INJECT_EXCEPTION is refused",
        ),
        there(Aspect::Works, "events::trap"),
    ],
    over: |stand, context, taken| stand.vm.wait_for_exceptions(context, taken + 1),
    ..plain::<{ event::TRAP }>("conformance::event_trap", "halt", |stand, _| {
        let taken = stand.vm.exceptions()?;
        check_eq!(
            stand.wire.inject(0, UNDEFINED, 0, 0)?,
            Ok(vec![]),
            "VCPU_INJECT_EXCEPTION"
        );
        Ok(taken)
    })
};

const XSETBV: Event = Event {
    own: &[NEEDS_PERMISSION, NEEDS_ENABLING, there(Aspect::Works, "events::xsetbv")],
    ..plain::<{ event::XSETBV }>("conformance::event_xsetbv", "system", |stand, _| {
        let now = stand.wire.xcr0(0)?;
        let value = toggled(stand, now, [1, 3]);
        stand.vm.command(0, Op::WriteXcr0, [value, 0, 0, 0])
    })
};

const KERNEL_GS_BASE: u32 = 0xc000_0102;

const MSR: Event = Event {
    enable: |stand, _| {
        stand.wire.control_event(0, event::MSR, true)?;
        stand.wire.control_msr(0, KERNEL_GS_BASE, true)
    },
    own: &[
        NEEDS_PERMISSION,
        NEEDS_ENABLING,
        there(Aspect::Works, "events::msr"),
        there(Aspect::Works, "events::msr_needs_both_switches"),
    ],
    ..plain::<{ event::MSR }>("conformance::event_msr", "system", |stand, context| {
        let msr = KERNEL_GS_BASE.into();
        let now = stand.vm.carry_out(context, 0, Op::ReadMsr, [msr, 0, 0, 0])?;
        let value = toggled(stand, now, [0x1234_5000, 0x4321_6000]);
        stand.vm.command(0, Op::WriteMsr, [msr, value, 0, 0])
    })
};

const PF: Event = Event {
    own: &[
        NEEDS_PERMISSION,
        here(
            Aspect::Works,
            "it does not arise while the tool has not enabled it",
            |stand, context| {
                restrict(stand)?;
                let told = (stand.event.occur)(stand, context)?;
                (stand.event.over)(stand, context, told)?;
                stand.wire.expect_no_event()?;
                stand.seen += 1;
                Ok(())
            },
        ),
        there(Aspect::Works, "pages::kinds"),
        there(Aspect::Works, "pages::retry"),
    ],
    enable: |stand, _| {
        stand.wire.control_event(0, event::PF, true)?;
        restrict(stand)
    },
    ..plain::<{ event::PF }>("conformance::event_pf", "accesses", |stand, _| {
        let args = [Access::Write as u64, layout::SCRATCH, 7, 0];
        stand.vm.command(0, Op::Access, args)
    })
};

fn restrict(stand: &mut Fixture) -> Result<(), Failure> {
    let access = PageAccessEntry::READ | PageAccessEntry::EXEC;
    stand.wire.restrict(&[(layout::SCRATCH, access)])
}

const SINGLESTEP: Event = Event {
    enable: needs_no_enabling,
    own: &[
        never(Aspect::Works, "it needs no enabling but VCPU_CONTROL_SINGLESTEP"),
        there(Aspect::Works, "step::permission"),
        there(Aspect::Works, "step::straight"),
    ],
    once: |stand| stand.wire.singlestep(false),
    over: |stand, context, _| counts_on_vcpu_0(stand, context),
    ..plain::<{ event::SINGLESTEP }>("conformance::event_singlestep", "counter", |stand, _| {
        stand.wire.singlestep(true)?;
        Ok(0)
    })
};

fn counts_on_vcpu_0(stand: &Fixture, context: &Context) -> Result<(), Failure> {
    let before = stand.vm.guest.field(0, field!(counter))?;
    context.wait_for("the guest to count on", || {
        Ok(stand.vm.guest.field(0, field!(counter))? > before)
    })
}

/// Of the vCPU that is added each time; replies are taken as those to any event.
const CREATE_VCPU: Event = Event {
    enable: |stand, _| stand.wire.control_create_vcpu(true),
    own: &[
        here(Aspect::Works, "it arises; CONTINUE", |stand, context| {
            (stand.event.enable)(stand, context)?;
            for _ in 0..2 {
                let vcpu = stand.vm.add_vcpu()?;
                let event = stand.wire.expect_event(event::CREATE_VCPU, vcpu as u16)?;
                check_eq!(event.data.len(), 0, "bytes of the event's data");
                stand.wire.reply(&event, CONTINUE)?;
                runs_untold(stand, context, vcpu)?;
            }
            Ok(())
        }),
        here(
            Aspect::Works,
            "it does not arise while the VMM does not allow it",
            |stand, context| {
                (stand.event.enable)(stand, context)?;
                let permit = |stand: &Fixture, allow| {
                    let id = event::CREATE_VCPU.into();
                    stand.vm.permit(Permission::Event, allow, id)
                };
                check_eq!(permit(stand, 0)?, 0, "errno of EVENT");
                let vcpu = stand.vm.add_vcpu()?;
                runs_untold(stand, context, vcpu)?;
                check_eq!(permit(stand, 1)?, 0, "errno of EVENT");
                runs_untold(stand, context, vcpu)
            },
        ),
        here(
            Aspect::Works,
            "it does not arise while the tool has not enabled it",
            |stand, context| {
                let vcpu = stand.vm.add_vcpu()?;
                runs_untold(stand, context, vcpu)
            },
        ),
        here(Aspect::Closes, "RETRY", |stand, context| {
            (stand.event.enable)(stand, context)?;
            let vcpu = stand.vm.add_vcpu()?;
            let event = stand.wire.expect_event(event::CREATE_VCPU, vcpu as u16)?;
            stand.wire.reply(&event, RETRY)?;
            stand.wire.expect_closed()?;
            stand.vm.carry_out(context, vcpu, Op::Nothing, [0; 4])?;
            stand.seen += 1;
            Ok(())
        }),
        there(Aspect::Works, "lifecycle::vcpu_created_is_told"),
    ],
    over: |_, _, _| Ok(()),
    ..plain::<{ event::CREATE_VCPU }>("conformance::event_create_vcpu", "hypercall", |_, _| Ok(0))
};

fn runs_untold(stand: &mut Fixture, context: &Context, vcpu: usize) -> Result<(), Failure> {
    stand.vm.carry_out(context, vcpu, Op::Nothing, [0; 4])?;
    stand.wire.expect_no_event()?;
    stand.seen += 1;
    Ok(())
}

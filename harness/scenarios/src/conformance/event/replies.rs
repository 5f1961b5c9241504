// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is the same for every vCPU event: when it arises, and which replies are taken (docs/protocol.md, 3.7).

use kvmi_uapi::error::{EAGAIN, EINVAL};
use kvmi_uapi::event::{CONTINUE, CRASH, RETRY};
use kvmi_uapi::{MsgHdr, VcpuEventReply, VcpuHdr, msg};
use zerocopy::IntoBytes;

use super::Fixture;
use crate::conformance::{Aspect, Case, UNINITIALISED, VCPUS, here};
use crate::vmm::{Permission, Until};
use crate::wire::{Event, vcpu_payload};
use crate::{Context, Failure, check, check_eq};

pub(super) const ARISES: &[Case<Fixture>] = &[here(Aspect::Works, "it arises; CONTINUE", |stand, context| {
    for _ in 0..2 {
        let (event, told) = stand.raise(context)?;
        stand.proceed(context, &event, told)?;
        stand.seen += 1;
    }
    Ok(())
})];

/// Without the VMM's permission it does not arise.
pub(super) const NEEDS_PERMISSION: Case<Fixture> = here(
    Aspect::Works,
    "it does not arise while the VMM does not allow it",
    |stand, context| {
        (stand.event.enable)(stand, context)?;
        permit(stand, 0)?;
        let told = (stand.event.occur)(stand, context)?;
        (stand.event.over)(stand, context, told)?;
        stand.wire.expect_no_event()?;
        permit(stand, 1)?;
        let told = (stand.event.occur)(stand, context)?;
        let event = stand.wire.expect_event(stand.event.id, 0)?;
        stand.seen += 1;
        stand.proceed(context, &event, told)
    },
);

/// Without the tool's word it does not arise.
pub(super) const NEEDS_ENABLING: Case<Fixture> = here(
    Aspect::Works,
    "it does not arise while the tool has not enabled it",
    |stand, context| {
        let told = (stand.event.occur)(stand, context)?;
        (stand.event.over)(stand, context, told)?;
        stand.wire.expect_no_event()?;
        stand.seen += 1;
        Ok(())
    },
);

fn permit(stand: &Fixture, allow: u32) -> Result<(), Failure> {
    let id = stand.event.id.into();
    check_eq!(stand.vm.permit(Permission::Event, allow, id)?, 0, "errno of EVENT");
    Ok(())
}

/// Replies that are refused like a command, after which the event is open as before.
pub(super) const REFUSED: &[Case<Fixture>] = &[
    here(
        Aspect::Error(EINVAL),
        "a reply with padding in its vCPU header",
        |stand, context| {
            let pad1 = VcpuHdr { pad1: 1, ..header(0) };
            let pad2 = VcpuHdr {
                pad2: 1 << 31,
                ..header(0)
            };
            refused(stand, context, &[pad1, pad2], EINVAL)
        },
    ),
    here(Aspect::Error(EINVAL), "a reply for no such vCPU", |stand, context| {
        refused(stand, context, &[header(VCPUS), header(0xffff)], EINVAL)
    }),
    here(
        Aspect::Error(EAGAIN),
        "a reply for a vCPU before its INIT",
        |stand, context| refused(stand, context, &[header(UNINITIALISED)], EAGAIN),
    ),
];

fn header(vcpu: u16) -> VcpuHdr {
    VcpuHdr {
        vcpu,
        ..Default::default()
    }
}

fn refused(stand: &mut Fixture, context: &Context, headers: &[VcpuHdr], errno: i32) -> Result<(), Failure> {
    let (event, told) = stand.raise(context)?;
    for header in headers {
        let payload = [header.as_bytes(), continued(&event).as_bytes(), &stand.agree()].concat();
        send(stand, &event, &payload)?;
        let (seq, id, answer) = stand.wire.next_answer()?;
        check_eq!(
            (seq, id, answer),
            (event.seq, msg::VCPU_EVENT, Err(errno)),
            "answer to the reply"
        );
        stand.seen += 1;
    }
    stand.proceed(context, &event, told)
}

/// A reply to the event that says CONTINUE.
fn continued(event: &Event) -> VcpuEventReply {
    VcpuEventReply {
        action: CONTINUE,
        event: event.id as u8,
        ..Default::default()
    }
}

/// A reply of any content.
fn send(stand: &mut Fixture, event: &Event, payload: &[u8]) -> Result<(), Failure> {
    let header = MsgHdr {
        id: msg::VCPU_EVENT,
        size: payload.len() as u16,
        seq: event.seq,
    };
    Ok(stand.wire.write(&[header.as_bytes(), payload].concat())?)
}

/// A reply that closes the connection.
const fn closing(what: &'static str, provoke: fn(&mut Fixture, &mut Context) -> Result<(), Failure>) -> Case<Fixture> {
    here(Aspect::Closes, what, provoke)
}

/// Replies over which the connection closes; the guest goes on as if none had come.
pub(super) const CLOSING: &[Case<Fixture>] = &[
    closing("a reply of 15 bytes", |stand, context| {
        closes(stand, context, |stand, event| {
            let payload = vcpu_payload(0, continued(event).as_bytes());
            send(stand, event, &payload[..payload.len() - 1])
        })
    }),
    closing("a reply with padding", |stand, context| {
        closes(stand, context, |stand, event| {
            let padded = VcpuEventReply {
                pad1: 1,
                ..continued(event)
            };
            reply(stand, event, padded)
        })?;
        closes(stand, context, |stand, event| {
            let padded = VcpuEventReply {
                pad2: 1 << 31,
                ..continued(event)
            };
            reply(stand, event, padded)
        })
    }),
    closing("a reply with a `seq` that no event has", |stand, context| {
        closes(stand, context, |stand, event| {
            let data = stand.agree();
            stand.wire.reply_raw(event.seq + 1, 0, &continued(event), &data)
        })
    }),
    closing("a reply to another event", |stand, context| {
        closes(stand, context, |stand, event| {
            let other = VcpuEventReply {
                event: event.id as u8 ^ 2,
                ..continued(event)
            };
            reply(stand, event, other)
        })
    }),
    closing("a reply with more data than the event takes", |stand, context| {
        closes(stand, context, |stand, event| {
            let data = [stand.agree(), vec![0]].concat();
            stand.wire.reply_with(event, CONTINUE, &data)
        })
    }),
    closing("an action that there is not", |stand, context| {
        closes(stand, context, |stand, event| {
            let unknown = VcpuEventReply {
                action: 3,
                ..continued(event)
            };
            reply(stand, event, unknown)
        })
    }),
    closing("a second reply to the same event", |stand, context| {
        closes(stand, context, |stand, event| {
            (stand.event.once)(stand)?;
            let data = stand.agree();
            stand.wire.reply_with(event, CONTINUE, &data)?;
            stand.wire.reply_with(event, CONTINUE, &data)
        })
    }),
];

pub(super) const NO_RETRY: &[Case<Fixture>] = &[closing("RETRY", |stand, context| {
    closes(stand, context, |stand, event| {
        let data = stand.agree();
        stand.wire.reply_with(event, RETRY, &data)
    })
})];

fn reply(stand: &mut Fixture, event: &Event, reply: VcpuEventReply) -> Result<(), Failure> {
    let data = stand.agree();
    stand.wire.reply_raw(event.seq, event.vcpu, &reply, &data)
}

fn closes(
    stand: &mut Fixture,
    context: &Context,
    offend: impl FnOnce(&mut Fixture, &Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (event, told) = stand.raise(context)?;
    offend(stand, &event)?;
    stand.wire.expect_closed()?;
    check_eq!(stand.wire.untaken_answers(), 0, "answers to the reply");
    check!(!stand.wire.has_event(), "an event after the reply");
    (stand.event.over)(stand, context, told)?;
    stand.seen += 1;
    stand.again(context)
}

pub(super) const MAY_RETRY: &[Case<Fixture>] = &[here(Aspect::Works, "RETRY: it happens anew", |stand, context| {
    let (event, told) = stand.raise(context)?;
    stand.wire.reply(&event, RETRY)?;
    let anew = stand.wire.expect_event(stand.event.id, 0)?;
    check_eq!(anew.arch.regs.rip, event.arch.regs.rip, "RIP of the event anew");
    stand.seen += 1;
    stand.proceed(context, &anew, told)
})];

pub(super) const CRASH_STOPS: &[Case<Fixture>] = &[here(
    Aspect::Works,
    "CRASH: `KVM_RUN` returns a shutdown",
    |stand, context| {
        let (event, _) = stand.raise(context)?;
        stand.wire.reply(&event, CRASH)?;
        let status = stand.vm.wait(0, Until::Exit("shutdown".to_owned(), 1))?;
        check_eq!(status.exits("shutdown"), 1, "shutdown exits");
        stand.seen += 1;
        Ok(())
    },
)];

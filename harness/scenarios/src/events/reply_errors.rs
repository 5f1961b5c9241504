// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replies that close the connection. The vCPU goes on as if it had been told to continue.

use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::VcpuEventReply;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, PAUSE, RETRY};

use crate::lifecycle::GUEST_REQUEST;
use crate::wire::{Event, Wire};
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::reply_for_another_event",
        "a reply whose event byte is another's closes the connection",
        |c| offend(c, mismatched),
    ),
    scenario(
        "events::reply_with_wrong_seq",
        "a reply with a sequence number that no event has closes the connection",
        |c| offend(c, wrong_seq),
    ),
    scenario(
        "events::reply_with_illegal_action",
        "an action that the event does not support closes the connection",
        |c| {
            offend(c, illegal_action)?;
            offend(c, no_action)
        },
    ),
    scenario(
        "events::reply_with_wrong_size",
        "a reply that is too short or too long closes the connection",
        |c| {
            offend(c, too_short)?;
            offend(c, too_long)
        },
    ),
    scenario(
        "events::reply_with_padding",
        "a reply with padding that is not zero closes the connection",
        |c| {
            offend(c, padding_1)?;
            offend(c, padding_2)
        },
    ),
    scenario(
        "events::reply_twice",
        "a second reply to the same event closes the connection",
        |c| offend(c, twice),
    ),
];

fn good() -> VcpuEventReply {
    VcpuEventReply {
        action: CONTINUE,
        event: HYPERCALL as u8,
        ..Default::default()
    }
}

fn mismatched(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    let reply = VcpuEventReply {
        event: PAUSE as u8,
        ..good()
    };
    wire.reply_raw(event.seq, 0, &reply, &[])
}

fn wrong_seq(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply_raw(event.seq + 1, 0, &good(), &[])
}

fn illegal_action(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply(event, RETRY)
}

fn no_action(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply(event, 3)
}

fn too_short(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    let payload = [0, 0, 0, 0, 0, 0, 0, 0, CONTINUE, HYPERCALL as u8, 0, 0, 0, 0, 0];
    let header = [1u16.to_ne_bytes(), 15u16.to_ne_bytes()].concat();
    Ok(wire.write(&[&header, &event.seq.to_ne_bytes()[..], &payload].concat())?)
}

fn too_long(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply_raw(event.seq, 0, &good(), &[0; 8])
}

fn padding_1(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply_raw(event.seq, 0, &VcpuEventReply { pad1: 1, ..good() }, &[])
}

fn padding_2(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply_raw(event.seq, 0, &VcpuEventReply { pad2: 1, ..good() }, &[])
}

fn twice(wire: &mut Wire, event: &Event) -> Result<(), Failure> {
    wire.reply(event, CONTINUE)?;
    wire.reply(event, CONTINUE)
}

fn offend(context: &mut Context, offence: fn(&mut Wire, &Event) -> Result<(), Failure>) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    context.stage("offend", Duration::from_secs(10));
    offence(&mut wire, &event)?;
    wire.expect_closed()?;
    check_eq!(wire.untaken_answers(), 0, "answers");
    context.stage("the guest goes on", Duration::from_secs(10));
    vm.finished(context, 0, number)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    let mut wire = context.hook(&vm)?;
    check_eq!(wire.vcpu_count()?, 1, "vCPUs in a new session");
    check_eq!(
        vm.carry_out(context, 0, Op::Hypercall, GUEST_REQUEST)? as i64,
        -1000,
        "RAX in a new session"
    );
    vm.exit()
}

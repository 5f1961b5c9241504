// SPDX-License-Identifier: GPL-2.0-only
//! The tool's reply to a vCPU event.

use kvmi_uapi::{
    VcpuEventReply, VcpuHdr,
    event::{self, CrReply},
};

use zerocopy::{FromZeros, IntoBytes};

use crate::{
    state::{
        occurrence::Occurrence,
        vcpu::{Phase, VcpuState},
    },
    wire::{Message, copy},
};

/// What a reply does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It answers the open event.
    Answer,
    /// It answers a void event, and nothing follows from it.
    Ignored,
    /// It is not legal: the connection is to be closed.
    Illegal,
}

/// Takes a reply, [`VcpuHdr`] included, whose vCPU header was checked when it came in.
pub(crate) fn take(state: &mut VcpuState, message: Message<'_>) -> Taken {
    let head = size_of::<VcpuHdr>().saturating_add(size_of::<VcpuEventReply>());
    if message.payload.len() < head {
        return Taken::Illegal;
    }
    let reply: VcpuEventReply = message.skip(size_of::<VcpuHdr>()).request();
    if reply.pad1 != 0 || reply.pad2 != 0 {
        return Taken::Illegal;
    }
    let data = message.skip(head).payload;
    match (state.phase, state.occurrence) {
        (Phase::Sent, Some(what)) if message.hdr.seq == state.seq => answer(state, what, reply, data),
        _ if state.voided.take(message.hdr.seq) => {
            // Registers that came before it were meant for the void event, not for one that has opened since.
            state.registers = None;
            Taken::Ignored
        }
        _ => Taken::Illegal,
    }
}

fn answer(state: &mut VcpuState, what: Occurrence, reply: VcpuEventReply, data: &[u8]) -> Taken {
    // P14: the reply names the event that it answers.
    if u16::from(reply.event) != what.event() || data.len() > what.reply_bytes() {
        return Taken::Illegal;
    }
    match reply.action {
        event::CONTINUE => state.retry = false,
        event::RETRY if what.may_retry() => state.retry = true,
        event::CRASH => {
            state.crash();
            return Taken::Answer;
        }
        _ => return Taken::Illegal,
    }
    state.value = what.takes_value().then(|| {
        let mut value = CrReply::new_zeroed();
        copy(value.as_mut_bytes(), data);
        value.new_val
    });
    state.phase = Phase::ReplyHere;
    Taken::Answer
}

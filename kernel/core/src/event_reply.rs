// SPDX-License-Identifier: GPL-2.0-only
//! The tool's reply to a vCPU event.

use kvmi_uapi::{
    VcpuEventReply, VcpuHdr,
    event::{self, CrReply},
};

use crate::{
    Occurrence, VcpuState,
    vcpu_message::VcpuVerdict,
    vcpu_state::Phase,
    wire::{Message, copy},
};
use zerocopy::{FromZeros, IntoBytes};

/// Events whose reply is still under way and is to be ignored.
///
/// Remembered as a range and a count: the numbers between belong to other vCPUs or were answered. A VMM can void any
/// number of events while the tool is busy, and none of those replies may cost the connection. A tool that answers twice
/// may have that ignored instead; that harms nobody.
#[derive(Debug, Default)]
pub(crate) struct Voided {
    count: u32,
    first: u32,
    last: u32,
}

impl Voided {
    pub(crate) fn add(&mut self, seq: u32) {
        if self.count == 0 {
            self.first = seq;
        }
        self.last = seq;
        self.count = self.count.saturating_add(1);
    }

    /// Whether `seq` is one of them; it is not any more afterwards.
    fn take(&mut self, seq: u32) -> bool {
        let inside = seq.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first);
        if self.count == 0 || !inside {
            return false;
        }
        self.count = self.count.saturating_sub(1);
        true
    }
}

/// Takes a reply, [`VcpuHdr`] included, whose vCPU header was checked when it came in.
pub(crate) fn take(state: &mut VcpuState, message: Message<'_>) -> VcpuVerdict {
    let head = size_of::<VcpuHdr>().saturating_add(size_of::<VcpuEventReply>());
    if message.payload.len() < head {
        return VcpuVerdict::Close;
    }
    let reply: VcpuEventReply = message.skip(size_of::<VcpuHdr>()).request();
    if reply.pad1 != 0 || reply.pad2 != 0 {
        return VcpuVerdict::Close;
    }
    let data = message.skip(head).payload;
    match (state.phase, state.occurrence) {
        (Phase::Sent, Some(what)) if message.hdr.seq == state.seq => answer(state, what, reply, data),
        _ if state.voided.take(message.hdr.seq) => {
            // Registers that came before it were meant for the void event, not for one that has opened since.
            state.registers = None;
            VcpuVerdict::Answered(0)
        }
        _ => VcpuVerdict::Close,
    }
}

fn answer(state: &mut VcpuState, what: Occurrence, reply: VcpuEventReply, data: &[u8]) -> VcpuVerdict {
    // P14: the reply names the event that it answers.
    if u16::from(reply.event) != what.event() || data.len() > what.reply_bytes() {
        return VcpuVerdict::Close;
    }
    match reply.action {
        event::CONTINUE => state.retry = false,
        event::RETRY if what.may_retry() => state.retry = true,
        event::CRASH => {
            state.crash();
            return VcpuVerdict::Replied;
        }
        _ => return VcpuVerdict::Close,
    }
    state.value = what.takes_value().then(|| {
        let mut value = CrReply::new_zeroed();
        copy(value.as_mut_bytes(), data);
        value.new_val
    });
    state.phase = Phase::ReplyHere;
    VcpuVerdict::Replied
}

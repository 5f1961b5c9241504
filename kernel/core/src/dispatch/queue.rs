// SPDX-License-Identifier: GPL-2.0-only
//! What the receive thread asks before and beside a message's contents.

use kvmi_uapi::{MAX_PAYLOAD, MAX_QUEUED_BYTES, MAX_QUEUED_COMMANDS, MsgHdr, msg};
use zerocopy::FromBytes;

use crate::{effects::KvmError, wire};

/// The payload's size in bytes that a header of eight bytes announces; None when it is too large for any message.
pub fn header_ok(hdr: &[u8]) -> Option<usize> {
    let (hdr, _) = MsgHdr::read_from_prefix(hdr).ok()?;
    let size = usize::from(hdr.size);
    (size <= MAX_PAYLOAD).then_some(size)
}

/// Whether a message is the reply to a vCPU event, which is not counted among the commands.
pub fn is_event_reply(message: &[u8]) -> bool {
    MsgHdr::read_from_prefix(message).is_ok_and(|(hdr, _)| hdr.id == msg::VCPU_EVENT)
}

/// Whether a command of `bytes` may join a vCPU's queue of `count` commands and `queued_bytes` (P15).
pub fn queue_admits(count: u32, queued_bytes: usize, bytes: usize) -> bool {
    count < MAX_QUEUED_COMMANDS
        && queued_bytes
            .checked_add(bytes)
            .is_some_and(|all| all <= MAX_QUEUED_BYTES)
}

/// Whether one more event reply may join those that wait for a vCPU: as many as it has sent events whose reply it has not
/// taken, void ones among them, and one that it will refuse. Who sends more has nothing left to be told apart by.
pub fn reply_admits(waiting: u32, unanswered: u32) -> bool {
    waiting <= unanswered
}

/// Writes the reply that refuses `message`; returns its length, 0 when `out` or `message` is too short for one.
pub fn build_error_reply(message: &[u8], err: KvmError, out: &mut [u8]) -> usize {
    let Ok((hdr, _)) = MsgHdr::read_from_prefix(message) else {
        return 0;
    };
    wire::finish(out, hdr, Err(err), 0).unwrap_or(0)
}

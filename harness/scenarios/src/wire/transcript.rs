// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last messages that went over introspection sockets, said when a scenario fails.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kvmi_lab_control::FromL1;
use kvmi_uapi::msg;

use crate::say;

/// How many messages are kept.
const KEPT: usize = 64;
/// How many bytes of each payload.
const SHOWN: usize = 24;

struct Record {
    from: &'static str,
    id: u16,
    seq: u32,
    size: usize,
    start: [u8; SHOWN],
}

static RECENT: Mutex<VecDeque<Record>> = Mutex::new(VecDeque::new());

pub(super) fn record(from: &'static str, id: u16, seq: u32, payload: &[u8]) {
    let mut start = [0; SHOWN];
    let shown = payload.len().min(SHOWN);
    start[..shown].copy_from_slice(&payload[..shown]);
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.len() == KEPT {
        recent.pop_front();
    }
    recent.push_back(Record {
        from,
        id,
        seq,
        size: payload.len(),
        start,
    });
}

/// Says the last messages on the control channel.
pub fn say_recent() {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    for record in &*recent {
        let name = msg::COMMANDS.iter().find(|(id, _)| *id == record.id);
        let name = name.map_or(if record.id <= msg::VCPU_EVENT { "event" } else { "?" }, |(_, name)| {
            name
        });
        let start: Vec<String> = record.start[..record.size.min(SHOWN)]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let (from, id, seq, size) = (record.from, record.id, record.seq, record.size);
        let text = format!("{from}: {name} ({id}) seq {seq}, {size} bytes: {}", start.join(" "));
        say(&FromL1::Wire { text });
    }
}

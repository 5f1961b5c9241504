// SPDX-License-Identifier: MIT OR Apache-2.0
//! The messages that go over introspection sockets, for the transcript: the first ones as they go, so that they are known whatever becomes of
//! this machine, and the last ones when a scenario fails.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kvmi::{Direction, Entry};
use kvmi_lab_control::FromL1;

use crate::say;

/// How many messages are said as they go. Each costs time on the serial line, and changes what happens when.
const SAID_AT_ONCE: usize = 40;

/// How many of the later ones are kept.
const KEPT: usize = 200;

/// How many bytes of each are kept: what an event says beside the registers comes after them.
const KEPT_BYTES: usize = 648;

struct Transcript {
    seen: usize,
    recent: VecDeque<(Direction, Vec<u8>)>,
}

static TRANSCRIPT: Mutex<Transcript> = Mutex::new(Transcript {
    seen: 0,
    recent: VecDeque::new(),
});

pub(super) fn record(direction: Direction, message: &[u8]) {
    let bytes = message[..message.len().min(KEPT_BYTES)].to_vec();
    let mut transcript = TRANSCRIPT.lock().unwrap_or_else(PoisonError::into_inner);
    transcript.seen += 1;
    if transcript.seen <= SAID_AT_ONCE {
        say_entry(direction, &bytes);
        return;
    }
    if transcript.recent.len() == KEPT {
        transcript.recent.pop_front();
    }
    transcript.recent.push_back((direction, bytes));
}

/// Says the last messages on the control channel, those that were not said before.
pub fn say_recent() {
    let transcript = TRANSCRIPT.lock().unwrap_or_else(PoisonError::into_inner);
    let left_out = transcript.seen.saturating_sub(SAID_AT_ONCE + transcript.recent.len());
    if left_out > 0 {
        let text = format!("({left_out} messages are left out)");
        say(&FromL1::Transcript { text });
    }
    for (direction, bytes) in &transcript.recent {
        say_entry(*direction, bytes);
    }
}

fn say_entry(direction: Direction, bytes: &[u8]) {
    let text = Entry { direction, bytes }.to_string();
    say(&FromL1::Transcript { text });
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread that reads the connection and gives each message to whom it belongs.

use std::{
    collections::{HashMap, VecDeque},
    io::BufReader,
    net::Shutdown,
    sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use kvmi_uapi::{EventHdr, VcpuEvent, msg};
use zerocopy::IntoBytes;

use crate::{CloseReason, Direction, Message, ProtocolError, Stream, message::READ_AHEAD_BYTES, options::Transcript};

/// How many of each kind wait to be taken: more than a kernel with any number of vCPUs has to say at once.
const MAX_EVENTS: usize = 1 << 17;
const MAX_UNCLAIMED: usize = 1 << 16;

/// Least payload of a vCPU event. What carries the same id and is shorter refuses an event reply.
pub(crate) const VCPU_EVENT_BYTES: usize = size_of::<EventHdr>() + size_of::<VcpuEvent>();

/// What the reader shares with the users of a session.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Commands under way, by sequence number.
    pub(crate) waiting: HashMap<u32, Sender<Message>>,
    pub(crate) events: VecDeque<Message>,
    /// Replies that nobody waits for.
    pub(crate) unclaimed: VecDeque<Message>,
    pub(crate) closed: Option<CloseReason>,
}

impl Inbox {
    /// What is true now. A thread that panicked while it held this left it whole: each change is one step.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, the connection is closed, or the time is over (`None`).
    pub(crate) fn wait<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<Result<T, CloseReason>> {
        let end = Instant::now().checked_add(timeout);
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(Ok(found));
            }
            if let Some(reason) = &state.closed {
                return Some(Err(reason.clone()));
            }
            state = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Marks the end; the first reason stays. Whoever waits for a reply is woken.
    pub(crate) fn close(&self, reason: CloseReason) {
        let mut state = self.lock();
        state.closed.get_or_insert(reason);
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for the end of the connection, which must have come or be near; its reason.
    pub(crate) fn wait_closed(&self) -> CloseReason {
        loop {
            if let Some(Err(reason)) = self.wait(Duration::MAX, |_| None::<()>) {
                return reason;
            }
        }
    }

    fn deliver(&self, message: Message) -> Result<(), CloseReason> {
        let mut state = self.lock();
        let kept = if is_event(&message) {
            keep(&mut state.events, message, "events", MAX_EVENTS)
        } else if message.hdr.id == msg::VCPU_EVENT {
            keep(&mut state.unclaimed, message, "replies to nothing", MAX_UNCLAIMED)
        } else {
            match state.waiting.remove(&message.hdr.seq) {
                // One that nobody waits for any more is dropped with its receiver.
                Some(waiting) => {
                    drop(waiting.send(message));
                    Ok(())
                }
                None => keep(&mut state.unclaimed, message, "replies to nothing", MAX_UNCLAIMED),
            }
        };
        drop(state);
        self.changed.notify_all();
        kept
    }
}

/// Whoever is at the other end is not to fill this process's memory.
fn keep(queue: &mut VecDeque<Message>, message: Message, what: &'static str, limit: usize) -> Result<(), CloseReason> {
    if queue.len() == limit {
        return Err(CloseReason::Protocol(ProtocolError::TooMany { what, limit }));
    }
    queue.push_back(message);
    Ok(())
}

fn is_event(message: &Message) -> bool {
    match message.hdr.id {
        msg::VM_EVENT => true,
        msg::VCPU_EVENT => message.payload.len() >= VCPU_EVENT_BYTES,
        _ => false,
    }
}

/// Reads until the end of the connection, and closes it then.
pub(crate) fn run(stream: &Stream, inbox: &Inbox, transcript: Option<&Transcript>) {
    let end = End { stream, inbox };
    let mut input = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    loop {
        match Message::read(&mut input) {
            Ok(message) => {
                if let Some(transcript) = transcript {
                    let bytes = [message.hdr.as_bytes(), &message.payload].concat();
                    transcript.tell(Direction::Received, &bytes);
                }
                if let Err(reason) = inbox.deliver(message) {
                    inbox.close(reason);
                    break;
                }
            }
            Err(reason) => {
                inbox.close(reason);
                break;
            }
        }
    }
    drop(end);
}

/// The reader's end, a panic of the transcript's too: the other side is not to wait for what nobody reads any more.
struct End<'a> {
    stream: &'a Stream,
    inbox: &'a Inbox,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let panicked = "the thread that reads it has panicked".to_owned();
        // Where there is a reason already, it stays.
        self.inbox.close(CloseReason::Failed(panicked));
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

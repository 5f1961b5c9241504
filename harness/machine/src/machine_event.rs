// SPDX-License-Identifier: MIT OR Apache-2.0
//! What L0 learns of an L1, from its control channel and from its emulator.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use kvmi_lab_control::{FromL1, LineReader, ReadError};

/// Something that L0 learns of L1.
#[derive(Debug)]
pub enum MachineEvent {
    /// L1 speaks.
    Message(FromL1),
    /// L1 speaks, and it makes no sense.
    Garbled(String),
    /// The control channel is closed: L1 is off, or its emulator ended.
    Closed,
    /// The emulator says that L1 does not run on.
    Stopped(String),
}

/// Passes on what comes on the control channel, until it closes. Runs on a thread of its own.
pub(crate) fn listen(control: impl Read + Send + 'static, to: Sender<MachineEvent>) {
    thread::spawn(move || {
        let mut lines = LineReader::new(control);
        loop {
            let (news, goes_on) = match lines.message() {
                Ok(Some(message)) => (MachineEvent::Message(message), true),
                Ok(None) | Err(ReadError::Io(_)) => (MachineEvent::Closed, false),
                Err(e @ ReadError::Garbled { .. }) => (MachineEvent::Garbled(e.to_string()), true),
                // Nothing that follows can be told apart.
                Err(e) => (MachineEvent::Garbled(e.to_string()), false),
            };
            let is_closed = matches!(news, MachineEvent::Closed);
            if to.send(news).is_err() || is_closed {
                return;
            }
            if !goes_on {
                // Closed is said when it is: whoever waits for that waits for the emulator's end.
                let _ = io::copy(&mut lines.into_stream(), &mut io::sink());
                let _ = to.send(MachineEvent::Closed);
                return;
            }
        }
    });
}

/// A channel for news of a machine.
pub(crate) fn channel() -> (Sender<MachineEvent>, Receiver<MachineEvent>) {
    mpsc::channel()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_ends_within_a_message_closes_after_it() {
        let (send, receive) = channel();
        listen(&br#"{"type":"log","source":"x"#[..], send);
        let news: Vec<MachineEvent> = receive.iter().collect();
        assert!(
            matches!(&news[..], [MachineEvent::Garbled(what), MachineEvent::Closed] if what.contains("ended within a message")),
            "{news:?}"
        );
    }
}

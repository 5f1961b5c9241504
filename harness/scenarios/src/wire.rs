// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client library a message at a time: what comes back is looked at to the last byte of padding, in the order in which it comes.
//!
//! Requests and answers are the library's own ([`Wire::ask`], [`Wire::get`], [`Wire::reply`]). What is malformed is given as bytes
//! ([`Wire::vm`], [`Wire::send`], [`Wire::write`], [`Wire::reply_raw`]). Nothing is read before somebody waits for it, so that a tool
//! can be one that does not read. A tool with a [`kvmi::Session`], which reads by itself: `client::*`, `step::by_the_library`, and the
//! process that `destroy::*` kills.

mod event;
mod transcript;

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kvmi::command::{Command, GetVersion};
use kvmi::{CloseReason, Direction, Message, RawConnection, Stream, message};
use kvmi_uapi::{ErrorCode, GetVersionReply, VcpuEventReply, VcpuHdr, msg};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use event::Event;
pub use transcript::say_recent;

use crate::{Failure, check, check_eq};

/// How long a read may wait, in L1's time. The stage's deadline comes first; this only ends a wait that L0 could not.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a command was answered with: data, or a positive value of [`kvmi_uapi::error`].
pub type Answer = Result<Vec<u8>, i32>;

/// A tool's end of an introspection socket.
#[derive(Debug)]
pub struct Wire {
    connection: RawConnection,
    next_seq: u32,
    replies: Vec<Message>,
    events: VecDeque<Event>,
    last_event_seq: u32,
    may_be_cut: bool,
}

impl Wire {
    /// A tool on this connection.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn new(connection: impl Into<Stream>) -> io::Result<Self> {
        let connection = RawConnection::from(connection.into());
        connection.set_timeout(Some(PATIENCE))?;
        Ok(Self {
            connection,
            next_seq: 1000,
            replies: Vec::new(),
            events: VecDeque::new(),
            last_event_seq: 0,
            may_be_cut: false,
        })
    }

    /// The socket, to be shut down or kept open by another process.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Shuts one or both directions down.
    ///
    /// # Errors
    ///
    /// Those of shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.connection.shutdown(how)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    ///
    /// Those of write(2): a closed connection is `BrokenPipe` or `ConnectionReset`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.connection.send(bytes)
    }

    /// Writes what is no message. A descriptor refuses it or is closed over it at once, a socket is closed later.
    ///
    /// # Errors
    ///
    /// Others of write(2).
    pub fn write_broken(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes).or_else(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::InvalidInput => Ok(()),
            _ => Err(error),
        })
    }

    /// A message as bytes, with the next sequence number, and that number.
    pub fn compose(&mut self, id: u16, payload: &[u8]) -> (u32, Vec<u8>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        (seq, message::encode(id, seq, payload))
    }

    /// A command as bytes, with the next sequence number, and that number: to be sent with others in one go.
    pub fn encode(&mut self, command: &impl Command) -> (u32, Vec<u8>) {
        self.compose(command.id(), &command.payload())
    }

    /// Sends a command; its sequence number.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn submit(&mut self, command: &impl Command) -> Result<u32, Failure> {
        self.send(command.id(), &command.payload())
    }

    /// A command and its answer, whose data the library has to be able to read.
    ///
    /// # Errors
    ///
    /// A connection that closes, a message that breaks the protocol.
    pub fn ask(&mut self, command: &impl Command) -> Result<Answer, Failure> {
        let seq = self.submit(command)?;
        let reply = self.reply_to(seq)?;
        let answer = parse_answer(&reply)?;
        if answer.is_ok() {
            command.reply(&reply)?;
        }
        Ok(answer)
    }

    /// A command that must succeed, and its reply, whose data must be so many bytes.
    ///
    /// # Errors
    ///
    /// As [`Wire::ask`], or another answer.
    #[track_caller]
    pub fn get<C: Command>(&mut self, command: &C, bytes: usize) -> Result<C::Reply, Failure> {
        let seq = self.submit(command)?;
        let reply = self.reply_to(seq)?;
        let id = command.id();
        let name = msg::COMMANDS
            .iter()
            .find(|(known, _)| *known == id)
            .map_or("?", |(_, name)| *name);
        match parse_answer(&reply)? {
            Ok(data) => check_eq!(data.len(), bytes, "bytes that {name} returned"),
            Err(errno) => return Err(Failure::new(format!("{name} was answered with error {errno}"))),
        }
        Ok(command.reply(&reply)?)
    }

    /// A command that must succeed and has nothing to return.
    ///
    /// # Errors
    ///
    /// As [`Wire::get`].
    #[track_caller]
    pub fn carry_out<C: Command<Reply = ()>>(&mut self, command: &C) -> Result<(), Failure> {
        self.get(command, 0)
    }

    /// Sends a command of any content; its sequence number.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn send(&mut self, id: u16, payload: &[u8]) -> Result<u32, Failure> {
        let (seq, bytes) = self.compose(id, payload);
        self.write_recorded(&bytes)?;
        Ok(seq)
    }

    /// A VM command of any content, and its answer.
    ///
    /// # Errors
    ///
    /// A connection that closes, a message that breaks the protocol.
    pub fn vm<T: IntoBytes + Immutable + ?Sized>(&mut self, id: u16, request: &T) -> Result<Answer, Failure> {
        let seq = self.send(id, request.as_bytes())?;
        self.answer(seq)
    }

    /// A vCPU command of any content, and its answer.
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`].
    pub fn vcpu<T: IntoBytes + Immutable + ?Sized>(
        &mut self,
        vcpu: u16,
        id: u16,
        request: &T,
    ) -> Result<Answer, Failure> {
        let seq = self.send(id, &vcpu_payload(vcpu, request.as_bytes()))?;
        self.answer(seq)
    }

    /// Waits for the answer to the command with this sequence number; events that come first are kept for [`Wire::event`].
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`].
    pub fn answer(&mut self, seq: u32) -> Result<Answer, Failure> {
        parse_answer(&self.reply_to(seq)?)
    }

    fn reply_to(&mut self, seq: u32) -> Result<Message, Failure> {
        loop {
            if let Some(at) = self.replies.iter().position(|reply| reply.hdr.seq == seq) {
                return Ok(self.replies.remove(at));
            }
            self.receive()?;
        }
    }

    /// The next answer to whatever command, with its sequence number and id.
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`].
    pub fn next_answer(&mut self) -> Result<(u32, u16, Answer), Failure> {
        while self.replies.is_empty() {
            self.receive()?;
        }
        let reply = self.replies.remove(0);
        Ok((reply.hdr.seq, reply.hdr.id, parse_answer(&reply)?))
    }

    /// The next event. Sequence numbers of events are checked as they come: each is one more than the last.
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`].
    pub fn event(&mut self) -> Result<Event, Failure> {
        while self.events.is_empty() {
            self.receive()?;
        }
        self.events.pop_front().ok_or_else(|| Failure::new("an event vanished"))
    }

    /// The next event, which must be this one.
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`], or another event.
    #[track_caller]
    pub fn expect_event(&mut self, id: u16, vcpu: u16) -> Result<Event, Failure> {
        let event = self.event()?;
        if (event.id, event.vcpu) != (id, vcpu) {
            let (got_id, got_vcpu) = (event.id, event.vcpu);
            return Err(Failure::new(format!(
                "expected event {id} on vCPU {vcpu}, got {got_id} on {got_vcpu}"
            )));
        }
        Ok(event)
    }

    /// Fails if an event has come that nobody took; asks for the version to be sure that all before it has arrived.
    ///
    /// # Errors
    ///
    /// An event, or as [`Wire::vm`].
    #[track_caller]
    pub fn expect_no_event(&mut self) -> Result<(), Failure> {
        self.expect_version()?;
        match self.events.pop_front() {
            None => Ok(()),
            Some(event) => Err(Failure::new(format!(
                "event {} on vCPU {} that must not be",
                event.id, event.vcpu
            ))),
        }
    }

    /// Asks for the version, which is always allowed: afterwards all that the kernel had sent before has arrived.
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`].
    pub fn expect_version(&mut self) -> Result<(), Failure> {
        self.get(&GetVersion, size_of::<GetVersionReply>()).map(drop)
    }

    /// Answers an event.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn reply(&mut self, event: &Event, action: u8) -> Result<(), Failure> {
        self.reply_with(event, action, &[])
    }

    /// Answers an event, with data.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn reply_with(&mut self, event: &Event, action: u8, data: &[u8]) -> Result<(), Failure> {
        let bytes = message::encode_event_reply(event.vcpu, event.seq, event.id as u8, action, data);
        self.write_recorded(&bytes)
    }

    /// Answers anything with anything.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn reply_raw(&mut self, seq: u32, vcpu: u16, reply: &VcpuEventReply, data: &[u8]) -> Result<(), Failure> {
        let content = [reply.as_bytes(), data].concat();
        self.write_recorded(&message::encode_vcpu(msg::VCPU_EVENT, seq, vcpu, &content))
    }

    fn write_recorded(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        transcript::record(Direction::Sent, bytes);
        match self.write(bytes) {
            // A descriptor says at once that the message closes it. A socket does so later, by its end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Waits until the kernel has closed the connection; what it still said before is kept.
    ///
    /// # Errors
    ///
    /// A message that breaks the protocol.
    pub fn expect_closed(&mut self) -> Result<(), Failure> {
        while self.receive_or_end()? {}
        Ok(())
    }

    /// As [`Wire::expect_closed`], when the end may come within a message: the kernel was sending one that did not fit.
    ///
    /// # Errors
    ///
    /// A message that breaks the protocol.
    pub fn expect_closed_perhaps_cut(&mut self) -> Result<(), Failure> {
        self.may_be_cut = true;
        self.expect_closed()
    }

    /// Answers that came and that nobody took.
    #[must_use]
    pub fn untaken_answers(&self) -> usize {
        self.replies.len()
    }

    /// Whether an event has come that nobody took.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next message, whether answer or event, sorted into its place.
    ///
    /// # Errors
    ///
    /// As [`Wire::vm`].
    pub fn receive(&mut self) -> Result<(), Failure> {
        if self.receive_or_end()? {
            Ok(())
        } else {
            Err(Failure::new("the kernel closed the connection"))
        }
    }

    /// As [`Wire::receive`]; false when the connection is closed.
    ///
    /// # Errors
    ///
    /// A message that breaks the protocol.
    pub fn receive_or_end(&mut self) -> Result<bool, Failure> {
        let Some(message) = self.message()? else {
            return Ok(false);
        };
        transcript::record(
            Direction::Received,
            &[message.hdr.as_bytes(), &message.payload].concat(),
        );
        // Refusals carry the id of what is refused, 0 and 1 included: id 1 with no more than an error code, id 0 with a negative number
        // where an event has its id and zeros.
        let is_refusal = match message.hdr.id {
            msg::VM_EVENT => ErrorCode::read_from_prefix(&message.payload).is_ok_and(|(code, _)| code.err < 0),
            msg::VCPU_EVENT => message.payload.len() <= size_of::<ErrorCode>(),
            _ => true,
        };
        if !is_refusal {
            let event = event::parse(&message)?;
            check_eq!(
                event.seq,
                self.last_event_seq + 1,
                "sequence number of event {}",
                event.id
            );
            self.last_event_seq = event.seq;
            self.events.push_back(event);
        } else {
            self.replies.push(message);
        }
        Ok(true)
    }

    fn message(&mut self) -> Result<Option<Message>, Failure> {
        match self.connection.receive() {
            Ok(message) => Ok(Some(message)),
            Err(CloseReason::Peer) => Ok(None),
            Err(CloseReason::Truncated(_)) if self.may_be_cut => Ok(None),
            Err(reason) => Err(reason.into()),
        }
    }
}

/// Payload of a vCPU command.
#[must_use]
pub fn vcpu_payload(vcpu: u16, request: &[u8]) -> Vec<u8> {
    let header = VcpuHdr {
        vcpu,
        ..Default::default()
    };
    [header.as_bytes(), request].concat()
}

fn parse_answer(reply: &Message) -> Result<Answer, Failure> {
    let Ok((code, data)) = ErrorCode::read_from_prefix(&reply.payload) else {
        let bytes = reply.payload.len();
        return Err(Failure::new(format!(
            "a reply to command {} of {bytes} bytes has no error code",
            reply.hdr.id
        )));
    };
    check_eq!(
        code.pad,
        0,
        "padding of the error code in the reply to command {}",
        reply.hdr.id
    );
    if code.err == 0 {
        return Ok(Ok(data.to_vec()));
    }
    check!(
        code.err < 0,
        "command {} was answered with error {}",
        reply.hdr.id,
        code.err
    );
    check!(
        data.is_empty(),
        "an error reply to command {} carries data",
        reply.hdr.id
    );
    Ok(Err(-code.err))
}

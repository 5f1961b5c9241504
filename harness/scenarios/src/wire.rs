// SPDX-License-Identifier: MIT OR Apache-2.0
//! The introspection socket below the client library: messages with any content, right or wrong, and what comes back.
//!
//! Scenarios that only do what a tool would do use the client library; those that look at the protocol itself (padding, sizes, order,
//! sequence numbers) use this.

mod event;
mod transcript;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvmi::Direction;
use kvmi_uapi::{ErrorCode, MAX_PAYLOAD, MsgHdr, VcpuEventReply, VcpuHdr, msg};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use event::Event;
pub use transcript::say_recent;

use crate::{Failure, check, check_eq};

/// How long a read may wait, in L1's time. The stage's deadline comes first; this only ends a wait that L0 could not.
const PATIENCE: Duration = Duration::from_secs(300);

/// The most that is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Any message from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: u16,
    /// Its sequence number.
    pub seq: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// What a command was answered with: data, or a positive value of [`kvmi_uapi::error`].
pub type Answer = Result<Vec<u8>, i32>;

/// A tool's end of an introspection socket.
#[derive(Debug)]
pub struct Wire {
    socket: UnixStream,
    next_seq: u32,
    /// Bytes that came and are not taken yet.
    input: Vec<u8>,
    /// How many of them are taken.
    taken: usize,
    /// Where the next ones come to. Kept, because to clear so much for each read would take longer than the read.
    chunk: Box<[u8]>,
    replies: Vec<Message>,
    events: VecDeque<Event>,
    last_event_seq: u32,
    may_be_cut: bool,
}

impl Wire {
    /// A tool on this socket.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            next_seq: 1000,
            input: Vec::new(),
            taken: 0,
            chunk: vec![0; CHUNK_BYTES].into(),
            replies: Vec::new(),
            events: VecDeque::new(),
            last_event_seq: 0,
            may_be_cut: false,
        })
    }

    /// The socket, to be shut down or kept open by another process.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Shuts one or both directions down.
    ///
    /// # Errors
    ///
    /// Those of shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    ///
    /// Those of write(2): a closed connection is `BrokenPipe` or `ConnectionReset`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// A message as bytes, with the next sequence number, and that number.
    pub fn compose(&mut self, id: u16, payload: &[u8]) -> (u32, Vec<u8>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let header = MsgHdr {
            id,
            size: payload.len() as u16,
            seq,
        };
        (seq, [header.as_bytes(), payload].concat())
    }

    /// Sends a command of any content; its sequence number.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn send(&mut self, id: u16, payload: &[u8]) -> Result<u32, Failure> {
        let (seq, bytes) = self.compose(id, payload);
        transcript::record(Direction::Sent, id, seq, payload);
        self.write(&bytes)?;
        Ok(seq)
    }

    /// A VM command and its answer.
    ///
    /// # Errors
    ///
    /// A connection that closes, a message that breaks the protocol.
    pub fn vm<T: IntoBytes + Immutable + ?Sized>(&mut self, id: u16, request: &T) -> Result<Answer, Failure> {
        let seq = self.send(id, request.as_bytes())?;
        self.answer(seq)
    }

    /// A vCPU command and its answer.
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
        loop {
            if let Some(at) = self.replies.iter().position(|reply| reply.seq == seq) {
                return parse_answer(&self.replies.remove(at));
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
        Ok((reply.seq, reply.id, parse_answer(&reply)?))
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
        match self.vm(msg::GET_VERSION, &[0u8; 0])? {
            Ok(_) => Ok(()),
            Err(errno) => Err(Failure::new(format!("GET_VERSION was answered with error {errno}"))),
        }
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
        let reply = VcpuEventReply {
            action,
            event: event.id as u8,
            ..Default::default()
        };
        self.reply_raw(event.seq, event.vcpu, &reply, data)
    }

    /// Answers anything with anything.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn reply_raw(&mut self, seq: u32, vcpu: u16, reply: &VcpuEventReply, data: &[u8]) -> Result<(), Failure> {
        let payload = vcpu_payload(vcpu, &[reply.as_bytes(), data].concat());
        let header = MsgHdr {
            id: msg::VCPU_EVENT,
            size: payload.len() as u16,
            seq,
        };
        transcript::record(Direction::Sent, msg::VCPU_EVENT, seq, &payload);
        self.write(&[header.as_bytes(), &payload].concat())?;
        Ok(())
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
            Err(Failure::new("the kernel closed the introspection socket"))
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
        transcript::record(Direction::Received, message.id, message.seq, &message.payload);
        // Refusals carry the id of what is refused, 0 and 1 included: id 1 with no more than an error code, id 0 with a negative number
        // where an event has its id and zeros.
        let is_refusal = match message.id {
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
        let header_bytes = size_of::<MsgHdr>();
        loop {
            let there = &self.input[self.taken..];
            if let Ok((header, rest)) = MsgHdr::read_from_prefix(there) {
                let size = usize::from(header.size);
                check!(size <= MAX_PAYLOAD, "the kernel sent a payload of {size} bytes");
                if rest.len() >= size {
                    let payload = rest[..size].to_vec();
                    self.taken += header_bytes + size;
                    let (id, seq) = (header.id, header.seq);
                    return Ok(Some(Message { id, seq, payload }));
                }
            }
            if !self.fill()? {
                let whole = self.taken == self.input.len();
                check!(
                    whole || self.may_be_cut,
                    "the kernel closed the socket within a message"
                );
                return Ok(None);
            }
        }
    }

    /// Reads what there is; false at the end.
    fn fill(&mut self) -> Result<bool, Failure> {
        self.input.drain(..self.taken);
        self.taken = 0;
        match self.socket.read(&mut self.chunk) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.input.extend_from_slice(&self.chunk[..n]);
                Ok(true)
            }
            // The other end closed with commands of ours unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(e) => Err(e.into()),
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
            reply.id
        )));
    };
    check_eq!(
        code.pad,
        0,
        "padding of the error code in the reply to command {}",
        reply.id
    );
    if code.err == 0 {
        return Ok(Ok(data.to_vec()));
    }
    check!(
        code.err < 0,
        "command {} was answered with error {}",
        reply.id,
        code.err
    );
    check!(data.is_empty(), "an error reply to command {} carries data", reply.id);
    Ok(Err(-code.err))
}

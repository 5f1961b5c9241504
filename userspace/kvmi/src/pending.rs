// SPDX-License-Identifier: MIT OR Apache-2.0
//! A command whose reply is under way.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use kvmi_uapi::{ErrorCode, msg};

use crate::{Error, KvmError, Message, ProtocolError, Session, command::Command};

/// A command that was sent. Dropping it drops the reply, not the command.
#[must_use = "the reply is in what wait() gives"]
#[derive(Debug)]
pub struct Pending<C> {
    pub(crate) command: C,
    pub(crate) seq: u32,
    pub(crate) reply: Receiver<Message>,
    pub(crate) session: Session,
}

impl<C: Command> Pending<C> {
    /// Sequence number of the command.
    pub fn seq(&self) -> u32 {
        self.seq
    }

    /// Waits for the reply, as long as the session's timeout.
    ///
    /// # Errors
    /// [`Error::Kernel`] with what the kernel answered, [`Error::Closed`], [`Error::Timeout`], [`Error::Protocol`].
    pub fn wait(self) -> Result<C::Reply, Error> {
        let timeout = self.session.timeout();
        self.wait_within(timeout)
    }

    /// Waits for the reply.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_within(self, timeout: Duration) -> Result<C::Reply, Error> {
        match self.reply.recv_timeout(timeout) {
            Ok(message) => self.take(&message),
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout {
                what: "reply",
                after: timeout,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(self.session.closed_error()),
        }
    }

    /// Whether no reply has come yet: `Ok(Err(self))` then; else as [`Self::wait`].
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn poll(self) -> Result<Result<C::Reply, Self>, Error> {
        match self.reply.try_recv() {
            Ok(message) => self.take(&message).map(Ok),
            Err(std::sync::mpsc::TryRecvError::Empty) => Ok(Err(self)),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => Err(self.session.closed_error()),
        }
    }

    fn take(&self, message: &Message) -> Result<C::Reply, Error> {
        let (expected, got) = (self.command.id(), message.hdr.id);
        if expected != got {
            return Err(ProtocolError::WrongId {
                seq: self.seq,
                expected,
                got,
            }
            .into());
        }
        let code: ErrorCode = message.get(0)?;
        match KvmError::from_err(code.err) {
            Some(error) => Err(Error::Kernel {
                command: name(expected),
                error,
            }),
            None => Ok(self.command.reply(message)?),
        }
    }
}

fn name(id: u16) -> &'static str {
    msg::COMMANDS
        .iter()
        .find(|(known, _)| *known == id)
        .map_or("unknown command", |(_, name)| name)
}

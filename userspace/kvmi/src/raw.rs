// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection without any understanding of it.

use std::{
    io::{self, BufReader, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use crate::{CloseReason, Message, Stream, message::READ_AHEAD_BYTES};

/// Sends whatever it is given, and reads message by message, when it is asked to. For trying what the kernel makes of bad
/// input, and of a tool that does not read.
#[derive(Debug)]
pub struct RawConnection {
    stream: BufReader<Stream>,
}

impl From<UnixStream> for RawConnection {
    fn from(stream: UnixStream) -> Self {
        Stream::from(stream).into()
    }
}

impl From<Stream> for RawConnection {
    fn from(stream: Stream) -> Self {
        let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
        Self { stream }
    }
}

impl RawConnection {
    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads the next message; waits for it.
    ///
    /// # Errors
    /// As [`Message::read`]; a timeout counts as broken.
    pub fn receive(&mut self) -> Result<Message, CloseReason> {
        Message::read(&mut self.stream)
    }

    /// Limits how long [`Self::receive`] and [`Self::send`] wait; `None`: for ever.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(timeout)?;
        self.stream.get_ref().set_write_timeout(timeout)
    }

    /// Closes one or both directions.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.get_ref().shutdown(how)
    }
}

/// The socket. It may have been read further than [`RawConnection::receive`] has come.
impl AsFd for RawConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection without any understanding of it.

use std::{io, io::Write, net::Shutdown, os::unix::net::UnixStream, time::Duration};

use crate::{CloseReason, Message, Stream};

/// Sends whatever it is given and reads message by message. For trying what the kernel makes of bad input.
#[derive(Debug)]
pub struct RawConnection {
    stream: Stream,
}

impl From<UnixStream> for RawConnection {
    fn from(stream: UnixStream) -> Self {
        Stream::from(stream).into()
    }
}

impl From<Stream> for RawConnection {
    fn from(stream: Stream) -> Self {
        Self { stream }
    }
}

impl RawConnection {
    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads the next message; waits for it.
    ///
    /// # Errors
    /// As [`Message::read`]; a timeout counts as broken.
    pub fn receive(&mut self) -> Result<Message, CloseReason> {
        Message::read(&self.stream)
    }

    /// Limits how long [`Self::receive`] and [`Self::send`] wait; `None`: for ever.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)?;
        self.stream.set_write_timeout(timeout)
    }

    /// Closes one or both directions.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }

    /// The socket.
    pub fn into_inner(self) -> Stream {
        self.stream
    }
}

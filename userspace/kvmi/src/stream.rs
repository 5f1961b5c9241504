// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection: a session's own descriptor, or a socket of either family that HOOK takes.

mod descriptor;

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use vsock::VsockStream;

pub use self::descriptor::Descriptor;

/// A connection to the kernel's side of a session.
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// What OPEN gave: the session itself.
    Descriptor(Descriptor),
    /// A socket within one host.
    Unix(UnixStream),
    /// A socket between a host and a VM on it, in which the tool runs.
    Vsock(VsockStream),
}

/// Does the same on each.
macro_rules! each {
    ($stream:expr, $connection:ident => $what:expr) => {
        match $stream {
            Stream::Descriptor($connection) => $what,
            Stream::Unix($connection) => $what,
            Stream::Vsock($connection) => $what,
        }
    };
}

impl Stream {
    /// Closes one or both directions. A descriptor is hung up, whatever is to be closed: its session ends.
    ///
    /// # Errors
    /// Those of shutdown(2); of HANG_UP.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        each!(self, connection => connection.shutdown(how))
    }

    /// Limits how long a read waits; `None`: for ever.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        each!(self, connection => connection.set_read_timeout(timeout))
    }

    /// Limits how long a write waits; `None`: for ever.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        each!(self, connection => connection.set_write_timeout(timeout))
    }

    /// Writes what finds room without waiting: [`Errno::AGAIN`] when nothing does.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Descriptor(descriptor) => rustix::io::write(descriptor, bytes),
            socket => send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        }
    }
}

impl From<Descriptor> for Stream {
    fn from(descriptor: Descriptor) -> Self {
        Self::Descriptor(descriptor)
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket)
    }
}

impl From<VsockStream> for Stream {
    fn from(socket: VsockStream) -> Self {
        Self::Vsock(socket)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(self, connection => connection.as_fd())
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        each!(self, connection => { let mut connection = connection; connection.read(bytes) })
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, connection => { let mut connection = connection; connection.write(bytes) })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

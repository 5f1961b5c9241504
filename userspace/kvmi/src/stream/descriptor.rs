// SPDX-License-Identifier: MIT OR Apache-2.0
//! A session's own descriptor.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use crate::ioctls;

/// What OPEN gave ([`crate::ioctls::open`]). The session ends when the last descriptor of it is closed.
///
/// A read gives whole messages, and needs room for one; a write takes whole messages. Both wait, as long as the time-outs
/// allow.
#[derive(Debug)]
pub struct Descriptor {
    fd: OwnedFd,
    read_timeout: Mutex<Option<Duration>>,
    write_timeout: Mutex<Option<Duration>>,
}

impl Descriptor {
    /// Takes the descriptor, from now on with `O_NONBLOCK`, for everybody who shares it.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self {
            fd,
            read_timeout: Mutex::default(),
            write_timeout: Mutex::default(),
        })
    }

    pub(super) fn shutdown(&self, _how: Shutdown) -> io::Result<()> {
        Ok(ioctls::hang_up(&self.fd)?)
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set(&self.read_timeout, timeout)
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set(&self.write_timeout, timeout)
    }

    /// Does it, as often as it takes, until the time is over: `WouldBlock`, as sockets have it.
    fn retry(
        &self,
        timeout: &Mutex<Option<Duration>>,
        wait_for: PollFlags,
        mut attempt: impl FnMut() -> Result<usize, Errno>,
    ) -> io::Result<usize> {
        let timeout = *timeout.lock().unwrap_or_else(PoisonError::into_inner);
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            match attempt() {
                Err(Errno::AGAIN) => {}
                outcome => return Ok(outcome?),
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.fd, wait_for)], left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn set(timeout: &Mutex<Option<Duration>>, to: Option<Duration>) -> io::Result<()> {
    if to == Some(Duration::ZERO) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a time-out of nothing"));
    }
    *timeout.lock().unwrap_or_else(PoisonError::into_inner) = to;
    Ok(())
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for &Descriptor {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.retry(&self.read_timeout, PollFlags::IN, || {
            rustix::io::read(&self.fd, &mut *bytes)
        })
    }
}

impl Write for &Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(&self.write_timeout, PollFlags::OUT, || {
            rustix::io::write(&self.fd, bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

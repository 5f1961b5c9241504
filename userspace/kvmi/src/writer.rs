// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sends bytes to a connection whose other side may not read.

use std::{
    io,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::Stream;

/// Lets one thread write at a time, so that each message leaves whole.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    busy: Mutex<bool>,
    free: Condvar,
}

/// What was not sent, or not to its end.
#[derive(Debug)]
pub(crate) struct Unsent {
    /// Bytes that left before.
    pub(crate) sent: usize,
    /// `TimedOut` when the time was over.
    pub(crate) error: io::Error,
}

/// Gives the turn to the next thread, also when the one before panics.
struct Turn<'a>(&'a Writer);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

impl Writer {
    /// Waits for its turn, calls `at_turn`, and sends all bytes, all within this time.
    pub(crate) fn send(
        &self,
        stream: &Stream,
        bytes: &[u8],
        timeout: Duration,
        at_turn: impl FnOnce(),
    ) -> Result<(), Unsent> {
        // A time without end has no last moment.
        let end = Instant::now().checked_add(timeout);
        let mut sent = 0;
        let turn = self.turn(end).map_err(|error| Unsent { sent, error })?;
        at_turn();
        while sent < bytes.len() {
            match stream.try_write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for_room(stream, end).map_err(|error| Unsent { sent, error })?,
                Err(error) => {
                    let error = error.into();
                    return Err(Unsent { sent, error });
                }
            }
        }
        drop(turn);
        Ok(())
    }

    fn turn(&self, end: Option<Instant>) -> io::Result<Turn<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy {
            busy = match left(end)? {
                Some(left) => {
                    self.free
                        .wait_timeout(busy, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.free.wait(busy).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *busy = true;
        Ok(Turn(self))
    }
}

/// Waits until the connection takes bytes, or has an error that the next write finds.
fn wait_for_room(stream: &Stream, end: Option<Instant>) -> io::Result<()> {
    let left = left(end)?.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut [PollFd::new(stream, PollFlags::OUT)], left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How much time is left; `None`: without end.
fn left(end: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(end) = end else { return Ok(None) };
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(Some(left))
}

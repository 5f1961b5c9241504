// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a session is to behave.

use std::{
    fmt, io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use zerocopy::FromZeros;

#[cfg(doc)]
use crate::Error;
use crate::{
    Descriptor, Direction, Entry, Session, Stream,
    ioctls::{self, Open},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

type See = Box<dyn FnMut(Entry<'_>) + Send>;

/// Who sees each message.
#[derive(Clone)]
pub(crate) struct Transcript(Arc<Mutex<See>>);

impl Transcript {
    pub(crate) fn tell(&self, direction: Direction, bytes: &[u8]) {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner))(Entry { direction, bytes });
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transcript")
    }
}

/// How a session is to behave.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    pub(crate) timeout: Duration,
    pub(crate) send_timeout: Duration,
    pub(crate) transcript: Option<Transcript>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            send_timeout: DEFAULT_TIMEOUT,
            transcript: None,
        }
    }
}

impl SessionOptions {
    /// The defaults: 30 s for either time, no transcript.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long calls that wait for something and name no time wait.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a message may take to leave, when the other side does not read. Then it is [`Error::SendTimeout`].
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.send_timeout = timeout;
        self
    }

    /// Calls `see` with each message that goes out or comes in. It must not use the session.
    pub fn transcript(mut self, see: impl FnMut(Entry<'_>) + Send + 'static) -> Self {
        self.transcript = Some(Transcript(Arc::new(Mutex::new(Box::new(see)))));
        self
    }

    /// As [`Session::open`].
    ///
    /// # Errors
    /// Those of OPEN.
    pub fn open(self, vm: impl AsFd, flags: u32) -> io::Result<Session> {
        let how = Open {
            flags,
            ..Open::new_zeroed()
        };
        Ok(self.start(Descriptor::new(ioctls::open(vm, &how)?)?))
    }

    /// Starts a session on a descriptor that OPEN gave, or on a connected socket whose other end the kernel has, or will have after HOOK.
    pub fn start(self, stream: impl Into<Stream>) -> Session {
        Session::start(stream.into(), self)
    }
}

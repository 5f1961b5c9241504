// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection to the kernel's side of one VM.

use std::{
    fmt, io,
    io::Write,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use kvmi_uapi::MAX_PAYLOAD;

use crate::{
    CloseReason, Direction, Entry, Error, Event, Events, Message, Pending, ProtocolError, Stream, Vcpu,
    command::Command,
    message,
    reader::{self, Inbox},
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
    timeout: Duration,
    transcript: Option<Transcript>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            transcript: None,
        }
    }
}

impl SessionOptions {
    /// The defaults: 30 s, no transcript.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long waiting calls that name no time wait.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Calls `see` with each message that goes out or comes in. It must not use the session.
    pub fn transcript(mut self, see: impl FnMut(Entry<'_>) + Send + 'static) -> Self {
        self.transcript = Some(Transcript(Arc::new(Mutex::new(Box::new(see)))));
        self
    }

    /// Starts a session on a connected socket whose other end the kernel has, or will have after HOOK.
    pub fn start(self, stream: impl Into<Stream>) -> Session {
        let stream = Arc::new(stream.into());
        let inbox = Arc::new(Inbox::default());
        let reader = thread::spawn({
            let (stream, inbox, transcript) = (stream.clone(), inbox.clone(), self.transcript.clone());
            move || reader::run(&stream, &inbox, transcript.as_ref())
        });
        let handle = Handle {
            stream,
            inbox,
            reader: Some(reader),
            writer: Mutex::new(()),
            next_seq: AtomicU32::new(1),
            options: self,
        };
        Session {
            handle: Arc::new(handle),
        }
    }
}

/// One introspected VM: a handle that can be cloned and used from several threads. The connection is closed by
/// [`Session::close`] or when the last handle is gone (an open event holds one).
#[derive(Clone, Debug)]
pub struct Session {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    stream: Arc<Stream>,
    inbox: Arc<Inbox>,
    reader: Option<JoinHandle<()>>,
    /// Held while a message is written, so that each leaves whole.
    writer: Mutex<()>,
    next_seq: AtomicU32,
    options: SessionOptions,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inbox.close(CloseReason::Here);
        // It may be closed already. Either way the reader comes to its end.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl From<UnixStream> for Session {
    fn from(stream: UnixStream) -> Self {
        SessionOptions::new().start(stream)
    }
}

impl From<Stream> for Session {
    fn from(stream: Stream) -> Self {
        SessionOptions::new().start(stream)
    }
}

impl Session {
    /// Sends a command without waiting for its reply.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`ProtocolError::RequestTooLarge`].
    pub fn submit<C: Command>(&self, command: C) -> Result<Pending<C>, Error> {
        let payload = command.payload();
        if payload.len() > MAX_PAYLOAD {
            return Err(ProtocolError::RequestTooLarge(payload.len()).into());
        }
        let seq = self.next_seq();
        let (sender, reply) = mpsc::channel();
        {
            let mut state = self.handle.inbox.lock();
            if let Some(reason) = &state.closed {
                return Err(Error::Closed(reason.clone()));
            }
            state.waiting.insert(seq, sender);
        }
        self.send_raw(&message::encode(command.id(), seq, &payload))?;
        Ok(Pending {
            command,
            seq,
            reply,
            session: self.clone(),
        })
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// As [`Self::submit`] and [`Pending::wait`].
    pub fn call<C: Command>(&self, command: C) -> Result<C::Reply, Error> {
        self.submit(command)?.wait()
    }

    /// A vCPU, by its index.
    pub fn vcpu(&self, index: u16) -> Vcpu<'_> {
        Vcpu { session: self, index }
    }

    /// Waits for the next event, as long as the session's timeout.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::Closed`] when no event is left; [`Error::Protocol`].
    pub fn next_event(&self) -> Result<Event, Error> {
        self.next_event_within(self.timeout())
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// As [`Self::next_event`].
    pub fn next_event_within(&self, timeout: Duration) -> Result<Event, Error> {
        let message = self.await_message("event", timeout, |state| state.events.pop_front())?;
        Ok(Event::parse(message, self)?)
    }

    /// Waits for the next event of one vCPU and leaves those of others for later, as long as the session's timeout.
    ///
    /// # Errors
    /// As [`Self::next_event`].
    pub fn next_event_of(&self, vcpu: u16) -> Result<Event, Error> {
        let message = self.await_message("event of that vCPU", self.timeout(), |state| {
            let at = state
                .events
                .iter()
                .position(|event| Event::vcpu_of(event) == Some(vcpu))?;
            state.events.remove(at)
        })?;
        Ok(Event::parse(message, self)?)
    }

    /// Events as they come, until the connection is closed. When none comes within the session's timeout, that is an
    /// item too.
    pub fn events(&self) -> Events<'_> {
        Events { session: self }
    }

    /// Number of events that have come and were not taken.
    pub fn queued_events(&self) -> usize {
        self.handle.inbox.lock().events.len()
    }

    /// Sends bytes as they are, under the same lock as messages.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Io`].
    pub fn send_raw(&self, bytes: &[u8]) -> Result<(), Error> {
        let _writer = self.handle.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transcript) = &self.handle.options.transcript {
            transcript.tell(Direction::Sent, bytes);
        }
        (&*self.handle.stream)
            .write_all(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.closed_error(),
                _ => Error::Io(error),
            })
    }

    /// Waits for the next reply that no [`Pending`] is for: to raw bytes, and refusals of event replies (id 1).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Closed`].
    pub fn next_stray(&self, timeout: Duration) -> Result<Message, Error> {
        self.await_message("stray reply", timeout, |state| state.strays.pop_front())
    }

    /// A sequence number that no command of this session has.
    pub fn next_seq(&self) -> u32 {
        self.handle.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    /// How long waiting calls that name no time wait.
    pub fn timeout(&self) -> Duration {
        self.handle.options.timeout
    }

    /// Closes one or both directions of the socket. The reader goes on until the other side closes too.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.handle.stream.shutdown(how)
    }

    /// Closes the connection, whoever else holds a handle.
    pub fn close(&self) {
        self.handle.inbox.close(CloseReason::Here);
        // It may be closed already.
        let _ = self.handle.stream.shutdown(Shutdown::Both);
    }

    /// Why the connection is closed; `None` while it is open.
    pub fn closed(&self) -> Option<CloseReason> {
        self.handle.inbox.lock().closed.clone()
    }

    /// Waits until the connection is closed.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_closed(&self, timeout: Duration) -> Result<CloseReason, Error> {
        match self.handle.inbox.wait(timeout, |_| None::<()>) {
            Some(Err(reason)) => Ok(reason),
            _ => Err(Error::Timeout {
                what: "end of the connection",
                after: timeout,
            }),
        }
    }

    /// The error that a closed connection gives. The reader may not have seen the end yet that a writer ran into.
    pub(crate) fn closed_error(&self) -> Error {
        Error::Closed(self.closed().unwrap_or(CloseReason::There))
    }

    fn await_message(
        &self,
        what: &'static str,
        timeout: Duration,
        look: impl FnMut(&mut reader::State) -> Option<Message>,
    ) -> Result<Message, Error> {
        match self.handle.inbox.wait(timeout, look) {
            Some(Ok(message)) => Ok(message),
            Some(Err(reason)) => Err(Error::Closed(reason)),
            None => Err(Error::Timeout { what, after: timeout }),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection to the kernel's side of one VM.

use std::{
    io,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use kvmi_uapi::MAX_PAYLOAD;

use crate::{
    CloseReason, Direction, Error, Event, Events, Message, Pending, ProtocolError, SessionOptions, Stream, Vcpu,
    command::Command,
    message,
    reader::{self, Inbox},
    writer::{Unsent, Writer},
};

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
    writer: Writer,
    next_seq: AtomicU32,
    options: SessionOptions,
}

impl Handle {
    /// Closes the connection; the first reason stays. The reader comes to its end.
    fn close(&self, reason: CloseReason) {
        self.inbox.close(reason);
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close(CloseReason::Local);
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
    /// Introspects a VM, by its descriptor: OPEN with these flags, [`OPEN_TAKE_OVER`](kvmi_uapi::ioctl::OPEN_TAKE_OVER)
    /// and those of HOOK. Every command and event is allowed. When the last handle is gone, the VM is as it was.
    ///
    /// # Errors
    /// Those of OPEN.
    pub fn open(vm: impl AsFd, flags: u32) -> io::Result<Self> {
        SessionOptions::new().open(vm, flags)
    }

    pub(crate) fn start(stream: Stream, options: SessionOptions) -> Self {
        let stream = Arc::new(stream);
        let inbox = Arc::new(Inbox::default());
        let reader = thread::spawn({
            let (stream, inbox, transcript) = (stream.clone(), inbox.clone(), options.transcript.clone());
            move || reader::run(&stream, &inbox, transcript.as_ref())
        });
        let handle = Handle {
            stream,
            inbox,
            reader: Some(reader),
            writer: Writer::default(),
            next_seq: AtomicU32::new(1),
            options,
        };
        Self {
            handle: Arc::new(handle),
        }
    }

    /// Sends a command without waiting for its reply.
    ///
    /// # Errors
    /// As [`Self::send_raw`]; [`ProtocolError::RequestTooLarge`].
    pub fn submit<C: Command>(&self, command: C) -> Result<Pending<C>, Error> {
        let payload = command.payload();
        if payload.len() > MAX_PAYLOAD {
            return Err(ProtocolError::RequestTooLarge(payload.len()).into());
        }
        let seq = self.next_seq();
        let (sender, reply) = mpsc::channel();
        self.handle.inbox.lock().waiting.insert(seq, sender);
        if let Err(error) = self.send_raw(&message::encode(command.id(), seq, &payload)) {
            self.handle.inbox.lock().waiting.remove(&seq);
            return Err(error);
        }
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
    /// [`Error::Timeout`]; [`Error::Closed`] when no event is left. An event that breaks the protocol closes the
    /// connection, for nobody could answer it.
    pub fn next_event(&self) -> Result<Event, Error> {
        self.next_event_within(self.timeout())
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// As [`Self::next_event`].
    pub fn next_event_within(&self, timeout: Duration) -> Result<Event, Error> {
        let message = self.await_message("event", timeout, |state| state.events.pop_front())?;
        self.parse_event(message)
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
        self.parse_event(message)
    }

    /// Events as they come, however long that takes, until the connection is closed. Closed by either side, the iterator
    /// just ends, and [`Self::closed`] says by which; a connection that broke is its last item, an error. To wait for a
    /// limited time: [`Self::next_event_within`].
    pub fn events(&self) -> Events<'_> {
        Events::new(self)
    }

    /// Number of events that have come and were not taken.
    pub fn queued_events(&self) -> usize {
        self.handle.inbox.lock().events.len()
    }

    /// Sends bytes as they are, each call's whole and in one piece. Waits no longer than [`SessionOptions::send_timeout`]
    /// until the other side takes them.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Io`]; [`Error::SendTimeout`], after which the connection is closed if a part was sent.
    pub fn send_raw(&self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(reason) = self.closed() {
            return Err(Error::Closed(reason));
        }
        let Handle { stream, options, .. } = &*self.handle;
        let told = || {
            if let Some(transcript) = &options.transcript {
                transcript.tell(Direction::Sent, bytes);
            }
        };
        let Err(Unsent { sent, error }) = self.handle.writer.send(stream, bytes, options.send_timeout, told) else {
            return Ok(());
        };
        if sent > 0 {
            let why = format!("a message of {} bytes was cut after {sent}: {error}", bytes.len());
            self.handle.close(CloseReason::Failed(why));
        }
        Err(match error.kind() {
            io::ErrorKind::TimedOut => Error::SendTimeout {
                bytes: bytes.len(),
                sent,
                after: options.send_timeout,
            },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                // Now the reader comes to its end, if it has not yet, and knows the reason.
                let _ = stream.shutdown(Shutdown::Both);
                Error::Closed(self.handle.inbox.wait_closed())
            }
            _ => Error::Io(error),
        })
    }

    /// Waits for the next reply that no [`Pending`] is for: to raw bytes, and refusals of event replies (id 1).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Closed`].
    pub fn next_unclaimed(&self, timeout: Duration) -> Result<Message, Error> {
        self.await_message("unclaimed reply", timeout, |state| state.unclaimed.pop_front())
    }

    /// A sequence number that no command of this session has.
    pub fn next_seq(&self) -> u32 {
        self.handle.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    /// How long waiting calls that name no time wait.
    pub fn timeout(&self) -> Duration {
        self.handle.options.timeout
    }

    /// Closes one or both directions of the socket. When what this side sends is closed, the reader goes on until the other
    /// side closes too; when what it receives is closed, nobody reads any more, and the connection ends.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.handle.stream.shutdown(how)
    }

    /// Closes the connection, whoever else holds a handle.
    pub fn close(&self) {
        self.handle.close(CloseReason::Local);
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

    /// Waits for the next event without end; `Err` is the reason why there is none.
    pub(crate) fn next_event_ever(&self) -> Result<Event, Error> {
        self.next_event_within(Duration::MAX)
    }

    /// Closes the connection for this reason, if there is none yet.
    pub(crate) fn close_for(&self, reason: CloseReason) {
        self.handle.close(reason);
    }

    fn parse_event(&self, message: Message) -> Result<Event, Error> {
        Event::parse(message, self).map_err(|error| {
            self.handle.close(CloseReason::Protocol(error));
            self.closed_error()
        })
    }

    /// The error that a closed connection gives.
    pub(crate) fn closed_error(&self) -> Error {
        Error::Closed(self.handle.inbox.wait_closed())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::GetVersion;

    #[test]
    fn nothing_waits_for_the_reply_to_what_was_not_sent() {
        let (tool, _silent) = UnixStream::pair().unwrap();
        let session = SessionOptions::new().send_timeout(Duration::ZERO).start(tool);
        let mut pending = Vec::new();
        let error = loop {
            match session.submit(GetVersion) {
                Ok(sent) => pending.push(sent),
                Err(error) => break error,
            }
        };
        assert!(error.is_timeout(), "{error}");
        assert_eq!(session.handle.inbox.lock().waiting.len(), pending.len());
    }
}

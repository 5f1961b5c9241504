// SPDX-License-Identifier: MIT OR Apache-2.0
//! The right to answer an event, once.

use std::ops::Deref;

use kvmi_uapi::event;

use crate::{CloseReason, Error, Event, EventKind, OpenEvent, Session, Unknown, message};

/// What an answer says behind the event's id: action and data.
pub(crate) type Encoded = (u8, Option<u64>);

/// Dropped, it answers as the guest would have had it, unless it is held.
#[derive(Debug)]
pub(crate) struct Ticket {
    session: Session,
    vcpu: u16,
    seq: u32,
    event: u16,
    unmodified: Encoded,
    to_be_answered: bool,
}

impl Ticket {
    pub(crate) fn new(session: &Session, vcpu: u16, seq: u32, event: u16, unmodified: Encoded) -> Self {
        Self {
            session: session.clone(),
            vcpu,
            seq,
            event,
            unmodified,
            to_be_answered: true,
        }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn answer(mut self, answer: Encoded) -> Result<(), Error> {
        self.to_be_answered = false;
        self.send(answer)
    }

    fn send(&self, (action, data): Encoded) -> Result<(), Error> {
        let data = data.map(u64::to_ne_bytes);
        let data = data.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        // Ids of events fit into the byte that the answer has for them.
        let bytes = message::encode_event_reply(self.vcpu, self.seq, self.event as u8, action, data);
        self.session.send_raw(&bytes).inspect_err(|error| {
            // The vCPU would stand still for as long as the connection is there.
            let why = format!("the answer to event {} was not sent: {error}", self.seq);
            self.session.close_for(CloseReason::Failed(why));
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.to_be_answered {
            // Where that fails the connection is closed, which lets the vCPU go as well.
            let _ = self.send(self.unmodified);
        }
    }
}

/// An event that nobody answers until [`Held::into_inner`] gives it back: its vCPU stands still. Dropping this leaves it so,
/// until the session ends.
#[must_use = "the vCPU stands still until the event is taken back and answered"]
#[derive(Debug)]
pub struct Held<T>(T);

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

macro_rules! held {
    ($( [$($generics:tt)*] $event:ty; )*) => { $(
        impl $($generics)* $event {
            /// Keeps the vCPU where it is: what is held is not answered when it is dropped.
            pub fn hold(mut self) -> Held<Self> {
                self.set_held(true);
                Held(self)
            }
        }

        impl $($generics)* Held<$event> {
            /// Gives the event back, to be answered now.
            pub fn into_inner(self) -> $event {
                let mut event = self.0;
                event.set_held(false);
                event
            }
        }
    )* };
}

held! {
    [<K: EventKind>] OpenEvent<K>;
    [] Unknown;
    [] Event;
}

impl<K: EventKind> OpenEvent<K> {
    pub(crate) fn set_held(&mut self, held: bool) {
        self.ticket.to_be_answered = !held;
    }
}

impl Unknown {
    pub(crate) fn set_held(&mut self, held: bool) {
        if let Some(ticket) = &mut self.ticket {
            ticket.to_be_answered = !held;
        }
    }

    /// Answers CONTINUE, without data; nothing for a VM event.
    ///
    /// # Errors
    /// As [`OpenEvent::reply`].
    pub fn proceed(self) -> Result<(), Error> {
        self.answer(event::CONTINUE)
    }

    /// Answers that the guest is to run no further instruction; nothing for a VM event.
    ///
    /// # Errors
    /// As [`OpenEvent::reply`].
    pub fn crash(self) -> Result<(), Error> {
        self.answer(event::CRASH)
    }

    fn answer(self, action: u8) -> Result<(), Error> {
        self.ticket.map_or(Ok(()), |ticket| ticket.answer((action, None)))
    }
}

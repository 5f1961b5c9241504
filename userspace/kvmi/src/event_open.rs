// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events that came, and the answers to them.

use kvmi_uapi::{
    EventHdr, VcpuEvent, VcpuEventArch,
    event::{self, Breakpoint, Cr, Descriptor, Msr, Pf, Singlestep, Trap, Xsetbv},
    msg,
};

use crate::{
    CloseReason, CreateVcpu, Error, EventKind, Hypercall, Message, Pause, ProtocolError, Session,
    reader::VCPU_EVENT_BYTES, ticket::Ticket, transcript::event_name,
};

/// A vCPU event that waits for its answer: the vCPU stands still until then, and commands to it work.
///
/// It is answered once: each answer consumes it. Dropping it, by a `?` or a panic too, answers as [`OpenEvent::proceed`]
/// does: CONTINUE, with the guest's own value for CR and MSR, so that everything is as without a tool. That holds for
/// each kind. For PF it means that the access is let through; for BREAKPOINT that the guest gets its #BP, which is right
/// for an INT3 of the guest's own and wrong for one that the tool has planted: those answer yourself, with
/// [`Decision::Retry`](crate::Decision::Retry). RETRY is nobody's default, for where nothing has changed the same event
/// follows at once. To keep the vCPU where it is: [`OpenEvent::hold`].
#[must_use = "dropped, the event is answered CONTINUE"]
#[derive(Debug)]
pub struct OpenEvent<K> {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Sequence number of the event.
    pub seq: u32,
    /// Registers of the vCPU as the event found them.
    pub arch: VcpuEventArch,
    /// What this kind of event carries.
    pub data: K,
    pub(crate) ticket: Ticket,
}

impl<K: EventKind> OpenEvent<K> {
    /// Answers.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::SendTimeout`] and [`Error::Io`], after which the connection is closed, for the vCPU would
    /// stand still for ever.
    pub fn reply(self, answer: K::Answer) -> Result<(), Error> {
        self.ticket.answer(K::encode(answer))
    }

    /// Answers that everything is to happen as without a tool.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn proceed(self) -> Result<(), Error> {
        let answer = self.data.unmodified();
        self.reply(answer)
    }

    /// Answers that the guest is to run no further instruction.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn crash(self) -> Result<(), Error> {
        self.reply(K::crash())
    }

    /// The session that it belongs to.
    pub fn session(&self) -> &Session {
        self.ticket.session()
    }
}

/// The VMM is about to unhook: undo what is to be undone and close the session. It has no answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Unhook {
    /// Sequence number of the event.
    pub seq: u32,
}

/// An event of a kind that this library does not know. Dropping it answers CONTINUE, without data.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unknown {
    /// Event id.
    pub id: u16,
    /// Index of the vCPU; `None` for a VM event.
    pub vcpu: Option<u16>,
    /// Sequence number of the event.
    pub seq: u32,
    /// Everything after the header.
    pub payload: Vec<u8>,
    pub(crate) ticket: Option<Ticket>,
}

/// An event. It is answered once, at the latest when it is dropped ([`OpenEvent`]):
///
/// ```compile_fail,E0382
/// # fn twice(event: kvmi::Event) -> Result<(), kvmi::Error> {
/// event.proceed()?;
/// event.proceed()
/// # }
/// ```
///
/// and there are no copies of it:
///
/// ```compile_fail,E0599
/// # fn copy(event: kvmi::Event) -> kvmi::Event {
/// event.clone()
/// # }
/// ```
#[must_use = "dropped, the event is answered CONTINUE"]
#[derive(Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is described where its data are")]
pub enum Event {
    Unhook(Unhook),
    Pause(OpenEvent<Pause>),
    Hypercall(OpenEvent<Hypercall>),
    Breakpoint(OpenEvent<Breakpoint>),
    Cr(OpenEvent<Cr>),
    Trap(OpenEvent<Trap>),
    Xsetbv(OpenEvent<Xsetbv>),
    Descriptor(OpenEvent<Descriptor>),
    Msr(OpenEvent<Msr>),
    Pf(OpenEvent<Pf>),
    Singlestep(OpenEvent<Singlestep>),
    CreateVcpu(OpenEvent<CreateVcpu>),
    Unknown(Unknown),
}

/// For each kind of vCPU event the same.
macro_rules! each {
    ($event:expr, $open:ident => $do:expr, unhook $unhook:ident => $do_unhook:expr, unknown $unknown:ident => $do_unknown:expr) => {
        match $event {
            Event::Pause($open) => $do,
            Event::Hypercall($open) => $do,
            Event::Breakpoint($open) => $do,
            Event::Cr($open) => $do,
            Event::Trap($open) => $do,
            Event::Xsetbv($open) => $do,
            Event::Descriptor($open) => $do,
            Event::Msr($open) => $do,
            Event::Pf($open) => $do,
            Event::Singlestep($open) => $do,
            Event::CreateVcpu($open) => $do,
            Event::Unhook($unhook) => $do_unhook,
            Event::Unknown($unknown) => $do_unknown,
        }
    };
}

fn id_of<K: EventKind>(_: &OpenEvent<K>) -> u16 {
    K::ID
}

impl Event {
    /// Event id.
    pub fn id(&self) -> u16 {
        each!(self, open => id_of(open), unhook _unhook => event::UNHOOK, unknown unknown => unknown.id)
    }

    /// Its name in the protocol; the number for an unknown one.
    pub fn name(&self) -> String {
        event_name(self.id())
    }

    /// Index of the vCPU; `None` for a VM event.
    pub fn vcpu(&self) -> Option<u16> {
        each!(self, open => Some(open.vcpu), unhook _unhook => None, unknown unknown => unknown.vcpu)
    }

    /// Sequence number.
    pub fn seq(&self) -> u32 {
        each!(self, open => open.seq, unhook unhook => unhook.seq, unknown unknown => unknown.seq)
    }

    /// Registers of the vCPU as the event found them; `None` for a VM event and an unknown one.
    pub fn arch(&self) -> Option<&VcpuEventArch> {
        each!(self, open => Some(&open.arch), unhook _unhook => None, unknown _unknown => None)
    }

    /// Answers that everything is to happen as without a tool; nothing for a VM event.
    ///
    /// # Errors
    /// As [`OpenEvent::reply`].
    pub fn proceed(self) -> Result<(), Error> {
        each!(self, open => open.proceed(), unhook _unhook => Ok(()),
            unknown unknown => unknown.proceed())
    }

    /// Answers that the guest is to run no further instruction; nothing for a VM event.
    ///
    /// # Errors
    /// As [`OpenEvent::reply`].
    pub fn crash(self) -> Result<(), Error> {
        each!(self, open => open.crash(), unhook _unhook => Ok(()), unknown unknown => unknown.crash())
    }

    pub(crate) fn set_held(&mut self, held: bool) {
        each!(self, open => open.set_held(held), unhook _unhook => (), unknown unknown => unknown.set_held(held));
    }

    /// The vCPU of an event that was not read yet.
    pub(crate) fn vcpu_of(message: &Message) -> Option<u16> {
        let vcpu: VcpuEvent = message.get(size_of::<EventHdr>()).ok()?;
        Some(vcpu.vcpu)
    }

    pub(crate) fn parse(message: Message, session: &Session) -> Result<Self, ProtocolError> {
        let event = message.get::<EventHdr>(0)?.event;
        Ok(match (message.hdr.id, event) {
            (msg::VM_EVENT, event::UNHOOK) => Self::Unhook(Unhook { seq: message.hdr.seq }),
            (msg::VCPU_EVENT, event::PAUSE) => Self::Pause(open(&message, session)?),
            (msg::VCPU_EVENT, event::HYPERCALL) => Self::Hypercall(open(&message, session)?),
            (msg::VCPU_EVENT, event::BREAKPOINT) => Self::Breakpoint(open(&message, session)?),
            (msg::VCPU_EVENT, event::CR) => Self::Cr(open(&message, session)?),
            (msg::VCPU_EVENT, event::TRAP) => Self::Trap(open(&message, session)?),
            (msg::VCPU_EVENT, event::XSETBV) => Self::Xsetbv(open(&message, session)?),
            (msg::VCPU_EVENT, event::DESCRIPTOR) => Self::Descriptor(open(&message, session)?),
            (msg::VCPU_EVENT, event::MSR) => Self::Msr(open(&message, session)?),
            (msg::VCPU_EVENT, event::PF) => Self::Pf(open(&message, session)?),
            (msg::VCPU_EVENT, event::SINGLESTEP) => Self::Singlestep(open(&message, session)?),
            (msg::VCPU_EVENT, event::CREATE_VCPU) => Self::CreateVcpu(open(&message, session)?),
            (scope, id) => {
                let seq = message.hdr.seq;
                let vcpu = (scope == msg::VCPU_EVENT).then(|| Self::vcpu_of(&message)).flatten();
                Self::Unknown(Unknown {
                    id,
                    vcpu,
                    seq,
                    payload: message.payload,
                    ticket: vcpu.map(|vcpu| Ticket::new(session, vcpu, seq, id, (event::CONTINUE, None))),
                })
            }
        })
    }
}

macro_rules! expectations {
    ($( $method:ident, $variant:ident, $data:ty, $name:literal; )*) => {
        /// For whoever knows what comes next.
        impl Event { $(
            /// The event, if it is of this kind.
            ///
            /// # Errors
            /// [`Error::UnexpectedEvent`]; the event is answered as a dropped one.
            pub fn $method(self) -> Result<$data, Error> {
                match self {
                    Self::$variant(event) => Ok(event),
                    other => Err(Error::UnexpectedEvent { expected: $name, got: other.name() }),
                }
            }
        )* }
    };
}

expectations! {
    unhook, Unhook, Unhook, "UNHOOK";
    pause, Pause, OpenEvent<Pause>, "PAUSE";
    hypercall, Hypercall, OpenEvent<Hypercall>, "HYPERCALL";
    breakpoint, Breakpoint, OpenEvent<Breakpoint>, "BREAKPOINT";
    cr, Cr, OpenEvent<Cr>, "CR";
    trap, Trap, OpenEvent<Trap>, "TRAP";
    xsetbv, Xsetbv, OpenEvent<Xsetbv>, "XSETBV";
    descriptor, Descriptor, OpenEvent<Descriptor>, "DESCRIPTOR";
    msr, Msr, OpenEvent<Msr>, "MSR";
    pf, Pf, OpenEvent<Pf>, "PF";
    singlestep, Singlestep, OpenEvent<Singlestep>, "SINGLESTEP";
    create_vcpu, CreateVcpu, OpenEvent<CreateVcpu>, "CREATE_VCPU";
}

/// Reads a vCPU event. Its data begin where its own size says, which a later kernel may have made larger.
fn open<K: EventKind>(message: &Message, session: &Session) -> Result<OpenEvent<K>, ProtocolError> {
    let vcpu: VcpuEvent = message.get(size_of::<EventHdr>())?;
    let at = size_of::<EventHdr>() + usize::from(vcpu.size);
    let data = message.payload.get(at.max(VCPU_EVENT_BYTES)..).and_then(K::parse);
    let short = ProtocolError::TooShort {
        id: message.hdr.id,
        got: message.payload.len(),
        needed: at + size_of::<K>(),
    };
    let data: K = data.ok_or(short)?;
    let unmodified = K::encode(data.unmodified());
    Ok(OpenEvent {
        vcpu: vcpu.vcpu,
        seq: message.hdr.seq,
        arch: vcpu.arch,
        data,
        ticket: Ticket::new(session, vcpu.vcpu, message.hdr.seq, K::ID, unmodified),
    })
}

/// Events as they come; made by [`Session::events`].
#[derive(Debug)]
pub struct Events<'a> {
    session: &'a Session,
    ended: bool,
}

impl<'a> Events<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session, ended: false }
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.session.next_event_ever();
        self.ended = next.is_err();
        match next {
            Err(Error::Closed(CloseReason::Local | CloseReason::Peer)) => None,
            other => Some(other),
        }
    }
}

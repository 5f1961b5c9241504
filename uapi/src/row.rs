// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What a row of the table of messages says, and the macros that read rows. How they are written: [`crate::table`].

use crate::{layout::Struct, msg};

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Message id.
    pub id: u16,
    /// Its name on docs/protocol.md.
    pub name: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
    /// What it sends, behind the vCPU header where it has one.
    pub request: Data,
    /// What a success answers, behind the error code.
    pub reply: Data,
    /// What comes of a message that is too short.
    pub short: Short,
    /// The event without whose permission it is refused before anything else is looked at.
    pub asks: Option<u16>,
    /// The extension level that brought it.
    pub since: u8,
}

/// The data of a message: a structure, and what follows it.
#[derive(Debug)]
pub struct Data {
    /// The structure.
    pub head: Option<&'static Struct>,
    /// What follows it.
    pub tail: Option<Tail>,
}

/// What follows a structure, or comes in place of one.
#[derive(Debug)]
pub struct Tail {
    /// Its name in C.
    pub name: &'static str,
    /// Of what it is made.
    pub unit: &'static Struct,
    /// Name of the request's field that says how many of these there are, a u16.
    pub count: &'static str,
    /// Where that field is in the request, in bytes.
    pub count_at: usize,
}

/// What comes of a message in which something is missing of what follows its structure, or of the structure where
/// nothing follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// It reads as zero.
    Zeroes,
    /// It is answered EINVAL.
    Refused,
    /// The connection closes.
    Closes,
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// Its id.
    pub id: u16,
    /// Its name on docs/protocol.md.
    pub name: &'static str,
    /// What it tells, in a line.
    pub doc: &'static str,
    /// What it carries, behind the state of the vCPU.
    pub data: Option<&'static Struct>,
    /// What its reply carries.
    pub reply: Option<&'static Struct>,
    /// Whether it may be answered RETRY.
    pub may_retry: bool,
    /// The extension level that brought it.
    pub since: u8,
}

impl Event {
    /// Whether VM_CONTROL_EVENTS switches it: there is no vCPU yet, or it is not about one.
    pub const fn is_switched_for_vm(&self) -> bool {
        matches!(self.id, crate::event::UNHOOK | crate::event::CREATE_VCPU)
    }

    /// Whether it is about a vCPU, and so has a reply.
    pub const fn is_vcpu(&self) -> bool {
        msg::is_vcpu(self.id)
    }
}

impl Data {
    /// Bytes of the structure.
    pub fn head_bytes(&self) -> usize {
        self.head.map_or(0, |head| head.size)
    }

    /// Bytes of the whole, for this request, of which what is missing reads as zero.
    pub fn bytes(&self, request: &[u8]) -> usize {
        let tail = self.tail.as_ref().map_or(0, |tail| tail.bytes(request));
        self.head_bytes().saturating_add(tail)
    }
}

impl Tail {
    /// How many there are, for this request.
    pub fn count(&self, request: &[u8]) -> u16 {
        let mut count = [0; 2];
        for (to, from) in count.iter_mut().zip(request.iter().skip(self.count_at)) {
            *to = *from;
        }
        u16::from_ne_bytes(count)
    }

    /// Bytes of them, for this request.
    pub fn bytes(&self, request: &[u8]) -> usize {
        usize::from(self.count(request)).saturating_mul(self.unit.size)
    }
}

impl Command {
    /// Whether it is about one vCPU: its payload then begins with a [`crate::VcpuHdr`].
    pub const fn is_vcpu(&self) -> bool {
        msg::is_vcpu(self.id)
    }

    /// Whether something is missing that [`Command::short`] is about, of a request without the vCPU header.
    pub fn is_short(&self, request: &[u8]) -> bool {
        let tail = self.request.tail.as_ref().map_or(0, |tail| tail.bytes(request));
        match (self.short, tail) {
            (Short::Zeroes, _) => false,
            // Nothing follows, so there is nothing to be missed.
            (_, 0) if self.request.tail.is_some() => false,
            _ => request.len() < self.request.head_bytes().saturating_add(tail),
        }
    }

    /// Whether all padding of a request's structure is zero, without the vCPU header.
    pub fn padding_is_zero(&self, request: &[u8]) -> bool {
        self.request.head.is_none_or(|head| head.padding_is_zero(request))
    }
}

macro_rules! commands {
    ($(
        $command:ident {
            $(
                $(#[doc = $doc:literal])*
                $id:literal $name:ident:
                    $request:ident $(+ $tail:ident: [$unit:ident; $count:ident])?
                    => $reply:ident $(+ $reply_tail:ident: [$reply_unit:ident; $reply_count:ident])?
                    $(, short $short:ident)? $(, asks $asks:ident)? $(, since $since:literal)?;
            )*
        }
    )*) => {
        /// Ids of commands.
        pub(crate) mod command_ids {
            $($( $(#[doc = $doc])* pub const $name: u16 = $id; )*)*

            /// Every command with its name.
            pub const COMMANDS: &[(u16, &str)] = &[$($( ($id, stringify!($name)), )*)*];
        }

        /// Every command.
        pub const COMMANDS: &[Command] = &[$($( Command {
            id: $id,
            name: stringify!($name),
            doc: concat!($($doc, "\n"),*),
            request: $crate::row::data!($request, $request $(+ $tail: [$unit; $count])?),
            reply: $crate::row::data!($request, $reply $(+ $reply_tail: [$reply_unit; $reply_count])?),
            short: $crate::row::short!($($short)?),
            asks: $crate::layout::optional!($(event_ids::$asks)?),
            since: 0 $(+ $since)?,
        }, )*)*];

        $(
            /// A command of this scope, by the name that the protocol gives it.
            #[allow(non_camel_case_types)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $command {
                $( $(#[doc = $doc])* $name, )*
            }

            impl $command {
                /// Every one of them.
                pub const ALL: &[Self] = &[$( Self::$name, )*];

                /// The command of this message id.
                pub const fn from_id(id: u16) -> Option<Self> {
                    match id {
                        $( $id => Some(Self::$name), )*
                        _ => None,
                    }
                }
            }
        )*
    };
}
pub(crate) use commands;

macro_rules! data {
    ($request:ident, $head:ident $(+ $tail:ident: [$unit:ident; $count:ident])?) => {
        $crate::row::Data {
            head: $crate::row::head!($head),
            tail: $crate::layout::optional!($( $crate::row::Tail {
                name: stringify!($tail),
                unit: <$unit as $crate::layout::HasLayout>::LAYOUT,
                count: stringify!($count),
                count_at: core::mem::offset_of!($request, $count),
            } )?),
        }
    };
}
pub(crate) use data;

macro_rules! head {
    (none) => {
        None
    };
    ($head:ident) => {
        Some(<$head as $crate::layout::HasLayout>::LAYOUT)
    };
}
pub(crate) use head;

macro_rules! short {
    () => {
        $crate::row::Short::Zeroes
    };
    (REFUSED) => {
        $crate::row::Short::Refused
    };
    (CLOSES) => {
        $crate::row::Short::Closes
    };
}
pub(crate) use short;

macro_rules! events {
    ($(
        $(#[doc = $doc:literal])*
        $id:literal $name:ident: $data:ident => $reply:ident $(, or $retry:ident)? $(, since $since:literal)?;
    )*) => {
        /// Ids of events.
        pub(crate) mod event_ids {
            $( $(#[doc = $doc])* pub const $name: u16 = $id; )*

            /// Every event with its name.
            pub const ALL: &[(u16, &str)] = &[$( ($id, stringify!($name)), )*];
        }

        /// Every event.
        pub const EVENTS: &[Event] = &[$( Event {
            id: $id,
            name: stringify!($name),
            doc: concat!($($doc, "\n"),*),
            data: $crate::row::head!($data),
            reply: $crate::row::head!($reply),
            may_retry: $crate::row::retry!($($retry)?),
            since: 0 $(+ $since)?,
        }, )*];
    };
}
pub(crate) use events;

macro_rules! retry {
    () => {
        false
    };
    (RETRY) => {
        true
    };
}
pub(crate) use retry;

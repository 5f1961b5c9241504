// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each kind of vCPU event carries and how it may be answered.

use std::fmt::Debug;

use kvmi_uapi::event::{self, Breakpoint, Cr, Descriptor, Msr, Pf, Singlestep, Trap, Xsetbv};
use zerocopy::FromBytes;

/// Answer to an event that the tool only takes notice of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// The guest goes on.
    Continue,
    /// The guest runs no further instruction.
    Crash,
}

/// Answer to an event whose occurrence can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It happens: the guest gets its #BP, the access is let through.
    Continue,
    /// The guest is entered again at its RIP: the tool has changed what leads there.
    Retry,
    /// The guest runs no further instruction.
    Crash,
}

/// Answer to the write of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteDecision {
    /// The register gets this value, validated as if the guest wrote it.
    Continue(u64),
    /// The guest runs no further instruction.
    Crash,
}

/// Data of PAUSE: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause;

/// Data of HYPERCALL: none; arguments are in the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hypercall;

/// Data of CREATE_VCPU: none; which vCPU it is, the event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateVcpu;

mod sealed {
    pub trait Sealed {}
}

/// A kind of vCPU event.
pub trait EventKind: sealed::Sealed + Copy + Debug + Sized {
    /// Event id.
    const ID: u16;
    /// What may be answered.
    type Answer: Copy + Debug;

    /// Reads the event's data; `None` when there are too few.
    fn parse(data: &[u8]) -> Option<Self>;

    /// The answer that leaves everything as without a tool.
    fn unmodified(&self) -> Self::Answer;

    /// The answer that ends the guest.
    fn crash() -> Self::Answer;

    /// Action and reply data.
    fn encode(answer: Self::Answer) -> (u8, Option<u64>);
}

macro_rules! kinds {
    ($( $kind:ty, $id:expr, $answer:ident, $parse:expr, $unmodified:expr; )*) => { $(
        impl sealed::Sealed for $kind {}

        impl EventKind for $kind {
            const ID: u16 = $id;
            type Answer = $answer;

            fn parse(data: &[u8]) -> Option<Self> {
                $parse(data)
            }

            fn unmodified(&self) -> $answer {
                $unmodified(self)
            }

            fn crash() -> $answer {
                $answer::Crash
            }

            fn encode(answer: $answer) -> (u8, Option<u64>) {
                answer.encode()
            }
        }
    )* };
}

kinds! {
    Pause, event::PAUSE, Acknowledge, |_: &[u8]| Some(Pause), |_: &Self| Acknowledge::Continue;
    Hypercall, event::HYPERCALL, Acknowledge, |_: &[u8]| Some(Hypercall), |_: &Self| Acknowledge::Continue;
    Breakpoint, event::BREAKPOINT, Decision, prefix, |_: &Self| Decision::Continue;
    Cr, event::CR, WriteDecision, prefix, |cr: &Self| WriteDecision::Continue(cr.new_value);
    Trap, event::TRAP, Acknowledge, prefix, |_: &Self| Acknowledge::Continue;
    Xsetbv, event::XSETBV, Acknowledge, prefix, |_: &Self| Acknowledge::Continue;
    Descriptor, event::DESCRIPTOR, Decision, prefix, |_: &Self| Decision::Continue;
    Msr, event::MSR, WriteDecision, prefix, |msr: &Self| WriteDecision::Continue(msr.new_value);
    Pf, event::PF, Decision, prefix, |_: &Self| Decision::Continue;
    Singlestep, event::SINGLESTEP, Acknowledge, prefix, |_: &Self| Acknowledge::Continue;
    CreateVcpu, event::CREATE_VCPU, Acknowledge, |_: &[u8]| Some(CreateVcpu), |_: &Self| Acknowledge::Continue;
}

fn prefix<T: FromBytes>(data: &[u8]) -> Option<T> {
    T::read_from_prefix(data).ok().map(|(value, _)| value)
}

impl Acknowledge {
    fn encode(self) -> (u8, Option<u64>) {
        match self {
            Self::Continue => (event::CONTINUE, None),
            Self::Crash => (event::CRASH, None),
        }
    }
}

impl Decision {
    fn encode(self) -> (u8, Option<u64>) {
        match self {
            Self::Continue => (event::CONTINUE, None),
            Self::Retry => (event::RETRY, None),
            Self::Crash => (event::CRASH, None),
        }
    }
}

impl WriteDecision {
    fn encode(self) -> (u8, Option<u64>) {
        match self {
            Self::Continue(value) => (event::CONTINUE, Some(value)),
            Self::Crash => (event::CRASH, None),
        }
    }
}

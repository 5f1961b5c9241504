// SPDX-License-Identifier: GPL-2.0-only
//! What may happen, at random: each step means something whatever came before, so that a failing stream stays one when
//! steps are taken out of it.

use kvmi_core::Occurrence;
use kvmi_uapi::event;
use proptest::{collection::vec, prelude::*, strategy::Union};

use crate::{
    commands::Command,
    events::EVENTS,
    spec::{MAX_VCPUS, STOPPED},
};

/// Where each vCPU's RIP stands.
pub(crate) const RIP: u64 = 0x1000;

/// What core and reference get. A vCPU is one that there is.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// From the tool.
    Message(Vec<u8>),
    HangUp,
    /// The guest runs into this, if it runs.
    Guest {
        vcpu: usize,
        what: Occurrence,
    },
    /// The vCPU's thread, inside KVM_RUN, does one thing.
    Turn {
        vcpu: usize,
        signal: Signal,
        again: Again,
    },
    /// The VMM writes the vCPU's registers.
    WriteRegisters {
        vcpu: usize,
    },
    /// KVM_SET_MP_STATE, which is such a write too.
    Initialise {
        vcpu: usize,
        is_up: bool,
    },
    /// KVM_SET_GUEST_DEBUG with software breakpoints and single-step.
    Debug {
        vcpu: usize,
        on: bool,
    },
    Hook {
        flags: u32,
    },
    Unhook,
    Preunhook,
    AllowCommand {
        allow: u32,
        id: i32,
    },
    AllowEvent {
        allow: u32,
        id: i32,
    },
    CreateVcpu,
    /// The VM ends, with its session, and another begins.
    NewVm {
        vcpus: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Signal {
    None,
    /// Before anything is done.
    Before,
    /// While it would send something.
    AtSend,
}

/// What an exit handler comes upon when it is called again.
#[derive(Clone, Debug)]
pub(crate) enum Again {
    Same,
    Nothing,
    Twice,
    /// Something else first: registers or memory have changed.
    Other(Occurrence),
}

impl Again {
    pub(crate) fn told(&self, exit: &Occurrence) -> Vec<Occurrence> {
        match self {
            Self::Same => vec![*exit],
            Self::Nothing => Vec::new(),
            Self::Twice => vec![*exit, *exit],
            Self::Other(what) => vec![*what, *exit],
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Do(Input),
    Command {
        id: u16,
        vcpu: u16,
        request: Vec<u8>,
        flaw: Flaw,
    },
    /// A message of an id that no row has, unless it has.
    Unknown {
        id: u16,
        payload: Vec<u8>,
    },
    Reply {
        vcpu: u16,
        to: To,
        action: u8,
        data: Vec<u8>,
        flaw: ReplyFlaw,
    },
    /// The vCPU's thread does so many things.
    Run {
        vcpu: u16,
        turns: usize,
    },
    /// A VMM whose tool is gone begins anew; it allows everything, and the new tool wants every event.
    Restart {
        flags: u32,
        allow: bool,
        watch: bool,
    },
    Flood {
        vcpu: u16,
        what: Flood,
    },
}

/// What is wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flaw {
    None,
    /// Not zero in one of its places.
    Padding(usize),
    /// So many bytes of the request.
    Short(usize),
    /// So many bytes more.
    Long(usize),
    HeaderPadding(usize),
    NoVcpu(u16),
    Oversized,
}

/// Which event a reply is to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    /// The first one that is not answered.
    Due,
    Newest,
    /// The last one that was answered.
    Again,
    /// So far before or behind the last one.
    Beside(i32),
}

/// What is wrong with an event reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ReplyFlaw {
    None,
    Padding(usize),
    /// So many bytes of payload.
    Short(usize),
    HeaderPadding(usize),
    NoVcpu(u16),
    /// That of another vCPU.
    OtherVcpu(u16),
    Event(u8),
    TooMuchData(usize),
    Action(u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Flood {
    Commands,
    Bytes,
    Replies,
    Pauses,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1700 => turn(),
        1700 => (0..MAX_VCPUS as u16, 2usize..9).prop_map(|(vcpu, turns)| Step::Run { vcpu, turns }),
        2600 => command(),
        1800 => reply(),
        1400 => (0..MAX_VCPUS, happening()).prop_map(|(vcpu, what)| Step::Do(Input::Guest { vcpu, what })),
        800 => (hook_flags(), 0u8..8).prop_map(|(flags, zeal)| Step::Restart { flags, allow: zeal > 0, watch: zeal > 2 }),
        500 => vmm().prop_map(Step::Do),
        200 => (prop_oneof![0u16..40, any::<u16>()], vec(any::<u8>(), 0..20))
            .prop_map(|(id, payload)| Step::Unknown { id, payload }),
        15 => Just(Step::Do(Input::HangUp)),
        4 => flood(),
    ]
}

fn turn() -> impl Strategy<Value = Step> {
    let signal = prop_oneof![10 => Just(Signal::None), 1 => Just(Signal::Before), 1 => Just(Signal::AtSend)];
    let again = prop_oneof![
        10 => Just(Again::Same),
        1 => Just(Again::Nothing),
        1 => Just(Again::Twice),
        1 => happening().prop_map(Again::Other),
    ];
    (0..MAX_VCPUS, signal, again).prop_map(|(vcpu, signal, again)| Step::Do(Input::Turn { vcpu, signal, again }))
}

fn happening() -> impl Strategy<Value = Occurrence> {
    Union::new(EVENTS.iter().filter_map(|row| (row.happens)()))
}

fn command() -> impl Strategy<Value = Step> {
    let rows = Command::all().map(|command| {
        let id = command.id;
        let step = (0..MAX_VCPUS as u16, (command.request)(), flaw());
        let step = step.prop_map(move |(vcpu, mut request, flaw)| {
            request.resize(request.len().max(command.bytes), 0);
            Step::Command {
                id,
                vcpu,
                request,
                flaw,
            }
        });
        (command.weight, step.boxed())
    });
    Union::new_weighted(rows.collect())
}

fn flaw() -> impl Strategy<Value = Flaw> {
    prop_oneof![
        140 => Just(Flaw::None),
        20 => (0usize..8).prop_map(Flaw::Padding),
        10 => (0usize..24).prop_map(Flaw::Short),
        20 => (1usize..9).prop_map(Flaw::Long),
        5 => (0usize..6).prop_map(Flaw::HeaderPadding),
        5 => prop_oneof![Just(0u16), any::<u16>()].prop_map(Flaw::NoVcpu),
        1 => Just(Flaw::Oversized),
    ]
}

fn reply() -> impl Strategy<Value = Step> {
    let to = prop_oneof![
        180 => Just(To::Due),
        4 => Just(To::Newest),
        2 => Just(To::Again),
        1 => (-3i32..4).prop_map(To::Beside),
    ];
    let action = prop_oneof![12 => Just(event::CONTINUE), 5 => Just(event::RETRY), 1 => Just(event::CRASH)];
    let flaw = prop_oneof![
        180 => Just(ReplyFlaw::None),
        6 => (0usize..6).prop_map(ReplyFlaw::HeaderPadding),
        6 => prop_oneof![Just(0u16), any::<u16>()].prop_map(ReplyFlaw::NoVcpu),
        1 => (0usize..6).prop_map(ReplyFlaw::Padding),
        1 => (0usize..16).prop_map(ReplyFlaw::Short),
        1 => (0..MAX_VCPUS as u16).prop_map(ReplyFlaw::OtherVcpu),
        1 => prop_oneof![0u8..22, any::<u8>()].prop_map(ReplyFlaw::Event),
        1 => prop_oneof![1usize..9, 40usize..80].prop_map(ReplyFlaw::TooMuchData),
        1 => prop_oneof![1u8..5, any::<u8>()].prop_map(ReplyFlaw::Action),
    ];
    (0..MAX_VCPUS as u16, to, action, vec(0u8..9, 0..=8), flaw).prop_map(|(vcpu, to, action, data, flaw)| Step::Reply {
        vcpu,
        to,
        action,
        data,
        flaw,
    })
}

fn hook_flags() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0u32), 4 => 1u32..4]
}

/// What a VMM does of its own accord.
fn vmm() -> impl Strategy<Value = Input> {
    let vcpu = 0..MAX_VCPUS;
    let allow = prop_oneof![
        4 => (Just(1u32), Just(-1)),
        1 => (Just(0u32), Just(i32::from(event::PAUSE))),
        1 => (Just(0u32), Just(i32::from(event::TRAP))),
        1 => (0u32..3, Just(-1)),
        6 => (0u32..2, 0i32..32),
        1 => (0u32..3, -2i32..260),
        1 => (any::<u32>(), any::<i32>()),
    ];
    prop_oneof![
        8 => vcpu.clone().prop_map(|vcpu| Input::WriteRegisters { vcpu }),
        4 => (vcpu.clone(), prop::bool::weighted(0.7)).prop_map(|(vcpu, is_up)| Input::Initialise { vcpu, is_up }),
        4 => (vcpu, any::<bool>()).prop_map(|(vcpu, on)| Input::Debug { vcpu, on }),
        3 => Just(Input::Preunhook),
        2 => Just(Input::Unhook),
        4 => prop_oneof![6 => hook_flags(), 1 => any::<u32>()].prop_map(|flags| Input::Hook { flags: flags & !STOPPED }),
        6 => allow.clone().prop_map(|(allow, id)| Input::AllowCommand { allow, id }),
        6 => allow.prop_map(|(allow, id)| Input::AllowEvent { allow, id }),
        2 => Just(Input::CreateVcpu),
        1 => (1..MAX_VCPUS).prop_map(|vcpus| Input::NewVm { vcpus }),
    ]
}

fn flood() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        Just(Flood::Commands),
        Just(Flood::Bytes),
        Just(Flood::Replies),
        Just(Flood::Pauses)
    ];
    (0..MAX_VCPUS as u16, what).prop_map(|(vcpu, what)| Step::Flood { vcpu, what })
}

impl Input {
    pub(crate) fn with_vcpu_below(mut self, vcpus: usize) -> Self {
        if let Some(vcpu) = self.vcpu_mut() {
            *vcpu %= vcpus;
        }
        self
    }

    /// Whether it is about a vCPU that there is, or about none.
    pub(crate) fn is_about_one_of(&self, vcpus: usize) -> bool {
        self.clone().vcpu_mut().is_none_or(|vcpu| *vcpu < vcpus)
    }

    fn vcpu_mut(&mut self) -> Option<&mut usize> {
        match self {
            Self::Guest { vcpu, .. }
            | Self::Turn { vcpu, .. }
            | Self::WriteRegisters { vcpu }
            | Self::Initialise { vcpu, .. }
            | Self::Debug { vcpu, .. } => Some(vcpu),
            _ => None,
        }
    }
}

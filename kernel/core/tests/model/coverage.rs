// SPDX-License-Identifier: GPL-2.0-only
//! What has occurred, and what has to: steps that never reach a case prove nothing about it.

use std::{collections::BTreeMap, fmt};

use kvmi_core::Occurrence;
use kvmi_uapi::{
    error::{EAGAIN, EBUSY, EINVAL, ENOSYS, EPERM},
    event,
};

use crate::{
    commands::{Command, Run},
    events::{EVENTS, Event},
    spec::{EEXIST, EFAULT, ENOENT, QUERIES},
};

/// A class of outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// By dispatch (3.5): a command's name and the error.
    Refused(&'static str, i32),
    /// By what carries the command out.
    Answered(&'static str, i32),
    QueueFull(&'static str),
    Closed(Closing),
    /// What became of an event.
    Event(&'static str, Fate),
    Ioctl(&'static str, i32),
    LateReply,
    /// The tool's registers took effect.
    RegistersSet,
    /// The tool moved RIP.
    TookOver,
    /// The handler that was called again came upon something else.
    AnotherAtCompletion,
    AnswerInterrupted,
    CarriedOutAfterLoss,
    CommandWhenCrashed,
    CrashedByLoss,
    PausesForbidden,
    /// An exception that was accepted came to be delivered without its event.
    TrapForbidden,
    /// An exception went with the event in which it was asked for.
    InjectionDropped,
    CreatedWhileHooked,
    ReplacedFailClosed,
}

/// Why a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closing {
    HungUp,
    Oversized,
    ShortWrite,
    TooManyReplies,
    ShortReply,
    ReplyPadding,
    WrongSeq,
    WrongEvent,
    TooMuchData,
    IllegalAction,
}

const CLOSINGS: [Closing; 10] = [
    Closing::HungUp,
    Closing::Oversized,
    Closing::ShortWrite,
    Closing::TooManyReplies,
    Closing::ShortReply,
    Closing::ReplyPadding,
    Closing::WrongSeq,
    Closing::WrongEvent,
    Closing::TooMuchData,
    Closing::IllegalAction,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// Nobody was told.
    Stock,
    Sent,
    Continue,
    Retry,
    Crash,
    /// The VMM wrote registers before it was sent, while it was open, before the answer was used.
    VoidDue,
    VoidOpen,
    VoidAnswered,
    /// The VMM wrote registers, and it belongs to no instruction.
    Outlasted,
    /// The tool did not want it any more when it was to be sent.
    SwitchedOff,
    FailedOpen,
    StoppedAtLoss,
    CrashedAtLoss,
    /// The session ended.
    Undecided,
}

#[derive(Debug, Default)]
pub(crate) struct Coverage(BTreeMap<Seen, u64>);

impl Coverage {
    pub(crate) fn add(&mut self, seen: Seen) {
        *self.0.entry(seen).or_default() += 1;
    }

    pub(crate) fn fate(&mut self, what: &Occurrence, fate: Fate) {
        self.add(Seen::Event(Event::of(what).name, fate));
    }

    /// In a line.
    pub(crate) fn summary(&self) -> String {
        match self.0.iter().min_by_key(|(_, times)| **times) {
            Some((rarest, times)) => format!("{} outcomes; {rarest:?} was the rarest, {times} times", self.0.len()),
            None => "nothing occurred".to_owned(),
        }
    }

    /// What should have occurred and did not.
    pub(crate) fn missing(&self) -> Vec<Seen> {
        expected()
            .into_iter()
            .filter(|seen| !self.0.contains_key(seen))
            .collect()
    }

    /// Errors of commands that their rows do not list.
    pub(crate) fn unlisted(&self) -> Vec<Seen> {
        let answers = self.0.keys().filter(|seen| matches!(seen, Seen::Answered(..)));
        answers.filter(|seen| !expected().contains(seen)).copied().collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (seen, times) in &self.0 {
            writeln!(f, "{times:>9} {seen:?}")?;
        }
        Ok(())
    }
}

/// Each class that has to occur.
fn expected() -> Vec<Seen> {
    let mut all = vec![
        Seen::Refused("unknown", ENOSYS),
        Seen::Refused("event reply", EINVAL),
        Seen::Refused("event reply", EAGAIN),
        Seen::Refused("", EBUSY),
        Seen::QueueFull("commands"),
        Seen::QueueFull("bytes"),
        Seen::LateReply,
        Seen::RegistersSet,
        Seen::TookOver,
        Seen::AnotherAtCompletion,
        Seen::AnswerInterrupted,
        Seen::CarriedOutAfterLoss,
        Seen::CommandWhenCrashed,
        Seen::CrashedByLoss,
        Seen::PausesForbidden,
        Seen::TrapForbidden,
        Seen::InjectionDropped,
        Seen::CreatedWhileHooked,
        Seen::ReplacedFailClosed,
    ];
    for command in Command::all() {
        all.push(Seen::Answered(command.name, 0));
        all.extend(command.errors.iter().map(|err| Seen::Answered(command.name, *err)));
        if !QUERIES.contains(&command.id) {
            all.push(Seen::Refused(command.name, EPERM));
        }
        if let Run::Vcpu(_) = command.run {
            all.extend([EINVAL, EAGAIN].map(|err| Seen::Refused(command.name, err)));
        }
    }
    for row in EVENTS {
        let mut fates = vec![
            Fate::Sent,
            Fate::Continue,
            Fate::Crash,
            Fate::VoidAnswered,
            Fate::FailedOpen,
            Fate::StoppedAtLoss,
            Fate::CrashedAtLoss,
            Fate::Undecided,
        ];
        fates.extend(row.retry.then_some(Fate::Retry));
        fates.extend(match row.id {
            event::SINGLESTEP => &[Fate::Stock, Fate::Outlasted, Fate::SwitchedOff][..],
            _ if row.of_instruction => &[Fate::Stock, Fate::VoidDue, Fate::VoidOpen, Fate::SwitchedOff],
            _ => &[Fate::Outlasted],
        });
        all.extend(fates.into_iter().map(|fate| Seen::Event(row.name, fate)));
    }
    all.extend(CLOSINGS.map(Seen::Closed));
    for (ioctl, answers) in [
        ("HOOK", &[0, EINVAL, EEXIST][..]),
        ("UNHOOK", &[0]),
        ("PREUNHOOK", &[0, EFAULT, ENOENT]),
        ("COMMAND", &[0, EINVAL, EFAULT, EPERM]),
        ("EVENT", &[0, EINVAL, EFAULT]),
        ("SET_GUEST_DEBUG", &[0, EBUSY]),
    ] {
        all.extend(answers.iter().map(|r| Seen::Ioctl(ioctl, *r)));
    }
    all
}

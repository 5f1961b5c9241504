// SPDX-License-Identifier: GPL-2.0-only
//! 3.7 and 5: what happens in the guest, and what the vCPU's thread does about it and about its queue, one thing at a time:
//! between two of them anything may happen.

use kvmi_core::{Occurrence, Site};
use kvmi_uapi::{event, msg};

use super::{OF_VM, Session, Spec, Stage, dispatch::is_reply};
use crate::{
    commands::{Command, Request, Run},
    coverage::{Closing, Fate, Seen},
    events::Event,
    fake::message,
    steps::{Again, RIP, Signal},
    view::{Outcome, Turn},
};

/// Void events whose reply is still to come: how many, and between which numbers (7).
#[derive(Default)]
pub(super) struct Late {
    count: usize,
    first: u32,
    last: u32,
}

impl Spec {
    /// Whether the tool is to be told.
    pub(super) fn wants(&self, vcpu: usize, what: &Occurrence) -> bool {
        let row = Event::of(what);
        self.session.as_ref().is_some_and(|session| {
            let is_on = !OF_VM.contains(&row.id) || session.tells(row.id);
            is_on && session.events.contains(&row.id) && (row.enabled)(&session.vcpus[vcpu].switches, what)
        })
    }

    pub(super) fn guest(&mut self, vcpu: usize, what: &Occurrence) -> Outcome {
        if !self.cpus[vcpu].in_guest {
            return Outcome::Nothing;
        }
        Outcome::Site(self.happen(vcpu, what))
    }

    fn happen(&mut self, vcpu: usize, what: &Occurrence) -> Site {
        if self.session.as_ref().is_some_and(Session::fails_open) && !self.answered(vcpu) || !self.wants(vcpu, what) {
            self.seen.fate(what, Fate::Stock);
            return Site::Pass;
        }
        self.cpus[vcpu].exit = Some(*what);
        self.cpus[vcpu].in_guest = false;
        let vcpu = self.vcpu(vcpu);
        vcpu.registers = None;
        vcpu.stage = Stage::Due(*what);
        Site::Defer
    }

    fn answered(&self, vcpu: usize) -> bool {
        matches!(&self.session, Some(session) if matches!(session.vcpus[vcpu].stage, Stage::Answered { .. }))
    }

    /// The VMM writes registers. A PAUSE or TRAP belongs to no instruction, a SINGLESTEP to one that has ended (7). An exception that
    /// waits is dropped (4.2).
    pub(super) fn void(&mut self, index: usize) -> Outcome {
        self.cpus[index].in_guest = false;
        let Some(session) = &mut self.session else {
            return Outcome::Nothing;
        };
        let vcpu = &mut session.vcpus[index];
        if vcpu.injection.take().is_some() {
            self.seen.add(Seen::InjectionDropped);
        }
        match vcpu.stage {
            Stage::Crashed => return Outcome::Nothing,
            Stage::Due(what) | Stage::Open { what, .. } if !Event::of(&what).of_instruction => {
                vcpu.registers = None;
                self.seen.fate(&what, Fate::Outlasted);
                return Outcome::Nothing;
            }
            Stage::Open { seq, what } => {
                vcpu.late.add(seq);
                self.seen.fate(&what, Fate::VoidOpen);
            }
            Stage::Due(what) => self.seen.fate(&what, Fate::VoidDue),
            Stage::Answered { what, .. } => self.seen.fate(&what, Fate::VoidAnswered),
            Stage::None => {}
        }
        vcpu.registers = None;
        vcpu.stage = Stage::None;
        self.cpus[index].exit = None;
        Outcome::Nothing
    }

    pub(super) fn turn(&mut self, index: usize, signal: Signal, again: &Again) -> Turn {
        self.cpus[index].in_guest = false;
        // What the tool has sent before it went is carried out (2.3).
        if let Some(session) = &mut self.session
            && session.lost
            && session.vcpus[index].queue.is_empty()
        {
            self.notice_loss(index);
        }
        if signal == Signal::Before {
            return Turn::Interrupted;
        }
        // What was sent after a reply finds done what KVM does for it (3.3).
        if self.answered(index)
            && let Some(what) = self.vcpu(index).stage.of()
        {
            return self.complete(index, &what, again);
        }
        if self.session.is_some() {
            if let Some(answer) = self.vcpu(index).unsent.take()
                && self.is_connected()
            {
                return self.send_answer(index, answer, signal);
            }
            if let Some(bytes) = self.vcpu(index).queue.pop_front() {
                return self.take_message(index, &bytes, signal);
            }
        }
        let Some(session) = &mut self.session else {
            return self.enter(index);
        };
        match session.vcpus[index].stage.clone() {
            Stage::Crashed => Turn::Shutdown,
            Stage::Answered { .. } => unreachable!("it is completed first"),
            Stage::Due(what) if session.lost => {
                self.seen.fate(&what, Fate::StoppedAtLoss);
                Turn::Waits
            }
            Stage::Due(_) if signal == Signal::AtSend => Turn::Interrupted,
            Stage::Due(what) => self.send_event(index, what),
            Stage::Open { .. } => Turn::Waits,
            Stage::None if std::mem::take(&mut session.vcpus[index].is_new) => self.first_turn(index, signal, again),
            Stage::None if !session.lost && session.vcpus[index].injection.is_some() => self.inject(index, again),
            Stage::None if session.vcpus[index].pauses == 0 => self.enter(index),
            Stage::None if session.events.contains(&event::PAUSE) => {
                session.vcpus[index].pauses -= 1;
                session.vcpus[index].registers = None;
                session.vcpus[index].stage = Stage::Due(Occurrence::Pause);
                Turn::PauseIsDue
            }
            Stage::None => {
                session.vcpus[index].pauses = 0;
                self.seen.add(Seen::PausesForbidden);
                self.enter(index)
            }
        }
    }

    /// The VMM created the vCPU in this session.
    fn first_turn(&mut self, index: usize, signal: Signal, again: &Again) -> Turn {
        let session = self.hooked();
        if session.lost || !session.tells(event::CREATE_VCPU) {
            return self.turn(index, signal, again);
        }
        session.vcpus[index].registers = None;
        session.vcpus[index].stage = Stage::Due(Occurrence::CreateVcpu);
        Turn::CreationIsDue
    }

    /// The exception is KVM's from now on, told of or not.
    fn inject(&mut self, index: usize, again: &Again) -> Turn {
        let is_allowed = self.hooked().events.contains(&event::TRAP);
        let vcpu = self.vcpu(index);
        let trap = vcpu.injection.take().expect("an exception waits");
        if !is_allowed {
            self.seen.add(Seen::TrapForbidden);
            return self.turn(index, Signal::None, again);
        }
        vcpu.registers = None;
        vcpu.stage = Stage::Due(trap);
        Turn::TrapIsDue
    }

    fn enter(&mut self, index: usize) -> Turn {
        self.cpus[index].in_guest = true;
        self.cpus[index].exit = None;
        Turn::Entered
    }

    /// As the flags of HOOK say.
    fn notice_loss(&mut self, index: usize) {
        let session = self.session.as_mut().expect("there is a session");
        let (crashes, opens) = (session.crashes(), session.fails_open());
        let vcpu = &mut session.vcpus[index];
        vcpu.unsent = None;
        if crashes || opens {
            vcpu.injection = None;
        }
        match vcpu.stage {
            Stage::Crashed => {}
            _ if crashes => {
                if let Some(what) = vcpu.stage.of() {
                    self.seen.fate(&what, Fate::CrashedAtLoss);
                }
                self.seen.add(Seen::CrashedByLoss);
                vcpu.registers = None;
                vcpu.stage = Stage::Crashed;
            }
            Stage::Due(what) | Stage::Open { what, .. } if opens => {
                self.seen.fate(&what, Fate::FailedOpen);
                vcpu.registers = None;
                vcpu.stage = Stage::Answered {
                    what,
                    retry: false,
                    value: None,
                    used: false,
                };
            }
            Stage::Open { what, .. } => self.seen.fate(&what, Fate::StoppedAtLoss),
            _ => {}
        }
    }

    fn send_answer(&mut self, index: usize, answer: Vec<u8>, signal: Signal) -> Turn {
        if !self.is_connected() {
            self.seen.add(Seen::CarriedOutAfterLoss);
            return Turn::NobodyHears;
        }
        if signal == Signal::AtSend {
            self.vcpu(index).unsent = Some(answer);
            self.seen.add(Seen::AnswerInterrupted);
            return Turn::Interrupted;
        }
        self.sent.push(answer);
        Turn::Answered
    }

    fn take_message(&mut self, index: usize, bytes: &[u8], signal: Signal) -> Turn {
        if is_reply(bytes) {
            return self.take_reply(index, bytes);
        }
        let command = Command::by_id(u16::from_le_bytes([bytes[0], bytes[1]])).expect("it was queued");
        let Run::Vcpu(run) = command.run else {
            unreachable!("VM commands are not queued")
        };
        if matches!(self.vcpu(index).stage, Stage::Crashed) {
            self.seen.add(Seen::CommandWhenCrashed);
        }
        let before = self.switches(index).clone();
        self.carry_out(bytes, 16, |spec, request| run(spec, index, request));
        if *self.switches(index) != before {
            self.switched(index);
        }
        let answer = self.sent.pop().expect("vCPU commands are answered");
        self.send_answer(index, answer, signal)
    }

    /// The tool asked for something else than before. Intercepts that an earlier session left end here (4.1).
    fn switched(&mut self, index: usize) {
        let vcpu = &mut self.session.as_mut().expect("there is a session").vcpus[index];
        self.cpus[index].intercepts = vcpu.switches.intercepts();
        if let Stage::Due(what) = vcpu.stage
            && !(Event::of(&what).enabled)(&vcpu.switches, &what)
        {
            vcpu.stage = Stage::None;
            self.cpus[index].exit = None;
            self.seen.fate(&what, Fate::SwitchedOff);
        }
    }

    /// 3.7, in its order.
    fn take_reply(&mut self, index: usize, bytes: &[u8]) -> Turn {
        let reply = Request {
            bytes: &bytes[8..],
            pads: &[10, 11, 12, 13, 14, 15],
        };
        let vcpu = self.vcpu(index);
        vcpu.unanswered -= usize::from(vcpu.unanswered > 0);
        if reply.bytes.len() < 16 {
            return self.hang_up(Closing::ShortReply);
        }
        if reply.has_padding() {
            return self.hang_up(Closing::ReplyPadding);
        }
        let seq = Request { bytes, pads: &[] }.u32(4);
        let what = match vcpu.stage {
            Stage::Open { seq: open, what } if open == seq => what,
            _ if vcpu.late.take(seq) => {
                // Meant for the void event.
                vcpu.registers = None;
                self.seen.add(Seen::LateReply);
                return Turn::Ignored;
            }
            _ => return self.hang_up(Closing::WrongSeq),
        };
        let row = Event::of(&what);
        let (action, data) = (reply.u8(8), &reply.bytes[16..]);
        if u16::from(reply.u8(9)) != row.id {
            return self.hang_up(Closing::WrongEvent);
        }
        if data.len() > row.reply_bytes {
            return self.hang_up(Closing::TooMuchData);
        }
        let fate = match action {
            event::CONTINUE => Fate::Continue,
            event::RETRY if row.retry => Fate::Retry,
            event::CRASH => Fate::Crash,
            _ => return self.hang_up(Closing::IllegalAction),
        };
        self.seen.fate(&what, fate);
        let vcpu = self.vcpu(index);
        if fate == Fate::Crash {
            vcpu.registers = None;
            vcpu.injection = None;
            vcpu.stage = Stage::Crashed;
        } else {
            let value = (row.reply_bytes > 0).then(|| reply.u64(16));
            vcpu.stage = Stage::Answered {
                what,
                retry: fate == Fate::Retry,
                value,
                used: false,
            };
        }
        Turn::Replied
    }

    fn hang_up(&mut self, why: Closing) -> Turn {
        self.close(why);
        Turn::Closed
    }

    fn send_event(&mut self, index: usize, what: Occurrence) -> Turn {
        let row = Event::of(&what);
        let session = self.hooked();
        session.last_seq += 1;
        let seq = session.last_seq;
        session.vcpus[index].stage = Stage::Open { seq, what };
        session.vcpus[index].unanswered += 1;
        let mut payload = row.id.to_le_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(544u16.to_le_bytes());
        payload.extend((index as u16).to_le_bytes());
        payload.extend([0; 4]);
        // As the fake vCPU shows its state.
        payload.extend([0xaa; 536]);
        payload.extend((row.data)(&what).expect("it is this event"));
        self.sent.push(message(msg::VCPU_EVENT, seq, &payload));
        self.seen.fate(&what, Fate::Sent);
        Turn::SentEvent
    }

    /// The exit handler is called again, unless the tool has dealt with the instruction by moving RIP.
    fn complete(&mut self, index: usize, what: &Occurrence, again: &Again) -> Turn {
        let registers = self.vcpu(index).registers.take();
        let moved = registers
            .as_ref()
            .is_some_and(|regs| regs[128..136] != RIP.to_le_bytes());
        let mut sites = Vec::new();
        if moved {
            self.seen.add(Seen::TookOver);
        } else if Event::of(what).of_instruction {
            let told = again.told(self.cpus[index].exit.as_ref().expect("an exit was left"));
            for what in told {
                let (value, site) = self.happen_again(index, &what);
                sites.push((site, value));
                if site == Site::Defer {
                    break;
                }
            }
        }
        if registers.is_some() {
            self.seen.add(Seen::RegistersSet);
        }
        let vcpu = self.vcpu(index);
        if let Stage::Answered { .. } = vcpu.stage {
            vcpu.stage = Stage::None;
        }
        Turn::Completed { registers, sites }
    }

    /// The answer goes to the occurrence that it is about, once. Anything else is new.
    fn happen_again(&mut self, index: usize, what: &Occurrence) -> (Option<u64>, Site) {
        let Stage::Answered {
            what: about,
            retry,
            value,
            used,
        } = &mut self.vcpu(index).stage
        else {
            unreachable!("the reply is at hand")
        };
        if !same_site(about, what) {
            self.seen.add(Seen::AnotherAtCompletion);
            return (None, self.happen(index, what));
        }
        let value = *value;
        if *used {
            return (value, self.happen(index, what));
        }
        *used = true;
        (value, if *retry { Site::Retry } else { Site::Continue })
    }
}

impl Late {
    fn add(&mut self, seq: u32) {
        if self.count == 0 {
            self.first = seq;
        }
        self.last = seq;
        self.count += 1;
    }

    fn take(&mut self, seq: u32) -> bool {
        let is_late = self.count > 0 && (self.first..=self.last).contains(&seq);
        self.count -= usize::from(is_late);
        is_late
    }
}

/// A CR or MSR event is about its register, a PF event about its page and kind, any other about its kind.
fn same_site(a: &Occurrence, b: &Occurrence) -> bool {
    let page = |what: &Occurrence| match *what {
        Occurrence::Pf { gpa, access, .. } => Some((gpa / 4096, access)),
        _ => None,
    };
    same_switch(a, b) && page(a) == page(b)
}

/// What is asked about before it is known how it happens.
pub(super) fn same_switch(a: &Occurrence, b: &Occurrence) -> bool {
    match (a, b) {
        (Occurrence::Cr { cr: a, .. }, Occurrence::Cr { cr: b, .. }) => a == b,
        (Occurrence::Msr { msr: a, .. }, Occurrence::Msr { msr: b, .. }) => a == b,
        _ => Event::of(a).id == Event::of(b).id,
    }
}

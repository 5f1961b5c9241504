// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU's thread between exits: vcpu.c.

use kvmi_core::{Occurrence, Phase, Site, VcpuState, VcpuVerdict, build_event, is_event_reply, vcpu_message};
use zerocopy::IntoBytes;

use super::{Kernel, Part, Session, register};
use crate::{
    events::{MSRS, STEPPED},
    steps::{Again, RIP, Signal},
    view::Turn,
};

/// Of an event reply: KVMI_REPLY_KEPT_BYTES.
const KEPT_BYTES: usize = 64;

impl Kernel {
    pub(super) fn turn(&mut self, vcpu: usize, signal: Signal, again: &Again) -> Turn {
        self.cpus[vcpu].in_guest = false;
        let Some(session) = &mut self.session else {
            return self.enter(vcpu, signal);
        };
        let part = &mut session.parts[vcpu];
        let crashes = session.lost && !session.leaving && session.flags & 2 != 0;
        let has_work = !part.jobs.is_empty()
            || part.pauses > 0
            || part.unsent.is_some()
            || part.is_new
            || part.state.phase() != Phase::Idle
            || (part.state.has_injection() && !session.lost)
            || crashes;
        if !has_work {
            return self.enter(vcpu, signal);
        }

        // serve()
        if session.lost && session.parts[vcpu].jobs.is_empty() {
            session.part_lost(vcpu);
        }
        if signal == Signal::Before {
            return Turn::Interrupted;
        }
        let part = &mut session.parts[vcpu];
        if part.state.phase() == Phase::ReplyHere {
            return self.complete_exit(vcpu, again);
        }
        // To a tool that is gone nothing can be sent.
        if let Some(answer) = part.unsent.take()
            && !session.lost
        {
            return self.send(vcpu, answer, signal);
        }
        if let Some(job) = part.dequeue() {
            return self.run_job(vcpu, &job, signal);
        }
        match part.state.phase() {
            Phase::Crashed => Turn::Shutdown,
            Phase::Recorded if session.lost => Turn::Waits,
            Phase::Recorded if signal == Signal::AtSend => Turn::Interrupted,
            Phase::Recorded => self.send_event(vcpu),
            Phase::Sent => Turn::Waits,
            Phase::ReplyHere => unreachable!("it is completed first"),
            Phase::Idle => {
                if std::mem::take(&mut part.is_new)
                    && !session.lost
                    && part.state.record(&session.vm, &Occurrence::CreateVcpu) == Site::Defer
                {
                    return Turn::CreationIsDue;
                }
                if !session.lost
                    && let Some(injection) = part.state.take_injection()
                {
                    let trap = Occurrence::Trap {
                        nr: injection.nr,
                        error_code: injection.error_code.unwrap_or(0),
                        address: injection.address,
                    };
                    if part.state.record(&session.vm, &trap) == Site::Defer {
                        return Turn::TrapIsDue;
                    }
                }
                while !session.lost && part.pauses > 0 {
                    part.pauses -= 1;
                    if part.state.record(&session.vm, &Occurrence::Pause) == Site::Defer {
                        return Turn::PauseIsDue;
                    }
                }
                self.enter(vcpu, signal)
            }
        }
    }

    fn enter(&mut self, vcpu: usize, signal: Signal) -> Turn {
        if signal == Signal::Before {
            return Turn::Interrupted;
        }
        self.cpus[vcpu].in_guest = true;
        Turn::Entered
    }

    fn send(&mut self, vcpu: usize, answer: Vec<u8>, signal: Signal) -> Turn {
        let session = self.session.as_mut().expect("there is a session");
        if session.lost {
            return Turn::NobodyHears;
        }
        if signal == Signal::AtSend {
            session.parts[vcpu].unsent = Some(answer);
            return Turn::Interrupted;
        }
        self.sent.push(answer);
        Turn::Answered
    }

    fn run_job(&mut self, vcpu: usize, job: &[u8], signal: Signal) -> Turn {
        let session = self.session.as_mut().expect("there is a session");
        let (state, cpu) = (&mut session.parts[vcpu].state, &mut self.cpus[vcpu]);
        let mut rx = job.to_vec();
        if is_event_reply(job) {
            rx[KEPT_BYTES.min(job.len())..].fill(0);
        }
        let outcome = vcpu_message(&session.vm, state, &mut cpu.fake, &rx, &mut self.out);
        if outcome.intercepts_changed {
            cpu.intercepts = intercepts(state);
        }
        match outcome.verdict {
            VcpuVerdict::Close => {
                self.lose();
                Turn::Closed
            }
            VcpuVerdict::Replied => Turn::Replied,
            VcpuVerdict::Answered(0) => Turn::Ignored,
            VcpuVerdict::Answered(length) => self.send(vcpu, self.out[..length].to_vec(), signal),
        }
    }

    fn send_event(&mut self, vcpu: usize) -> Turn {
        let session = self.session.as_mut().expect("there is a session");
        let part = &mut session.parts[vcpu];
        let seq = session.last_event_seq + 1;
        let length = build_event(&part.state, &mut self.cpus[vcpu].fake, seq, &mut self.out);
        self.sent.push(self.out[..length].to_vec());
        part.unanswered += 1;
        session.last_event_seq = seq;
        part.state.event_sent(seq);
        Turn::SentEvent
    }

    fn complete_exit(&mut self, vcpu: usize, again: &Again) -> Turn {
        let state = &mut self.session.as_mut().expect("there is a session").parts[vcpu].state;
        let registers = state.take_registers();
        assert!(state.take_registers().is_none(), "registers are taken once");
        let moved = registers.is_some_and(|regs| regs.rip != RIP);
        let mut sites = Vec::new();
        if state.completes_exit() && !moved {
            let exit = self.cpus[vcpu].exit.expect("an exit was left");
            for what in again.told(&exit) {
                let state = &self.session.as_ref().expect("there is a session").parts[vcpu].state;
                let value = register(&what).and_then(|register| state.reply_value(what.event(), register));
                let site = self.site(vcpu, &what);
                sites.push((site, value));
                if site == Site::Defer {
                    break;
                }
            }
        }
        self.session.as_mut().expect("there is a session").parts[vcpu]
            .state
            .event_done();
        Turn::Completed {
            registers: registers.map(|regs| regs.as_bytes().to_vec()),
            sites,
        }
    }
}

impl Session {
    /// handle_disconnect() in vcpu.c.
    fn part_lost(&mut self, vcpu: usize) {
        let (fails_open, fails_closed) = (self.fails_open(), self.fails_closed());
        let part = &mut self.parts[vcpu];
        part.unsent = None;
        if fails_open {
            part.state.event_fail_open();
        } else if !fails_closed {
            part.state.crash();
        }
    }
}

impl Part {
    fn dequeue(&mut self) -> Option<Vec<u8>> {
        let job = self.jobs.pop_front()?;
        if is_event_reply(&job) {
            self.reply_count -= 1;
            self.unanswered = self.unanswered.saturating_sub(1);
        } else {
            self.job_count -= 1;
            self.job_bytes -= job.len();
        }
        Some(job)
    }
}

/// What the glue computes from the core's answers; as [`crate::events::Switches::intercepts`].
fn intercepts(state: &VcpuState) -> u32 {
    let mut bits = u32::from(state.wants_breakpoint());
    if state.wants_singlestep() {
        bits |= STEPPED;
    }
    for cr in [0, 3, 4] {
        bits |= u32::from(state.wants_cr_write(cr)) << (cr + 1);
    }
    bits |= u32::from(state.wants_descriptor()) << 6;
    bits |= u32::from(state.wants_any_msr()) << 7;
    for (at, msr) in MSRS.iter().enumerate() {
        bits |= u32::from(state.wants_msr_write(*msr)) << (8 + at);
    }
    bits
}

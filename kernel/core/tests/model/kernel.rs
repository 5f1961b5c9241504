// SPDX-License-Identifier: GPL-2.0-only
//! The core in a kernel that is played: queues, threads and the connection as kernel/glue has them (vcpu.c, queue.c,
//! reader.c, session.c, sites.c), one thing at a time.

mod vcpu_thread;

use std::collections::VecDeque;

use kvmi_core::{
    KvmError, Occurrence, Phase, Site, VcpuState, VmState, VmVerdict, build_error_reply, build_unhook_event,
    check_command, check_event, header_ok, is_event_reply, queue_admits, reply_admits, vm_message,
};
use kvmi_uapi::{
    MAX_MESSAGE,
    error::{EBUSY, EINVAL},
};

use crate::{
    events::{EVENTS, STEPPED},
    fake::{FakeVcpu, FakeVm, MEMORY},
    spec::{EEXIST, EFAULT, ENOENT, MAX_VCPUS},
    steps::Input,
    view::{Effect, Outcome, VcpuView, View},
};

/// As kernel/glue/session.h has it: above this, no more.
const MAX_PENDING_PAUSES: usize = 1002;
pub(crate) struct Kernel {
    fake: FakeVm,
    cpus: Vec<Cpu>,
    session: Option<Session>,
    out: Vec<u8>,
    sent: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Cpu {
    fake: FakeVcpu,
    in_guest: bool,
    /// What the exit handler comes upon, to be called again.
    exit: Option<Occurrence>,
    intercepts: u32,
}

struct Session {
    vm: VmState,
    flags: u32,
    lost: bool,
    leaving: bool,
    last_event_seq: u32,
    parts: Vec<Part>,
}

/// struct kvm_vcpu_introspection.
#[derive(Default)]
struct Part {
    state: VcpuState,
    jobs: VecDeque<Vec<u8>>,
    job_count: u32,
    job_bytes: usize,
    reply_count: u32,
    unanswered: u32,
    pauses: usize,
    is_new: bool,
    unsent: Option<Vec<u8>>,
}

impl Kernel {
    pub(crate) fn new(vcpus: usize) -> Self {
        let mut kernel = Self {
            fake: FakeVm {
                vcpus: 0,
                ..FakeVm::default()
            },
            cpus: Vec::new(),
            session: None,
            out: vec![0xee; MAX_MESSAGE],
            sent: Vec::new(),
        };
        for _ in 0..vcpus {
            kernel.create_vcpu();
        }
        kernel
    }

    pub(crate) fn take(&mut self, input: &Input) -> Effect {
        let outcome = match input {
            Input::Message(bytes) => {
                self.receive(bytes);
                Outcome::Nothing
            }
            Input::HangUp => {
                self.lose();
                Outcome::Nothing
            }
            Input::Guest { vcpu, what } => self.guest(*vcpu, what),
            Input::Turn { vcpu, signal, again } => Outcome::Turn(self.turn(*vcpu, *signal, again)),
            Input::WriteRegisters { vcpu } => self.void(*vcpu),
            Input::Initialise { vcpu, is_up } => {
                self.fake.asleep.retain(|asleep| usize::from(*asleep) != *vcpu);
                if !is_up {
                    self.fake.asleep.push(*vcpu as u16);
                }
                self.void(*vcpu)
            }
            Input::Debug { vcpu, on } => self.debug(*vcpu, *on),
            Input::Hook { flags } => ioctl(self.hook(*flags)),
            Input::Unhook => {
                self.session_end();
                Outcome::Ioctl(0)
            }
            Input::Preunhook => ioctl(self.preunhook()),
            Input::AllowCommand { allow, id } => ioctl(match (check_command(*allow, *id), &self.session) {
                (Err(KvmError(err)), _) => Err(err),
                (_, None) => Err(EFAULT),
                (_, Some(session)) => session.vm.allow_command(*allow, *id).map_err(|KvmError(err)| err),
            }),
            Input::AllowEvent { allow, id } => ioctl(match (check_event(*allow, *id), &self.session) {
                (Err(KvmError(err)), _) => Err(err),
                (_, None) => Err(EFAULT),
                (_, Some(session)) => session.vm.allow_event(*allow, *id).map_err(|KvmError(err)| err),
            }),
            Input::CreateVcpu => {
                self.create_vcpu();
                Outcome::Nothing
            }
            Input::NewVm { vcpus } => {
                *self = Self::new(*vcpus);
                Outcome::Nothing
            }
        };
        Effect {
            outcome,
            sent: std::mem::take(&mut self.sent),
        }
    }

    // session.c

    fn hook(&mut self, flags: u32) -> Result<(), i32> {
        if flags & !7 != 0 {
            return Err(EINVAL);
        }
        if self.session.as_ref().is_some_and(|session| !session.fails_closed()) {
            return Err(EEXIST);
        }
        self.session_end();
        self.session = Some(Session {
            vm: VmState::new(),
            flags,
            lost: false,
            leaving: false,
            last_event_seq: 0,
            parts: self.cpus.iter().map(|_| Part::default()).collect(),
        });
        Ok(())
    }

    fn session_end(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        self.fake.access.clear();
        for cpu in &mut self.cpus {
            cpu.in_guest = false;
            cpu.intercepts &= if session.vm.cleanup_enabled() { 0 } else { !STEPPED };
        }
    }

    fn preunhook(&mut self) -> Result<(), i32> {
        let session = self.session.as_mut().ok_or(EFAULT)?;
        if session.lost || !session.vm.unhook_event_enabled() {
            return Err(ENOENT);
        }
        session.last_event_seq += 1;
        session.leaving = true;
        let length = build_unhook_event(session.last_event_seq, &mut self.out);
        self.sent.push(self.out[..length].to_vec());
        Ok(())
    }

    fn create_vcpu(&mut self) {
        if self.cpus.len() == MAX_VCPUS {
            return;
        }
        self.cpus.push(Cpu::default());
        self.cpus.last_mut().expect("it was pushed").fake.index = self.fake.vcpus as u16;
        self.fake.vcpus += 1;
        if let Some(session) = &mut self.session {
            session.parts.push(Part {
                is_new: true,
                ..Part::default()
            });
        }
    }

    // reader.c and queue.c

    fn receive(&mut self, bytes: &[u8]) {
        let Some(session) = self.session.as_ref().filter(|session| !session.lost) else {
            return;
        };
        if header_ok(&bytes[..8]).is_none() {
            return self.lose();
        }
        let full = session
            .parts
            .iter()
            .enumerate()
            .filter(|(_, part)| part.pauses >= MAX_PENDING_PAUSES);
        self.fake.too_many_pauses = full.map(|(index, _)| index as u16).collect();
        match vm_message(&session.vm, &mut self.fake, bytes, &mut self.out) {
            VmVerdict::Answered(length) => self.sent.push(self.out[..length].to_vec()),
            VmVerdict::Queue(vcpu) => self.queue(vcpu.into(), bytes),
            VmVerdict::Close => self.lose(),
        }
        assert!(self.fake.in_force, "page access was set and not put in force");
        for (vcpu, _) in self.fake.pauses.drain(..) {
            let session = self.session.as_mut().expect("there is a session");
            session.parts[usize::from(vcpu)].pauses += 1;
        }
    }

    fn queue(&mut self, vcpu: usize, bytes: &[u8]) {
        let part = &mut self.session.as_mut().expect("there is a session").parts[vcpu];
        if is_event_reply(bytes) {
            if !reply_admits(part.reply_count, part.unanswered) {
                return self.lose();
            }
            part.reply_count += 1;
        } else {
            if !queue_admits(part.job_count, part.job_bytes, bytes.len()) {
                let length = build_error_reply(bytes, KvmError(EBUSY), &mut self.out);
                self.sent.push(self.out[..length].to_vec());
                return;
            }
            part.job_count += 1;
            part.job_bytes += bytes.len();
        }
        part.jobs.push_back(bytes.to_vec());
    }

    fn lose(&mut self) {
        if let Some(session) = &mut self.session {
            session.lost = true;
            for part in &mut session.parts {
                part.pauses = 0;
            }
        }
    }

    // sites.c and the VMM's ioctls

    fn guest(&mut self, vcpu: usize, what: &Occurrence) -> Outcome {
        if !self.cpus[vcpu].in_guest {
            return Outcome::Nothing;
        }
        let site = self.site(vcpu, what);
        if site == Site::Defer {
            self.cpus[vcpu].in_guest = false;
        }
        Outcome::Site(site)
    }

    fn site(&mut self, vcpu: usize, what: &Occurrence) -> Site {
        let Some(session) = &mut self.session else {
            return Site::Pass;
        };
        let fails_open = session.fails_open();
        let state = &mut session.parts[vcpu].state;
        if state.phase() != Phase::ReplyHere && fails_open {
            return Site::Pass;
        }
        let site = state.record(&session.vm, what);
        if site == Site::Defer {
            self.cpus[vcpu].exit = Some(*what);
        }
        site
    }

    fn void(&mut self, vcpu: usize) -> Outcome {
        self.cpus[vcpu].in_guest = false;
        if let Some(session) = &mut self.session {
            session.parts[vcpu].state.event_void();
        }
        Outcome::Nothing
    }

    fn debug(&mut self, vcpu: usize, on: bool) -> Outcome {
        let owns = self.session.as_ref().is_some_and(|session| {
            let state = &session.parts[vcpu].state;
            !session.fails_open() && (state.wants_breakpoint() || state.wants_singlestep())
        });
        if on && owns {
            return Outcome::Ioctl(EBUSY);
        }
        let answer = if on { Err(KvmError(EBUSY)) } else { Ok(()) };
        self.cpus[vcpu].fake.breakpoint_answer = answer;
        self.cpus[vcpu].fake.singlestep_answer = answer;
        Outcome::Ioctl(0)
    }

    pub(crate) fn view(&self) -> View {
        let cpus = self.cpus.iter().map(|cpu| VcpuView {
            in_guest: cpu.in_guest,
            intercepts: cpu.intercepts,
            ..VcpuView::default()
        });
        let mut view = View {
            vcpus: cpus.collect(),
            access: (0..MEMORY / 4096)
                .map(|gfn| self.fake.access.get(&gfn).copied().unwrap_or(7))
                .collect(),
            ..View::default()
        };
        let Some(session) = &self.session else {
            return view;
        };
        view.hooked = true;
        view.lost = session.lost;
        view.last_seq = session.last_event_seq;
        view.cleanup = session.vm.cleanup_enabled();
        view.unhook_event = session.vm.unhook_event_enabled();
        for (view, part) in view.vcpus.iter_mut().zip(&session.parts) {
            view.phase = part.state.phase();
            view.event = if view.phase == Phase::Crashed {
                0
            } else {
                part.state.phase_event()
            };
            view.pauses = part.pauses;
            view.queued = part.jobs.len();
            view.unanswered = part.unanswered as usize;
            for (at, what) in EVENTS.iter().flat_map(|row| row.examples).enumerate() {
                view.wanted |= u32::from(wanted(&session.vm, &part.state, what)) << at;
            }
        }
        view
    }
}

impl Session {
    fn fails_closed(&self) -> bool {
        self.lost && !self.leaving && self.flags == 1
    }

    fn fails_open(&self) -> bool {
        self.lost && (self.leaving || self.flags == 0)
    }
}

/// The glue's question before it goes to the trouble of an event.
fn wanted(vm: &VmState, state: &VcpuState, what: &Occurrence) -> bool {
    state.wanted(vm, what.event(), register(what).unwrap_or(0))
}

/// The control register or MSR that it is about.
fn register(what: &Occurrence) -> Option<u32> {
    match what {
        Occurrence::Cr { cr, .. } => Some(u32::from(*cr)),
        Occurrence::Msr { msr, .. } => Some(*msr),
        _ => None,
    }
}

fn ioctl(r: Result<(), i32>) -> Outcome {
    Outcome::Ioctl(r.err().unwrap_or(0))
}

// SPDX-License-Identifier: GPL-2.0-only
//! The reference: what docs/protocol.md says about a VM and its session, written from that page and not from the core.
//! Numbers in parentheses are its sections.

mod dispatch;
mod vcpu;

use std::collections::{BTreeSet, VecDeque};

use kvmi_core::{Occurrence, Phase};
use kvmi_uapi::{
    error::{EBUSY, EINVAL, EPERM},
    event, msg,
};

use crate::{
    commands::switch_on,
    coverage::{Closing, Coverage, Fate, Seen},
    events::{EVENTS, Event, STEPPED, Switches},
    fake::{MEMORY, message},
    steps::Input,
    view::{Effect, Outcome, VcpuView, View},
};
use vcpu::{Late, same_switch};

/// Pending PAUSE requests of a vCPU (8).
pub(crate) const MAX_PAUSES: usize = 1002;
pub(crate) const MAX_VCPUS: usize = 4;
pub(crate) const FAIL_CLOSED: u32 = 1;
pub(crate) const CRASH_ON_LOSS: u32 = 2;
/// No stream has it: what waits for VM_RELEASE is the glue's, and the lab's to test.
pub(crate) const STOPPED: u32 = 4;
/// Events that VM_CONTROL_EVENTS switches.
pub(crate) const OF_VM: &[u16] = &[event::UNHOOK, event::CREATE_VCPU];
/// Forbidding these is refused (2.2).
pub(crate) const QUERIES: [u16; 3] = [msg::GET_VERSION, msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT];

pub(crate) const EEXIST: i32 = 17;
pub(crate) const EFAULT: i32 = 14;
pub(crate) const ENOENT: i32 = 2;

/// A VM, hooked or not.
pub(crate) struct Spec {
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) memory: Vec<u8>,
    /// What the guest may do with each page.
    pub(crate) access: Vec<u8>,
    pub(crate) session: Option<Session>,
    pub(crate) seen: Coverage,
    sent: Vec<Vec<u8>>,
}

/// What a vCPU is without a session.
pub(crate) struct Cpu {
    pub(crate) uninitialised: bool,
    /// The VMM has software breakpoints and steps.
    pub(crate) debugged: bool,
    in_guest: bool,
    /// The exit that was left, to be completed.
    exit: Option<Occurrence>,
    /// In force.
    intercepts: u32,
    /// Extended state.
    pub(crate) xsave: Vec<u8>,
}

pub(crate) struct Session {
    flags: u32,
    lost: bool,
    /// UNHOOK was sent.
    leaving: bool,
    pub(crate) commands: BTreeSet<u16>,
    pub(crate) events: BTreeSet<u16>,
    pub(crate) cleanup: bool,
    /// By VM_CONTROL_EVENTS.
    pub(crate) of_vm: BTreeSet<u16>,
    last_seq: u32,
    pub(crate) vcpus: Vec<Vcpu>,
}

#[derive(Default)]
pub(crate) struct Vcpu {
    switches: Switches,
    pub(crate) stage: Stage,
    /// Set by the tool, held back until the reply.
    pub(crate) registers: Option<Vec<u8>>,
    queue: VecDeque<Vec<u8>>,
    /// An answer that a signal kept from being sent.
    unsent: Option<Vec<u8>>,
    /// Events sent whose reply was not taken.
    unanswered: usize,
    late: Late,
    pub(crate) pauses: usize,
    /// It was created in this session and has not run yet.
    is_new: bool,
    /// An exception that was accepted, as the TRAP that will tell of it.
    pub(crate) injection: Option<Occurrence>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            uninitialised: false,
            debugged: false,
            in_guest: false,
            exit: None,
            intercepts: 0,
            // As the fake vCPU begins.
            xsave: vec![0xdd; 4096],
        }
    }
}

/// How far a vCPU's event has come.
#[derive(Clone, Debug, Default)]
pub(crate) enum Stage {
    #[default]
    None,
    /// It happened and is to be sent.
    Due(Occurrence),
    Open {
        seq: u32,
        what: Occurrence,
    },
    Answered {
        what: Occurrence,
        retry: bool,
        value: Option<u64>,
        used: bool,
    },
    Crashed,
}

impl Spec {
    pub(crate) fn new(vcpus: usize, seen: Coverage) -> Self {
        Self {
            cpus: (0..vcpus).map(|_| Cpu::default()).collect(),
            memory: (0..MEMORY).map(|at| at as u8).collect(),
            access: unrestricted(),
            session: None,
            seen,
            sent: Vec::new(),
        }
    }

    /// The session of the command that is carried out.
    pub(crate) fn hooked(&mut self) -> &mut Session {
        self.session.as_mut().expect("there is a session")
    }

    pub(crate) fn vcpu(&mut self, vcpu: usize) -> &mut Vcpu {
        &mut self.hooked().vcpus[vcpu]
    }

    pub(crate) fn switches(&mut self, vcpu: usize) -> &mut Switches {
        &mut self.vcpu(vcpu).switches
    }

    /// Whether the tool is there.
    pub(crate) fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.lost)
    }

    pub(crate) fn take(&mut self, input: &Input) -> Effect {
        let outcome = match input {
            Input::Message(bytes) => self.message(bytes),
            Input::HangUp => self.close(Closing::HungUp),
            Input::Guest { vcpu, what } => self.guest(*vcpu, what),
            Input::Turn { vcpu, signal, again } => Outcome::Turn(self.turn(*vcpu, *signal, again)),
            Input::WriteRegisters { vcpu } => self.void(*vcpu),
            Input::Initialise { vcpu, is_up } => {
                self.cpus[*vcpu].uninitialised = !is_up;
                self.void(*vcpu)
            }
            Input::Debug { vcpu, on } => self.debug(*vcpu, *on),
            Input::Hook { flags } => self.hook(*flags),
            Input::Unhook => self.unhook(),
            Input::Preunhook => self.preunhook(),
            Input::AllowCommand { allow, id } => self.allow_command(*allow, *id),
            Input::AllowEvent { allow, id } => self.allow_event(*allow, *id),
            Input::CreateVcpu => self.create_vcpu(),
            Input::NewVm { vcpus } => {
                *self = Self::new(*vcpus, std::mem::take(&mut self.seen));
                Outcome::Nothing
            }
        };
        Effect {
            outcome,
            sent: std::mem::take(&mut self.sent),
        }
    }

    // 2.2: the ioctls.

    fn hook(&mut self, flags: u32) -> Outcome {
        let r = match &self.session {
            _ if flags & !7 != 0 => EINVAL,
            Some(session) if !session.fails_closed() => EEXIST,
            _ => 0,
        };
        if r == 0 {
            if self.session.is_some() {
                self.end();
                self.seen.add(Seen::ReplacedFailClosed);
            }
            self.session = Some(Session {
                flags,
                lost: false,
                leaving: false,
                commands: QUERIES.into(),
                events: BTreeSet::new(),
                cleanup: true,
                of_vm: BTreeSet::new(),
                last_seq: 0,
                vcpus: self.cpus.iter().map(|_| Vcpu::default()).collect(),
            });
        }
        self.ioctl("HOOK", r)
    }

    fn unhook(&mut self) -> Outcome {
        self.end();
        self.ioctl("UNHOOK", 0)
    }

    /// Open events are neither continued nor crashed, the instruction is executed anew.
    fn end(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        // Whatever VM_CONTROL_CLEANUP said.
        self.access = unrestricted();
        for (cpu, vcpu) in self.cpus.iter_mut().zip(&session.vcpus) {
            if let Some(what) = vcpu.stage.of() {
                self.seen.fate(&what, Fate::Undecided);
            }
            cpu.in_guest = false;
            cpu.exit = None;
            cpu.intercepts &= if session.cleanup { 0 } else { !STEPPED };
        }
    }

    fn preunhook(&mut self) -> Outcome {
        let r = match &mut self.session {
            None => EFAULT,
            Some(session) if session.lost => ENOENT,
            Some(session) if !session.tells(event::UNHOOK) => ENOENT,
            Some(session) => {
                session.last_seq += 1;
                session.leaving = true;
                let event = [&event::UNHOOK.to_le_bytes()[..], &[0; 6]].concat();
                self.sent.push(message(msg::VM_EVENT, session.last_seq, &event));
                0
            }
        };
        self.ioctl("PREUNHOOK", r)
    }

    fn allow_command(&mut self, allow: u32, id: i32) -> Outcome {
        let ids: Vec<u16> = msg::COMMANDS.iter().map(|(id, _)| *id).collect();
        let r = match (allowed_ids(allow, id, &ids), &mut self.session) {
            (None, _) => EINVAL,
            (_, None) => EFAULT,
            (Some(ids), _) if allow == 0 && ids.len() == 1 && QUERIES.contains(&ids[0]) => EPERM,
            (Some(ids), Some(session)) => {
                for id in ids {
                    if allow == 1 {
                        session.commands.insert(id);
                    } else if !QUERIES.contains(&id) {
                        session.commands.remove(&id);
                    }
                }
                0
            }
        };
        self.ioctl("COMMAND", r)
    }

    fn allow_event(&mut self, allow: u32, id: i32) -> Outcome {
        let ids: Vec<u16> = event::ALL.iter().map(|(id, _)| *id).collect();
        let r = match (allowed_ids(allow, id, &ids), &mut self.session) {
            (None, _) => EINVAL,
            (_, None) => EFAULT,
            (Some(ids), Some(session)) => {
                for id in ids {
                    switch_on(&mut session.events, id, allow == 1);
                }
                0
            }
        };
        self.ioctl("EVENT", r)
    }

    fn ioctl(&mut self, name: &'static str, r: i32) -> Outcome {
        self.seen.add(Seen::Ioctl(name, r));
        Outcome::Ioctl(r)
    }

    // 2.3: lifetime; 5, BREAKPOINT and SINGLESTEP: who owns #BP and steps.

    fn create_vcpu(&mut self) -> Outcome {
        if self.cpus.len() < MAX_VCPUS {
            self.cpus.push(Cpu::default());
            if let Some(session) = &mut self.session {
                session.vcpus.push(Vcpu {
                    is_new: true,
                    ..Vcpu::default()
                });
                self.seen.add(Seen::CreatedWhileHooked);
            }
        }
        Outcome::Nothing
    }

    fn debug(&mut self, vcpu: usize, on: bool) -> Outcome {
        let owned = self.session.as_ref().is_some_and(|session| {
            let switches = &session.vcpus[vcpu].switches;
            !session.fails_open() && (switches.events.contains(&event::BREAKPOINT) || switches.singlestep)
        });
        let r = if on && owned { EBUSY } else { 0 };
        if r == 0 {
            self.cpus[vcpu].debugged = on;
        }
        self.ioctl("SET_GUEST_DEBUG", r)
    }

    pub(crate) fn view(&self) -> View {
        let mut view = View {
            vcpus: self
                .cpus
                .iter()
                .map(|cpu| VcpuView {
                    in_guest: cpu.in_guest,
                    intercepts: cpu.intercepts,
                    ..VcpuView::default()
                })
                .collect(),
            access: self.access.clone(),
            ..View::default()
        };
        let Some(session) = &self.session else {
            return view;
        };
        view.hooked = true;
        view.lost = session.lost;
        view.last_seq = session.last_seq;
        view.cleanup = session.cleanup;
        view.unhook_event = session.tells(event::UNHOOK);
        for (index, (view, vcpu)) in view.vcpus.iter_mut().zip(&session.vcpus).enumerate() {
            (view.phase, view.event) = match &vcpu.stage {
                Stage::None => (Phase::Idle, 0),
                Stage::Due(what) => (Phase::Recorded, Event::of(what).id),
                Stage::Open { what, .. } => (Phase::Sent, Event::of(what).id),
                Stage::Answered { what, .. } => (Phase::ReplyHere, Event::of(what).id),
                Stage::Crashed => (Phase::Crashed, 0),
            };
            view.pauses = vcpu.pauses;
            view.unanswered = vcpu.unanswered;
            view.queued = vcpu.queue.len();
            for (at, what) in EVENTS.iter().flat_map(|row| row.examples).enumerate() {
                let answered =
                    matches!(&vcpu.stage, Stage::Answered { what: about, used: false, .. } if same_switch(about, what));
                view.wanted |= u32::from(answered || self.wants(index, what)) << at;
            }
        }
        view
    }
}

impl Session {
    /// An event of [`OF_VM`].
    fn tells(&self, id: u16) -> bool {
        self.of_vm.contains(&id) && self.events.contains(&id)
    }

    fn is_loss(&self) -> bool {
        self.lost && !self.leaving
    }

    fn crashes(&self) -> bool {
        self.is_loss() && self.flags & CRASH_ON_LOSS != 0
    }

    fn fails_closed(&self) -> bool {
        self.is_loss() && self.flags & FAIL_CLOSED != 0 && !self.crashes()
    }

    fn fails_open(&self) -> bool {
        self.lost && !self.crashes() && !self.fails_closed()
    }
}

impl Stage {
    pub(crate) fn of(&self) -> Option<Occurrence> {
        match self {
            Self::None | Self::Crashed => None,
            Self::Due(what) | Self::Open { what, .. } | Self::Answered { what, .. } => Some(*what),
        }
    }
}

/// 7 for each page of the fake VM.
fn unrestricted() -> Vec<u8> {
    (0..MEMORY / 4096).map(|_| 7).collect()
}

/// What COMMAND and EVENT are about; None for EINVAL.
fn allowed_ids(allow: u32, id: i32, all: &[u16]) -> Option<Vec<u16>> {
    match id {
        _ if allow > 1 => None,
        -1 => Some(all.to_vec()),
        _ => Some(all.iter().copied().filter(|known| i32::from(*known) == id).collect())
            .filter(|ids: &Vec<_>| !ids.is_empty()),
    }
}

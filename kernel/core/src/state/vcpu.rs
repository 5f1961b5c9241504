// SPDX-License-Identifier: GPL-2.0-only
//! One vCPU: what its tool asked for and how far its event has come.

use kvmi_uapi::{Regs, event};

use crate::state::{injection::Injection, msr_set::MsrSet, occurrence::Occurrence, vm::VmState, voided::Voided};

/// How far a vCPU's event has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    #[default]
    Idle,
    /// To be sent.
    Recorded,
    /// Sent; its reply is awaited.
    Sent,
    /// Answered CONTINUE or RETRY: the exit handler is to be called again.
    ReplyHere,
    /// Answered CRASH: the vCPU runs no further instruction.
    Crashed,
}

/// What an event site does about an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// As stock KVM does: nobody wants to know.
    Pass,
    /// It is recorded: leave the exit handler and change nothing.
    Defer,
    /// The tool said CONTINUE: complete it.
    Continue,
    /// The tool said RETRY: enter the guest again.
    Retry,
}

/// State of one vCPU of a hooked VM; belongs to whoever runs the vCPU.
#[derive(Debug, Default)]
pub struct VcpuState {
    pub(crate) phase: Phase,
    /// The phase is about this one, unless it is Idle.
    pub(crate) occurrence: Option<Occurrence>,
    /// Sequence number of the event that was sent.
    pub(crate) seq: u32,
    pub(crate) voided: Voided,
    /// The reply is RETRY rather than CONTINUE.
    pub(crate) retry: bool,
    /// The site has used the reply; its value can still be had.
    taken: bool,
    /// Value of the reply that replaces the guest's.
    pub(crate) value: Option<u64>,
    /// Set by VCPU_SET_REGISTERS while the event is open.
    pub(crate) registers: Option<Regs>,
    /// Bit n: event n is switched on.
    enabled: u64,
    /// Bit n: CR event for control register n is switched on.
    cr_mask: u8,
    /// MSRs whose writes are MSR events.
    msrs: MsrSet,
    /// Accepted by VCPU_INJECT_EXCEPTION and not in KVM's hands yet.
    pub(crate) injection: Option<Injection>,
    /// Each instruction is told.
    pub(crate) singlestep: bool,
    /// Interrupts come between them.
    pub(crate) steps_with_interrupts: bool,
}

impl VcpuState {
    /// A vCPU with every event off.
    pub fn new() -> Self {
        Self::default()
    }

    /// How far the vCPU's event has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether no event is recorded, open or answered, and nothing is to be injected. Asked on each exit.
    pub fn is_quiet(&self) -> bool {
        self.phase == Phase::Idle && self.injection.is_none()
    }

    /// Id of the event that the phase is about; 0 when there is none.
    pub fn phase_event(&self) -> u16 {
        self.occurrence.map_or(0, |what| what.event())
    }

    /// An event site tells what happened. When the tool wants to know, it is recorded and the exit handler is left;
    /// when the handler is called again with the reply at hand, the same site gets the answer.
    pub fn record(&mut self, vm: &VmState, what: &Occurrence) -> Site {
        match self.phase {
            Phase::ReplyHere if !self.taken && self.occurrence.is_some_and(|about| about.is_same(what)) => {
                self.taken = true;
                return if self.retry { Site::Retry } else { Site::Continue };
            }
            // One event at a time: this one is told again when the handler is called again.
            Phase::Recorded | Phase::Sent | Phase::Crashed => return Site::Defer,
            Phase::Idle | Phase::ReplyHere => {}
        }
        if !self.enabled_and_allowed(vm, what.event(), what.register()) {
            return Site::Pass;
        }
        self.forget_reply();
        self.phase = Phase::Recorded;
        self.occurrence = Some(*what);
        Site::Defer
    }

    /// Whether the tool wants to know of this event (and control register or MSR), or its reply to it is at hand:
    /// without either, [`Self::record`] returns [`Site::Pass`] when the vCPU comes from the guest.
    pub fn wanted(&self, vm: &VmState, event: u16, register: u32) -> bool {
        let answered = self.phase == Phase::ReplyHere && self.answers(event, register);
        answered || self.enabled_and_allowed(vm, event, register)
    }

    /// The value that the tool wants in this register, CR or MSR as the event says, when its reply is at hand. Taking
    /// the reply with [`Self::record`] leaves it readable until [`Self::event_done`].
    pub fn reply_value(&self, event: u16, register: u32) -> Option<u64> {
        match self.occurrence {
            Some(about) if self.phase == Phase::ReplyHere && (about.event(), about.register()) == (event, register) => {
                self.value
            }
            _ => None,
        }
    }

    /// Whether the reply at hand leaves this register as it was told to be: nothing is to be written then, for a write may do more than
    /// to leave its value.
    pub fn reply_vetoes(&self, event: u16, register: u32) -> bool {
        self.reply_value(event, register)
            .is_some_and(|value| self.occurrence.and_then(|what| what.old_value()) == Some(value))
    }

    /// Whether the exit that the reply at hand is about has to be handled once more.
    pub fn completes_exit(&self) -> bool {
        self.phase == Phase::ReplyHere && self.occurrence.is_some_and(|what| what.is_of_instruction())
    }

    /// The event was sent as `seq`.
    pub fn event_sent(&mut self, seq: u32) {
        if self.phase == Phase::Recorded {
            self.phase = Phase::Sent;
            self.seq = seq;
        }
    }

    /// The VMM wrote the vCPU's registers: the instruction happens anew, and a reply that is under way is to be
    /// taken and ignored (P1). A PAUSE or TRAP belongs to no instruction, a SINGLESTEP to one that has ended: they stay open;
    /// registers set during them are dropped. So is an exception that KVM has not got yet: it was meant for the vCPU as it was.
    pub fn event_void(&mut self) {
        self.injection = None;
        let of_instruction = self.occurrence.is_none_or(|what| what.is_of_instruction());
        if matches!(self.phase, Phase::Recorded | Phase::Sent) && !of_instruction {
            self.registers = None;
            return;
        }
        if self.phase == Phase::Sent {
            self.voided.add(self.seq);
        }
        if self.phase != Phase::Crashed {
            self.idle();
        }
    }

    /// The exit handler was called again and is through, whether it used the reply or not.
    pub fn event_done(&mut self) {
        if self.phase == Phase::ReplyHere {
            self.idle();
        }
    }

    /// The tool is gone and the session fails open: as if answered CONTINUE with the guest's values.
    pub fn event_fail_open(&mut self) {
        self.injection = None;
        if matches!(self.phase, Phase::Recorded | Phase::Sent) {
            self.forget_reply();
            self.phase = Phase::ReplyHere;
        }
    }

    /// The vCPU runs no further instruction.
    pub fn crash(&mut self) {
        self.injection = None;
        self.forget_reply();
        self.phase = Phase::Crashed;
    }

    /// The registers that the tool set during the event, once, when the reply is at hand.
    pub fn take_registers(&mut self) -> Option<Regs> {
        if self.phase == Phase::ReplyHere {
            self.registers.take()
        } else {
            None
        }
    }

    /// Whether #BP is to be intercepted.
    pub fn wants_breakpoint(&self) -> bool {
        self.event_enabled(event::BREAKPOINT)
    }

    /// Whether writes to a control register (0, 3 or 4) are to be intercepted. The VMM may revoke and grant the event
    /// at any time, so its permission makes no difference here.
    pub fn wants_cr_write(&self, cr: u8) -> bool {
        self.event_enabled(event::CR) && self.cr_enabled(u32::from(cr))
    }

    /// Whether writes of this MSR are to be intercepted.
    pub fn wants_msr_write(&self, msr: u32) -> bool {
        self.event_enabled(event::MSR) && self.msrs.has(msr)
    }

    /// Whether writes of any MSR are to be intercepted.
    pub fn wants_any_msr(&self) -> bool {
        self.event_enabled(event::MSR) && !self.msrs.is_empty()
    }

    /// Whether instructions about descriptor table registers are to be intercepted.
    pub fn wants_descriptor(&self) -> bool {
        self.event_enabled(event::DESCRIPTOR)
    }

    /// Whether an exception waits for [`Self::take_injection`].
    pub fn has_injection(&self) -> bool {
        self.phase == Phase::Idle && self.injection.is_some()
    }

    /// The exception that is to be injected, once, when no event is open any more.
    pub fn take_injection(&mut self) -> Option<Injection> {
        if self.phase == Phase::Idle {
            self.injection.take()
        } else {
            None
        }
    }

    /// Whether an exception is under way that no TRAP has told of.
    pub(crate) fn owes_trap(&self) -> bool {
        self.injection.is_some() || (self.phase == Phase::Recorded && self.phase_event() == event::TRAP)
    }

    /// Whether each instruction of the vCPU is to be told.
    pub fn wants_singlestep(&self) -> bool {
        self.singlestep
    }

    /// Whether interrupts, NMIs and SMIs come in between then.
    pub fn steps_with_interrupts(&self) -> bool {
        self.steps_with_interrupts
    }

    /// What the intercepts follow from; compared before and after a command.
    pub(crate) fn switches(&self) -> (u64, u8, u32, bool, bool) {
        let changes = self.msrs.changes();
        (
            self.enabled,
            self.cr_mask,
            changes,
            self.singlestep,
            self.steps_with_interrupts,
        )
    }

    pub(crate) fn event_enabled(&self, id: u16) -> bool {
        self.enabled & event_bit(id) != 0
    }

    pub(crate) fn enable_event(&mut self, id: u16, enable: bool) {
        if enable {
            self.enabled |= event_bit(id);
        } else {
            self.enabled &= !event_bit(id);
        }
    }

    pub(crate) fn enable_cr(&mut self, cr: u8, enable: bool) {
        if enable {
            self.cr_mask |= cr_bit(cr);
        } else {
            self.cr_mask &= !cr_bit(cr);
        }
    }

    /// False when no more MSRs can be watched.
    pub(crate) fn enable_msr(&mut self, msr: u32, enable: bool) -> bool {
        self.msrs.set(msr, enable)
    }

    fn cr_enabled(&self, cr: u32) -> bool {
        u8::try_from(cr).is_ok_and(|cr| self.cr_mask & cr_bit(cr) != 0)
    }

    /// The tool switched something off. An event of it that is not sent yet would follow the answer: the guest comes
    /// upon it anew instead, and nobody is told.
    pub(crate) fn forget_unwanted(&mut self) {
        let is_wanted = |what: Occurrence| self.enabled(what.event(), what.register());
        if self.phase == Phase::Recorded && !self.occurrence.is_some_and(is_wanted) {
            self.idle();
        }
    }

    fn enabled(&self, id: u16, register: u32) -> bool {
        match id {
            // VM_CONTROL_EVENTS switches the last of these.
            event::PAUSE | event::TRAP | event::CREATE_VCPU => true,
            event::CR => self.event_enabled(id) && self.cr_enabled(register),
            event::MSR => self.wants_msr_write(register),
            event::SINGLESTEP => self.singlestep,
            _ => self.event_enabled(id),
        }
    }

    fn enabled_and_allowed(&self, vm: &VmState, id: u16, register: u32) -> bool {
        let is_on = id != event::CREATE_VCPU || vm.event_enabled(id);
        is_on && self.enabled(id, register) && vm.event_allowed(id)
    }

    /// Whether the reply at hand is to this event and not used yet.
    fn answers(&self, event: u16, register: u32) -> bool {
        !self.taken
            && self
                .occurrence
                .is_some_and(|what| what.event() == event && what.register() == register_of(event, register))
    }

    fn forget_reply(&mut self) {
        self.retry = false;
        self.taken = false;
        self.value = None;
        self.registers = None;
    }

    fn idle(&mut self) {
        self.forget_reply();
        self.phase = Phase::Idle;
        self.occurrence = None;
    }
}

/// The register of a question about an event: of no matter for all but CR and MSR.
fn register_of(event: u16, register: u32) -> u32 {
    if matches!(event, event::CR | event::MSR) {
        register
    } else {
        0
    }
}

/// Of the twelfth posting's events and of as many of our own, whose ids begin at 128.
fn event_bit(id: u16) -> u64 {
    match id {
        0..32 => 1 << id,
        128..160 => 1 << (id - 96),
        _ => 0,
    }
}

fn cr_bit(cr: u8) -> u8 {
    1u8.checked_shl(u32::from(cr)).unwrap_or(0)
}

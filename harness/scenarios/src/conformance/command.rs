// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands: one scenario each, which provokes each error that the command can be answered with.

mod dispatch;
mod vcpu;
mod vcpu_switch;
mod vm;

pub(super) use vcpu_switch::UNDEFINED;

use std::ops::Range;
use std::time::Duration;

use kvmi_uapi::{event, msg};

use super::{About, Case, GROUP, Shown, UNINITIALISED, VCPUS, say, with_one_uninitialised};
use crate::commands::charged;
use crate::vmm::{Permission, Vm};
use crate::wire::{Answer, Wire, vcpu_payload};
use crate::{Context, Failure, Needs, Scenario, check, check_eq};

/// A command, and what can come of it.
pub(crate) struct Command {
    pub(super) id: u16,
    scenario: &'static str,
    run: fn(&mut Context) -> Result<(), Failure>,
    /// The guest to ask about.
    guest: &'static str,
    /// A request with which nothing is wrong.
    good: fn() -> Vec<u8>,
    /// How many bytes of data answer it.
    reply: usize,
    /// Which of its bytes are padding: of the request, of the first entry behind it.
    pads: [Range<usize>; 2],
    /// What this command alone can be answered with, and why not with what is left.
    own: &'static [Case<Stand>],
}

/// Commands in the order of the page.
pub(super) static COMMANDS: &[Command] = &[
    vm::GET_VERSION,
    vm::VM_CHECK_COMMAND,
    vm::VM_CHECK_EVENT,
    vm::VM_GET_INFO,
    vm::VM_CONTROL_EVENTS,
    vm::VM_READ_PHYSICAL,
    vm::VM_WRITE_PHYSICAL,
    vm::VM_PAUSE_VCPU,
    vm::VM_CONTROL_CLEANUP,
    vm::VM_SET_PAGE_ACCESS,
    vm::VM_GET_PAGE_ACCESS,
    vm::VM_GET_VCPU_STATES,
    vm::VM_RELEASE,
    vcpu::VCPU_GET_INFO,
    vcpu_switch::VCPU_CONTROL_EVENTS,
    vcpu::VCPU_GET_REGISTERS,
    vcpu::VCPU_SET_REGISTERS,
    vcpu::VCPU_GET_CPUID,
    vcpu_switch::VCPU_CONTROL_CR,
    vcpu_switch::VCPU_INJECT_EXCEPTION,
    vcpu::VCPU_GET_XCR,
    vcpu::VCPU_GET_XSAVE,
    vcpu::VCPU_SET_XSAVE,
    vcpu::VCPU_GET_MTRR_TYPE,
    vcpu_switch::VCPU_CONTROL_MSR,
    vcpu_switch::VCPU_CONTROL_SINGLESTEP,
    vcpu::VCPU_TRANSLATE_GVA,
];

impl Command {
    /// A command that needs no more than this to be told of; `ID` is its number.
    const fn new<const ID: u16>(scenario: &'static str, good: fn() -> Vec<u8>, own: &'static [Case<Stand>]) -> Self {
        Self {
            id: ID,
            scenario,
            run: run::<ID>,
            guest: "halt",
            good,
            reply: 0,
            pads: [0..0, 0..0],
            own,
        }
    }

    /// The same with so much data in its answer.
    const fn replying(mut self, bytes: usize) -> Self {
        self.reply = bytes;
        self
    }

    /// The same with padding in its request.
    const fn padded(mut self, pads: Range<usize>) -> Self {
        self.pads[0] = pads;
        self
    }

    /// The same with padding in each of its entries, of which the good request has one.
    const fn with_padded_entries(mut self, pads: Range<usize>) -> Self {
        self.pads[1] = pads;
        self
    }

    /// The same with another guest.
    const fn in_guest(mut self, guest: &'static str) -> Self {
        self.guest = guest;
        self
    }

    pub(super) fn name(&self) -> &'static str {
        msg::COMMANDS
            .iter()
            .find(|(id, _)| *id == self.id)
            .map_or("?", |(_, name)| name)
    }

    pub(super) fn good_request(&self) -> (u16, &'static str, Vec<u8>) {
        (self.id, self.name(), (self.good)())
    }

    pub(super) fn scenario_name(&self) -> &'static str {
        self.scenario
    }

    pub(super) fn scenario(&self) -> Scenario {
        Scenario {
            name: self.scenario,
            summary: "the command, and each error that docs/parity.md lists for it",
            needs: Needs::NOTHING,
            run: self.run,
        }
    }

    /// Rows of what is asked of a message before the command itself looks at it.
    pub(super) fn dispatched(&self) -> [&'static [Case<Stand>]; 3] {
        let permission = match self.id {
            msg::GET_VERSION | msg::VM_CHECK_COMMAND | msg::VM_CHECK_EVENT => dispatch::QUERY,
            _ => dispatch::PERMISSION,
        };
        let common = if msg::is_vcpu(self.id) {
            dispatch::VCPU
        } else {
            dispatch::VM
        };
        [permission, common, dispatch::CLOSING]
    }

    /// Rows of what the command itself checks.
    pub(super) fn checked(&self) -> [&'static [Case<Stand>]; 2] {
        let padding: &[Case<Stand>] = if self.pads[0].is_empty() {
            &[]
        } else {
            dispatch::PADDING
        };
        [padding, self.own]
    }

    /// Rows of all that, then reasons for the errors of which there is nothing yet.
    pub(super) fn cases(&self) -> Vec<&'static Case<Stand>> {
        let works = if self.id == msg::VCPU_SET_REGISTERS {
            &[]
        } else {
            dispatch::WORKS
        };
        let defaults = if msg::is_vcpu(self.id) {
            dispatch::NO_VCPU_HAS
        } else {
            dispatch::NO_VM_HAS
        };
        let ([permission, common, closing], [padding, own]) = (self.dispatched(), self.checked());
        let mut cases: Vec<_> = [works, permission, padding, common, own, closing]
            .into_iter()
            .flatten()
            .collect();
        let lacking = defaults
            .iter()
            .filter(|d| cases.iter().all(|c| c.about != d.about))
            .collect::<Vec<_>>();
        cases.extend(lacking);
        cases
    }
}

/// A VM that is hooked, and a command for it.
pub(super) struct Stand {
    command: &'static Command,
    vm: Vm,
    wire: Wire,
    /// What the case is about.
    about: About,
    /// How often it was seen.
    seen: usize,
}

const NMI: u64 = 2;

impl Stand {
    fn start(context: &mut Context, command: &'static Command) -> Result<Self, Failure> {
        let vm = with_one_uninitialised(context, command.guest)?;
        vm.tolerate(&[UNDEFINED.into(), NMI])?;
        // Without a limit yet; whose HOOK it is decides who pays.
        charged::confine(&vm)?;
        Ok(Self {
            command,
            wire: context.hook(&vm)?,
            vm,
            about: About::Works,
            seen: 0,
        })
    }

    fn good(&self) -> Vec<u8> {
        (self.command.good)()
    }

    /// The good request with this in the place of what is there.
    fn good_but(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut request = self.good();
        request[at..at + bytes.len()].copy_from_slice(bytes);
        request
    }

    /// A request that can be carried out a hundred times, perhaps to be refused.
    fn harmless(&self) -> Vec<u8> {
        match self.command.id {
            // Of an NMI.
            msg::VCPU_INJECT_EXCEPTION => self.good_but(0, &[2]),
            _ => self.good(),
        }
    }

    /// The payload of a request to vCPU 0, or to the VM.
    fn payload(&self, request: &[u8]) -> Vec<u8> {
        if msg::is_vcpu(self.command.id) {
            vcpu_payload(0, request)
        } else {
            request.to_vec()
        }
    }

    fn ask(&mut self, request: &[u8]) -> Result<Answer, Failure> {
        let payload = self.payload(request);
        self.wire.vm(self.command.id, &payload[..])
    }

    /// A payload that must be answered with the error that the case is about.
    #[track_caller]
    fn payload_refused(&mut self, payload: &[u8], what: &str) -> Result<(), Failure> {
        let answer = self.wire.vm(self.command.id, payload)?;
        self.is_refused(&answer, what)
    }

    /// An answer that must be the error that the case is about.
    #[track_caller]
    fn is_refused(&mut self, answer: &Answer, what: &str) -> Result<(), Failure> {
        let About::Error(errno) = self.about else {
            return Err(Failure::new(format!("{what} in a case about no error")));
        };
        check_eq!(*answer, Err(errno), "{} of {what}", self.command.name());
        self.seen += 1;
        Ok(())
    }

    /// A request that must be so answered.
    #[track_caller]
    fn refused(&mut self, request: &[u8], what: &str) -> Result<(), Failure> {
        let payload = self.payload(request);
        self.payload_refused(&payload, what)
    }

    /// A request that must be carried out.
    #[track_caller]
    fn works(&mut self, request: &[u8], what: &str) -> Result<Vec<u8>, Failure> {
        let answer = self.ask(request)?;
        let data = crate::requests::expect_data(answer, &format!("{} of {what}", self.command.name()))?;
        self.seen += 1;
        Ok(data)
    }

    /// Deals with the event that follows from a request of these two that was carried out.
    fn settle(&mut self, context: &Context) -> Result<(), Failure> {
        let event = match self.command.id {
            msg::VM_PAUSE_VCPU => event::PAUSE,
            msg::VCPU_INJECT_EXCEPTION => event::TRAP,
            _ => return Ok(()),
        };
        let taken = self.vm.exceptions()?;
        let event = self.wire.expect_event(event, 0)?;
        self.wire.reply(&event, event::CONTINUE)?;
        if event.id == event::TRAP {
            self.vm.wait_for_exceptions(context, taken + 1)?;
        }
        Ok(())
    }

    /// The connection must close, without an answer; then there is a new session.
    #[track_caller]
    fn closes(&mut self, context: &Context) -> Result<(), Failure> {
        self.wire.expect_closed()?;
        check_eq!(self.wire.untaken_answers(), 0, "answers before the connection closed");
        check_eq!(self.vm.unhook()?, 0, "errno of UNHOOK");
        self.wire = context.hook(&self.vm)?;
        self.seen += 1;
        Ok(())
    }

    /// The good request, or another, while the VMM does not allow this.
    fn refused_without(&mut self, what: Permission, id: u16, request: &[u8]) -> Result<(), Failure> {
        self.permit(what, id, false)?;
        self.refused(request, &format!("a tool without {what:?} {id}"))?;
        self.permit(what, id, true)
    }

    fn permit(&self, what: Permission, id: u16, allow: bool) -> Result<(), Failure> {
        check_eq!(self.vm.permit(what, allow.into(), id.into())?, 0, "errno of {what:?}");
        Ok(())
    }

    /// Has the VMM do something to vCPU 0 while it is out.
    fn while_out(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        self.vm.pause(0)?;
        work(self)?;
        // What is answered after the commands that were sent: they are with the vCPU.
        self.wire.expect_version()?;
        self.vm.resume(0)
    }
}

fn run<const ID: u16>(context: &mut Context) -> Result<(), Failure> {
    let command = COMMANDS
        .iter()
        .find(|command| command.id == ID)
        .ok_or_else(|| Failure::new(format!("{GROUP} has no command {ID}")))?;
    let mut stand = Stand::start(context, command)?;
    for case in command.cases() {
        let Shown::Here(provoke) = case.shown(context.backend) else {
            continue;
        };
        context.stage(&case.name(), Duration::from_secs(30));
        (stand.about, stand.seen) = (case.about, 0);
        provoke(&mut stand, context).map_err(|e| e.after(&case.name()))?;
        check!(stand.seen > 0, "{} was not provoked", case.name());
        // What was refused has left the session whole.
        stand.wire.expect_no_event()?;
        say(context, command.name(), case);
    }
    stand.vm.exit()
}

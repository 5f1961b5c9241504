// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands: one scenario each, which provokes each error that the command can be answered with.

mod dispatch;
mod vcpu;
mod vcpu_switch;
mod vm;

pub(super) use vcpu_switch::UNDEFINED;

use std::collections::BTreeSet;
use std::time::Duration;

use kvmi_uapi::table;
use kvmi_uapi::{event, msg};

use super::{Aspect, Case, GROUP, Shown, UNINITIALISED, VCPUS, say, with_one_uninitialised};
use crate::commands::{charged, keep_out};
use crate::vmm::{Permission, Vm};
use crate::wire::{Answer, Wire, vcpu_payload};
use crate::{Context, Failure, Needs, Scenario, Transports, check, check_eq};

/// A command, and what can come of it.
pub(crate) struct Command {
    pub(super) id: u16,
    scenario: &'static str,
    run: fn(&mut Context) -> Result<(), Failure>,
    /// The guest to ask about.
    guest: &'static str,
    /// A request with which nothing is wrong.
    good: fn() -> Vec<u8>,
    /// What this command alone can be answered with, and why not with what is left.
    own: &'static [Case<Fixture>],
}

/// Commands, by the files that have them.
static COMMANDS: &[&[Command]] = &[vm::COMMANDS, vcpu::COMMANDS, vcpu_switch::COMMANDS];

/// Commands in the order of the table of messages.
pub(super) fn commands() -> impl Iterator<Item = &'static Command> {
    table::COMMANDS.iter().filter_map(|row| find(row.id))
}

pub(super) fn find(id: u16) -> Option<&'static Command> {
    COMMANDS.iter().copied().flatten().find(|command| command.id == id)
}

impl Command {
    /// A command that needs no more than this to be told of; `ID` is its number.
    const fn new<const ID: u16>(scenario: &'static str, good: fn() -> Vec<u8>, own: &'static [Case<Fixture>]) -> Self {
        Self {
            id: ID,
            scenario,
            run: run::<ID>,
            guest: "halt",
            good,
            own,
        }
    }

    /// The same with another guest.
    const fn in_guest(mut self, guest: &'static str) -> Self {
        self.guest = guest;
        self
    }

    /// What the table of messages says of it.
    fn row(&self) -> Option<&'static table::Command> {
        table::command(self.id)
    }

    pub(super) fn name(&self) -> &'static str {
        self.row().map_or("?", |row| row.name)
    }

    /// How many bytes of data answer the good request.
    fn reply_bytes(&self) -> usize {
        self.row().map_or(0, |row| row.reply.bytes(&(self.good)()))
    }

    /// Which bytes of the good request are padding: of its structure, and of the first entry behind it.
    fn padding(&self) -> Vec<usize> {
        let Some(request) = self.row().map(|row| &row.request) else {
            return Vec::new();
        };
        let head = request.head.map(|head| (0, head));
        let entry = request.tail.as_ref().map(|tail| (request.head_bytes(), tail.unit));
        let parts = head.into_iter().chain(entry);
        let padding = parts.flat_map(|(at, s)| {
            s.padding()
                .map(move |field| at + field.offset..at + field.offset + field.size)
        });
        let bytes = (self.good)().len();
        padding.flatten().filter(|at| *at < bytes).collect()
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
            transports: Transports::Both,
            run: self.run,
        }
    }

    /// Rows of what is asked of a message before the command itself looks at it.
    pub(super) fn dispatched(&self) -> [&'static [Case<Fixture>]; 3] {
        let permission = if table::QUERIES.contains(&self.id) {
            dispatch::QUERY
        } else {
            dispatch::PERMISSION
        };
        let common = if msg::is_vcpu(self.id) {
            dispatch::VCPU
        } else {
            dispatch::VM
        };
        [permission, common, dispatch::CLOSING]
    }

    /// Rows of what the command itself checks.
    pub(super) fn checked(&self) -> [&'static [Case<Fixture>]; 2] {
        let padding: &[Case<Fixture>] = if self.padding().is_empty() {
            &[]
        } else {
            dispatch::PADDING
        };
        [padding, self.own]
    }

    /// Errors that the command itself is answered with, on one back end at least.
    pub(super) fn own_errors(&self) -> BTreeSet<i32> {
        let shown = |case: &&Case<Fixture>| {
            [case.vmx, case.svm]
                .iter()
                .any(|shown| !matches!(shown, Shown::Never(_)))
        };
        let cases = self.checked().into_iter().flatten().filter(shown);
        cases
            .filter_map(|case| match case.about {
                Aspect::Error(errno) => Some(errno),
                Aspect::Works | Aspect::Closes => None,
            })
            .collect()
    }

    /// Rows of all that, then reasons for the errors of which there is nothing yet.
    pub(super) fn cases(&self) -> Vec<&'static Case<Fixture>> {
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
pub(super) struct Fixture {
    command: &'static Command,
    vm: Vm,
    wire: Wire,
    /// What the case is about.
    about: Aspect,
    /// How often it was seen.
    seen: usize,
}

const NMI: u64 = 2;

impl Fixture {
    fn start(context: &mut Context, command: &'static Command) -> Result<Self, Failure> {
        let vm = with_one_uninitialised(context, command.guest)?;
        vm.tolerate(&[UNDEFINED.into(), NMI])?;
        // Without a limit yet.
        charged::confine(&vm)?;
        Ok(Self {
            command,
            wire: charged::hook(context, &vm)?,
            vm,
            about: Aspect::Works,
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
        let Aspect::Error(errno) = self.about else {
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
        // What is answered after the commands that were sent: a socket has delivered them.
        self.wire.expect_version()?;
        self.vm.resume(0)
    }

    /// Has commands wait for vCPU 0, behind the reply to an event.
    fn while_kept_out(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        keep_out(&self.vm, &mut self.wire, 0)?;
        work(self)?;
        // What is answered after the commands that were sent: they are with the vCPU.
        self.wire.expect_version()?;
        self.vm.resume(0)
    }
}

fn run<const ID: u16>(context: &mut Context) -> Result<(), Failure> {
    let command = find(ID).ok_or_else(|| Failure::new(format!("{GROUP} has no command {ID}")))?;
    let mut stand = Fixture::start(context, command)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_of_the_table_has_rows() {
        let missing: Vec<_> = table::COMMANDS.iter().filter(|row| find(row.id).is_none()).collect();
        assert!(missing.is_empty(), "no rows in conformance/command/ for {missing:?}");
        for command in commands() {
            assert_eq!(command.scenario, format!("{GROUP}{}", command.name().to_lowercase()));
        }
    }

    #[test]
    fn good_requests_are_whole() {
        for command in commands() {
            let (row, good) = (command.row().expect("it has a row"), (command.good)());
            assert_eq!(good.len(), row.request.bytes(&good), "{}", row.name);
            assert!(row.padding_is_zero(&good), "{}", row.name);
        }
        assert_eq!(
            find(msg::VM_GET_PAGE_ACCESS).unwrap().padding(),
            [2, 3, 4, 5, 6, 7, 17, 18, 19, 20, 21, 22, 23]
        );
        assert!(find(msg::VCPU_SET_REGISTERS).unwrap().padding().is_empty());
    }
}

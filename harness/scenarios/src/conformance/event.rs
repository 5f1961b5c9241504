// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events: one scenario each, in which the event arises and does not arise, and each reply to it that is right or wrong.

mod kinds;
mod replies;

use std::time::Duration;

use kvmi_uapi::{event, table};

use super::{Case, GROUP, Shown, say, with_one_uninitialised};
use crate::vmm::Vm;
use crate::wire::{self, Wire};
use crate::{Context, Failure, Needs, Scenario, Transports, check, check_eq};

pub(super) use kinds::EVENTS;

/// An event, how it comes to be, and what can come of it.
pub(crate) struct Event {
    pub(super) id: u16,
    scenario: &'static str,
    run: fn(&mut Context) -> Result<(), Failure>,
    /// The guest in which it arises.
    guest: &'static str,
    /// Switches on what it takes; done once in each session.
    enable: fn(&mut Fixture, &Context) -> Result<(), Failure>,
    /// Has it happen; what [`Event::over`] has to know.
    occur: fn(&mut Fixture, &Context) -> Result<u64, Failure>,
    /// What has to be done while it is open, for it not to happen again.
    once: fn(&mut Fixture) -> Result<(), Failure>,
    /// Waits until the guest has it behind it.
    over: fn(&Fixture, &Context, u64) -> Result<(), Failure>,
    /// What this event alone has.
    own: &'static [Case<Fixture>],
}

impl Event {
    /// What the table of messages says of it.
    fn row(&self) -> Option<&'static table::Event> {
        table::event(self.id)
    }

    /// Bytes of its data.
    fn data_bytes(&self) -> usize {
        self.row().and_then(|row| row.data).map_or(0, |data| data.size)
    }

    /// Bytes of its reply's data.
    fn reply_bytes(&self) -> usize {
        self.row().and_then(|row| row.reply).map_or(0, |reply| reply.size)
    }

    pub(super) fn name(&self) -> &'static str {
        self.row().map_or("?", |row| row.name)
    }

    pub(super) fn scenario_name(&self) -> &'static str {
        self.scenario
    }

    pub(super) fn scenario(&self) -> Scenario {
        Scenario {
            name: self.scenario,
            summary: "the event, and each reply that docs/parity.md lists for it",
            needs: Needs::NOTHING,
            transports: Transports::Both,
            run: self.run,
        }
    }

    pub(super) fn cases(&self) -> Vec<&'static Case<Fixture>> {
        let lists: &[&'static [Case<Fixture>]] = if matches!(self.id, event::UNHOOK | event::CREATE_VCPU) {
            &[self.own]
        } else {
            let retry = if self.row().is_some_and(|row| row.may_retry) {
                replies::MAY_RETRY
            } else {
                replies::NO_RETRY
            };
            &[
                replies::ARISES,
                self.own,
                replies::REFUSED,
                replies::CLOSING,
                retry,
                replies::CRASH_STOPS,
            ]
        };
        lists.iter().copied().flatten().collect()
    }
}

/// A VM that is hooked, and an event of its vCPU 0.
pub(super) struct Fixture {
    event: &'static Event,
    vm: Vm,
    wire: Wire,
    /// The value with which the guest's own is agreed to.
    value: u64,
    /// How often what the case is about was seen.
    seen: usize,
}

impl Fixture {
    fn start(context: &mut Context, event: &'static Event) -> Result<Self, Failure> {
        let vm = match event.id {
            // It adds vCPUs, which are to run.
            event::CREATE_VCPU => context.running_vm(event.guest, 1)?,
            _ => with_one_uninitialised(context, event.guest)?,
        };
        Ok(Self {
            event,
            wire: context.hook(&vm)?,
            vm,
            value: 0,
            seen: 0,
        })
    }

    /// A new session.
    fn again(&mut self, context: &Context) -> Result<(), Failure> {
        check_eq!(self.vm.unhook()?, 0, "errno of UNHOOK");
        self.wire = context.hook(&self.vm)?;
        Ok(())
    }

    /// Has the event happen, in a session in which it is wanted; what came, and what its end is told by.
    fn raise(&mut self, context: &Context) -> Result<(wire::Event, u64), Failure> {
        (self.event.enable)(self, context)?;
        let told = (self.event.occur)(self, context)?;
        let event = self.wire.expect_event(self.event.id, 0)?;
        check_eq!(event.data.len(), self.event.data_bytes(), "bytes of the event's data");
        Ok((event, told))
    }

    /// Data of a reply that changes nothing.
    fn agree(&self) -> Vec<u8> {
        self.value.to_ne_bytes()[..self.event.reply_bytes()].to_vec()
    }

    /// The event is answered CONTINUE, and the guest goes on.
    fn proceed(&mut self, context: &Context, event: &wire::Event, told: u64) -> Result<(), Failure> {
        (self.event.once)(self)?;
        self.wire.reply_with(event, event::CONTINUE, &self.agree())?;
        (self.event.over)(self, context, told)?;
        self.wire.expect_no_event()
    }
}

fn run<const ID: u16>(context: &mut Context) -> Result<(), Failure> {
    let event = EVENTS
        .iter()
        .find(|event| event.id == ID)
        .ok_or_else(|| Failure::new(format!("{GROUP} has no event {ID}")))?;
    let mut stand = Fixture::start(context, event)?;
    for case in event.cases() {
        let Shown::Here(provoke) = case.shown(context.backend) else {
            continue;
        };
        context.stage(&case.name(), Duration::from_secs(30));
        stand.seen = 0;
        provoke(&mut stand, context).map_err(|e| e.after(&case.name()))?;
        check!(stand.seen > 0, "{} was not provoked", case.name());
        stand.again(context)?;
        say(context, event.name(), case);
    }
    stand.vm.exit()
}

fn nothing(_: &mut Fixture) -> Result<(), Failure> {
    Ok(())
}

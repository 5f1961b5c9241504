// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a session is not allowed: as a rule a few commands and events, now and then everything.

use std::collections::BTreeSet;

use kvmi_uapi::table::QUERIES;
use kvmi_uapi::{event, ioctl, msg};

use super::generator::Generator;
use crate::vmm::{Permission, Vm};
use crate::{Failure, check_eq};

/// One session in so many is allowed nothing.
const BARE_SESSIONS: u64 = 16;

/// At most so many commands, and events, are forbidden a session that is allowed some.
const FEW: u64 = 2;

/// What is forbidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forbidden {
    pub(super) commands: BTreeSet<u16>,
    pub(super) events: BTreeSet<u16>,
}

impl Forbidden {
    /// Everything that can be.
    pub(super) fn all() -> Self {
        let commands = msg::COMMANDS.iter().map(|(id, _)| *id);
        Self {
            commands: commands.filter(|id| !QUERIES.contains(id)).collect(),
            events: event::ALL.iter().map(|(id, _)| *id).collect(),
        }
    }

    /// What a new session is forbidden.
    pub(super) fn by_chance(generator: &mut Generator) -> Self {
        if generator.below(BARE_SESSIONS) == 0 {
            Self::all()
        } else {
            Self::few(generator)
        }
    }

    fn few(generator: &mut Generator) -> Self {
        let mut forbidden = Self::default();
        for _ in 0..generator.below(FEW + 1) {
            let command = generator.known();
            if !QUERIES.contains(&command) {
                forbidden.commands.insert(command);
            }
        }
        for _ in 0..generator.below(FEW + 1) {
            forbidden.events.insert(generator.event());
        }
        forbidden
    }

    /// Takes it away from a session that was allowed everything.
    pub(super) fn apply(&self, vm: &Vm) -> Result<(), Failure> {
        let all = [(Permission::Command, &self.commands), (Permission::Event, &self.events)];
        for (what, ids) in all {
            for id in ids {
                check_eq!(
                    vm.permit(what, 0, i32::from(*id))?,
                    0,
                    "errno of forbidding {what:?} {id}"
                );
            }
        }
        Ok(())
    }

    /// Has other things forbidden from now on.
    pub(super) fn change(&mut self, generator: &mut Generator, vm: &Vm) -> Result<(), Failure> {
        check_eq!(
            vm.permit(Permission::Command, 1, ioctl::ALL)?,
            0,
            "errno of allowing all commands"
        );
        check_eq!(
            vm.permit(Permission::Event, 1, ioctl::ALL)?,
            0,
            "errno of allowing all events"
        );
        *self = Self::few(generator);
        self.apply(vm)
    }

    /// Whether it is everything.
    pub(super) fn is_all(&self) -> bool {
        *self == Self::all()
    }
}

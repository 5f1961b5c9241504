// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each command and each event on each lane: what it does, and each error that docs/protocol.md knows. One table, of which both the
//! scenarios here and docs/parity.md are made: a row of it is provoked by the scenario of its command or event, shown by another scenario,
//! or cannot be, and says why.

mod command;
mod event;
mod message;
#[cfg(test)]
mod protocol_page;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use kvmi_lab_control::Backend;
use kvmi_uapi::error;

pub use rows::{Part, Proof, Row, rows};

use crate::vmm::{Vm, VmConfig};
use crate::{Context, Failure, Scenario};

/// The group whose transcripts say what was shown.
pub const GROUP: &str = "conformance::";

/// How the lines begin that say it.
pub const MARK: &str = "+ ";

/// Of each command a request with which nothing is wrong.
pub(crate) fn good_requests() -> impl Iterator<Item = (u16, &'static str, Vec<u8>)> {
    command::commands().map(command::Command::good_request)
}

/// A request of a command with which nothing is wrong; empty for what is no command.
pub(crate) fn good_request(id: u16) -> Vec<u8> {
    command::find(id).map_or_else(Vec::new, |command| command.good_request().2)
}

/// Errors that a command is answered with by its own checks.
pub(crate) fn own_errors(id: u16) -> BTreeSet<i32> {
    static ALL: LazyLock<BTreeMap<u16, BTreeSet<i32>>> = LazyLock::new(|| {
        command::commands()
            .map(|command| (command.id, command.own_errors()))
            .collect()
    });
    ALL.get(&id).cloned().unwrap_or_default()
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let commands = command::commands().map(command::Command::scenario);
    commands
        .chain(event::EVENTS.iter().map(event::Event::scenario))
        .collect()
}

/// What a row of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aspect {
    /// What it is there for.
    Works,
    /// This error value.
    Error(i32),
    /// The connection closes.
    Closes,
}

impl Aspect {
    fn label(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Closes => "closes",
            Self::Error(value) => error::ALL
                .iter()
                .find(|(v, _)| *v == value)
                .map_or("?", |(_, name)| name),
        }
    }
}

/// One row of the table. `S` is what a provocation is given.
pub(crate) struct Case<S: 'static> {
    about: Aspect,
    what: &'static str,
    vmx: Shown<S>,
    svm: Shown<S>,
}

/// How a row comes to its `pass` on a back end.
pub(crate) enum Shown<S: 'static> {
    /// The scenario of the command or event does it.
    Here(fn(&mut S, &mut Context) -> Result<(), Failure>),
    /// Another scenario does.
    There(&'static str),
    /// Not at all, for this reason.
    Never(&'static str),
}

impl<S> Clone for Shown<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Shown<S> {}

const fn case<S>(about: Aspect, what: &'static str, shown: Shown<S>) -> Case<S> {
    Case {
        about,
        what,
        vmx: shown,
        svm: shown,
    }
}

/// A row that the scenario of its command or event provokes.
const fn here<S>(
    about: Aspect,
    what: &'static str,
    provoke: fn(&mut S, &mut Context) -> Result<(), Failure>,
) -> Case<S> {
    case(about, what, Shown::Here(provoke))
}

/// A row that another scenario shows; which says what it shows.
const fn there<S>(about: Aspect, scenario: &'static str) -> Case<S> {
    case(about, "", Shown::There(scenario))
}

/// A row that cannot be.
const fn never<S>(about: Aspect, why: &'static str) -> Case<S> {
    case(about, "", Shown::Never(why))
}

impl<S> Case<S> {
    fn shown(&self, backend: Backend) -> Shown<S> {
        match backend {
            Backend::Vmx => self.vmx,
            Backend::Svm => self.svm,
        }
    }

    /// The row's name within its command or event.
    fn name(&self) -> String {
        match (self.vmx, self.what) {
            (Shown::There(scenario), _) => format!("{}: {scenario}", self.about.label()),
            (_, "") => self.about.label().to_owned(),
            (_, what) => format!("{}: {what}", self.about.label()),
        }
    }
}

/// Says that this row was shown.
fn say<S>(context: &Context, of: &str, case: &Case<S>) {
    context.wire(format!("{MARK}{of} {}", case.name()));
}

const VCPUS: u16 = 2;
/// The vCPU that waits for INIT.
const UNINITIALISED: u16 = 1;

/// A VM whose vCPU 0 runs this guest's program.
fn with_one_uninitialised(context: &mut Context, guest: &str) -> Result<Vm, Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm_with(&VmConfig {
        uninitialised_aps: true,
        ..VmConfig::new(guest, VCPUS.into())
    })?;
    vm.run()?;
    vm.wait_ready_on(context, 0)?;
    Ok(vm)
}

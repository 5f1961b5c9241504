// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table as docs/parity.md shows it.

use kvmi_lab_control::Backend;
use kvmi_uapi::error;

use super::{Aspect, Case, Shown, command, event, message};

/// One row of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where on the page.
    pub part: Part,
    /// The command or event.
    pub of: &'static str,
    /// What about it.
    pub name: String,
    /// By error or action, to tell whether a row of each is there.
    pub label: &'static str,
    /// What proves it with kvm-intel.
    pub vmx: Proof,
    /// What proves it with kvm-amd.
    pub svm: Proof,
}

/// A part of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A row is about a command.
    Commands,
    /// About an event.
    Events,
    /// About messages whatever they are.
    Messages,
}

impl Part {
    /// Its heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Commands => "Commands",
            Self::Events => "Events",
            Self::Messages => "Messages and errors",
        }
    }
}

/// How a cell of the page is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By this scenario, when it has said that it has shown the row.
    Said(&'static str),
    /// By this scenario's passing.
    Passed(&'static str),
    /// By this reason.
    Reason(&'static str),
}

impl Row {
    /// The row's own name, as scenarios say it and as the record of results has it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{} {}", self.of, self.name)
    }

    /// Its name with what a program knows it by marked as such.
    #[must_use]
    pub fn title(&self) -> String {
        match self.vmx {
            Proof::Passed(scenario) => format!("{}: `{scenario}`", self.label),
            Proof::Said(_) | Proof::Reason(_) => self.name.clone(),
        }
    }

    /// Whether neither back end shows it, and there is no more to it than why.
    #[must_use]
    pub fn is_reason_alone(&self) -> bool {
        matches!((self.vmx, self.svm), (Proof::Reason(_), Proof::Reason(_)))
    }

    /// The scenario that provokes it itself.
    #[must_use]
    pub fn scenario(&self) -> Option<&'static str> {
        [self.vmx, self.svm].into_iter().find_map(|proof| match proof {
            Proof::Said(scenario) => Some(scenario),
            Proof::Passed(_) | Proof::Reason(_) => None,
        })
    }

    /// What proves it on a back end.
    #[must_use]
    pub fn proof(&self, backend: Backend) -> Proof {
        match backend {
            Backend::Vmx => self.vmx,
            Backend::Svm => self.svm,
        }
    }
}

/// All rows in the order of the page: by command and event, then what works, errors in their order, and what closes.
#[must_use]
pub fn rows() -> Vec<Row> {
    let commands = command::commands().flat_map(|command| {
        let (name, scenario) = (command.name(), command.scenario_name());
        in_order(command.cases()).map(move |case| row(Part::Commands, name, scenario, case))
    });
    let events = event::EVENTS.iter().flat_map(|event| {
        let (name, scenario) = (event.name(), event.scenario_name());
        in_order(event.cases()).map(move |case| row(Part::Events, name, scenario, case))
    });
    let messages = in_order(message::CASES.iter().collect()).map(|case| row(Part::Messages, message::NAME, "", case));
    commands.chain(events).chain(messages).collect()
}

fn in_order<S>(mut cases: Vec<&'static Case<S>>) -> impl Iterator<Item = &'static Case<S>> {
    cases.sort_by_key(|case| case.about.place());
    cases.into_iter()
}

fn row<S>(part: Part, of: &'static str, scenario: &'static str, case: &Case<S>) -> Row {
    let proof = |shown: Shown<S>| match shown {
        Shown::Here(_) => Proof::Said(scenario),
        Shown::There(other) => Proof::Passed(other),
        Shown::Never(reason) => Proof::Reason(reason),
    };
    Row {
        part,
        of,
        name: case.name(),
        label: case.about.label(),
        vmx: proof(case.vmx),
        svm: proof(case.svm),
    }
}

impl Aspect {
    /// Where it stands among the others.
    fn place(self) -> usize {
        match self {
            Self::Works => 0,
            Self::Error(value) => 1 + error::ALL.iter().position(|(v, _)| *v == value).unwrap_or(0),
            Self::Closes => usize::MAX,
        }
    }

    /// What has to be said of each command: its errors, but for those that nothing is answered with, and the end of the connection.
    #[cfg(test)]
    fn of_each_command() -> impl Iterator<Item = Self> {
        use kvmi_uapi::error::{ALL, E2BIG, EFAULT};
        let errors = ALL
            .iter()
            .map(|(value, _)| *value)
            .filter(|value| ![E2BIG, EFAULT].contains(value));
        errors.map(Self::Error).chain([Self::Works, Self::Closes])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvmi_uapi::{event, msg};

    use super::*;

    #[test]
    fn nothing_is_left_out() {
        let rows = rows();
        for about in Aspect::of_each_command() {
            for (_, command) in msg::COMMANDS {
                let is_there = |row: &Row| row.of == *command && row.label == about.label();
                assert!(
                    rows.iter().any(is_there),
                    "no row of {command} is about `{}`",
                    about.label()
                );
            }
        }
        for (_, event) in event::ALL {
            assert!(
                rows.iter().any(|row| row.of == *event && row.part == Part::Events),
                "no row about {event}"
            );
        }
    }

    #[test]
    fn rows_can_be_told_apart() {
        let rows = rows();
        let keys: BTreeSet<String> = rows.iter().map(Row::key).collect();
        assert_eq!(keys.len(), rows.len());
    }

    #[test]
    fn what_a_row_rests_on_exists() {
        let names: BTreeSet<&str> = crate::all().iter().map(|s| s.name).collect();
        for row in rows() {
            for proof in [row.vmx, row.svm] {
                match proof {
                    Proof::Said(name) | Proof::Passed(name) => assert!(names.contains(name), "{}: {name}", row.key()),
                    Proof::Reason(reason) => assert!(!reason.is_empty(), "{}", row.key()),
                }
            }
        }
    }
}

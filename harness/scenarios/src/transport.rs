// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a scenario's tool is connected: by a session's descriptor or by a socket.
//!
//! Either carries the same messages, so a scenario does not care, and its run has one of the two: on AMD's lanes the
//! descriptor, on Intel's the socket. A name with `@socket` or `@descriptor` behind it says which. What is about messages as
//! such runs over both on AMD's lanes ([`Transports::Both`]), what is about one of the two over that one.

use kvmi_lab_control::{Backend, Lane};

use crate::Scenario;

/// How a tool is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// What OPEN gives.
    Descriptor,
    /// What HOOK is given.
    Socket,
}

/// Over which of them a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transports {
    /// Over the lane's; over the other when that is named.
    Either,
    /// Over both on AMD's lanes, by default; elsewhere as [`Self::Either`].
    Both,
    /// Over this one alone.
    Only(Transport),
    /// It has no tool, or says itself how that is connected.
    None,
}

impl Transports {
    fn can_be_chosen(self) -> bool {
        matches!(self, Self::Either | Self::Both)
    }
}

impl Transport {
    const ALL: [Self; 2] = [Self::Descriptor, Self::Socket];

    /// What is used where nothing else is said.
    #[must_use]
    pub fn of(backend: Backend) -> Self {
        match backend {
            Backend::Svm => Self::Descriptor,
            Backend::Vmx => Self::Socket,
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Descriptor => "@descriptor",
            Self::Socket => "@socket",
        }
    }
}

/// One way to run a scenario.
#[derive(Clone, Debug)]
pub struct Run {
    /// The scenario's name, with the transport behind it where that is not the lane's.
    pub name: String,
    /// Run by default, or only when named.
    pub by_default: bool,
}

impl Scenario {
    /// All ways to run it on a lane.
    #[must_use]
    pub fn runs(&self, lane: Lane) -> Vec<Run> {
        let usual = Run {
            name: self.name.to_owned(),
            by_default: self.needs.by_default,
        };
        let others = Transport::ALL
            .into_iter()
            .filter(|&transport| transport != Transport::of(lane.backend()) && self.transports.can_be_chosen());
        let others = others.map(|transport| Run {
            name: format!("{}{}", self.name, transport.suffix()),
            by_default: usual.by_default && self.transports == Transports::Both && lane.backend() == Backend::Svm,
        });
        [usual.clone()].into_iter().chain(others).collect()
    }
}

/// The scenario of a run's name, and the transport that it has on a machine with this back end.
#[must_use]
pub fn find(run: &str, backend: Backend) -> Option<(&'static Scenario, Transport)> {
    let scenario = crate::all().iter().find(|s| s.name == base(run))?;
    let said = Transport::ALL.into_iter().find(|t| run.ends_with(t.suffix()));
    let transport = match scenario.transports {
        Transports::Only(transport) => transport,
        _ => said.unwrap_or(Transport::of(backend)),
    };
    Some((scenario, transport))
}

/// The scenario's name alone.
#[must_use]
pub fn base(run: &str) -> &str {
    run.split_once('@').map_or(run, |(name, _)| name)
}

/// The names of all runs that there can be, on whichever lane.
pub fn names() -> impl Iterator<Item = String> {
    crate::all().iter().flat_map(|scenario| {
        let can_be_chosen = scenario.transports.can_be_chosen();
        let suffixes = Transport::ALL.iter().filter(move |_| can_be_chosen);
        let suffixed = suffixes.map(|t| format!("{}{}", scenario.name, t.suffix()));
        [scenario.name.to_owned()].into_iter().chain(suffixed)
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is proved, grouped by subject: one function per scenario, run in L1, each from the snapshot where L1's state was saved.
//!
//! L0 links this crate too, for the list alone.

mod bench;
mod client;
mod commands;
pub mod conformance;
mod context;
mod descriptor;
mod destroy;
pub mod differential;
mod events;
pub mod explore;
mod failure;
mod fuzz;
mod lab;
mod lifecycle;
pub mod modules;
mod nested;
mod pages;
mod pause;
pub mod planted;
mod requests;
mod reset;
mod smm;
mod step;
mod storm;
pub mod transport;
pub mod unserved_memory;
pub mod vmm;
pub mod wire;

use std::sync::LazyLock;

use kvmi_lab_control::Lane;

pub use context::{Context, say};
pub use failure::Failure;
use failure::{check, check_eq};
pub use transport::{Transport, Transports};

/// What a scenario needs of the machine it runs on.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The lanes on which it cannot run, and why.
    pub not_on: &'static [(Lane, &'static str)],
    /// Run by default, or only when named.
    pub by_default: bool,
    /// Introspection, or KVM alone.
    pub introspection: bool,
}

impl Needs {
    /// Every lane, by default, with introspection.
    pub const NOTHING: Self = Self {
        not_on: &[],
        by_default: true,
        introspection: true,
    };
}

impl Needs {
    /// Why it cannot run on a lane; nothing where it can.
    #[must_use]
    pub fn why_not_on(&self, lane: Lane) -> Option<&'static str> {
        self.not_on.iter().find(|(l, _)| *l == lane).map(|&(_, why)| why)
    }

    /// The lanes on which it runs.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> {
        Lane::ALL
            .iter()
            .copied()
            .filter(|&lane| self.why_not_on(lane).is_none())
    }
}

/// One thing that is proved.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// `subject::what`, e.g. `lifecycle::hook_then_unhook`.
    pub name: &'static str,
    /// What it shows, in one line.
    pub summary: &'static str,
    /// Where it runs.
    pub needs: Needs,
    /// How its tool is connected.
    pub transports: Transports,
    /// The scenario itself.
    pub run: fn(&mut Context) -> Result<(), Failure>,
}

impl Scenario {
    /// The same, run only when it is named.
    const fn when_named(mut self) -> Self {
        self.needs.by_default = false;
        self
    }

    /// The same, which needs nothing but KVM.
    const fn of_kvm_alone(mut self) -> Self {
        self.needs.introspection = false;
        self.transports = Transports::None;
        self
    }

    /// The same, over either transport by default.
    const fn over_both(mut self) -> Self {
        self.transports = Transports::Both;
        self
    }

    /// The same, which is about one transport.
    const fn over(mut self, transport: Transport) -> Self {
        self.transports = Transports::Only(transport);
        self
    }

    /// The same, about something that AMD's CPUs do not have.
    const fn on_intel(mut self) -> Self {
        const WHY: &str = "AMD's CPUs run each state of a guest";
        self.needs.not_on = &[(Lane::SvmTcg, WHY), (Lane::SvmBochs, WHY), (Lane::SvmKvm, WHY)];
        self
    }

    /// The same, which cannot run on these lanes, for these reasons.
    const fn not_on(mut self, lanes: &'static [(Lane, &'static str)]) -> Self {
        self.needs.not_on = lanes;
        self
    }
}

/// Every scenario, subject by subject.
#[must_use]
pub fn all() -> &'static [Scenario] {
    static ALL: LazyLock<Vec<Scenario>> = LazyLock::new(|| {
        [
            lab::SCENARIOS.to_vec(),
            lifecycle::scenarios(),
            commands::scenarios(),
            conformance::scenarios(),
            pause::scenarios(),
            events::scenarios(),
            reset::SCENARIOS.to_vec(),
            pages::scenarios(),
            step::scenarios(),
            nested::SCENARIOS.to_vec(),
            destroy::scenarios(),
            descriptor::scenarios(),
            storm::scenarios(),
            fuzz::scenarios(),
            client::scenarios(),
            differential::SCENARIOS.to_vec(),
            bench::scenarios(),
            planted::scenarios(),
        ]
        .concat()
    });
    &ALL
}

/// The role `tool` of the lab's L1 program: a tool for so many vCPUs, which is killed in the end.
///
/// # Errors
///
/// The tool's.
pub fn tool_process(vcpus: &str) -> Result<(), Failure> {
    destroy::tool_main(vcpus)
}

/// One line of a subject's table.
const fn scenario(name: &'static str, summary: &'static str, run: fn(&mut Context) -> Result<(), Failure>) -> Scenario {
    Scenario {
        name,
        summary,
        needs: Needs::NOTHING,
        transports: Transports::Either,
        run,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvmi_lab_control::brief;

    #[test]
    fn scenarios_can_be_told_apart_in_brief() {
        let names: BTreeSet<String> = super::transport::names().collect();
        let hashes: BTreeSet<u64> = names.iter().map(|name| brief::hash(name)).collect();
        assert_eq!(hashes.len(), names.len());
    }
}

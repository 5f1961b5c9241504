// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's own selftests in L1: which KVM they meet, and how a run of one is named.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kernel argument of an L1 that runs selftests: it loads no KVM before its snapshot.
pub const SELFTESTS: &str = "kvmi_lab.selftests";

/// The file in L1 that says with which arguments tests are run: on each line a test's name and its arguments.
pub const SELFTEST_ARGUMENTS: &str = "/selftests.arguments";

/// What the name of each run of a selftest begins with, where a scenario has its group.
const GROUP: &str = "selftests";

/// The KVM that a selftest meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelftestMode {
    /// The distribution's modules.
    Stock,
    /// Our modules, introspection off.
    Off,
    /// Our modules, introspection on, nobody hooks.
    On,
    /// A tool hooks each VM, watches everything, and agrees to everything.
    Hooked,
    /// The same, and it pauses the vCPUs at random moments.
    Paused,
    /// The same, and it takes the right to write from the guest's memory: each write is told.
    Protected,
    /// The same as hooked, and it steps each instruction.
    Stepped,
}

impl SelftestMode {
    /// Every mode, the one that others are compared with first.
    pub const ALL: &'static [Self] = &[
        Self::Stock,
        Self::Off,
        Self::On,
        Self::Hooked,
        Self::Paused,
        Self::Protected,
        Self::Stepped,
    ];

    /// The name used on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Off => "off",
            Self::On => "on",
            Self::Hooked => "hooked",
            Self::Paused => "paused",
            Self::Protected => "protected",
            Self::Stepped => "stepped",
        }
    }

    /// Whether a tool hooks each VM.
    #[must_use]
    pub fn hooks(self) -> bool {
        match self {
            Self::Stock | Self::Off | Self::On => false,
            Self::Hooked | Self::Paused | Self::Protected | Self::Stepped => true,
        }
    }

    /// What a run of a test is called, where a scenario's name is wanted.
    #[must_use]
    pub fn run_name(self, test: &str) -> String {
        format!("{GROUP}::{self}::{test}")
    }

    /// The mode and the test of a run's name; `None` for a scenario's.
    #[must_use]
    pub fn of_run(name: &str) -> Option<(Self, &str)> {
        let (group, rest) = name.split_once("::")?;
        let (mode, test) = rest.split_once("::")?;
        let mode = mode.parse().ok()?;
        (group == GROUP).then_some((mode, test))
    }
}

impl fmt::Display for SelftestMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A mode's name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no mode `{0}`, modes are stock, off, on, hooked, paused, protected, stepped")]
pub struct UnknownMode(pub String);

impl FromStr for SelftestMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        let found = Self::ALL.iter().copied().find(|mode| mode.name() == name);
        found.ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_everywhere() {
        let unknown = "fast".parse::<SelftestMode>().unwrap_err().to_string();
        for &mode in SelftestMode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
            assert!(unknown.contains(mode.name()), "{unknown}");
            assert_eq!(
                SelftestMode::of_run(&mode.run_name("smm_test")),
                Some((mode, "smm_test"))
            );
        }
        for other in [
            "lifecycle::hook",
            "lifecycle::on::smm_test",
            "selftests::fast::smm_test",
        ] {
            assert_eq!(SelftestMode::of_run(other), None, "{other}");
        }
    }
}

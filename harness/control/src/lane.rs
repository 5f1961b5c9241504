// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of machine that scenarios run on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The vendor back end of KVM that L1 loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// AMD: kvm-amd, with NPT.
    Svm,
    /// Intel: kvm-intel, with EPT.
    Vmx,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Svm => "svm",
            Self::Vmx => "vmx",
        })
    }
}

/// The word on L1's kernel command line that says what it runs in: `PLATFORM=NAME`. The kernel takes it for a module's parameter.
pub const PLATFORM: &str = "kvmi_lab.platform";

/// What an L1 runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// QEMU, translating.
    Tcg,
    /// Bochs, interpreting.
    Bochs,
    /// QEMU with the machine's own KVM, nested.
    Kvm,
}

impl Platform {
    /// Every platform.
    pub const ALL: &'static [Self] = &[Self::Tcg, Self::Bochs, Self::Kvm];

    /// The last part of a lane's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Bochs => "bochs",
            Self::Kvm => "kvm",
        }
    }

    /// Whether it runs on any machine.
    #[must_use]
    pub fn is_emulated(self) -> bool {
        self != Self::Kvm
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A platform's name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no platform `{0}`")]
pub struct UnknownPlatform(pub String);

impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(name: &str) -> Result<Self, UnknownPlatform> {
        let found = Self::ALL.iter().copied().find(|platform| platform.name() == name);
        found.ok_or_else(|| UnknownPlatform(name.to_owned()))
    }
}

/// One way to have an L1: a vendor back end on a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// QEMU TCG with SVM and NPT, three CPUs of which two run guests.
    #[serde(rename = "svm-tcg")]
    SvmTcg,
    /// Bochs with VMX and EPT, one CPU, exact instruction counts.
    #[serde(rename = "vmx-bochs")]
    VmxBochs,
    /// Bochs with SVM and NPT, next-RIP save and decode assists, one CPU, exact instruction counts.
    #[serde(rename = "svm-bochs")]
    SvmBochs,
    /// QEMU with hardware SVM, nested: where the machine has it.
    #[serde(rename = "svm-kvm")]
    SvmKvm,
    /// QEMU with hardware VMX, nested: where the machine has it.
    #[serde(rename = "vmx-kvm")]
    VmxKvm,
}

impl Lane {
    /// Every lane, in the order in which tables show them.
    pub const ALL: &'static [Self] = &[Self::SvmTcg, Self::VmxBochs, Self::SvmBochs, Self::SvmKvm, Self::VmxKvm];

    /// The name used on command lines, in test names and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SvmTcg => "svm-tcg",
            Self::VmxBochs => "vmx-bochs",
            Self::SvmBochs => "svm-bochs",
            Self::SvmKvm => "svm-kvm",
            Self::VmxKvm => "vmx-kvm",
        }
    }

    /// Whether it is among the lanes of a run that names none. svm-bochs is not: it is the slowest of those that every machine has.
    #[must_use]
    pub fn by_default(self) -> bool {
        self != Self::SvmBochs
    }

    /// The vendor back end that L1 has on this lane.
    #[must_use]
    pub fn backend(self) -> Backend {
        match self {
            Self::SvmTcg | Self::SvmBochs | Self::SvmKvm => Backend::Svm,
            Self::VmxBochs | Self::VmxKvm => Backend::Vmx,
        }
    }

    /// What L1 runs in on this lane.
    #[must_use]
    pub fn platform(self) -> Platform {
        match self {
            Self::SvmTcg => Platform::Tcg,
            Self::VmxBochs | Self::SvmBochs => Platform::Bochs,
            Self::SvmKvm | Self::VmxKvm => Platform::Kvm,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A lane's name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no lane `{0}`, lanes are {names}", names = names())]
pub struct UnknownLane(pub String);

fn names() -> String {
    Lane::ALL.iter().map(|lane| lane.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Lane {
    type Err = UnknownLane;

    fn from_str(name: &str) -> Result<Self, UnknownLane> {
        Self::ALL
            .iter()
            .copied()
            .find(|lane| lane.name() == name)
            .ok_or_else(|| UnknownLane(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_everywhere() {
        for &lane in Lane::ALL {
            assert_eq!(lane.name().parse(), Ok(lane));
            assert_eq!(serde_json::to_value(lane).unwrap(), lane.name());
            assert_eq!(lane.name(), format!("{}-{}", lane.backend(), lane.platform()));
            assert_eq!(lane.platform().name().parse(), Ok(lane.platform()));
        }
        let unknown = "arm".parse::<Lane>().unwrap_err();
        assert_eq!(unknown, UnknownLane("arm".to_owned()));
        assert!(unknown.to_string().starts_with("no lane `arm`, lanes are svm-tcg, "));
    }
}

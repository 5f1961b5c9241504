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

/// One way to have an L1: a vendor back end on an emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// QEMU TCG with SVM and NPT, two CPUs.
    #[serde(rename = "svm-tcg")]
    SvmTcg,
    /// Bochs with VMX and EPT, one CPU, exact instruction counts.
    #[serde(rename = "vmx-bochs")]
    VmxBochs,
}

impl Lane {
    /// Every lane, in the order in which tables show them.
    pub const ALL: &'static [Self] = &[Self::SvmTcg, Self::VmxBochs];

    /// The name used on command lines, in test names and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SvmTcg => "svm-tcg",
            Self::VmxBochs => "vmx-bochs",
        }
    }

    /// The vendor back end that L1 has on this lane.
    #[must_use]
    pub fn backend(self) -> Backend {
        match self {
            Self::SvmTcg => Backend::Svm,
            Self::VmxBochs => Backend::Vmx,
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
#[error("no lane `{0}`, lanes are svm-tcg and vmx-bochs")]
pub struct UnknownLane(pub String);

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
            assert!(lane.name().starts_with(&lane.backend().to_string()));
        }
        assert_eq!("arm".parse::<Lane>(), Err(UnknownLane("arm".to_owned())));
    }
}

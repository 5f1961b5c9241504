// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds of the modules that are for tests of the lab alone.

use std::fmt;

/// What a build has that the one for users has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Threads are held, by a seed, where it matters who comes first.
    pub explores: bool,
    /// A wait is left out that must be there.
    pub has_race: bool,
}

impl Variant {
    /// What users get.
    pub(crate) const PLAIN: Self = Self {
        explores: false,
        has_race: false,
    };

    /// What `make` is told, for kernel/Kbuild.
    pub fn arguments(self) -> Vec<&'static str> {
        let explores = self.explores.then_some("KVMI_EXPLORE=1");
        let has_race = self.has_race.then_some("KVMI_PLANTED_RACE=1");
        explores.into_iter().chain(has_race).collect()
    }

    /// What a folder of this variant is called beyond the kernel's release.
    pub(crate) fn suffix(self) -> &'static str {
        match (self.explores, self.has_race) {
            (false, false) => "",
            (true, false) => "-explore",
            (false, true) => "-race",
            (true, true) => "-explore-race",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.explores, self.has_race) {
            (false, false) => "",
            (true, false) => ", holding threads by a seed",
            (false, true) => ", with a race",
            (true, true) => ", holding threads by a seed and with a race",
        })
    }
}

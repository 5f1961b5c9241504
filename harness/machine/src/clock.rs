// SPDX-License-Identifier: MIT OR Apache-2.0
//! How time passes in an L1 that QEMU translates.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The largest [`Clock::Counted`] shift: with more, L1 does nothing but answer its timer.
pub const MAX_SHIFT: u8 = 8;

/// How time passes in an L1 that QEMU translates, and so which of its CPUs comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// By the host's clock; its CPUs run side by side.
    #[default]
    Host,
    /// By instructions, of which each takes 2 to the power of this many nanoseconds; its CPUs take turns.
    Counted(u8),
}

impl Clock {
    /// QEMU's arguments.
    pub(crate) fn arguments(self) -> Vec<String> {
        match self {
            Self::Host => Vec::new(),
            Self::Counted(shift) => [
                "-icount",
                // While nobody has anything to do, time goes on at once.
                &format!("shift={shift},sleep=off"),
                // What the host's calendar says is no part of the seed.
                "-rtc",
                "base=2025-01-01,clock=vm",
                // Nor is what it draws from the host for RDRAND.
                "-seed",
                "1",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }

    /// Whether it is one that QEMU has.
    #[must_use]
    pub fn is_possible(self) -> bool {
        !matches!(self, Self::Counted(shift) if shift > MAX_SHIFT)
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("by the host's clock"),
            Self::Counted(shift) => write!(f, "counted, 2^{shift} ns an instruction"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_what_qemu_is_told() {
        assert!(Clock::Host.arguments().is_empty() && Clock::Host.is_possible());
        assert_eq!(Clock::Counted(3).arguments()[1], "shift=3,sleep=off");
        assert_eq!(Clock::Counted(3).to_string(), "counted, 2^3 ns an instruction");
        assert!(Clock::Counted(MAX_SHIFT).is_possible() && !Clock::Counted(MAX_SHIFT + 1).is_possible());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a scenario ended on a lane, as L0 sees it.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use kvmi_lab_control::{Lane, Verdict};
use serde::{Deserialize, Serialize};

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Outcome {
    /// All was shown, and the kernel had nothing to say of it.
    Pass,
    /// Something was otherwise than expected.
    Fail {
        /// What.
        message: String,
    },
    /// It cannot run on this lane.
    Skip {
        /// Why not.
        reason: String,
    },
    /// The machine broke: no verdict, and no complaint that would say why.
    Lost {
        /// What was seen of it.
        message: String,
    },
    /// A stage took longer than it may.
    Timeout {
        /// Which.
        stage: String,
        /// How long it was allowed to take, in milliseconds.
        deadline_ms: u64,
    },
    /// L1's kernel complained, whatever the scenario says.
    Splat {
        /// The first line of complaint.
        complaint: String,
        /// How it would have ended otherwise.
        otherwise: Box<Outcome>,
    },
}

impl Outcome {
    /// Whether nothing has to be done about it.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        matches!(self, Self::Pass | Self::Skip { .. })
    }

    /// The word for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail { .. } => "fail",
            Self::Skip { .. } => "skip",
            Self::Lost { .. } => "lost",
            Self::Timeout { .. } => "timeout",
            Self::Splat { .. } => "splat",
        }
    }

    /// The same scenario with what the kernel said of it.
    #[must_use]
    pub fn with_complaints(self, complaints: &[&str]) -> Self {
        match complaints.first() {
            None => self,
            Some(&first) => Self::Splat {
                complaint: first.to_owned(),
                otherwise: Box::new(self),
            },
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Fail { message } => Self::Fail { message },
            Verdict::Skip { reason } => Self::Skip { reason },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Fail { message } => write!(f, "fail: {message}"),
            Self::Skip { reason } => write!(f, "skip: {reason}"),
            Self::Lost { message } => write!(f, "lost: {message}"),
            Self::Timeout { stage, deadline_ms } => {
                write!(f, "timeout: stage `{stage}` took longer than {deadline_ms} ms")
            }
            Self::Splat { complaint, otherwise } => write!(f, "splat: {complaint} (otherwise {otherwise})"),
        }
    }
}

/// A figure that a scenario measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: String,
}

/// What is kept of one scenario on one lane, beside its logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The scenario's name.
    pub scenario: String,
    /// Where it ran.
    pub lane: Lane,
    /// Where its random numbers started.
    pub seed: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// From the request for a machine until it was off, in seconds of host time.
    pub seconds: f64,
    /// What it measured.
    pub measures: Vec<Measure>,
}

impl Record {
    /// The file in the scenario's folder.
    pub const FILE: &'static str = "verdict.json";

    /// Writes the record into the scenario's folder.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join(Self::FILE), serde_json::to_vec_pretty(self)?)
    }

    /// Reads the record in a scenario's folder.
    ///
    /// # Errors
    ///
    /// What the file system fails with, or no such record in the file.
    pub fn read(folder: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(folder.join(Self::FILE))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_spoils_a_pass_and_keeps_what_was_said() {
        assert_eq!(Outcome::Pass.with_complaints(&[]), Outcome::Pass);
        let splat = Outcome::from(Verdict::Pass).with_complaints(&["WARNING: a", "WARNING: b"]);
        assert!(!splat.is_fine());
        assert_eq!(splat.to_string(), "splat: WARNING: a (otherwise pass)");
        let json = serde_json::to_string(&splat).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&json).unwrap(), splat);
    }
}

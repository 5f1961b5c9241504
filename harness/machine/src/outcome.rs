// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a scenario ended on a lane, as L0 sees it.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use kvmi_lab_control::{Lane, Verdict};
use serde::{Deserialize, Serialize};

use crate::complaint::{Class, Complaint};

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
        /// What kind of complaint.
        class: Class,
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
    pub fn with_complaints(self, complaints: &[Complaint]) -> Self {
        match complaints.first() {
            None => self,
            Some(first) => Self::Splat {
                class: first.class,
                complaint: first.line.clone(),
                otherwise: Box::new(self),
            },
        }
    }

    /// What makes two verdicts the same: the text without what differs from run to run, which is times, addresses and long numbers,
    /// and in a kernel's line every number.
    #[must_use]
    pub fn signature(&self) -> String {
        match self {
            Self::Splat {
                class,
                complaint,
                otherwise,
            } => {
                let text = complaint.split_once("] ").map_or(complaint.as_str(), |(_, text)| text);
                format!(
                    "splat ({class}): {} (otherwise {})",
                    mask(text, 1),
                    otherwise.signature()
                )
            }
            other => mask(&other.to_string(), LONG_NUMBER),
        }
    }
}

/// Numbers of this many digits are addresses, times or process numbers in a verdict's text.
const LONG_NUMBER: usize = 5;

/// Puts a sign in the place of each number, decimal or hexadecimal, that has at least so many digits.
fn mask(text: &str, digits: usize) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        masked.push_str(&rest[..at]);
        rest = &rest[at..];
        let prefix = if rest.starts_with("0x") { 2 } else { 0 };
        let is_digit = |c: char| {
            if prefix > 0 {
                c.is_ascii_hexdigit()
            } else {
                c.is_ascii_digit()
            }
        };
        let end = rest[prefix..].find(|c| !is_digit(c)).map_or(rest.len(), |n| n + prefix);
        masked.push_str(if end - prefix >= digits { "…" } else { &rest[..end] });
        rest = &rest[end..];
    }
    masked + rest
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
            Self::Splat {
                class,
                complaint,
                otherwise,
            } => {
                write!(f, "splat ({class}): {complaint} (otherwise {otherwise})")
            }
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

    fn complaint(line: &str) -> Complaint {
        Complaint {
            class: Class::Warning,
            line: line.to_owned(),
        }
    }

    #[test]
    fn a_complaint_spoils_a_pass_and_keeps_what_was_said() {
        assert_eq!(Outcome::Pass.with_complaints(&[]), Outcome::Pass);
        let splat = Outcome::from(Verdict::Pass).with_complaints(&[complaint("WARNING: a"), complaint("WARNING: b")]);
        assert!(!splat.is_fine());
        assert_eq!(splat.to_string(), "splat (warning): WARNING: a (otherwise pass)");
        let json = serde_json::to_string(&splat).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&json).unwrap(), splat);
    }

    #[test]
    fn verdicts_are_the_same_whatever_the_time_and_the_addresses() {
        let splat = |line| Outcome::Pass.with_complaints(&[complaint(line)]).signature();
        assert_eq!(
            splat("[   12.345678] WARNING: CPU: 0 PID: 77 at x.c:11 f+0x1/0x20"),
            splat("[    2.000001] WARNING: CPU: 1 PID: 8 at x.c:11 f+0x1/0x20")
        );
        let fail = |message: &str| {
            Outcome::Fail {
                message: message.to_owned(),
            }
            .signature()
        };
        assert_eq!(
            fail("rip 0xffffffff81000000, took 1234567"),
            fail("rip 0x7fffffff, took 99999")
        );
        assert_ne!(fail("expected 3, got 4"), fail("expected 3, got 5"));
        assert_ne!(splat("BUG: a"), splat("BUG: b"));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a bundle says of itself.

use kvmi_lab_control::Lane;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Clock;
use crate::outcome::Outcome;

/// The form of bundles that this lab writes, and the newest that it reads.
pub const SCHEMA: u32 = 3;

/// The largest [`Manifest::slowness`]: nobody waits longer.
pub(super) const MAX_SLOWNESS: u32 = 100;

/// What is in a bundle and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`] of the lab that wrote it.
    pub schema: u32,
    /// The day on which it was made, e.g. `2026-11-22`.
    pub made: String,
    /// The commit of the checkout, with `-dirty` where it had changes; empty if not known.
    pub checkout: String,
    /// The scenario.
    pub scenario: String,
    /// The lane on which it ran.
    pub lane: Lane,
    /// Where its random numbers started.
    pub seed: u64,
    /// How time passed in L1, by the name that bundles have for it; schema 1 does not have it.
    #[serde(default, rename = "pace")]
    pub clock: Clock,
    /// How it should have ended.
    pub expected: Outcome,
    /// How it ended.
    pub seen: Outcome,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// L1's kernel, as `uname -r` says it.
    pub kernel: String,
    /// What the kernel was told on every lane.
    pub arguments: Vec<String>,
    /// How many times longer things may take than in a stock kernel; schemas before 3 do not have it.
    #[serde(default = "as_stock")]
    pub slowness: u32,
    /// The emulator's package and version.
    pub emulator: String,
    /// Each other member, in order. The modules are in the initrd, under `/modules`.
    pub members: Vec<Member>,
}

/// A file in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, e.g. `logs/console.log`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash, in hexadecimal digits.
    pub sha256: String,
}

fn as_stock() -> u32 {
    1
}

/// A hash as the manifest writes it.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What L0 and L1 say to each other over the control channel.
//!
//! The channel is L1's second serial port (`/dev/ttyS1`, raw). Each message is one JSON object on one line that ends in `\n`, at
//! most [`MAX_LINE_BYTES`] long. L1 speaks first:
//!
//! ```text
//! L1  Ready, then the bare byte SNAPSHOT        L0 has the emulator save L1; what follows is in a restored one
//! L0  Run; in a machine that is to repeat itself to the instruction, in brief (the module `brief`)
//! L1  Started, then any of Stage, Log, Transcript, Measure, then Done exactly once; L1 then powers off
//! ```
//!
//! To a Shell in the place of Run it answers with Prompt, and what follows is no message but what a terminal shows.

#![forbid(unsafe_code)]

pub mod brief;
mod lane;
mod line;
mod message;
mod selftest;

pub use lane::{Backend, Lane, PLATFORM, Platform, UnknownLane, UnknownPlatform};
pub use line::{LineReader, MAX_LINE_BYTES, ReadError, encode};
pub use message::{FromL1, HOOK_BEFORE_SNAPSHOT, LoadedModule, PLACES, SCENARIO, SEED, SNAPSHOT, ToL1, Verdict};
pub use selftest::{SELFTEST_ARGUMENTS, SELFTESTS, SelftestMode, UnknownMode};

/// What the releases of kernels end with that watch themselves.
pub const WATCHES_ITSELF: &str = "-sanitize";

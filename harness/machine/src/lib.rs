// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 as seen from L0: emulators, images, the control channel, snapshots, deadlines, logs. Knows nothing of KVMI.

pub mod cache;
pub mod process;
pub mod progress;

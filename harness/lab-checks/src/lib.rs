// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks of the lab itself: are its verdicts right, do runs repeat themselves, is anything left behind, and what does it cost.

#![forbid(unsafe_code)]

pub mod bench;
pub mod endure;
pub mod explore;
pub mod mutants;
pub mod planted;
pub mod twice;

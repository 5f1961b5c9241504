// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every command works with: the checkout, the cache, the folders of runs, Debian packages, output.

#![forbid(unsafe_code)]

pub mod apt;
mod environment;
pub mod exit;
pub mod finding;
pub mod output;
pub mod runs;
pub mod tools;

pub use environment::Environment;

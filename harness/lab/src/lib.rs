// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sets the lab up and runs scenarios in it: images, emulators, snapshots, the test runner, results, bundles, a shell.

#![forbid(unsafe_code)]

pub mod busybox;
mod differential;
pub mod e2e;
pub mod emulators;
pub mod filter;
pub mod gdb;
pub mod hardware;
pub mod images;
pub mod kernels;
pub mod list;
pub mod nextest;
pub mod parity;
pub mod repro;
pub mod scenarios_page;
pub mod shell;
pub mod snapshots;
pub mod summary;
pub mod table;
pub mod transcript;

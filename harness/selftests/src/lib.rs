// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's own selftests in L1.
//!
//! The kernel's source package has them (`tools/testing/selftests/kvm`). [`build`] compiles them,
//! L1 runs one at a time (`harness/l1`), and [`compare`] looks whether each ends as it does with
//! stock KVM on the same lane. What is known to be otherwise, and why, is the table `expected.toml`
//! ([`expected`]). [`results`] keeps what a run has shown, and [`page`] shows that to people.
//! [`command`] is `cargo xtask selftests`, and [`record`] the part of it that writes the page.

#![forbid(unsafe_code)]

pub mod build;
pub mod command;
pub mod compare;
pub mod expected;
pub mod page;
pub mod record;
pub mod results;
pub mod run;
mod show;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's own selftests in L1.
//!
//! The kernel's source package has them (`tools/testing/selftests/kvm`). [`build`] compiles them, L1 runs one at a time (`harness/l1`), and
//! [`compare`] looks whether each ends as it does with stock KVM on the same lane. What is known to be otherwise, and why, is the table
//! `expected.toml` ([`expected`]). [`results`] keeps what a run has shown, and [`page`] shows that to people.

pub mod build;
pub mod compare;
pub mod expected;
pub mod page;
pub mod results;
pub mod run;

// SPDX-License-Identifier: GPL-2.0-only
//! What is true of a hooked VM and of each of its vCPUs.

pub(crate) mod feature;
pub(crate) mod injection;
pub(crate) mod msr_set;
pub(crate) mod occurrence;
mod permission;
pub(crate) mod vcpu;
pub(crate) mod vm;
pub(crate) mod voided;

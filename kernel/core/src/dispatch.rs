// SPDX-License-Identifier: GPL-2.0-only
//! The way of a message: what the receive thread and the vCPU threads do with it before a command or an event has it.

pub(crate) mod queue;
pub(crate) mod vcpu;
pub(crate) mod vm;

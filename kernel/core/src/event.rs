// SPDX-License-Identifier: GPL-2.0-only
//! Events as messages, and the tool's replies to them.

pub(crate) mod message;
pub(crate) mod reply;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bochs draws what RDRAND gives from the C library's `rand`, which it has start where the host's clock says. L1's kernel draws from RDRAND
//! what it sorts its tables by, so each boot would be another one.

use std::ffi::c_uint;

/// Stands before the C library's `srand`, and has numbers start where they do by themselves.
#[unsafe(no_mangle)]
pub extern "C" fn srand(_: c_uint) {}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the test runner says by its exit code.

/// Tests ran and some failed.
pub const TESTS_FAILED: i32 = 100;

/// No test was selected.
pub const NO_TESTS: i32 = 4;

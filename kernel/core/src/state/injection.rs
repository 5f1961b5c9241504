// SPDX-License-Identifier: GPL-2.0-only
//! An exception on its way from the tool to the guest.

/// An exception that a tool wants the guest to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Vector.
    pub nr: u8,
    /// Error code, for an exception that has one.
    pub error_code: Option<u32>,
    /// CR2, for a page fault.
    pub address: u64,
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! One file that holds all that a scenario's verdict came from: what L1 booted, the seed, the verdict, the logs.
//!
//! A zstd-compressed tar of plain files. Its first member is the [`Manifest`], which names each other one with its size and hash. It is read
//! as what it is: a file from someone else. So it holds what runs in an emulator, and no program that runs beside it.

mod manifest;
mod open;
mod write;

pub use manifest::{Manifest, Member, SCHEMA};
pub use open::{Bundle, BundleError, open};
pub use write::{Source, write};

/// The file in a scenario's run folder.
pub const FILE: &str = "bundle.tar.zst";

/// How large a bundle may be, in bytes.
pub const MAX_BYTES: u64 = 60 * 1024 * 1024;

/// How large one member may be when unpacked, in bytes.
const MAX_MEMBER_BYTES: u64 = 256 * 1024 * 1024;

/// How large a manifest may be, in bytes.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

/// How much of one log is kept, in bytes: its beginning and its end.
const MAX_LOG_BYTES: usize = 4 * 1024 * 1024;

/// Names of members.
mod name {
    pub(super) const MANIFEST: &str = "manifest.json";
    pub(super) const KERNEL: &str = "vmlinuz";
    pub(super) const INITRD: &str = "initrd";
    pub(super) const LOGS: &str = "logs/";
}

#[cfg(test)]
mod tests;

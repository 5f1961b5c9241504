// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 as seen from L0: emulators, images, the control channel, snapshots, deadlines, logs. Knows no message of KVMI.
//!
//! A lane is prepared once ([`qemu::prepare`], [`bochs::prepare`]): L1 boots until it stands at its snapshot, and is saved there. Then each
//! scenario has a machine of its own that goes on from there ([`scenario::run`]), and ends in a [`outcome::Record`]. A
//! [`lab_run::LabRun`] tells the processes that run scenarios what was prepared.

pub mod bochs;
pub mod boot;
pub mod bundle;
pub mod cache;
pub mod clock;
pub mod complaint;
pub mod emulator;
pub mod initrd;
pub mod kvm_guest;
pub mod lab_run;
pub mod machine_event;
pub mod outcome;
mod plant;
pub mod process;
pub mod progress;
pub mod prompt;
pub mod qemu;
pub mod qmp;
pub mod recording;
pub mod run_folder;
pub mod scenario;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VMM's process that is there before it is needed, for the first VM of a scenario.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::packet;
use super::request::{Answer, Reply};
use crate::Failure;

/// The one that waits.
static SPARE: Mutex<Option<Vmm>> = Mutex::new(None);

/// A VMM's process that has no VM yet.
#[derive(Debug)]
pub(super) struct Vmm {
    pub(super) socket: OwnedFd,
    pub(super) process: Child,
}

impl Vmm {
    /// The spare one, or else a new one.
    pub(super) fn spare_or_new() -> Result<Self, Failure> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(Self::start, Ok)
    }

    /// Starts one and waits until it waits.
    fn start() -> Result<Self, Failure> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let process = Command::new("/proc/self/exe")
            .arg("vmm")
            .stdin(Stdio::from(theirs))
            .spawn()?;
        let vmm = Self { socket, process };
        match packet::receive::<Reply>(vmm.socket.as_fd())? {
            Some((Ok(Answer::Done), _)) => Ok(vmm),
            other => Err(Failure::new(format!("the VMM did not start: {other:?}"))),
        }
    }
}

/// Starts a VMM that the first VM is made in.
///
/// # Errors
///
/// A process that does not start.
pub fn start_spare() -> Result<(), Failure> {
    let vmm = Vmm::start()?;
    *SPARE.lock().unwrap_or_else(PoisonError::into_inner) = Some(vmm);
    Ok(())
}

/// Ends the VMM that no VM was made in, if there is one.
pub fn end_spare() {
    if let Some(mut vmm) = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // One that has ended already need not be killed.
        let _ = vmm.process.kill();
        let _ = vmm.process.wait();
    }
}

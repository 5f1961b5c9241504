// SPDX-License-Identifier: MIT OR Apache-2.0
//! The five ioctls, as a scenario has the VMM call them.

use std::os::fd::BorrowedFd;

use kvmi_uapi::ioctl;

use super::Vm;
use super::request::{HookFd, Permission, Request};
use crate::{Failure, check_eq};

impl Vm {
    /// HOOK with a descriptor of ours; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn hook(&self, fd: BorrowedFd<'_>, flags: u32) -> Result<i32, Failure> {
        let fd_kind = HookFd::Passed;
        self.begin(&Request::Hook { fd: fd_kind, flags }, &[fd])?;
        Ok(Self::errno(&self.finish()?))
    }

    /// HOOK with a descriptor of ours, then every command and event allowed.
    ///
    /// # Errors
    ///
    /// What is refused.
    pub fn hook_and_allow(&self, fd: BorrowedFd<'_>, flags: u32) -> Result<(), Failure> {
        check_eq!(self.hook(fd, flags)?, 0, "errno of HOOK");
        for what in [Permission::Command, Permission::Event] {
            check_eq!(self.permit(what, 1, ioctl::ALL)?, 0, "errno of allowing all");
        }
        Ok(())
    }

    /// HOOK with a descriptor number of the VMM's own; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn hook_number(&self, fd: i32, flags: u32) -> Result<i32, Failure> {
        let fd = HookFd::Number(fd);
        Ok(Self::errno(&self.ask(&Request::Hook { fd, flags })?))
    }

    /// COMMAND or EVENT; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn permit(&self, what: Permission, allow: u32, id: i32) -> Result<i32, Failure> {
        Ok(Self::errno(&self.ask(&Request::Permit { what, allow, id })?))
    }

    /// PREUNHOOK; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn preunhook(&self) -> Result<i32, Failure> {
        Ok(Self::errno(&self.ask(&Request::PreUnhook)?))
    }

    /// UNHOOK; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn unhook(&self) -> Result<i32, Failure> {
        Ok(Self::errno(&self.ask(&Request::Unhook)?))
    }

    /// Hooks on a new socket and unhooks, this often.
    ///
    /// # Errors
    ///
    /// The first HOOK or UNHOOK that fails.
    pub fn hook_cycles(&self, times: u32) -> Result<(), Failure> {
        self.done(&Request::HookCycles(times))
    }

    /// Has the VMM make as many VMs more, each hooked on one of these sockets.
    ///
    /// # Errors
    ///
    /// A HOOK that is refused.
    pub fn hook_more(&self, sockets: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.begin(&Request::HookMore, sockets)?;
        self.finish()?
            .map_err(|r| Failure::new(format!("HookMore was refused: {r}")))?;
        Ok(())
    }
}

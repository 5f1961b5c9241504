// SPDX-License-Identifier: MIT OR Apache-2.0
//! HOOK, and UNHOOK on each way out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;
use kvmi_lab_scenarios::ioctls;
use kvmi_uapi::ioctl;
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// The ioctls of a VM that the tool needs.
pub(super) trait Ioctls {
    fn hook(&self, socket: BorrowedFd<'_>) -> Result<(), Errno>;
    fn allow_every_command(&self) -> Result<(), Errno>;
    fn allow_every_event(&self) -> Result<(), Errno>;
    fn unhook(&self) -> Result<(), Errno>;
}

impl Ioctls for OwnedFd {
    fn hook(&self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        ioctls::hook(self.as_fd(), socket.as_raw_fd(), 0, *b"hooked by a hand")
    }

    fn allow_every_command(&self) -> Result<(), Errno> {
        ioctls::permit_command(self.as_fd(), 1, ioctl::ALL)
    }

    fn allow_every_event(&self) -> Result<(), Errno> {
        ioctls::permit_event(self.as_fd(), 1, ioctl::ALL)
    }

    fn unhook(&self) -> Result<(), Errno> {
        ioctls::unhook(self.as_fd())
    }
}

/// A VM that this tool hooks.
pub(super) struct Hook<V> {
    vm: V,
    /// Whether this tool has it hooked. Locked while that changes.
    hooked: Mutex<bool>,
}

impl<V: Ioctls> Hook<V> {
    pub(super) fn new(vm: V) -> Self {
        Self {
            vm,
            hooked: Mutex::new(false),
        }
    }

    pub(super) fn ioctls(&self) -> &V {
        &self.vm
    }

    #[cfg(test)]
    pub(super) fn into_ioctls(self) -> V {
        self.vm
    }

    /// HOOK; UNHOOK follows when what this gives is dropped.
    pub(super) fn hook(&self, socket: BorrowedFd<'_>) -> anyhow::Result<Hooked<'_, V>> {
        let mut hooked = self.hooked.lock().unwrap_or_else(PoisonError::into_inner);
        match self.vm.hook(socket) {
            Err(Errno::EXIST) => Err(Errno::EXIST)
                .context("HOOK: another tool has this VM hooked, or was killed and left it so until the VMM ends"),
            other => other.context("HOOK"),
        }?;
        *hooked = true;
        Ok(Hooked(self))
    }

    /// UNHOOK, unless that was done.
    fn unhook(&self, hooked: &mut bool) -> Result<(), Errno> {
        if *hooked {
            self.vm.unhook()?;
            *hooked = false;
        }
        Ok(())
    }
}

/// A VM that is hooked. Dropped, by a `?` or a panic too, it is not any more.
pub(super) struct Hooked<'a, V: Ioctls>(&'a Hook<V>);

impl<V: Ioctls> Hooked<'_, V> {
    /// UNHOOK.
    pub(super) fn unhook(self) -> anyhow::Result<()> {
        let mut hooked = self.0.hooked.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.unhook(&mut hooked).context("UNHOOK")
    }
}

impl<V: Ioctls> Drop for Hooked<'_, V> {
    fn drop(&mut self) {
        let mut hooked = self.0.hooked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(errno) = self.0.unhook(&mut hooked) {
            eprintln!("introspect: UNHOOK: {errno}");
        }
    }
}

/// From now on a signal that ends this process unhooks first. Call it before HOOK.
pub(super) fn unhook_on_signals<V: Ioctls + Send + Sync + 'static>(vm: &Arc<Hook<V>>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).context("wait for signals")?;
    let vm = vm.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            // Held to the end: a HOOK that waits for it never happens.
            let mut hooked = vm.hooked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(errno) = vm.unhook(&mut hooked) {
                eprintln!("introspect: UNHOOK: {errno}");
            }
            // Ends this process, as the signal would have.
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(())
}

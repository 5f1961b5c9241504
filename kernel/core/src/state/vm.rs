// SPDX-License-Identifier: GPL-2.0-only
//! What is true of a hooked VM as a whole.

use core::sync::atomic::{AtomicBool, Ordering};

use kvmi_uapi::{error::EPERM, event, msg};

use crate::{
    effects::KvmError,
    state::{
        feature::{self, Target},
        permission::Permissions,
    },
};

/// Commands that each tool may use, so that it can find out what else it may.
const ALWAYS_ALLOWED: [u16; 3] = [msg::GET_VERSION, msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT];

/// Shared state of a hooked VM. Each part is atomic, so that no thread waits for another.
#[derive(Debug)]
pub struct VmState {
    commands: Permissions,
    events: Permissions,
    cleanup: AtomicBool,
    unhook_event: AtomicBool,
}

impl Default for VmState {
    fn default() -> Self {
        Self::new()
    }
}

impl VmState {
    /// The state right after HOOK: the three query commands are allowed, no event is.
    pub fn new() -> Self {
        let vm = Self {
            commands: Permissions::new(),
            events: Permissions::new(),
            cleanup: AtomicBool::new(true),
            unhook_event: AtomicBool::new(false),
        };
        for id in ALWAYS_ALLOWED {
            vm.commands.set(id, true);
        }
        vm
    }

    /// Carries out the ioctl COMMAND.
    ///
    /// # Errors
    /// As [`crate::check_command`]; EPERM when a query command is to be revoked.
    pub fn allow_command(&self, allow: u32, id: i32) -> Result<(), KvmError> {
        let (allow, target) = feature::parse(allow, id, msg::COMMANDS)?;
        match target {
            Target::One(id) if !allow && ALWAYS_ALLOWED.contains(&id) => return Err(KvmError(EPERM)),
            Target::One(id) => self.commands.set(id, allow),
            Target::All => {
                for (id, _) in msg::COMMANDS {
                    if allow || !ALWAYS_ALLOWED.contains(id) {
                        self.commands.set(*id, allow);
                    }
                }
            }
        }
        Ok(())
    }

    /// Carries out the ioctl EVENT.
    ///
    /// # Errors
    /// As [`crate::check_event`].
    pub fn allow_event(&self, allow: u32, id: i32) -> Result<(), KvmError> {
        let (allow, target) = feature::parse(allow, id, event::ALL)?;
        match target {
            Target::One(id) => self.events.set(id, allow),
            Target::All => {
                for (id, _) in event::ALL {
                    self.events.set(*id, allow);
                }
            }
        }
        Ok(())
    }

    /// Whether unhook is to remove the intercepts that the tool asked for.
    pub fn cleanup_enabled(&self) -> bool {
        self.cleanup.load(Ordering::Acquire)
    }

    /// Whether PREUNHOOK is to send the UNHOOK event: the tool enabled it and the VMM allows it.
    pub fn unhook_event_enabled(&self) -> bool {
        self.unhook_event.load(Ordering::Acquire) && self.event_allowed(event::UNHOOK)
    }

    pub(crate) fn command_allowed(&self, id: u16) -> bool {
        self.commands.has(id)
    }

    pub(crate) fn event_allowed(&self, id: u16) -> bool {
        self.events.has(id)
    }

    pub(crate) fn set_cleanup(&self, enable: bool) {
        self.cleanup.store(enable, Ordering::Release);
    }

    pub(crate) fn set_unhook_event(&self, enable: bool) {
        self.unhook_event.store(enable, Ordering::Release);
    }
}

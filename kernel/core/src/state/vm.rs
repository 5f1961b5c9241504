// SPDX-License-Identifier: GPL-2.0-only
//! What is true of a hooked VM as a whole.

use core::sync::atomic::{AtomicBool, Ordering};

use kvmi_uapi::{error::EPERM, event, msg, table::QUERIES};

use crate::{
    effects::KvmError,
    state::{
        feature::{self, Target},
        permission::Permissions,
    },
};

/// Shared state of a hooked VM. Each part is atomic, so that no thread waits for another.
#[derive(Debug)]
pub struct VmState {
    commands: Permissions,
    events: Permissions,
    cleanup: AtomicBool,
    /// Events that VM_CONTROL_EVENTS has switched on.
    switched_on: Permissions,
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
            switched_on: Permissions::new(),
        };
        for id in QUERIES {
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
            Target::One(id) if !allow && QUERIES.contains(&id) => return Err(KvmError(EPERM)),
            Target::One(id) => self.commands.set(id, allow),
            Target::All => {
                for (id, _) in msg::COMMANDS {
                    if allow || !QUERIES.contains(id) {
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
        self.event_enabled(event::UNHOOK) && self.event_allowed(event::UNHOOK)
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

    pub(crate) fn event_enabled(&self, id: u16) -> bool {
        self.switched_on.has(id)
    }

    pub(crate) fn enable_event(&self, id: u16, enable: bool) {
        self.switched_on.set(id, enable);
    }
}

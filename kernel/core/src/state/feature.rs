// SPDX-License-Identifier: GPL-2.0-only
//! The arguments of the ioctls COMMAND and EVENT.

use kvmi_uapi::{error::EINVAL, event, ioctl, msg};

use crate::effects::KvmError;

/// What a grant or revocation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    All,
    One(u16),
}

/// Checks `allow` and `id` of the ioctl COMMAND, before it is known whether the VM is hooked.
///
/// # Errors
/// EINVAL for another `allow` than 0 and 1, and for an `id` that is neither -1 nor a command of the protocol (P18).
pub fn check_command(allow: u32, id: i32) -> Result<(), KvmError> {
    parse(allow, id, msg::COMMANDS).map(|_| ())
}

/// Checks `allow` and `id` of the ioctl EVENT, before it is known whether the VM is hooked.
///
/// # Errors
/// EINVAL for another `allow` than 0 and 1, and for an `id` that is neither -1 nor an event of the protocol (P18).
pub fn check_event(allow: u32, id: i32) -> Result<(), KvmError> {
    parse(allow, id, event::ALL).map(|_| ())
}

/// Reads the arguments; `table` holds what there is to allow.
///
/// A command of the protocol that this kernel does not know yet may be allowed all the same: a VMM with a list of
/// permissions need not know the kernel's age, and the tool learns it from VM_CHECK_COMMAND.
pub(crate) fn parse(allow: u32, id: i32, table: &[(u16, &str)]) -> Result<(bool, Target), KvmError> {
    let allow = match allow {
        0 => false,
        1 => true,
        _ => return Err(KvmError(EINVAL)),
    };
    if id == ioctl::ALL {
        return Ok((allow, Target::All));
    }
    let id = u16::try_from(id).map_err(|_| KvmError(EINVAL))?;
    if table.iter().any(|(known, _)| *known == id) {
        Ok((allow, Target::One(id)))
    } else {
        Err(KvmError(EINVAL))
    }
}

// SPDX-License-Identifier: GPL-2.0-only
//! Commands: what each checks and does. Each is known and allowed when it comes here.

mod injection;
mod mtrr;
mod page_access;
mod registers;
pub(crate) mod translate;
pub(crate) mod vcpu;
mod vcpu_query;
pub(crate) mod vm;

use kvmi_uapi::{
    error::{EINVAL, EPERM},
    table::{self, Short},
};

use crate::{
    effects::KvmError,
    state::vm::VmState,
    wire::{self, Message},
};

/// What becomes of a message by its row in the table, before the command looks at it: `Ok` when nothing is wrong with
/// it, otherwise the length of the reply that refuses it, None when the connection is to be closed.
///
/// Order: a message that is too short, permission of the event that the row asks for, padding. The message comes without
/// the vCPU header.
fn check(vm: &VmState, message: Message<'_>, out: &mut [u8]) -> Result<(), Option<usize>> {
    let row = table::command(message.hdr.id).ok_or(None)?;
    let error = if row.is_short(message.payload) {
        if row.short == Short::Closes {
            return Err(None);
        }
        EINVAL
    } else if row.asks.is_some_and(|event| !vm.event_allowed(event)) {
        EPERM
    } else if !row.padding_is_zero(message.payload) {
        EINVAL
    } else {
        return Ok(());
    };
    Err(wire::finish(out, message.hdr, Err(KvmError(error)), 0))
}

fn valid(is_valid: bool) -> Result<(), KvmError> {
    if is_valid { Ok(()) } else { Err(KvmError(EINVAL)) }
}

fn allowed(is_allowed: bool) -> Result<(), KvmError> {
    if is_allowed { Ok(()) } else { Err(KvmError(EPERM)) }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the protocol says about any message.

use kvmi_uapi::error::{EBUSY, EINVAL, ENOENT, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM};
use kvmi_uapi::msg;

use super::QUERIES;
use crate::wire::Answer;

/// What may come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The connection closes.
    Closed,
    /// This error.
    Error(i32),
    /// Data of this length, or one of these errors.
    Either(usize, &'static [i32]),
}

impl Expected {
    pub(super) fn allows(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Self::Error(wanted), Err(errno)) => wanted == errno,
            (Self::Either(length, _), Ok(data)) => data.len() == *length,
            (Self::Either(_, errors), Err(errno)) => errors.contains(errno),
            (Self::Closed, _) | (Self::Error(_), Ok(_)) => false,
        }
    }
}

fn word(payload: &[u8], at: usize) -> u16 {
    // What is missing reads as zero.
    let byte = |at| payload.get(at).copied().unwrap_or(0);
    u16::from_ne_bytes([byte(at), byte(at + 1)])
}

/// What is to come back for a message whose header tells the truth. `allowed`: every command and event is, or none.
pub(super) fn expected(id: u16, payload: &[u8], allowed: bool, vcpus: u16) -> Expected {
    let is_command = msg::COMMANDS.iter().any(|(command, _)| *command == id);
    if id != msg::VCPU_EVENT {
        if !is_command {
            return Expected::Error(ENOSYS);
        }
        let not_yet = !super::generator::is_carried_out(id);
        if not_yet {
            return Expected::Either(0, &[ENOSYS, EPERM, EINVAL]);
        }
        if !allowed && !QUERIES.contains(&id) {
            return Expected::Error(EPERM);
        }
    }
    let has_padding = (2..8).any(|at| payload.get(at).is_some_and(|byte| *byte != 0));
    if msg::is_vcpu(id) && (has_padding || word(payload, 0) >= vcpus) {
        return Expected::Error(EINVAL);
    }
    match id {
        // No event can be open: the guest sleeps, and PAUSE is answered at once.
        msg::VCPU_EVENT => Expected::Closed,
        msg::GET_VERSION | msg::VM_GET_INFO => Expected::Either(16, &[]),
        msg::VM_CHECK_COMMAND | msg::VM_CHECK_EVENT => Expected::Either(0, &[EINVAL, ENOENT, EPERM]),
        // A guest that sleeps executes nothing that could be told.
        msg::VM_CONTROL_EVENTS
        | msg::VM_CONTROL_CLEANUP
        | msg::VCPU_CONTROL_CR
        | msg::VCPU_CONTROL_MSR
        | msg::VCPU_CONTROL_SINGLESTEP => Expected::Either(0, &[EINVAL]),
        msg::VM_READ_PHYSICAL => Expected::Either(word(payload, 8).into(), &[EINVAL, ENOENT]),
        msg::VM_WRITE_PHYSICAL if usize::from(word(payload, 8)) > payload.len().saturating_sub(16) => Expected::Closed,
        msg::VM_WRITE_PHYSICAL => Expected::Either(0, &[EINVAL, ENOENT, EPERM]),
        msg::VM_PAUSE_VCPU => Expected::Either(0, &[EINVAL, EBUSY]),
        msg::VM_SET_PAGE_ACCESS | msg::VM_GET_PAGE_ACCESS
            if 16 * usize::from(word(payload, 0)) > payload.len().saturating_sub(8) =>
        {
            Expected::Closed
        }
        msg::VM_SET_PAGE_ACCESS => Expected::Either(0, &[EINVAL, EOPNOTSUPP, ENOMEM]),
        msg::VM_GET_PAGE_ACCESS => Expected::Either(16 * usize::from(word(payload, 0)), &[EINVAL]),
        msg::VCPU_GET_INFO => Expected::Either(8, &[]),
        msg::VCPU_CONTROL_EVENTS => Expected::Either(0, &[EINVAL, EBUSY, EOPNOTSUPP]),
        msg::VCPU_GET_REGISTERS => {
            let msrs = usize::from(word(payload, 8));
            Expected::Either(472 + 16 * msrs, &[EINVAL])
        }
        // Never long enough.
        msg::VCPU_SET_REGISTERS => Expected::Either(0, &[EINVAL, EOPNOTSUPP]),
        msg::VCPU_GET_CPUID => Expected::Either(16, &[ENOENT]),
        msg::VCPU_GET_XCR => Expected::Either(8, &[EINVAL]),
        msg::VCPU_GET_XSAVE => Expected::Either(4096, &[]),
        msg::VCPU_SET_XSAVE => Expected::Either(0, &[EINVAL]),
        msg::VCPU_GET_MTRR_TYPE | msg::VCPU_TRANSLATE_GVA => Expected::Either(8, &[]),
        _ => Expected::Error(ENOSYS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_checks() {
        let no_vcpu = [9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(expected(1000, &[], false, 2), Expected::Error(ENOSYS));
        assert_eq!(expected(msg::VCPU_GET_INFO, &no_vcpu, false, 2), Expected::Error(EPERM));
        assert_eq!(expected(msg::VCPU_GET_INFO, &no_vcpu, true, 2), Expected::Error(EINVAL));
        assert_eq!(expected(msg::VCPU_GET_INFO, &[], true, 2), Expected::Either(8, &[]));
    }

    #[test]
    fn a_write_longer_than_its_message_closes() {
        let mut payload = [0; 20];
        payload[8] = 4;
        assert_ne!(expected(msg::VM_WRITE_PHYSICAL, &payload, true, 2), Expected::Closed);
        assert_eq!(
            expected(msg::VM_WRITE_PHYSICAL, &payload[..19], true, 2),
            Expected::Closed
        );
        assert_eq!(
            expected(msg::VM_WRITE_PHYSICAL, &payload[..19], false, 2),
            Expected::Error(EPERM)
        );
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the protocol says about any message.

use kvmi_uapi::error::{EBUSY, EINVAL, ENOENT, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM};
use kvmi_uapi::{event, msg};

use super::permissions::Forbidden;
use crate::wire::Answer;

/// What may come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The connection closes.
    Closed,
    /// This error.
    Error(i32),
    /// One of these errors, or not being allowed the event: no success.
    NotAllowed(&'static [i32]),
    /// Data of this length, or one of these errors.
    Either(usize, &'static [i32]),
}

impl Expected {
    pub(super) fn allows(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Self::Error(wanted), Err(errno)) => wanted == errno,
            (Self::NotAllowed(errors), Err(errno)) => *errno == EPERM || errors.contains(errno),
            (Self::Either(length, _), Ok(data)) => data.len() == *length,
            (Self::Either(_, errors), Err(errno)) => errors.contains(errno),
            (Self::Closed, _) | (Self::Error(_) | Self::NotAllowed(_), Ok(_)) => false,
        }
    }
}

fn word(payload: &[u8], at: usize) -> u16 {
    // What is missing reads as zero.
    let byte = |at| payload.get(at).copied().unwrap_or(0);
    u16::from_ne_bytes([byte(at), byte(at + 1)])
}

/// What is to come back for a message whose header tells the truth.
pub(super) fn expected(id: u16, payload: &[u8], forbidden: &Forbidden, vcpus: u16) -> Expected {
    if id != msg::VCPU_EVENT {
        if !msg::COMMANDS.iter().any(|(command, _)| *command == id) {
            return Expected::Error(ENOSYS);
        }
        if forbidden.commands.contains(&id) {
            return Expected::Error(EPERM);
        }
    }
    let has_padding = (2..8).any(|at| payload.get(at).is_some_and(|byte| *byte != 0));
    if msg::is_vcpu(id) && (has_padding || word(payload, 0) >= vcpus) {
        return Expected::Error(EINVAL);
    }
    // An event that is forbidden can be asked for in no way.
    let event = match id {
        msg::VM_CONTROL_EVENTS => Some(word(payload, 0)),
        msg::VCPU_CONTROL_EVENTS => Some(word(payload, 8)),
        msg::VM_PAUSE_VCPU => Some(event::PAUSE),
        msg::VCPU_INJECT_EXCEPTION => Some(event::TRAP),
        msg::VCPU_CONTROL_SINGLESTEP => Some(event::SINGLESTEP),
        _ => None,
    };
    let is_forbidden = event.is_some_and(|event| forbidden.events.contains(&event));
    match of_arguments(id, payload, forbidden) {
        Expected::Either(_, errors) if is_forbidden => Expected::NotAllowed(errors),
        Expected::Error(_) if is_forbidden => Expected::NotAllowed(&[EINVAL]),
        expected => expected,
    }
}

/// What is to come back for a command that is allowed, as to what it is about.
fn of_arguments(id: u16, payload: &[u8], forbidden: &Forbidden) -> Expected {
    match id {
        // No event can be open: the guest sleeps, and PAUSE is answered at once.
        msg::VCPU_EVENT => Expected::Closed,
        msg::GET_VERSION | msg::VM_GET_INFO => Expected::Either(16, &[]),
        msg::VM_CHECK_COMMAND | msg::VM_CHECK_EVENT => of_check(id, payload, forbidden),
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
        // It is never given the number of an exception.
        msg::VCPU_INJECT_EXCEPTION => Expected::Error(EINVAL),
        _ => Expected::Error(ENOSYS),
    }
}

/// What the queries for permission say.
fn of_check(id: u16, payload: &[u8], forbidden: &Forbidden) -> Expected {
    let asked = word(payload, 0);
    let (all, forbidden) = if id == msg::VM_CHECK_COMMAND {
        (msg::COMMANDS, &forbidden.commands)
    } else {
        (event::ALL, &forbidden.events)
    };
    if payload.iter().skip(2).take(6).any(|byte| *byte != 0) {
        Expected::Error(EINVAL)
    } else if !all.iter().any(|(known, _)| *known == asked) {
        Expected::Error(ENOENT)
    } else if forbidden.contains(&asked) {
        Expected::Error(EPERM)
    } else {
        Expected::Either(0, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing_all(id: u16, payload: &[u8]) -> Expected {
        expected(id, payload, &Forbidden::default(), 2)
    }

    #[test]
    fn order_of_checks() {
        let no_vcpu = [9, 0, 0, 0, 0, 0, 0, 0];
        let nothing = Forbidden::all();
        assert_eq!(expected(1000, &[], &nothing, 2), Expected::Error(ENOSYS));
        assert_eq!(
            expected(msg::VCPU_GET_INFO, &no_vcpu, &nothing, 2),
            Expected::Error(EPERM)
        );
        assert_eq!(allowing_all(msg::VCPU_GET_INFO, &no_vcpu), Expected::Error(EINVAL));
        assert_eq!(allowing_all(msg::VCPU_GET_INFO, &[]), Expected::Either(8, &[]));
    }

    #[test]
    fn a_write_longer_than_its_message_closes() {
        let mut payload = [0; 20];
        payload[8] = 4;
        assert_ne!(allowing_all(msg::VM_WRITE_PHYSICAL, &payload), Expected::Closed);
        assert_eq!(allowing_all(msg::VM_WRITE_PHYSICAL, &payload[..19]), Expected::Closed);
        assert_eq!(
            expected(msg::VM_WRITE_PHYSICAL, &payload[..19], &Forbidden::all(), 2),
            Expected::Error(EPERM)
        );
    }

    #[test]
    fn what_is_forbidden_does_not_succeed() {
        let forbidden = Forbidden {
            events: [event::CR].into(),
            ..Forbidden::default()
        };
        let switch = |event: u8| {
            expected(
                msg::VCPU_CONTROL_EVENTS,
                &[0, 0, 0, 0, 0, 0, 0, 0, event, 0, 1],
                &forbidden,
                2,
            )
        };
        let (cr, msr) = (switch(event::CR as u8), switch(event::MSR as u8));
        assert!(!cr.allows(&Ok(vec![])) && cr.allows(&Err(EPERM)) && cr.allows(&Err(EINVAL)));
        assert!(msr.allows(&Ok(vec![])) && !msr.allows(&Err(EPERM)));
        let ask = |event: u16| expected(msg::VM_CHECK_EVENT, &event.to_ne_bytes(), &forbidden, 2);
        assert_eq!(ask(event::CR), Expected::Error(EPERM));
        assert_eq!(ask(event::MSR), Expected::Either(0, &[]));
        assert_eq!(ask(event::MSR + 1), Expected::Error(ENOENT));
    }
}

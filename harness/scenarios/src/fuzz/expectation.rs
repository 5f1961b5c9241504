// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the protocol says about any message.

use std::collections::BTreeSet;

use kvmi_uapi::error::{EINVAL, ENOENT, ENOSYS, EPERM};
use kvmi_uapi::table::{self, Short};
use kvmi_uapi::{VcpuHdr, event, msg};

use super::permissions::Forbidden;
use crate::conformance::own_errors;
use crate::wire::Answer;

/// What may come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The connection closes.
    Closed,
    /// This error.
    Error(i32),
    /// One of these errors, or not being allowed the event: no success.
    NotAllowed(BTreeSet<i32>),
    /// Data of this length, or one of these errors.
    Either(usize, BTreeSet<i32>),
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
        _ => table::command(id).and_then(|row| row.asks),
    };
    let is_forbidden = event.is_some_and(|event| forbidden.events.contains(&event));
    match of_arguments(id, payload, forbidden) {
        Expected::Either(_, errors) if is_forbidden => Expected::NotAllowed(errors),
        Expected::Error(_) if is_forbidden => Expected::NotAllowed([EINVAL].into()),
        // An error of permission is about the event then, which is allowed.
        Expected::Either(length, errors) if event.is_some() => {
            Expected::Either(length, errors.into_iter().filter(|errno| *errno != EPERM).collect())
        }
        expected => expected,
    }
}

/// What is to come back for a command that is allowed, as to what it is about: data of the length that its row in the
/// table of messages says, or one of the errors that `conformance::` has for it.
fn of_arguments(id: u16, payload: &[u8], forbidden: &Forbidden) -> Expected {
    let Some(row) = table::command(id) else {
        // No event can be open: the guest sleeps, and PAUSE is answered at once.
        return Expected::Closed;
    };
    let head = if row.is_vcpu() { size_of::<VcpuHdr>() } else { 0 };
    let request = payload.get(head..).unwrap_or_default();
    match id {
        msg::VM_CHECK_COMMAND | msg::VM_CHECK_EVENT => of_check(id, payload, forbidden),
        // It is never given the number of an exception.
        msg::VCPU_INJECT_EXCEPTION => Expected::Error(EINVAL),
        _ if row.short == Short::Closes && row.is_short(request) => Expected::Closed,
        _ => Expected::Either(row.reply.bytes(request), own_errors(id)),
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
        Expected::Either(0, BTreeSet::new())
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
        assert_eq!(
            allowing_all(msg::VCPU_GET_INFO, &[]),
            Expected::Either(8, BTreeSet::new())
        );
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
        assert_eq!(ask(event::MSR), Expected::Either(0, BTreeSet::new()));
        assert_eq!(ask(event::MSR + 1), Expected::Error(ENOENT));
    }
}

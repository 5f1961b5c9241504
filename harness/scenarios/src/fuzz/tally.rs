// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was sent and what came of it.

use std::collections::BTreeMap;

use kvmi_uapi::{error, msg};

use crate::wire::Answer;
use crate::{Failure, check};

/// Of a hundred answers, no error makes up more: where one does, what stands behind its check is hardly reached.
const MAX_SHARE: u64 = 40;

/// Commands for which there is never a moment here: no event is open, and no exception is given.
const WITHOUT_SUCCESS: [u16; 2] = [msg::VCPU_SET_REGISTERS, msg::VCPU_INJECT_EXCEPTION];

/// Answers by command and error, 0 for success.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) sessions: u64,
    answers: BTreeMap<u16, BTreeMap<i32, u64>>,
}

impl Tally {
    pub(super) fn add(&mut self, id: u16, answer: &Answer) {
        // What there is no command for is one kind, whatever its number.
        let is_known = msg::COMMANDS.iter().any(|(command, _)| *command == id);
        let of_command = self.answers.entry(if is_known { id } else { u16::MAX }).or_default();
        *of_command
            .entry(answer.as_ref().err().copied().unwrap_or(0))
            .or_default() += 1;
    }

    /// How often each error came, all commands together.
    fn by_error(&self) -> BTreeMap<i32, u64> {
        let mut all = BTreeMap::new();
        for (errno, count) in self.answers.values().flatten() {
            *all.entry(*errno).or_default() += count;
        }
        all
    }

    /// The distribution, a line for all and one for each command.
    pub(super) fn lines(&self) -> Vec<String> {
        let all = self.by_error();
        let total: u64 = all.values().sum();
        let share = |(errno, count): (&i32, &u64)| {
            format!("{} {:.1} %", error_name(*errno), *count as f64 * 100.0 / total as f64)
        };
        let shares: Vec<String> = all.iter().map(share).collect();
        let mut lines = vec![format!(
            "{} messages in {} sessions, {total} answers: {}",
            self.messages,
            self.sessions,
            shares.join(", ")
        )];
        for (id, answers) in &self.answers {
            let counts = answers
                .iter()
                .map(|(errno, count)| format!("{} {count}", error_name(*errno)));
            lines.push(format!(
                "{}: {}",
                command_name(*id),
                counts.collect::<Vec<_>>().join(", ")
            ));
        }
        lines
    }

    /// Fails where the messages did not get far enough into the kernel.
    pub(super) fn require_depth(&self) -> Result<(), Failure> {
        let all = self.by_error();
        let total: u64 = all.values().sum();
        for (errno, count) in all.iter().filter(|(errno, _)| **errno != 0) {
            check!(
                count * 100 <= total * MAX_SHARE,
                "{count} of {total} answers are {}, more than {MAX_SHARE} %: the messages do not get past that check",
                error_name(*errno)
            );
        }
        for (id, name) in msg::COMMANDS.iter().filter(|(id, _)| !WITHOUT_SUCCESS.contains(id)) {
            let succeeded = self.answers.get(id).is_some_and(|answers| answers.contains_key(&0));
            check!(succeeded, "no {name} succeeded");
        }
        Ok(())
    }
}

fn command_name(id: u16) -> &'static str {
    named(msg::COMMANDS, id).unwrap_or("what is no command")
}

fn error_name(errno: i32) -> &'static str {
    if errno == 0 {
        return "success";
    }
    named(error::ALL, errno).unwrap_or("an unknown error")
}

fn named<T: PartialEq + Copy>(names: &[(T, &'static str)], id: T) -> Option<&'static str> {
    names.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(errno: i32, times: u64) -> Tally {
        let mut tally = Tally::default();
        for (id, _) in msg::COMMANDS {
            tally.add(*id, &Ok(vec![]));
        }
        (0..times).for_each(|_| tally.add(msg::VM_GET_INFO, &Err(errno)));
        tally
    }

    #[test]
    fn an_error_that_most_messages_end_in_is_told() {
        // Beside a success of each command.
        let successes = msg::COMMANDS.len() as u64;
        let most = successes * MAX_SHARE / (100 - MAX_SHARE);
        tally(error::EPERM, most).require_depth().unwrap();
        let said = format!("{:?}", tally(error::EPERM, most + 1).require_depth().unwrap_err());
        let wanted = format!("{} of {} answers are EPERM", most + 1, successes + most + 1);
        assert!(said.contains(&wanted), "{said}");
        let said = format!("{:?}", Tally::default().require_depth().unwrap_err());
        assert!(said.contains("no GET_VERSION succeeded"), "{said}");
    }

    #[test]
    fn the_distribution_is_by_command() {
        let mut tally = tally(error::EINVAL, 1);
        tally.add(1000, &Err(error::ENOSYS));
        let lines = tally.lines();
        let answers = msg::COMMANDS.len() + 2;
        let head = format!("{answers} answers: success ");
        assert!(lines[0].contains(&head), "{}", lines[0]);
        for errno in ["EINVAL", "ENOSYS"] {
            let share = format!("{errno} {:.1} %", 100.0 / answers as f64);
            assert!(lines[0].contains(&share), "{}", lines[0]);
        }
        assert!(
            lines.contains(&"VM_GET_INFO: success 1, EINVAL 1".to_owned()),
            "{lines:?}"
        );
        assert!(lines.contains(&"what is no command: ENOSYS 1".to_owned()), "{lines:?}");
    }
}

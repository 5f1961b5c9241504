// SPDX-License-Identifier: GPL-2.0-only
//! 3.5: dispatch, and 3.6: what closes the connection.

use kvmi_uapi::{
    error::{EAGAIN, EBUSY, EINVAL, ENOSYS, EPERM},
    msg,
};

use super::Spec;
use crate::{
    commands::{Command, Refusal, Request, Run},
    coverage::{Closing, Seen},
    view::Outcome,
};

impl Spec {
    pub(super) fn message(&mut self, bytes: &[u8]) -> Outcome {
        if !self.is_connected() {
            return Outcome::Nothing;
        }
        let header = Request { bytes, pads: &[] };
        let (id, size) = (header.u16(0), header.u16(2));
        if size > 8184 {
            return self.close(Closing::Oversized);
        }
        let command = Command::by_id(id);
        if id != msg::VCPU_EVENT {
            let Some(command) = command else {
                return self.refuse(bytes, "unknown", ENOSYS);
            };
            if !self.hooked().commands.contains(&id) {
                return self.refuse(bytes, command.name, EPERM);
            }
        }
        match command.map(|command| &command.run) {
            Some(Run::Vm(run)) => self.carry_out(bytes, 8, run),
            _ => self.queue(bytes, command.map_or("event reply", |command| command.name)),
        }
    }

    /// Steps 4 to 6 for a message that is about a vCPU.
    fn queue(&mut self, bytes: &[u8], name: &'static str) -> Outcome {
        let header = Request {
            bytes,
            pads: &[10, 11, 12, 13, 14, 15],
        };
        let index = usize::from(header.u16(8));
        if header.has_padding() || index >= self.cpus.len() {
            return self.refuse(bytes, name, EINVAL);
        }
        if self.cpus[index].uninitialised {
            return self.refuse(bytes, name, EAGAIN);
        }
        let vcpu = self.vcpu(index);
        let (replies, commands): (Vec<_>, Vec<_>) = vcpu.queue.iter().partition(|queued| is_reply(queued));
        if is_reply(bytes) {
            if replies.len() > vcpu.unanswered {
                return self.close(Closing::TooManyReplies);
            }
        } else if commands.len() >= 1024 {
            self.seen.add(Seen::QueueFull("commands"));
            return self.refuse(bytes, "", EBUSY);
        } else if commands.iter().map(|queued| queued.len()).sum::<usize>() + bytes.len() > 1 << 20 {
            self.seen.add(Seen::QueueFull("bytes"));
            return self.refuse(bytes, "", EBUSY);
        }
        self.vcpu(index).queue.push_back(bytes.to_vec());
        Outcome::Nothing
    }

    fn refuse(&mut self, bytes: &[u8], name: &'static str, err: i32) -> Outcome {
        self.seen.add(Seen::Refused(name, err));
        self.sent.push(reply(bytes, Err(err)));
        Outcome::Nothing
    }

    pub(super) fn close(&mut self, why: Closing) -> Outcome {
        if let Some(session) = &mut self.session
            && !session.lost
        {
            session.lost = true;
            self.seen.add(Seen::Closed(why));
            for vcpu in &mut session.vcpus {
                vcpu.pauses = 0;
            }
        }
        Outcome::Nothing
    }

    /// Carries out a command whose request stands behind `heads` bytes, and answers it.
    pub(super) fn carry_out(
        &mut self,
        bytes: &[u8],
        heads: usize,
        run: impl FnOnce(&mut Self, &Request<'_>) -> Result<Vec<u8>, Refusal>,
    ) -> Outcome {
        let command = Command::by_id(u16::from_le_bytes([bytes[0], bytes[1]])).expect("it is known");
        let request = Request {
            bytes: bytes.get(heads..).unwrap_or_default(),
            pads: command.pads,
        };
        let (err, answer) = match run(self, &request) {
            Ok(data) => (0, reply(bytes, Ok(data))),
            Err(Refusal::Error(err)) => (err, reply(bytes, Err(err))),
            Err(Refusal::Close) => return self.close(Closing::ShortWrite),
        };
        self.seen.add(Seen::Answered(command.name, err));
        self.sent.push(answer);
        Outcome::Nothing
    }
}

pub(super) fn is_reply(bytes: &[u8]) -> bool {
    bytes[..2] == msg::VCPU_EVENT.to_le_bytes()
}

/// The answer to a command: its id and seq, the error, the data.
fn reply(command: &[u8], outcome: Result<Vec<u8>, i32>) -> Vec<u8> {
    let (err, data) = outcome.map_or_else(|err| (-err, Vec::new()), |data| (0, data));
    let size = 8 + data.len() as u16;
    [
        &command[..2],
        &size.to_le_bytes(),
        &command[4..8],
        &err.to_le_bytes(),
        &[0; 4],
        &data,
    ]
    .concat()
}

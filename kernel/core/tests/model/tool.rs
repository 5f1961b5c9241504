// SPDX-License-Identifier: GPL-2.0-only
//! The tool: turns steps into bytes, by what it has read.

use std::collections::VecDeque;

use kvmi_uapi::{event, msg};

use crate::{
    commands::{Command, Run},
    events::{EVENTS, Event},
    fake::message,
    spec::{MAX_PAUSES, MAX_VCPUS, Spec},
    steps::{Again, Flaw, Flood, Input, ReplyFlaw, Signal, Step, To},
};

/// Smallest `size` of a header that is too large.
const OVERSIZED: u16 = 8185;

#[derive(Default)]
pub(crate) struct Tool {
    commands_sent: u32,
    /// The latest events of each vCPU: number, id, whether a reply was sent.
    events: [VecDeque<(u32, u16, bool)>; MAX_VCPUS],
    last_seq: u32,
}

impl Tool {
    pub(crate) fn resolve(&mut self, step: &Step, spec: &Spec) -> Vec<Input> {
        match step {
            Step::Do(input) => vec![input.clone().with_vcpu_below(spec.cpus.len())],
            Step::Command {
                id,
                vcpu,
                request,
                flaw,
            } => {
                let vcpu = vcpu % spec.cpus.len() as u16;
                vec![Input::Message(self.command(*id, vcpu, request, *flaw))]
            }
            Step::Unknown { id, payload } => vec![Input::Message(self.message(*id, payload))],
            Step::Reply {
                vcpu,
                to,
                action,
                data,
                flaw,
            } => {
                let vcpu = vcpu % spec.cpus.len() as u16;
                self.reply(vcpu, *to, *action, data, *flaw).into_iter().collect()
            }
            Step::Restart { .. } if spec.is_connected() => Vec::new(),
            Step::Restart { flags, allow, watch } => {
                let mut inputs = vec![Input::Unhook, Input::Hook { flags: *flags }];
                if *allow {
                    inputs.push(Input::AllowCommand { allow: 1, id: -1 });
                    inputs.push(Input::AllowEvent { allow: 1, id: -1 });
                }
                for vcpu in (0..spec.cpus.len()).filter(|_| *watch) {
                    for (id, request) in EVENTS.iter().flat_map(|row| row.ask) {
                        if !kvmi_uapi::msg::is_vcpu(*id) {
                            inputs.push(Input::Message(self.message(*id, request)));
                            continue;
                        }
                        let payload = [&vcpu_header(vcpu as u16, None), *request].concat();
                        inputs.push(Input::Message(self.message(*id, &payload)));
                        inputs.push(plain_turn(vcpu));
                    }
                }
                inputs
            }
            Step::Run { vcpu, turns } => vec![plain_turn(usize::from(*vcpu) % spec.cpus.len()); *turns],
            Step::Flood { vcpu, what } => self.flood(vcpu % spec.cpus.len() as u16, *what),
        }
    }

    /// Reads what was sent to it. A session that is new begins to count anew.
    pub(crate) fn hear(&mut self, sent: &[Vec<u8>]) {
        for message in sent {
            let (id, seq) = (
                u16_at(message, 0),
                u32::from_le_bytes([4, 5, 6, 7].map(|at| message[at])),
            );
            if id == msg::VCPU_EVENT && message.len() > 16 {
                if seq == 1 {
                    self.events = Default::default();
                }
                let events = &mut self.events[usize::from(u16_at(message, 18))];
                events.push_back((seq, u16_at(message, 8), false));
                if events.len() > 40 {
                    events.pop_front();
                }
                self.last_seq = seq;
            } else if id == msg::VCPU_EVENT {
                // Refused by dispatch: the event stays open.
                let mut all = self.events.iter_mut().flatten();
                if let Some(event) = all.find(|event| event.0 == seq) {
                    event.2 = false;
                }
            }
        }
    }

    fn message(&mut self, id: u16, payload: &[u8]) -> Vec<u8> {
        self.commands_sent += 1;
        // Events have other numbers, but that is of no matter.
        message(id, 0x4000_0000 + self.commands_sent, payload)
    }

    fn command(&mut self, id: u16, vcpu: u16, request: &[u8], flaw: Flaw) -> Vec<u8> {
        let command = Command::by_id(id).expect("steps are made of rows");
        let mut request = request.to_vec();
        match flaw {
            Flaw::Padding(nr) if !command.pads.is_empty() => {
                request[command.pads[nr % command.pads.len()]] = 1 << (nr % 8)
            }
            Flaw::Short(bytes) => request.truncate(bytes),
            Flaw::Long(more) => request.resize(request.len() + more, 0xff),
            _ => {}
        }
        let mut payload = Vec::new();
        if let Run::Vcpu(_) = command.run {
            payload = match flaw {
                Flaw::HeaderPadding(nr) => vcpu_header(vcpu, Some(nr)),
                Flaw::NoVcpu(beyond) => vcpu_header(beyond.max(MAX_VCPUS as u16), None),
                _ => vcpu_header(vcpu, None),
            };
        }
        payload.extend(request);
        payload.truncate(OVERSIZED as usize - 1);
        let mut message = self.message(command.id, &payload);
        if flaw == Flaw::Oversized {
            message[2..4].copy_from_slice(&OVERSIZED.to_le_bytes());
        }
        message
    }

    fn reply(&mut self, vcpu: u16, to: To, action: u8, data: &[u8], flaw: ReplyFlaw) -> Option<Input> {
        let last = self.last_seq;
        let events = &mut self.events[usize::from(vcpu)];
        let (seq, id) = match to {
            To::Beside(by) => (last.wrapping_add_signed(by), event::PAUSE),
            To::Again => events.iter().rfind(|event| event.2).map(|event| (event.0, event.1))?,
            To::Due | To::Newest => {
                let event = match to {
                    To::Due => events.iter_mut().find(|event| !event.2),
                    _ => events.iter_mut().rfind(|event| !event.2),
                }?;
                event.2 = true;
                (event.0, event.1)
            }
        };
        let row = Event::by_id(id).expect("it was sent");
        let mut payload = match flaw {
            ReplyFlaw::HeaderPadding(nr) => vcpu_header(vcpu, Some(nr)),
            ReplyFlaw::NoVcpu(beyond) => vcpu_header(beyond.max(MAX_VCPUS as u16), None),
            ReplyFlaw::OtherVcpu(other) => vcpu_header(other, None),
            _ => vcpu_header(vcpu, None),
        };
        let legal = if action == event::RETRY && !row.retry {
            event::CONTINUE
        } else {
            action
        };
        payload.extend([legal, id as u8, 0, 0, 0, 0, 0, 0]);
        payload.extend(data.iter().take(row.reply_bytes));
        match flaw {
            ReplyFlaw::Padding(nr) => payload[10 + nr % 6] = 1,
            ReplyFlaw::Short(bytes) => payload.truncate(bytes),
            ReplyFlaw::Event(event) => payload[9] = event,
            ReplyFlaw::TooMuchData(more) => payload.resize(16 + row.reply_bytes + more, 0),
            ReplyFlaw::Action(action) => payload[8] = action,
            _ => {}
        }
        Some(Input::Message(message(msg::VCPU_EVENT, seq, &payload)))
    }

    /// Up to a limit and beyond.
    fn flood(&mut self, vcpu: u16, what: Flood) -> Vec<Input> {
        let (times, id, request) = match what {
            Flood::Commands => (1025, msg::VCPU_GET_INFO, vcpu_header(vcpu, None)),
            Flood::Bytes => {
                let mut payload = vcpu_header(vcpu, None);
                payload.resize(8184, 0);
                (129, msg::VCPU_GET_INFO, payload)
            }
            Flood::Pauses => (MAX_PAUSES + 1, msg::VM_PAUSE_VCPU, vcpu.to_le_bytes().to_vec()),
            Flood::Replies => {
                let reply = self.reply(vcpu, To::Due, event::CONTINUE, &[], ReplyFlaw::None);
                return reply.into_iter().cycle().take(4).collect();
            }
        };
        (0..times).map(|_| Input::Message(self.message(id, &request))).collect()
    }
}

fn plain_turn(vcpu: usize) -> Input {
    Input::Turn {
        vcpu,
        signal: Signal::None,
        again: Again::Same,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// With one byte of padding that is not zero, if that is asked for.
fn vcpu_header(vcpu: u16, padding: Option<usize>) -> Vec<u8> {
    let mut header = vcpu.to_le_bytes().to_vec();
    header.resize(8, 0);
    if let Some(nr) = padding {
        header[2 + nr % 6] = 1;
    }
    header
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bad input to a live kernel, from a seed: each message is answered as the protocol says, or the connection closes; the VM can be
//! hooked again each time.

mod expectation;
mod generator;

use std::collections::HashMap;
use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, PAUSE};
use kvmi_uapi::msg;

use crate::vmm::Vm;
use crate::wire::{Answer, Wire};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

use expectation::{Expected, expected};
use generator::{Generator, Material};

const MESSAGES: u64 = 100_000;
const VCPUS: usize = 2;

/// The most messages that are sent in one write.
const BATCH: u64 = 32;

/// One session in so many has no permissions.
const BARE_SESSIONS: u64 = 5;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario(
        "fuzz::100_000_messages",
        "100,000 random, truncated, oversized and misplaced messages: documented errors or a closed connection, and a VM that can be hooked again",
        fuzz,
    )]
}

/// What was sent and what came of it.
#[derive(Debug, Default)]
struct Tally {
    messages: u64,
    sessions: u64,
    succeeded: u64,
    errors: HashMap<i32, u64>,
}

/// One hooked session.
struct Session<'a> {
    wire: Wire,
    allowed: bool,
    /// What is to be answered, by sequence number.
    open: HashMap<u32, (u16, Expected)>,
    tally: &'a mut Tally,
}

fn fuzz(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", VCPUS)?;
    context.stage("fuzz", Duration::from_secs(600));
    let mut generator = Generator::new(context.seed);
    let mut tally = Tally::default();
    while tally.messages < MESSAGES {
        let allowed = generator.below(BARE_SESSIONS) != 0;
        let wire = if allowed {
            context.hook(&vm)?
        } else {
            context.bare_hook(&vm, 0)?
        };
        tally.sessions += 1;
        let session = Session {
            wire,
            allowed,
            open: HashMap::new(),
            tally: &mut tally,
        };
        session
            .run(&mut generator)
            .map_err(|failure| failure.after(&format!("message {} of seed {}", tally.messages, context.seed)))?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    }
    context.stage("introspectable again", Duration::from_secs(20));
    context.log(format!("{tally:?}"));
    context.measure("sessions", tally.sessions as f64, "sessions");
    introspectable(context, &vm)?;
    vm.exit()
}

fn introspectable(context: &Context, vm: &Vm) -> Result<(), Failure> {
    let mut wire = context.hook(vm)?;
    check_eq!(wire.vcpu_count()?, VCPUS as u32, "vCPUs");
    for vcpu in 0..VCPUS {
        let root = wire.registers(vcpu as u16)?.sregs.cr3;
        check_eq!(root, kvmi_guests::layout::ROOT, "CR3 of vCPU {vcpu}");
        check_eq!(
            vm.carry_out(context, vcpu, Op::Nothing, [0; 4])?,
            0,
            "the guest's answer on vCPU {vcpu}"
        );
    }
    check_eq!(wire.pause(0, true)?, Ok(vec![]), "VM_PAUSE_VCPU");
    let event = wire.expect_event(PAUSE, 0)?;
    wire.reply(&event, CONTINUE)?;
    wire.expect_no_event()
}

impl Session<'_> {
    /// Sends batches until one of them closes the connection or there are enough messages.
    fn run(mut self, generator: &mut Generator) -> Result<(), Failure> {
        while self.tally.messages < MESSAGES {
            let mut bytes = Vec::new();
            let mut closes = false;
            for _ in 0..=generator.below(BATCH) {
                let material = generator.next(VCPUS as u16);
                self.tally.messages += 1;
                closes = self.add(material, &mut bytes);
                if closes {
                    break;
                }
            }
            // The kernel may have closed the connection already for a part of it; what came back says whether it had to.
            let written = self.wire.write(&bytes);
            check!(written.is_ok() || closes, "the connection is closed: {written:?}");
            if closes {
                // After an offence that is a lack of bytes, nothing comes; other offences have closed it by now.
                let _ = self.wire.shutdown(std::net::Shutdown::Write);
                return self.drain_to_the_end();
            }
            self.drain()?;
        }
        Ok(())
    }

    /// Adds a message to the batch; true if it closes the connection.
    fn add(&mut self, material: Material, bytes: &mut Vec<u8>) -> bool {
        match material {
            Material::Message { id, payload } => {
                let (seq, message) = self.wire.compose(id, &payload);
                bytes.extend(message);
                let expected = expected(id, &payload, self.allowed, VCPUS as u16);
                let closes = expected == Expected::Closed;
                if !closes {
                    self.open.insert(seq, (id, expected));
                }
                closes
            }
            Material::Bytes(noise) => {
                bytes.extend(noise);
                true
            }
        }
    }

    fn take(&mut self, seq: u32, id: u16, answer: &Answer) -> Result<(), Failure> {
        match answer {
            Ok(_) => self.tally.succeeded += 1,
            Err(errno) => *self.tally.errors.entry(*errno).or_default() += 1,
        }
        let Some((asked, expected)) = self.open.remove(&seq) else {
            return Err(Failure::new(format!(
                "an answer to {seq} (id {id}), which was not sent or is answered already"
            )));
        };
        check_eq!(id, asked, "id of the answer to {seq}");
        check!(
            expected.allows(answer),
            "command {id} (seq {seq}) was answered with {answer:x?}, not as {expected:?}"
        );
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), Failure> {
        while self.wire.has_event() {
            let event = self.wire.event()?;
            check_eq!(event.id, PAUSE, "event of a guest that sleeps");
            self.wire.reply(&event, CONTINUE)?;
        }
        Ok(())
    }

    /// Takes the answers to everything that was sent.
    fn drain(&mut self) -> Result<(), Failure> {
        while !self.open.is_empty() {
            self.take_events()?;
            if self.wire.untaken_answers() > 0 {
                let (seq, id, answer) = self.wire.next_answer()?;
                self.take(seq, id, &answer)?;
            } else {
                self.wire.receive()?;
            }
        }
        self.take_events()
    }

    /// Takes what still comes before the end. Answers by vCPUs may be cut off, and noise may have been a message by chance.
    fn drain_to_the_end(mut self) -> Result<(), Failure> {
        self.wire.expect_closed()?;
        while self.wire.untaken_answers() > 0 {
            let (seq, id, answer) = self.wire.next_answer()?;
            if self.open.contains_key(&seq) {
                self.take(seq, id, &answer)?;
            }
        }
        Ok(())
    }
}

/// Commands that are asked for permission to ask.
const QUERIES: [u16; 3] = [msg::GET_VERSION, msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT];

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bad input to a live kernel, from a seed: each message is answered as the protocol says, or the connection closes; the VM can be
//! hooked again each time.

mod expectation;
mod generator;
mod permissions;
mod right;
mod tally;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, PAUSE};

use crate::vmm::Vm;
use crate::wire::{Answer, Wire};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

use expectation::{Expected, expected};
use generator::{Generator, Material};
use permissions::Forbidden;
use tally::Tally;

const MESSAGES: u64 = 100_000;
const VCPUS: usize = 2;

/// The most messages that are sent in one write, and how many bytes that may be: a socket takes more, so that it never waits for the kernel
/// while the kernel waits for answers to be taken.
const BATCH: u64 = 64;
const BATCH_BYTES: usize = 64 * 1024;

/// The most batches that a session without any permission takes: hardly anything closes it.
const BARE_BATCHES: u64 = 1;

/// Before one batch in so many the permissions change.
const CHANGES: u64 = 32;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario(
        "fuzz::100_000_messages",
        "100,000 random, truncated, oversized, misplaced and right messages: documented errors or a closed connection, no error most of the time, and a VM that can be hooked again",
        fuzz,
    )]
}

/// One hooked session.
struct Session<'a> {
    wire: Wire,
    vm: &'a Vm,
    forbidden: Forbidden,
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
    let began = Instant::now();
    while tally.messages < MESSAGES {
        let forbidden = Forbidden::by_chance(&mut generator);
        let wire = if forbidden.is_all() {
            context.bare_hook(&vm, 0)?
        } else {
            context.hook(&vm)?
        };
        tally.sessions += 1;
        let session = Session {
            wire,
            vm: &vm,
            forbidden,
            open: HashMap::new(),
            tally: &mut tally,
        };
        session
            .run(&mut generator)
            .map_err(|failure| failure.after(&format!("message {} of seed {}", tally.messages, context.seed)))?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    }
    context.stage("introspectable again", Duration::from_secs(20));
    tally.lines().into_iter().for_each(|line| context.log(line));
    context.measure("sessions", tally.sessions as f64, "sessions");
    // In Bochs it counts instructions, so that changes of what this costs can be seen.
    context.measure("L1's time", began.elapsed().as_secs_f64(), "s");
    tally.require_depth()?;
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
        let is_bare = self.forbidden.is_all();
        if !is_bare {
            self.forbidden.apply(self.vm)?;
        }
        let mut batches = 0;
        while self.tally.messages < MESSAGES && !(is_bare && batches == BARE_BATCHES) {
            if !is_bare && generator.below(CHANGES) == 0 {
                self.forbidden.change(generator, self.vm)?;
            }
            batches += 1;
            let mut bytes = Vec::new();
            let mut closes = false;
            for _ in 0..=generator.below(BATCH) {
                let material = generator.next(VCPUS as u16);
                self.tally.messages += 1;
                closes = self.add(material, &mut bytes);
                if closes || bytes.len() >= BATCH_BYTES {
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
                let expected = expected(id, &payload, &self.forbidden, VCPUS as u16);
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
        self.tally.add(id, answer);
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

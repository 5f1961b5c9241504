// SPDX-License-Identifier: MIT OR Apache-2.0
//! Four vCPUs that do nothing but cause events.

use std::time::{Duration, Instant};

use kvmi_guests::Op;
use kvmi_uapi::event::{BREAKPOINT, CONTINUE, CR, Cr, HYPERCALL};

use crate::vmm::{Vm, field};
use crate::wire::{Event, Wire};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

const VCPUS: usize = 4;

/// How long the storm lasts, in the guests' time, which is L1's.
const DURATION: Duration = Duration::from_secs(10);

/// A vCPU of which nothing is heard for so long, while the others go on, is lost.
const SILENCE: Duration = Duration::from_secs(2);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario(
        "storm::four_vcpus_10_s",
        "4 vCPUs in a storm of events for 10 s of guest time: nothing lost, nothing doubled, every sequence number in turn",
        storm,
    )]
}

/// Events of one vCPU by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    hypercalls: u64,
    breakpoints: u64,
    cr_writes: u64,
}

impl Counts {
    /// What the guest itself counted, each after the instruction was through.
    fn of_guest(vm: &Vm, vcpu: usize) -> Result<Self, Failure> {
        Ok(Self {
            hypercalls: vm.guest.field(vcpu, field!(hypercalls))?,
            breakpoints: vm.guest.field(vcpu, field!(breakpoints))?,
            cr_writes: vm.guest.field(vcpu, field!(cr_writes))?,
        })
    }

    fn total(self) -> u64 {
        self.hypercalls + self.breakpoints + self.cr_writes
    }
}

/// Answers an event after checking that it is the one whose turn it is on its vCPU.
fn answer(wire: &mut Wire, event: &Event, counts: &mut Counts) -> Result<(), Failure> {
    let round = counts.cr_writes;
    let turn = match counts.total() - 3 * round {
        0 => HYPERCALL,
        1 => BREAKPOINT,
        _ => CR,
    };
    check_eq!(event.id, turn, "event of round {round} on vCPU {}", event.vcpu);
    match event.id {
        HYPERCALL => counts.hypercalls += 1,
        BREAKPOINT => counts.breakpoints += 1,
        _ => {
            counts.cr_writes += 1;
            let data = event.data::<Cr>()?;
            check!(data.cr == 3 && data.old_value != data.new_value, "CR event {data:x?}");
            return wire.reply_with(event, CONTINUE, &data.new_value.to_ne_bytes());
        }
    }
    wire.reply(event, CONTINUE)
}

/// What can be said about a vCPU that sends no event any more.
fn silent(vm: &Vm, vcpu: usize, counts: &Counts) -> Failure {
    let exception = vm.no_exception(vcpu);
    let status = vm.status(vcpu);
    let regs = vm.pause(vcpu).and_then(|()| vm.regs(vcpu));
    Failure::new(format!(
        "vCPU {vcpu} is silent for {SILENCE:?} after {counts:?}: {exception:?}, {status:?}, {regs:x?}"
    ))
}

fn storm(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(30));
    let (vm, mut wire) = context.hooked_vm("storm", VCPUS)?;
    for vcpu in 0..VCPUS as u16 {
        for event in [HYPERCALL, BREAKPOINT, CR] {
            wire.control_event(vcpu, event, true)?;
        }
        wire.control_cr(vcpu, 3, true)?;
    }
    context.stage("storm", Duration::from_secs(240));
    let mut numbers = Vec::new();
    for vcpu in 0..VCPUS {
        numbers.push(vm.command(vcpu, Op::Storm, [u64::MAX, 0, 0, 0])?);
    }
    let begin = Instant::now();
    let mut counts = [Counts::default(); VCPUS];
    let mut seconds = 0;
    let mut last_heard = [begin; VCPUS];
    while begin.elapsed() < DURATION {
        if begin.elapsed().as_secs() > seconds {
            seconds += 1;
            let events: u64 = counts.iter().map(|count| count.total()).sum();
            context.log(format!("{events} events after {seconds} s"));
            if let Some(vcpu) = last_heard.iter().position(|heard| heard.elapsed() > SILENCE) {
                return Err(silent(&vm, vcpu, &counts[vcpu]));
            }
        }
        let event = wire.event()?;
        let vcpu = usize::from(event.vcpu);
        check!(vcpu < VCPUS, "an event on vCPU {vcpu}");
        last_heard[vcpu] = Instant::now();
        answer(&mut wire, &event, &mut counts[vcpu])?;
    }
    context.stage("calm", Duration::from_secs(60));
    for vcpu in 0..VCPUS {
        vm.guest.set_field(vcpu, field!(args), 0)?;
    }
    // Each vCPU ends its round: the last event of each is a CR write.
    let mut unfinished: Vec<usize> = (0..VCPUS).collect();
    while !unfinished.is_empty() {
        let in_a_round = counts.iter().any(|count| count.total() % 3 != 0);
        if in_a_round || wire.has_event() {
            let event = wire.event()?;
            let vcpu = usize::from(event.vcpu);
            answer(&mut wire, &event, &mut counts[vcpu])?;
        } else {
            // Either it is through or one more event is on its way.
            wire.expect_version()?;
            for vcpu in std::mem::take(&mut unfinished) {
                if vm.guest.field(vcpu, field!(done))? != numbers[vcpu] {
                    unfinished.push(vcpu);
                }
            }
        }
        for vcpu in 0..VCPUS {
            vm.no_exception(vcpu)?;
        }
    }
    wire.expect_no_event()?;
    for (vcpu, seen) in counts.iter().enumerate() {
        check_eq!(
            Counts::of_guest(&vm, vcpu)?,
            *seen,
            "what vCPU {vcpu} counted, against the events"
        );
        check_eq!(
            vm.guest.field(vcpu, field!(hypercalls_refused))?,
            0,
            "hypercalls that did not return 0"
        );
        check!(seen.cr_writes > 0, "no event on vCPU {vcpu}");
    }
    let events: u64 = counts.iter().map(|count| count.total()).sum();
    context.log(format!("{events} events in {DURATION:?}: {counts:?}"));
    context.measure("events in the storm", events as f64, "events");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

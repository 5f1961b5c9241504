// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM_PAUSE_VCPU and the PAUSE event.

use std::fs;
use std::time::Duration;

use kvmi_uapi::error::EBUSY;
use kvmi_uapi::event::{CONTINUE, PAUSE};

use crate::lifecycle::counts_on;
use crate::vmm::field;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

const VCPUS: usize = 4;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario(
            "pause::without_wait",
            "four running vCPUs pause; each request is one event",
            |c| pause(c, "counter", false),
        ),
        scenario(
            "pause::with_wait",
            "four running vCPUs pause, and have left the guest when the reply comes",
            with_wait,
        ),
        scenario("pause::halted", "four halted vCPUs are woken to pause", |c| {
            pause(c, "halt", true)
        }),
        scenario(
            "pause::many_requests",
            "100 requests to one vCPU are 100 events, one after the other",
            many_requests,
        ),
        scenario(
            "pause::request_limit",
            "1,001 requests may be pending for a vCPU; one more answers EBUSY; each that succeeded is one event",
            request_limit,
        ),
    ]
}

fn pause(context: &mut Context, guest: &str, wait: bool) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(30));
    let (vm, mut wire) = context.hooked_vm(guest, VCPUS)?;
    for round in 1..=3 {
        context.stage(&format!("pause {round}"), Duration::from_secs(20));
        let mut since_reply = Vec::new();
        for vcpu in 0..VCPUS {
            check_eq!(
                wire.pause(vcpu as u16, wait)?,
                Ok(vec![]),
                "VM_PAUSE_VCPU of vCPU {vcpu}"
            );
            since_reply.push(vm.guest.field(vcpu, field!(counter))?);
        }
        let mut events = Vec::new();
        for _ in 0..VCPUS {
            let event = wire.event()?;
            check_eq!((event.id, event.data.len()), (PAUSE, 0), "event and length of its data");
            check_eq!(event.arch.mode, 8, "operand mode");
            events.push(event);
        }
        events.sort_by_key(|event| event.vcpu);
        let vcpus: Vec<u16> = events.iter().map(|event| event.vcpu).collect();
        check_eq!(vcpus, [0, 1, 2, 3], "paused vCPUs");
        let mut counters = Vec::new();
        for (vcpu, event) in events.iter().enumerate() {
            check_eq!(
                wire.registers(vcpu as u16)?.regs,
                event.arch.regs,
                "registers of paused vCPU {vcpu}"
            );
            counters.push(vm.guest.field(vcpu, field!(counter))?);
        }
        wire.expect_no_event()?;
        if wait {
            check_eq!(counters, since_reply, "counters since the reply to VM_PAUSE_VCPU");
        }
        for (vcpu, before) in counters.iter().enumerate() {
            check_eq!(
                vm.guest.field(vcpu, field!(counter))?,
                *before,
                "counter of paused vCPU {vcpu}"
            );
        }
        for event in &events {
            wire.reply(event, CONTINUE)?;
        }
        if guest == "counter" {
            counts_on(context, &vm)?;
        }
    }
    wire.expect_no_event()?;
    vm.exit()
}

fn with_wait(context: &mut Context) -> Result<(), Failure> {
    /// How often each kind of request is made.
    const REQUESTS: u64 = 50;
    pause(context, "counter", true)?;
    // Who waits for a CPU to leave the guest has it called, beside the kick that each request is. With one CPU there
    // is nobody to wait for: whoever asks has it, so the guest has not.
    if fs::read_to_string("/sys/devices/system/cpu/online")?.trim() == "0" {
        return Ok(());
    }
    context.stage("start another", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    context.stage("calls between CPUs", Duration::from_secs(60));
    let mut calls = [0; 2];
    for _ in 0..REQUESTS {
        for wait in [false, true] {
            counts_on(context, &vm)?;
            let before = calls_between_cpus()?;
            check_eq!(wire.pause(0, wait)?, Ok(vec![]), "VM_PAUSE_VCPU");
            calls[usize::from(wait)] += calls_between_cpus()? - before;
            let event = wire.expect_event(PAUSE, 0)?;
            wire.reply(&event, CONTINUE)?;
        }
    }
    let [without, with] = calls;
    context.log(format!("{without} calls between CPUs without wait, {with} with it"));
    check!(
        with >= without + REQUESTS / 2,
        "{REQUESTS} requests with wait had CPUs called {with} times, those without it {without} times"
    );
    vm.exit()
}

/// How many function calls by interrupt L1's CPUs have taken from each other.
fn calls_between_cpus() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("CAL:"));
    let counts = line.ok_or_else(|| Failure::new("no CAL: in /proc/interrupts"))?;
    Ok(counts
        .split_whitespace()
        .map_while(|word| word.parse::<u64>().ok())
        .sum())
}

fn many_requests(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    context.stage("ask", Duration::from_secs(20));
    for _ in 0..100 {
        check_eq!(wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
    }
    for _ in 0..100 {
        let event = wire.expect_event(PAUSE, 0)?;
        // The next comes when this one is answered.
        wire.expect_no_event()?;
        wire.reply(&event, CONTINUE)?;
    }
    wire.expect_no_event()?;
    counts_on(context, &vm)?;
    vm.exit()
}

fn request_limit(context: &mut Context) -> Result<(), Failure> {
    // Refused while more than 1,001 are pending.
    const PENDING: usize = 1002;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    vm.pause(0)?;
    context.stage("ask", Duration::from_secs(30));
    for times in 1..=PENDING {
        check_eq!(wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU number {times}");
    }
    for _ in 0..3 {
        check_eq!(
            wire.pause(0, false)?,
            Err(EBUSY),
            "VM_PAUSE_VCPU with {PENDING} pending"
        );
    }
    context.stage("answer", Duration::from_secs(30));
    vm.resume(0)?;
    for _ in 0..PENDING {
        let event = wire.expect_event(PAUSE, 0)?;
        wire.reply(&event, CONTINUE)?;
    }
    wire.expect_no_event()?;
    vm.exit()
}

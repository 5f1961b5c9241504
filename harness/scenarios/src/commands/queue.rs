// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that wait for a vCPU: how many may, and that nothing else waits for them.

use std::time::Duration;

use kvmi_uapi::error::EBUSY;
use kvmi_uapi::{MAX_PAYLOAD, MAX_QUEUED_BYTES, MAX_QUEUED_COMMANDS, msg};

use crate::wire::vcpu_payload;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::queue_limit",
        "1,024 commands wait for a vCPU that does not run; one more answers EBUSY at once",
        count_limit,
    ),
    scenario(
        "commands::queue_bytes_limit",
        "1 MiB of commands waits for a vCPU; more answers EBUSY at once",
        bytes_limit,
    ),
];

fn count_limit(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    vm.pause(1)?;
    context.stage("fill", Duration::from_secs(20));
    let mut seqs = Vec::new();
    for _ in 0..MAX_QUEUED_COMMANDS {
        seqs.push(wire.send(msg::VCPU_GET_INFO, &vcpu_payload(1, &[]))?);
    }
    // The reader takes them one after the other, so this answer shows that all of them are queued.
    check_eq!(wire.vcpu_count()?, 2, "vCPUs");
    check_eq!(wire.untaken_answers(), 0, "answers by a vCPU that does not run");
    for _ in 0..3 {
        check_eq!(
            wire.vcpu(1, msg::VCPU_GET_INFO, &[0u8; 0])?,
            Err(EBUSY),
            "one command too many"
        );
    }
    check!(
        wire.vcpu(0, msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "the other vCPU was refused"
    );
    context.stage("drain", Duration::from_secs(20));
    vm.resume(1)?;
    for wanted in seqs {
        let (seq, id, answer) = wire.next_answer()?;
        check_eq!((seq, id), (wanted, msg::VCPU_GET_INFO), "answers in order");
        check!(answer.is_ok(), "VCPU_GET_INFO was refused: {answer:?}");
    }
    check!(
        wire.vcpu(1, msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "the drained vCPU was refused"
    );
    vm.exit()
}

fn bytes_limit(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    vm.pause(0)?;
    context.stage("fill", Duration::from_secs(20));
    // Whether a message counts with its header or without, so many fit; the limit is on memory.
    let fit = MAX_QUEUED_BYTES / (MAX_PAYLOAD + 8);
    let largest = vcpu_payload(0, &vec![0; MAX_PAYLOAD - 8]);
    for _ in 0..fit {
        wire.send(msg::VCPU_GET_INFO, &largest)?;
    }
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    check_eq!(wire.untaken_answers(), 0, "answers by a vCPU that does not run");
    wire.send(msg::VCPU_GET_INFO, &largest)?;
    let seq = wire.send(msg::VCPU_GET_INFO, &largest)?;
    check_eq!(wire.answer(seq)?, Err(EBUSY), "a command beyond 1 MiB");
    context.stage("drain", Duration::from_secs(20));
    vm.resume(0)?;
    for _ in 0..fit {
        let (_, _, answer) = wire.next_answer()?;
        check!(
            answer.is_ok() || answer == Err(EBUSY),
            "VCPU_GET_INFO was refused: {answer:?}"
        );
    }
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    vm.exit()
}

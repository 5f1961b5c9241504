// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that wait for a vCPU: how many may, and that nothing else waits for them.

use std::time::Duration;

use kvmi::command::GetVcpuInfo;
use kvmi_uapi::error::EBUSY;
use kvmi_uapi::{MAX_QUEUED_COMMANDS, msg};

use super::keep_out;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "commands::queue_limit",
    "1,024 commands wait behind the reply to an event of a vCPU that does not run; one more answers EBUSY at once",
    count_limit,
)];

fn count_limit(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    keep_out(&vm, &mut wire, 1)?;
    context.stage("fill", Duration::from_secs(20));
    let mut seqs = Vec::new();
    for _ in 0..MAX_QUEUED_COMMANDS {
        seqs.push(wire.submit(&GetVcpuInfo { vcpu: 1 })?);
    }
    // The reader takes them one after the other, so this answer shows that all of them are queued.
    check_eq!(wire.vcpu_count()?, 2, "vCPUs");
    check_eq!(wire.untaken_answers(), 0, "answers by a vCPU that does not run");
    for _ in 0..3 {
        check_eq!(wire.ask(&GetVcpuInfo { vcpu: 1 })?, Err(EBUSY), "one command too many");
    }
    check!(
        wire.ask(&GetVcpuInfo { vcpu: 0 })?.is_ok(),
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
        wire.ask(&GetVcpuInfo { vcpu: 1 })?.is_ok(),
        "the drained vCPU was refused"
    );
    vm.exit()
}

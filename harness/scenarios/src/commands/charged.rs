// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who pays for the commands that wait.

use std::fs;
use std::time::Duration;

use kvmi_uapi::error::ENOMEM;
use kvmi_uapi::{MAX_PAYLOAD, MAX_QUEUED_BYTES, msg};
use rustix::mount::{MountFlags, mount};

use crate::vmm::Vm;
use crate::wire::{Wire, vcpu_payload};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "commands::queue_is_charged",
    "commands that wait are charged to the memory cgroup of the process that called HOOK; beyond its limit they answer ENOMEM",
    charged,
)];

const ROOT: &str = "/tmp/cgroup";
const GROUP: &str = "/tmp/cgroup/vmm";

/// As many of the largest commands as may wait for one vCPU.
const FIT: usize = MAX_QUEUED_BYTES / (MAX_PAYLOAD + 8);

/// Makes the cgroup and puts the VMM into it.
fn confine(vm: &Vm) -> Result<(), Failure> {
    fs::create_dir(ROOT)?;
    mount("none", ROOT, "cgroup2", MountFlags::empty(), None)?;
    fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory")?;
    fs::create_dir(GROUP)?;
    fs::write(format!("{GROUP}/cgroup.procs"), vm.pid().to_string())?;
    Ok(())
}

/// Bytes that the cgroup is charged.
fn bytes_charged() -> Result<usize, Failure> {
    Ok(fs::read_to_string(format!("{GROUP}/memory.current"))?.trim().parse()?)
}

/// Sends them to a vCPU that is out; how many were answered, which must be by ENOMEM.
fn fill(wire: &mut Wire) -> Result<usize, Failure> {
    let largest = vcpu_payload(0, &vec![0; MAX_PAYLOAD - 8]);
    for _ in 0..FIT {
        wire.send(msg::VCPU_GET_INFO, &largest)?;
    }
    // The reader takes them one after the other, so this answer shows that none is under way.
    check_eq!(wire.vcpu_count()?, 1, "vCPUs");
    let refused = wire.untaken_answers();
    for _ in 0..refused {
        check_eq!(
            wire.next_answer()?.2,
            Err(ENOMEM),
            "answer to a command that was refused"
        );
    }
    Ok(refused)
}

fn drain(wire: &mut Wire, commands: usize) -> Result<(), Failure> {
    for _ in 0..commands {
        let (_, _, answer) = wire.next_answer()?;
        check!(answer.is_ok(), "a command that waited was refused: {answer:?}");
    }
    Ok(())
}

fn charged(context: &mut Context) -> Result<(), Failure> {
    /// What the kernel charges in advance, per CPU.
    const SLACK: usize = 512 << 10;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    confine(&vm)?;
    let mut wire = context.hook(&vm)?;
    vm.pause(0)?;

    context.stage("no limit", Duration::from_secs(20));
    let before = bytes_charged()?;
    check_eq!(fill(&mut wire)?, 0, "commands refused without a limit");
    let charged = bytes_charged()?.saturating_sub(before);
    check!(
        charged >= MAX_QUEUED_BYTES - SLACK,
        "{charged} bytes were charged for {MAX_QUEUED_BYTES} that wait"
    );
    vm.resume(0)?;
    drain(&mut wire, FIT)?;

    context.stage("a limit", Duration::from_secs(20));
    vm.pause(0)?;
    let limit = bytes_charged()? + SLACK;
    fs::write(format!("{GROUP}/memory.max"), limit.to_string())?;
    let refused = fill(&mut wire)?;
    check!(
        refused > 0 && refused < FIT,
        "{refused} of {FIT} commands were refused with {SLACK} bytes left"
    );
    fs::write(format!("{GROUP}/memory.max"), "max")?;
    vm.resume(0)?;
    drain(&mut wire, FIT - refused)?;
    check!(
        wire.vcpu(0, msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "the vCPU was refused without a limit"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

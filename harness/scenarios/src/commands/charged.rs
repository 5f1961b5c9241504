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
pub(crate) const FIT: usize = MAX_QUEUED_BYTES / (MAX_PAYLOAD + 8);

/// Makes the cgroup and puts the VMM into it; it has no limit yet.
pub(crate) fn confine(vm: &Vm) -> Result<(), Failure> {
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

/// Has no more charged to the cgroup than there is now and so many bytes.
pub(crate) fn limit(bytes: usize) -> Result<(), Failure> {
    let most = bytes_charged()? + bytes;
    Ok(fs::write(format!("{GROUP}/memory.max"), most.to_string())?)
}

/// Has anything charged to the cgroup.
pub(crate) fn unlimit() -> Result<(), Failure> {
    Ok(fs::write(format!("{GROUP}/memory.max"), "max")?)
}

/// A request that fills a message: what is beyond its structure is ignored.
pub(crate) fn largest(request: &[u8]) -> Vec<u8> {
    let mut payload = vcpu_payload(0, request);
    payload.resize(MAX_PAYLOAD, 0);
    payload
}

/// Sends as many to a vCPU that is out as may wait for it; how many were answered, which must be by ENOMEM.
pub(crate) fn fill(wire: &mut Wire, id: u16, payload: &[u8]) -> Result<usize, Failure> {
    for _ in 0..FIT {
        wire.send(id, payload)?;
    }
    // The reader takes them one after the other, so this answer shows that none is under way.
    wire.expect_version()?;
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

/// What the kernel charges in advance, per CPU.
pub(crate) const SLACK: usize = 512 << 10;

fn charged(context: &mut Context) -> Result<(), Failure> {
    let largest = largest(&[]);
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    confine(&vm)?;
    let mut wire = context.hook(&vm)?;
    vm.pause(0)?;

    context.stage("no limit", Duration::from_secs(20));
    let before = bytes_charged()?;
    check_eq!(
        fill(&mut wire, msg::VCPU_GET_INFO, &largest)?,
        0,
        "commands refused without a limit"
    );
    let charged = bytes_charged()?.saturating_sub(before);
    check!(
        charged >= MAX_QUEUED_BYTES - SLACK,
        "{charged} bytes were charged for {MAX_QUEUED_BYTES} that wait"
    );
    vm.resume(0)?;
    drain(&mut wire, FIT)?;

    context.stage("a limit", Duration::from_secs(20));
    vm.pause(0)?;
    limit(SLACK)?;
    let refused = fill(&mut wire, msg::VCPU_GET_INFO, &largest)?;
    check!(
        refused > 0 && refused < FIT,
        "{refused} of {FIT} commands were refused with {SLACK} bytes left"
    );
    unlimit()?;
    vm.resume(0)?;
    drain(&mut wire, FIT - refused)?;
    check!(
        wire.vcpu(0, msg::VCPU_GET_INFO, &[0u8; 0])?.is_ok(),
        "the vCPU was refused without a limit"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

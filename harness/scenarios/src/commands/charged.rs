// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who pays for the commands that wait.

use std::fs;
use std::time::Duration;

use kvmi::command::GetVcpuInfo;
use kvmi_uapi::error::ENOMEM;
use kvmi_uapi::{MAX_PAYLOAD, MAX_QUEUED_BYTES, msg};
use rustix::mount::{MountFlags, mount};

use super::keep_out;
use crate::vmm::Vm;
use crate::wire::{Wire, vcpu_payload};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "commands::queue_is_charged",
    "commands that wait are charged to the memory cgroup of the process that called HOOK or OPEN; beyond its limit they answer ENOMEM",
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

/// Hooks a VM whose VMM is confined. Who calls HOOK or OPEN pays, so this process is in the cgroup meanwhile.
pub(crate) fn hook(context: &Context, vm: &Vm) -> Result<Wire, Failure> {
    let own = std::process::id().to_string();
    fs::write(format!("{GROUP}/cgroup.procs"), &own)?;
    let wire = context.hook(vm);
    fs::write(format!("{ROOT}/cgroup.procs"), &own)?;
    wire
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

/// Sends commands to a vCPU that [`keep_out`] keeps out, until as many wait as may or some are refused, which must be by
/// ENOMEM; how many wait, and how many were refused.
pub(crate) fn fill(wire: &mut Wire, id: u16, payload: &[u8]) -> Result<(usize, usize), Failure> {
    // Few, for the kernel looks for memory long before it refuses one.
    const AT_ONCE: usize = 8;
    let (mut sent, mut refused) = (0, 0);
    while sent < FIT && refused == 0 {
        let some = AT_ONCE.min(FIT - sent);
        for _ in 0..some {
            wire.send(id, payload)?;
        }
        sent += some;
        // The reader takes them one after the other, so this answer shows that none is under way.
        wire.expect_version()?;
        refused = wire.untaken_answers();
    }
    for _ in 0..refused {
        check_eq!(
            wire.next_answer()?.2,
            Err(ENOMEM),
            "answer to a command that was refused"
        );
    }
    Ok((sent - refused, refused))
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
    let mut wire = hook(context, &vm)?;
    keep_out(&vm, &mut wire, 0)?;

    context.stage("no limit", Duration::from_secs(20));
    let before = bytes_charged()?;
    check_eq!(
        fill(&mut wire, msg::VCPU_GET_INFO, &largest)?,
        (FIT, 0),
        "commands that wait, and that were refused, without a limit"
    );
    let charged = bytes_charged()?.saturating_sub(before);
    check!(
        charged >= MAX_QUEUED_BYTES - SLACK,
        "{charged} bytes were charged for {MAX_QUEUED_BYTES} that wait"
    );
    vm.resume(0)?;
    drain(&mut wire, FIT)?;

    context.stage("a limit", Duration::from_secs(20));
    keep_out(&vm, &mut wire, 0)?;
    limit(SLACK)?;
    let (waiting, refused) = fill(&mut wire, msg::VCPU_GET_INFO, &largest)?;
    check!(
        waiting > 0 && refused > 0,
        "{waiting} commands wait and {refused} were refused with {SLACK} bytes left"
    );
    unlimit()?;
    vm.resume(0)?;
    drain(&mut wire, waiting)?;
    check!(
        wire.ask(&GetVcpuInfo { vcpu: 0 })?.is_ok(),
        "the vCPU was refused without a limit"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

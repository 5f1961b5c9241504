// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool is killed while a vCPU waits for it: what becomes of the guest is what the flags of HOOK say.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use kvmi::ioctls::{self, Open};
use kvmi_guests::{Access, Op, layout};
use kvmi_uapi::event::{CONTINUE, HYPERCALL, PF};
use kvmi_uapi::ioctl::{HOOK_CRASH_ON_LOSS, HOOK_FAIL_CLOSED, HOOK_STOPPED};
use kvmi_uapi::{PageAccessEntry, VcpuRunState};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::FromZeros;

use super::tool_process::ToolProcess;
use crate::lifecycle::{GUEST_REQUEST, becomes, wait_at_hypercall, wait_for_loss};
use crate::vmm::{Until, Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, Transport, check, check_eq, scenario};

const EINVAL: i32 = Errno::INVAL.raw_os_error();
const EEXIST: i32 = Errno::EXIST.raw_os_error();

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "destroy::tool_killed_fail_open",
        "the tool is killed while a vCPU waits: the guest goes on",
        tool_killed_fail_open,
    )
    .over_both(),
    scenario(
        "destroy::tool_killed_fail_closed_unhook",
        "fail closed: the tool is killed, vCPUs stop at their event sites until UNHOOK",
        |c| tool_killed_fail_closed(c, Recovery::Unhook),
    )
    .over_both(),
    scenario(
        "destroy::tool_killed_fail_closed_hook",
        "fail closed: the tool is killed, vCPUs stop at their event sites until a new HOOK",
        |c| tool_killed_fail_closed(c, Recovery::Hook),
    )
    .over_both(),
    scenario(
        "destroy::tool_killed_crash_on_loss",
        "crash on loss: the tool is killed, every vCPU stops until UNHOOK",
        |c| tool_killed_crash_on_loss(c, HOOK_CRASH_ON_LOSS),
    )
    .over_both(),
    scenario(
        "destroy::tool_killed_both_flags",
        "crash on loss and fail closed together: as crash on loss alone",
        |c| tool_killed_crash_on_loss(c, HOOK_CRASH_ON_LOSS | HOOK_FAIL_CLOSED),
    ),
    scenario(
        "destroy::taken_over_stopped",
        "fail closed, taken over by HOOK with STOPPED: what was denied stays denied, vCPUs stand still until VM_RELEASE",
        taken_over_stopped,
    ),
    scenario(
        "destroy::fail_closed_outlasts_bad_hooks",
        "fail closed: a HOOK that is refused opens nothing, one that succeeds does",
        fail_closed_outlasts_bad_hooks,
    ),
];

/// A VM whose vCPU 0 waits for a tool in another process to answer a HYPERCALL event; the command's number.
fn waiting_for_a_tool(context: &mut Context, flags: u32) -> Result<(Vm, ToolProcess, u64), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 2)?;
    let connection = match context.transport {
        Transport::Descriptor => {
            let how = Open {
                flags,
                ..Open::new_zeroed()
            };
            ioctls::open(vm.steal_vm_fd()?, &how)?
        }
        Transport::Socket => {
            let (theirs, ours) = UnixStream::pair()?;
            vm.hook_and_allow(theirs.as_fd(), flags)?;
            OwnedFd::from(ours)
        }
    };
    context.stage("the tool's process takes over", Duration::from_secs(20));
    let mut tool = ToolProcess::start(connection, vm.vcpus())?;
    tool.wait_enabled()?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    tool.wait_event()?;
    Ok((vm, tool, number))
}

fn tool_killed_fail_open(context: &mut Context) -> Result<(), Failure> {
    let (vm, tool, number) = waiting_for_a_tool(context, 0)?;
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 0, "hypercalls that returned");
    context.stage("kill", Duration::from_secs(10));
    tool.kill()?;
    vm.finished(context, 0, number)?;
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 1, "hypercalls that returned");
    check_eq!(
        vm.carry_out(context, 1, Op::Hypercall, GUEST_REQUEST)? as i64,
        -1000,
        "RAX on vCPU 1"
    );
    context.stage("a new session", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(context.hook(&vm)?.vcpu_count()?, 2, "vCPUs in a new session");
    vm.exit()
}

/// What ends the stop of a vCPU that failed closed.
#[derive(Clone, Copy)]
enum Recovery {
    Unhook,
    Hook,
}

/// Fails unless neither vCPU gets through its hypercall, though each is sent so many signals.
fn both_stay_stopped(vm: &Vm, signals: u64) -> Result<(), Failure> {
    for vcpu in 0..2 {
        let before = vm.status(vcpu)?.interrupted;
        for times in 1..=signals {
            vm.signal(vcpu)?;
            vm.wait(vcpu, Until::Interrupted(before + times))?;
        }
        check_eq!(
            vm.guest.field(vcpu, field!(hypercalls))?,
            0,
            "hypercalls that returned on vCPU {vcpu}"
        );
        check_eq!(vm.status(vcpu)?.exits("shutdown"), 0, "shutdown exits of vCPU {vcpu}");
    }
    Ok(())
}

/// A VM whose tool was killed and that failed closed, with both vCPUs at a hypercall; the numbers of their commands.
fn closed(context: &mut Context) -> Result<(Vm, [u64; 2]), Failure> {
    let (vm, tool, number) = waiting_for_a_tool(context, HOOK_FAIL_CLOSED)?;
    context.stage("kill", Duration::from_secs(10));
    tool.kill()?;
    context.stage("another vCPU reaches an event site", Duration::from_secs(20));
    let other = vm.command(1, Op::Hypercall, GUEST_REQUEST)?;
    wait_at_hypercall(context, &vm, 1)?;
    Ok((vm, [number, other]))
}

/// Fails unless both vCPUs go on and execute their instruction anew, with no event on: KVM's own answer.
fn both_go_on(context: &Context, vm: &Vm, numbers: [u64; 2]) -> Result<(), Failure> {
    for (vcpu, number) in numbers.into_iter().enumerate() {
        check_eq!(vm.finished(context, vcpu, number)? as i64, -1000, "RAX on vCPU {vcpu}");
    }
    Ok(())
}

/// Fails unless nothing is on in a new session and events work.
fn works_anew(context: &Context, vm: &Vm, wire: &mut Wire) -> Result<(), Failure> {
    wire.expect_no_event()?;
    wire.control_event(0, HYPERCALL, true)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX in the new session");
    Ok(())
}

fn tool_killed_fail_closed(context: &mut Context, recovery: Recovery) -> Result<(), Failure> {
    let (vm, numbers) = closed(context)?;
    context.stage("both stay stopped, whatever signals come", Duration::from_secs(20));
    both_stay_stopped(&vm, 10)?;
    context.stage("recover", Duration::from_secs(10));
    match recovery {
        Recovery::Unhook => {
            check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
            both_go_on(context, &vm, numbers)?;
        }
        Recovery::Hook => {
            let mut wire = context.hook(&vm)?;
            both_go_on(context, &vm, numbers)?;
            works_anew(context, &vm, &mut wire)?;
        }
    }
    vm.exit()
}

/// Two vCPUs: the first at a store to a page that it may not write, the second asleep.
fn taken_over_stopped(context: &mut Context) -> Result<(), Failure> {
    const READ_EXEC: u8 = PageAccessEntry::READ | PageAccessEntry::EXEC;
    const PLACE: u64 = layout::SCRATCH;
    const OTHER: u64 = layout::SCRATCH + 0x1000;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 2)?;
    let written = |vm: &Vm| -> Result<[u64; 2], Failure> {
        let mut bytes = [[0; 8]; 2];
        for (bytes, gpa) in bytes.iter_mut().zip([PLACE, OTHER]) {
            vm.guest.read(gpa, bytes)?;
        }
        Ok(bytes.map(u64::from_ne_bytes))
    };
    for round in 1..=2 {
        context.stage(
            &format!("round {round}: a session that denies"),
            Duration::from_secs(10),
        );
        let before = written(&vm)?;
        let mut wire = context.hook_with(&vm, HOOK_FAIL_CLOSED)?;
        for vcpu in 0..2 {
            wire.control_event(vcpu, PF, true)?;
        }
        wire.restrict(&[(PLACE, READ_EXEC), (OTHER, READ_EXEC)])?;
        let number = vm.command(0, Op::Access, [Access::Write as u64, PLACE, 0x100 + round, 0])?;
        wire.expect_event(PF, 0)?;
        drop(wire);
        context.stage(&format!("round {round}: another takes over"), Duration::from_secs(10));
        wait_for_loss(context, &vm)?;
        let mut wire = context.hook_with(&vm, HOOK_FAIL_CLOSED | HOOK_STOPPED)?;
        let other = vm.command(1, Op::Access, [Access::Write as u64, OTHER, 0x200 + round, 0])?;
        for vcpu in 0..2 {
            becomes(context, &mut wire, vcpu, VcpuRunState::STOPPED)?;
        }
        check_eq!(
            wire.page_access(&[PLACE, OTHER])?,
            [READ_EXEC; 2],
            "access of the pages"
        );
        check_eq!(written(&vm)?, before, "what the guest wrote meanwhile");
        wire.expect_no_event()?;
        context.stage(&format!("round {round}: it is told"), Duration::from_secs(10));
        for vcpu in 0..2 {
            wire.control_event(vcpu, PF, true)?;
        }
        wire.release()?;
        for _ in 0..2 {
            let event = wire.event()?;
            check_eq!(event.id, PF, "the event of vCPU {}", event.vcpu);
            check_eq!(
                written(&vm)?[usize::from(event.vcpu)],
                before[usize::from(event.vcpu)],
                "what it wrote"
            );
            wire.reply(&event, CONTINUE)?;
        }
        vm.finished(context, 0, number)?;
        vm.finished(context, 1, other)?;
        check_eq!(written(&vm)?, [0x100 + round, 0x200 + round], "what the guest wrote");
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        let next = vm.command(0, Op::Access, [Access::Write as u64, PLACE, 7, 0])?;
        vm.finished(context, 0, next)?;
    }
    vm.exit()
}

fn tool_killed_crash_on_loss(context: &mut Context, flags: u32) -> Result<(), Failure> {
    let (vm, tool, number) = waiting_for_a_tool(context, flags)?;
    context.stage("kill", Duration::from_secs(10));
    tool.kill()?;
    for times in 1..=3 {
        for vcpu in 0..2 {
            if times > 1 {
                vm.resume(vcpu)?;
            }
            let status = vm.wait(vcpu, Until::Exit("shutdown".to_owned(), times))?;
            check_eq!(status.exits("shutdown"), times, "shutdown exits of vCPU {vcpu}");
        }
    }
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 0, "hypercalls that returned");
    check!(
        vm.guest.field(0, field!(done))? < number,
        "the crashed vCPU finished its command"
    );
    context.stage("until UNHOOK", Duration::from_secs(10));
    let (_ours, theirs) = UnixStream::pair()?;
    check_eq!(vm.hook(theirs.as_fd(), 0)?, EEXIST, "errno of HOOK after a crash");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    for vcpu in 0..2 {
        vm.resume(vcpu)?;
    }
    check_eq!(
        vm.finished(context, 0, number)? as i64,
        -1000,
        "RAX of the instruction that happened anew"
    );
    check_eq!(
        vm.carry_out(context, 1, Op::Nothing, [0; 4])?,
        0,
        "what the other vCPU answers"
    );
    vm.exit()
}

/// HOOK with each kind of descriptor that is refused, and with unknown flags.
fn bad_hooks(context: &Context, vm: &Vm) -> Result<(), Failure> {
    let refused = |errno, what| -> Result<(), Failure> {
        check_eq!(errno, EINVAL, "errno of HOOK with {what}");
        both_stay_stopped(vm, 1)
    };
    wait_for_loss(context, vm)?;
    refused(vm.hook_number(1_000_000, 0)?, "a descriptor that is not open")?;
    let (ours, theirs) = UnixStream::pair()?;
    refused(vm.hook(theirs.as_fd(), 1 << 3)?, "an unknown flag")?;
    drop(ours);
    refused(vm.hook(File::open("/proc/self/exe")?.as_fd(), 0)?, "a regular file")?;
    refused(vm.hook(std::io::pipe()?.0.as_fd(), 0)?, "a pipe")?;
    refused(
        vm.hook(UnixListener::bind("/tmp/deaf")?.as_fd(), 0)?,
        "a listening socket",
    )?;
    let (datagrams, _other) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    refused(vm.hook(datagrams.as_fd(), HOOK_FAIL_CLOSED)?, "a datagram socket")
}

fn fail_closed_outlasts_bad_hooks(context: &mut Context) -> Result<(), Failure> {
    let (vm, numbers) = closed(context)?;
    context.stage("HOOKs that are refused", Duration::from_secs(20));
    bad_hooks(context, &vm)?;
    context.stage("one that succeeds", Duration::from_secs(10));
    let mut wire = context.hook(&vm)?;
    both_go_on(context, &vm, numbers)?;
    works_anew(context, &vm, &mut wire)?;
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! One side disappears while the other is in the middle of something.

mod tool_process;

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::HYPERCALL;
use kvmi_uapi::ioctl::{self, HOOK_CRASH_ON_LOSS, HOOK_FAIL_CLOSED};
use kvmi_uapi::msg;

use crate::lifecycle::{GUEST_REQUEST, wait_at_hypercall};
use crate::requests::fill_socket;
use crate::vmm::{Permission, Until, Vm, field};
use crate::wire::vcpu_payload;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

use tool_process::ToolProcess;
pub(crate) use tool_process::main as tool_main;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario(
            "destroy::vmm_killed_while_vcpu_waits",
            "the VMM is killed while a vCPU waits for a reply: the tool sees the end, nothing is left",
            vmm_killed_while_waiting,
        ),
        scenario(
            "destroy::vmm_killed_while_command_runs",
            "the VMM is killed while commands run: whole replies, then the end, nothing is left",
            vmm_killed_during_commands,
        ),
        scenario(
            "destroy::vmm_killed_while_socket_full",
            "the VMM is killed while the kernel waits for room in the socket: whole replies, then the end, nothing is left",
            vmm_killed_while_socket_full,
        ),
        scenario(
            "destroy::vmm_exits_while_hooked",
            "the VMM closes the VM without UNHOOK: the tool sees the end, nothing is left",
            vmm_exits,
        ),
        scenario(
            "destroy::tool_killed_fail_open",
            "the tool is killed while a vCPU waits: the guest goes on",
            tool_killed_fail_open,
        ),
        scenario(
            "destroy::tool_killed_fail_closed_unhook",
            "fail closed: the tool is killed, vCPUs stop at their event sites until UNHOOK",
            |c| tool_killed_fail_closed(c, Recovery::Unhook),
        ),
        scenario(
            "destroy::tool_killed_fail_closed_hook",
            "fail closed: the tool is killed, vCPUs stop at their event sites until a new HOOK",
            |c| tool_killed_fail_closed(c, Recovery::Hook),
        ),
        scenario(
            "destroy::tool_killed_crash_on_loss",
            "crash on loss: the tool is killed, the vCPU stops for good",
            tool_killed_crash_on_loss,
        ),
        scenario(
            "destroy::socket_half_closed",
            "the tool shuts one direction of the socket down, either one: the guest goes on",
            half_closed,
        ),
    ]
}

fn vmm_killed_while_waiting(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (mut vm, mut wire) = context.hooked_vm("hypercall", 2)?;
    for vcpu in 0..2 {
        wire.control_event(vcpu, HYPERCALL, true)?;
        vm.command(vcpu.into(), Op::Hypercall, GUEST_REQUEST)?;
        wire.expect_event(HYPERCALL, vcpu)?;
    }
    context.stage("kill", Duration::from_secs(10));
    vm.kill()?;
    wire.expect_closed()
}

fn vmm_killed_during_commands(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (mut vm, mut wire) = context.hooked_vm("counter", 2)?;
    let mut bytes = Vec::new();
    for i in 0..300u16 {
        let (_, message) = match i % 3 {
            0 => wire.compose(msg::VCPU_GET_REGISTERS, &vcpu_payload(i % 2, &[0; 8])),
            1 => wire.compose(msg::VCPU_GET_INFO, &vcpu_payload(i % 2, &[])),
            _ => wire.compose(msg::VM_PAUSE_VCPU, &[0, 0, 1, 0, 0, 0, 0, 0]),
        };
        bytes.extend(message);
    }
    context.stage("kill", Duration::from_secs(10));
    wire.write(&bytes)?;
    // The first answer shows that the commands are being carried out; no PAUSE is answered, so they are not all done.
    let (_, id, answer) = wire.next_answer()?;
    check!(answer.is_ok(), "command {id} was refused: {answer:?}");
    vm.kill()?;
    wire.expect_closed()
}

fn vmm_killed_while_socket_full(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (mut vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    let seqs = fill_socket(&mut wire)?;
    vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wait_at_hypercall(context, &vm, 0)?;
    context.stage("kill", Duration::from_secs(10));
    vm.kill()?;
    wire.expect_closed_perhaps_cut()?;
    for wanted in seqs.iter().take(wire.untaken_answers()) {
        let (seq, _, answer) = wire.next_answer()?;
        check_eq!(
            (seq, answer.map(|data| data.len())),
            (*wanted, Ok(4096)),
            "answer, bytes"
        );
    }
    Ok(())
}

fn vmm_exits(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 2)?;
    wire.control_event(0, HYPERCALL, true)?;
    vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wire.expect_event(HYPERCALL, 0)?;
    context.stage("exit", Duration::from_secs(10));
    vm.exit()?;
    wire.expect_closed()
}

/// A VM whose vCPU 0 waits for a tool in another process to answer a HYPERCALL event; the command's number.
fn waiting_for_a_tool(context: &mut Context, flags: u32) -> Result<(Vm, ToolProcess, u64), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 2)?;
    let (theirs, ours) = UnixStream::pair()?;
    check_eq!(vm.hook(theirs.as_fd(), flags)?, 0, "errno of HOOK");
    drop(theirs);
    for what in [Permission::Command, Permission::Event] {
        check_eq!(vm.permit(what, 1, ioctl::ALL)?, 0, "errno of allowing all");
    }
    context.stage("the tool's process takes over", Duration::from_secs(20));
    let mut tool = ToolProcess::start(ours, vm.vcpus())?;
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

fn tool_killed_fail_closed(context: &mut Context, recovery: Recovery) -> Result<(), Failure> {
    let (vm, tool, number) = waiting_for_a_tool(context, HOOK_FAIL_CLOSED)?;
    context.stage("kill", Duration::from_secs(10));
    tool.kill()?;
    context.stage("another vCPU reaches an event site", Duration::from_secs(20));
    let other = vm.command(1, Op::Hypercall, GUEST_REQUEST)?;
    wait_at_hypercall(context, &vm, 1)?;
    context.stage("both stay stopped, whatever signals come", Duration::from_secs(20));
    for vcpu in 0..2 {
        let before = vm.status(vcpu)?.interrupted;
        for times in 1..=10 {
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
    context.stage("recover", Duration::from_secs(10));
    let wire = match recovery {
        Recovery::Unhook => {
            check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
            None
        }
        Recovery::Hook => Some(context.hook(&vm)?),
    };
    vm.finished(context, 0, number)?;
    vm.finished(context, 1, other)?;
    if let Some(mut wire) = wire {
        // Nothing is enabled in the new session.
        wire.expect_no_event()?;
        wire.control_event(0, HYPERCALL, true)?;
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        wire.reply(&event, kvmi_uapi::event::CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, 0, "RAX in the new session");
    }
    vm.exit()
}

fn tool_killed_crash_on_loss(context: &mut Context) -> Result<(), Failure> {
    let (vm, tool, number) = waiting_for_a_tool(context, HOOK_CRASH_ON_LOSS)?;
    context.stage("kill", Duration::from_secs(10));
    tool.kill()?;
    for times in 1..=3 {
        let status = vm.wait(0, Until::Exit("shutdown".to_owned(), times))?;
        check_eq!(status.exits("shutdown"), times, "shutdown exits of vCPU 0");
        vm.resume(0)?;
    }
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 0, "hypercalls that returned");
    check!(
        vm.guest.field(0, field!(done))? < number,
        "the crashed vCPU finished its command"
    );
    vm.exit()
}

fn half_closed(context: &mut Context) -> Result<(), Failure> {
    for (what, how) in [("sending", Shutdown::Write), ("receiving", Shutdown::Read)] {
        context.stage(&format!("{what}: start"), Duration::from_secs(20));
        let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
        wire.control_event(0, HYPERCALL, true)?;
        context.stage(&format!("{what}: shut down"), Duration::from_secs(10));
        let number = match how {
            // The kernel reads the end of the stream while the vCPU waits.
            Shutdown::Write => {
                let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
                wire.expect_event(HYPERCALL, 0)?;
                wire.shutdown(how)?;
                number
            }
            // The kernel cannot send the event.
            _ => {
                wire.shutdown(how)?;
                vm.command(0, Op::Hypercall, GUEST_REQUEST)?
            }
        };
        wire.expect_closed()?;
        vm.finished(context, 0, number)?;
        check_eq!(vm.guest.field(0, field!(hypercalls))?, 1, "hypercalls that returned");
        context.stage(&format!("{what}: a new session"), Duration::from_secs(10));
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        check_eq!(context.hook(&vm)?.vcpu_count()?, 1, "vCPUs in a new session");
        vm.exit()?;
    }
    Ok(())
}

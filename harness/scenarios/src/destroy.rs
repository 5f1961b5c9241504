// SPDX-License-Identifier: MIT OR Apache-2.0
//! One side disappears while the other is in the middle of something.

mod tool_killed;
mod tool_process;

use std::net::Shutdown;
use std::time::Duration;

use kvmi::command::{GetRegisters, GetVcpuInfo, PauseVcpu};
use kvmi_guests::Op;
use kvmi_uapi::event::HYPERCALL;

use crate::lifecycle::{GUEST_REQUEST, wait_at_hypercall};
use crate::requests::{empty_socket, fill_socket};
use crate::vmm::field;
use crate::{Context, Failure, Scenario, Transport, check, check_eq, scenario};

pub(crate) use tool_process::main as tool_main;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let own = [
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
        )
    .over(Transport::Socket),
        scenario(
            "destroy::vmm_exits_while_hooked",
            "the VMM closes the VM without UNHOOK: the tool sees the end, nothing is left",
            vmm_exits,
        ),
        scenario(
            "destroy::socket_half_closed",
            "the tool shuts one direction of the socket down, either one: the guest goes on",
            half_closed,
        ),
    ];
    [&own[..], tool_killed::SCENARIOS].concat()
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
            0 => wire.encode(&GetRegisters { vcpu: i % 2, msrs: &[] }),
            1 => wire.encode(&GetVcpuInfo { vcpu: i % 2 }),
            _ => wire.encode(&PauseVcpu { vcpu: 0, wait: true }),
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
    let came = wire.untaken_answers();
    empty_socket(&mut wire, seqs.into_iter().take(came))
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

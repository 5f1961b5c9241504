// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands for a vCPU that is out of `KVM_RUN`: they are carried out without it.

use std::time::Duration;

use kvmi::command::{GetVcpuInfo, GetXsave, TranslateGva};
use kvmi_guests::{Op, layout};
use kvmi_uapi::event::{BREAKPOINT, CONTINUE, HYPERCALL, TRAP, Trap};
use kvmi_uapi::{VcpuTranslateGvaReply, msg};

use super::keep_out;
use crate::lifecycle::GUEST_REQUEST;
use crate::requests::expect_data;
use crate::vmm::{Request, VcpuWrite, Vm};
use crate::wire::{Answer, Wire, vcpu_payload};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::while_stopped",
        "a vCPU that the VMM keeps out of KVM_RUN: each command answers as while it runs, and counts when it runs on",
        stopped,
    ),
    scenario(
        "commands::before_it_runs",
        "a VM that has not run yet: its registers, its memory, and what is switched on holds from the first instruction",
        before_it_runs,
    ),
    scenario(
        "commands::while_its_vmm_has_it",
        "commands for a vCPU about which the VMM makes one ioctl after the other: each is answered, in order",
        while_its_vmm_has_it,
    ),
    scenario(
        "commands::in_and_out",
        "commands for a vCPU that goes in and out of KVM_RUN all the time: each is answered once, in order",
        in_and_out,
    ),
    scenario(
        "commands::behind_a_reply",
        "a command behind the reply to an event waits until the vCPU has taken the reply; one before it does not",
        behind_a_reply,
    ),
    scenario(
        "commands::tables_that_nobody_serves",
        "a translation by tables in memory whose page fault nobody serves, while KVM_RUN is out: neither VMM nor tool waits, nor UNHOOK",
        tables_that_nobody_serves,
    ),
    scenario(
        "commands::injected_while_stopped",
        "an exception injected while KVM_RUN is out is taken when it is in; what the VMM writes meanwhile drops it",
        injected,
    ),
];

/// The answers to what changes nothing, a few of which look at the guest's memory.
fn answers(wire: &mut Wire) -> Result<Vec<Answer>, Failure> {
    let rip = wire.registers(0)?.regs.rip;
    let mut answers = vec![
        wire.vcpu(0, msg::VCPU_GET_REGISTERS, &[0u8; 0])?,
        wire.ask(&GetVcpuInfo { vcpu: 0 })?,
        wire.ask(&GetXsave { vcpu: 0 })?,
        wire.vcpu(0, msg::VCPU_GET_XCR, &[0u8; 8])?,
        wire.vcpu(0, msg::VCPU_GET_CPUID, &[0u8; 8])?,
        wire.vcpu(0, msg::VCPU_GET_MTRR_TYPE, &[0u8; 8])?,
    ];
    for (gva, root) in [(rip, None), (u64::MAX, None), (rip, Some(0))] {
        answers.push(wire.ask(&TranslateGva { vcpu: 0, gva, root })?);
    }
    Ok(answers)
}

fn stopped(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("breakpoint", 1)?;
    // So that nothing moves.
    context.stage("held", Duration::from_secs(10));
    wire.control_event(0, BREAKPOINT, true)?;
    let number = vm.command(0, Op::Int3, [0; 4])?;
    let event = wire.expect_event(BREAKPOINT, 0)?;
    let held = answers(&mut wire)?;
    for answer in &held {
        check!(answer.is_ok(), "a command was refused: {answer:?}");
    }
    context.stage("out", Duration::from_secs(10));
    vm.pause(0)?;
    for (n, (out, held)) in answers(&mut wire)?.into_iter().zip(held).enumerate() {
        check_eq!(out, held, "answer {n} of a vCPU that is out");
    }
    // XMM0, of which the program makes no use.
    let mut state = expect_data(wire.ask(&GetXsave { vcpu: 0 })?, "VCPU_GET_XSAVE")?;
    state[160] ^= 0xff;
    state[512] |= 2;
    check_eq!(
        wire.vcpu(0, msg::VCPU_SET_XSAVE, &state[..])?,
        Ok(vec![]),
        "VCPU_SET_XSAVE"
    );
    check_eq!(wire.ask(&GetXsave { vcpu: 0 })?, Ok(state.clone()), "state after it");
    context.stage("in again", Duration::from_secs(10));
    vm.resume(0)?;
    check_eq!(wire.ask(&GetXsave { vcpu: 0 })?, Ok(state), "state in KVM_RUN");
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    for on in [false, true] {
        context.stage(&format!("switched while it is out: {on}"), Duration::from_secs(10));
        vm.pause(0)?;
        wire.control_event(0, BREAKPOINT, on)?;
        vm.resume(0)?;
        let number = vm.command(0, Op::Int3, [0; 4])?;
        if on {
            let event = wire.expect_event(BREAKPOINT, 0)?;
            wire.reply(&event, CONTINUE)?;
        }
        vm.finished(context, 0, number)?;
        wire.expect_no_event()?;
    }
    vm.exit()
}

fn before_it_runs(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm("hypercall", 2)?;
    let mut wire = context.hook(&vm)?;
    context.stage("look", Duration::from_secs(10));
    for vcpu in 0..2 {
        let regs = wire.registers(vcpu)?.regs;
        check_eq!(regs.rdi, u64::from(vcpu), "RDI, in which its program finds its index");
        let request = TranslateGva {
            vcpu,
            gva: regs.rip,
            root: None,
        };
        let reply = wire.get(&request, size_of::<VcpuTranslateGvaReply>())?;
        let mut own = [0; 8];
        vm.guest.read(reply.gpa, &mut own)?;
        check_eq!(
            wire.read_physical(reply.gpa, 8)?,
            Ok(own.to_vec()),
            "its first instructions"
        );
        wire.control_event(vcpu, HYPERCALL, true)?;
    }
    context.stage("run", Duration::from_secs(20));
    vm.run()?;
    vm.wait_ready(context)?;
    for vcpu in 0..2 {
        let number = vm.command(vcpu, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, vcpu as u16)?;
        wire.reply(&event, CONTINUE)?;
        vm.finished(context, vcpu, number)?;
    }
    wire.expect_no_event()?;
    vm.exit()
}

/// Asks many at once, which must be answered in their order.
fn pipelined(wire: &mut Wire, commands: usize) -> Result<(), Failure> {
    let mut seqs = Vec::new();
    for _ in 0..commands {
        seqs.push(wire.submit(&GetVcpuInfo { vcpu: 0 })?);
    }
    for wanted in seqs {
        let (seq, id, answer) = wire.next_answer()?;
        check_eq!((seq, id), (wanted, msg::VCPU_GET_INFO), "answers in order");
        check!(answer.is_ok(), "VCPU_GET_INFO was refused: {answer:?}");
    }
    Ok(())
}

fn while_its_vmm_has_it(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: usize = 40;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    vm.pause(0)?;
    context.stage("ioctls and commands", Duration::from_secs(30));
    for round in 1..=ROUNDS {
        vm.begin(&Request::GetRegsOften { vcpu: 0, times: 500 }, &[])?;
        for _ in 0..5 {
            wire.registers(0)?;
        }
        pipelined(&mut wire, 10)?;
        let reply = vm.finish()?;
        check!(reply.is_ok(), "KVM_GET_REGS failed in round {round}: {reply:?}");
    }
    check_eq!(wire.untaken_answers(), 0, "answers that nobody asked for");
    vm.resume(0)?;
    wire.registers(0)?;
    vm.exit()
}

fn in_and_out(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: usize = 50;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    context.stage("signals and commands", Duration::from_secs(30));
    for _ in 0..ROUNDS {
        vm.signal(0)?;
        pipelined(&mut wire, 5)?;
        vm.pause(0)?;
        pipelined(&mut wire, 5)?;
        let seq = wire.submit(&GetVcpuInfo { vcpu: 0 })?;
        vm.resume(0)?;
        check!(wire.answer(seq)?.is_ok(), "VCPU_GET_INFO was refused");
    }
    check_eq!(wire.untaken_answers(), 0, "answers that nobody asked for");
    vm.exit()
}

fn behind_a_reply(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 2)?;
    wire.control_event(0, HYPERCALL, true)?;
    for round in 0..3 {
        context.stage(&format!("round {round}"), Duration::from_secs(20));
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        vm.pause(0)?;
        let mut regs = wire.registers(0)?.regs;
        check_eq!(regs, event.arch.regs, "registers before the reply");
        regs.rbx ^= 0x1000_0000;
        wire.set_registers(0, &regs)?;
        wire.reply(&event, CONTINUE)?;
        let seq = wire.send(msg::VCPU_GET_REGISTERS, &vcpu_payload(0, &[]))?;
        // The other one does not wait, and its answer shows that the first was received.
        wire.registers(1)?;
        check_eq!(wire.untaken_answers(), 0, "answers behind the reply");
        vm.resume(0)?;
        let answer = expect_data(wire.answer(seq)?, "VCPU_GET_REGISTERS")?;
        let rbx = u64::from_ne_bytes(answer[16..24].try_into().expect("eight bytes"));
        check_eq!(rbx, regs.rbx, "RBX, which the tool has set before the reply");
        vm.finished(context, 0, number)?;
    }
    context.stage("a session that ends", Duration::from_secs(20));
    keep_out(&vm, &mut wire, 0)?;
    wire.submit(&GetVcpuInfo { vcpu: 0 })?;
    wire.registers(1)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    let mut wire = context.hook(&vm)?;
    wire.registers(0)?;
    vm.resume(0)?;
    wire.registers(0)?;
    wire.expect_no_event()?;
    vm.exit()
}

fn tables_that_nobody_serves(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    vm.pause(0)?;
    let ask = |vm: &Vm, wire: &mut Wire, root: u64| -> Result<u32, Failure> {
        vm.add_slot(root, 4096)?;
        vm.withhold_slot()?;
        let request = TranslateGva {
            vcpu: 0,
            gva: 0,
            root: Some(root),
        };
        let seq = wire.submit(&request)?;
        vm.wait_for_fault()?;
        // The vCPU is the VMM's, and other commands are answered.
        vm.regs(0)?;
        wire.expect_version()?;
        check_eq!(wire.untaken_answers(), 0, "answers while nobody serves it");
        Ok(seq)
    };
    context.stage("served in the end", Duration::from_secs(20));
    let seq = ask(&vm, &mut wire, layout::ANONYMOUS_SLOT)?;
    vm.serve_slot()?;
    let nowhere = u64::MAX.to_ne_bytes().to_vec();
    check_eq!(wire.answer(seq)?, Ok(nowhere), "what an empty table maps");
    context.stage("UNHOOK", Duration::from_secs(20));
    ask(&vm, &mut wire, layout::ANONYMOUS_SLOT + (2 << 20))?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    let mut wire = context.hook(&vm)?;
    wire.registers(0)?;
    vm.serve_slot()?;
    vm.resume(0)?;
    wire.registers(0)?;
    vm.exit()
}

/// Exceptions of instructions that the guest does not execute.
const UNDEFINED: u8 = 6;
const BOUND: u8 = 5;

fn injected(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    vm.tolerate(&[UNDEFINED.into(), BOUND.into()])?;
    for (round, by) in [None, Some(VcpuWrite::PendingException(BOUND)), None]
        .into_iter()
        .enumerate()
    {
        context.stage(&format!("with {by:?} of the VMM's"), Duration::from_secs(20));
        vm.pause(0)?;
        // What it wrote before is not what drops it.
        vm.change_regs(0)?;
        check_eq!(wire.inject(0, UNDEFINED, 0, 0)?, Ok(vec![]), "VCPU_INJECT_EXCEPTION");
        if let Some(by) = by {
            check_eq!(vm.write(0, by)?, 0, "errno of {by:?}");
        }
        // What is written as on its way wakes nobody.
        vm.ring(0)?;
        vm.resume(0)?;
        if by.is_none() {
            let event = wire.expect_event(TRAP, 0)?;
            check_eq!(event.data::<Trap>()?.nr, UNDEFINED, "exception that TRAP tells");
            wire.reply(&event, CONTINUE)?;
        }
        vm.wait_for_exceptions(context, round as u64 + 1)?;
        let wanted = if by.is_some() { BOUND } else { UNDEFINED };
        check_eq!(
            vm.exception()?.vector,
            u64::from(wanted),
            "exception that the guest took"
        );
        wire.expect_no_event()?;
    }
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU that waits for a reply: signals, the VMM's register writes, commands meanwhile.

use std::time::Duration;

use kvmi::command::{GetInfo, GetRegisters, GetVcpuInfo, GetVersion};
use kvmi_guests::Op;
use kvmi_uapi::Regs;
use kvmi_uapi::event::{CONTINUE, HYPERCALL};

use crate::lifecycle::{GUEST_REQUEST, wait_at_hypercall};
use crate::requests::{empty_socket, fill_socket};
use crate::vmm::{Until, field};
use crate::{Context, Failure, Scenario, Transport, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::signal_while_waiting",
        "a signal makes KVM_RUN return EINTR; then it goes on waiting; nothing is sent twice",
        signal,
    ),
    scenario(
        "events::signal_while_sending",
        "a vCPU whose event does not fit into the full socket is interruptible; every message arrives whole and once",
        signal_while_sending,
    )
    .over(Transport::Socket),
    scenario(
        "events::vmm_pauses_while_waiting",
        "the VMM can take a waiting vCPU out of KVM_RUN and read its registers",
        vmm_pauses,
    ),
    scenario(
        "events::vmm_writes_registers_while_waiting",
        "the VMM's register write voids the event: the late reply is ignored, the instruction happens anew",
        vmm_writes,
    ),
    scenario(
        "events::pipelined_500_deep",
        "500 commands in one write are all answered, in order, while events arrive",
        pipelined,
    ),
];

fn signal(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    for round in 0..3 {
        context.stage(&format!("signals {round}"), Duration::from_secs(10));
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        let before = vm.status(0)?.interrupted;
        for times in 1..=5 {
            vm.signal(0)?;
            let status = vm.wait(0, Until::Interrupted(before + times))?;
            check_eq!(status.interrupted, before + times, "EINTR of KVM_RUN");
        }
        check_eq!(
            vm.guest.field(0, field!(hypercalls))?,
            round,
            "hypercalls that returned before the reply"
        );
        check_eq!(wire.registers(0)?.regs, event.arch.regs, "registers while waiting");
        wire.expect_no_event()?;
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
        check_eq!(
            vm.guest.field(0, field!(hypercalls))?,
            round + 1,
            "hypercalls that returned"
        );
        wire.expect_no_event()?;
    }
    vm.exit()
}

fn signal_while_sending(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("fill the socket", Duration::from_secs(20));
    let seqs = fill_socket(&mut wire)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wait_at_hypercall(context, &vm, 0)?;
    context.stage("signals", Duration::from_secs(20));
    let before = vm.status(0)?.interrupted;
    for times in 1..=5 {
        vm.signal(0)?;
        let status = vm.wait(0, Until::Interrupted(before + times))?;
        check_eq!(status.interrupted, before + times, "EINTR of KVM_RUN");
    }
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 0, "hypercalls that returned");
    context.stage("empty the socket", Duration::from_secs(20));
    empty_socket(&mut wire, seqs)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    check_eq!(event.seq, 1, "sequence number of the only event");
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    wire.expect_no_event()?;
    vm.exit()
}

fn vmm_pauses(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 2)?;
    wire.control_event(0, HYPERCALL, true)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    context.stage("out of KVM_RUN", Duration::from_secs(10));
    vm.pause(0)?;
    check_eq!(vm.regs(0)?.rip, event.arch.regs.rip, "RIP as the VMM sees it");
    // The slots can be changed meanwhile: nothing of KVM's is held by a vCPU that waits.
    vm.log_dirty(true)?;
    vm.log_dirty(false)?;
    check_eq!(
        vm.carry_out(context, 1, Op::Nothing, [0; 4])?,
        0,
        "what the other vCPU answers"
    );
    context.stage("reply while it is out", Duration::from_secs(10));
    wire.reply(&event, CONTINUE)?;
    wire.expect_no_event()?;
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 0, "hypercalls that returned");
    vm.resume(0)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    wire.expect_no_event()?;
    vm.exit()
}

fn vmm_writes(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;

    context.stage("late reply before the vCPU runs", Duration::from_secs(10));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let void = wire.expect_event(HYPERCALL, 0)?;
    vm.pause(0)?;
    let changed = vm.change_regs(0)?;
    wire.reply(&void, CONTINUE)?;
    wire.expect_no_event()?;
    vm.resume(0)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    let expected = Regs {
        rflags: changed,
        ..void.arch.regs
    };
    check_eq!(event.arch.regs, expected, "registers of the event that happened anew");
    check_eq!(vm.guest.field(0, field!(hypercalls))?, 0, "hypercalls that returned");
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");

    context.stage("late reply after the new event", Duration::from_secs(10));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let void = wire.expect_event(HYPERCALL, 0)?;
    vm.pause(0)?;
    vm.change_regs(0)?;
    vm.resume(0)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&void, CONTINUE)?;
    wire.expect_no_event()?;
    check_eq!(
        vm.guest.field(0, field!(hypercalls))?,
        1,
        "hypercalls that returned after the late reply"
    );
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");

    context.stage("the VMM skips the instruction", Duration::from_secs(10));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let void = wire.expect_event(HYPERCALL, 0)?;
    vm.pause(0)?;
    let mut regs = vm.regs(0)?;
    regs.rip += 3;
    regs.rax = 0x7777;
    vm.set_regs(0, regs)?;
    vm.resume(0)?;
    check_eq!(vm.finished(context, 0, number)?, 0x7777, "RAX as the VMM set it");
    wire.reply(&void, CONTINUE)?;
    wire.expect_no_event()?;
    vm.exit()
}

fn pipelined(context: &mut Context) -> Result<(), Failure> {
    const COMMANDS: usize = 500;
    const VCPUS: usize = 2;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("storm", VCPUS)?;
    for vcpu in 0..VCPUS {
        wire.control_event(vcpu as u16, HYPERCALL, true)?;
    }
    let numbers = [0, 1].map(|vcpu| vm.command(vcpu, Op::Storm, [u64::MAX, 0, 0, 0]));
    context.stage("commands among events", Duration::from_secs(60));
    let mut events = 0u64;
    for round in 0..4 {
        let mut bytes = Vec::new();
        let mut sent = Vec::new();
        for i in 0..COMMANDS {
            let (seq, message) = match i % 4 {
                0 => wire.encode(&GetInfo),
                1 => wire.encode(&GetVcpuInfo { vcpu: 0 }),
                2 => wire.encode(&GetRegisters { vcpu: 1, msrs: &[] }),
                _ => wire.encode(&GetVersion),
            };
            sent.push((seq, i % 4));
            bytes.extend(message);
        }
        wire.write(&bytes)?;
        // VM commands are one line of order, the commands of each vCPU another.
        let line = |kind: usize| if kind == 3 { 0 } else { kind };
        let mut last = [0; 3];
        let mut got = 0;
        while got < COMMANDS {
            while wire.untaken_answers() == 0 && !wire.has_event() {
                wire.receive()?;
            }
            if wire.has_event() {
                let event = wire.event()?;
                check_eq!(event.id, HYPERCALL, "event");
                wire.reply(&event, CONTINUE)?;
                events += 1;
            } else {
                let (seq, _, answer) = wire.next_answer()?;
                check!(answer.is_ok(), "command {seq} was refused: {answer:?}");
                let Some((_, kind)) = sent.iter().find(|(sent, _)| *sent == seq) else {
                    return Err(Failure::new(format!(
                        "an answer to {seq}, which was not sent in round {round}"
                    )));
                };
                check!(seq > last[line(*kind)], "answer {seq} overtook {}", last[line(*kind)]);
                last[line(*kind)] = seq;
                got += 1;
            }
        }
    }
    check!(events > 0, "no event arrived among the commands");
    context.stage("end", Duration::from_secs(20));
    for vcpu in 0..VCPUS {
        vm.guest.set_field(vcpu, field!(args), 0)?;
        wire.control_event(vcpu as u16, HYPERCALL, false)?;
    }
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    for (vcpu, number) in numbers.into_iter().enumerate() {
        vm.finished(context, vcpu, number?)?;
    }
    context.log(format!("{events} events among 2,000 commands"));
    vm.exit()
}

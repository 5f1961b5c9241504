// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers that the tool sets while a HYPERCALL event is open.

use std::time::Duration;

use kvmi::command::{GetRegisters, SetRegisters};
use kvmi_guests::Op;
use kvmi_uapi::error::EINVAL;
use kvmi_uapi::event::{CONTINUE, HYPERCALL};
use kvmi_uapi::{Regs, VcpuGetRegistersReply};

use crate::lifecycle::GUEST_REQUEST;
use crate::requests::{expect_data, read_exactly};
use crate::vmm::field;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::hypercall_registers_set",
        "registers set in a HYPERCALL event: RAX returns 0 unless RIP moves, the others are the guest's, none makes it another call",
        registers_set,
    ),
    scenario(
        "events::registers_in_a_shadow",
        "registers without IF, set in an event right behind an STI: the guest goes on",
        registers_in_a_shadow,
    ),
    scenario(
        "events::impossible_registers",
        "RIP and RFLAGS that a CPU cannot have: EINVAL before anything is kept, and the guest goes on",
        impossible_registers,
    ),
    scenario(
        "events::command_behind_reply",
        "a command that is sent right behind a reply finds what the reply has brought about",
        command_behind_reply,
    ),
];

/// What the tool changes, and what the guest then finds.
struct Case {
    name: &'static str,
    change: fn(&mut Regs),
    rax: u64,
    rdi: u64,
}

/// What the tool writes into a register; no hypercall has this number.
const MARK: u64 = 0x7777_5555_3333_1111;

const CASES: [Case; 6] = [
    Case {
        name: "RAX",
        change: |regs| regs.rax = MARK,
        rax: 0,
        rdi: GUEST_REQUEST[1],
    },
    Case {
        name: "RDI",
        change: |regs| regs.rdi = MARK,
        rax: 0,
        rdi: MARK,
    },
    Case {
        name: "RAX and RDI",
        change: |regs| (regs.rax, regs.rdi) = (MARK, MARK),
        rax: 0,
        rdi: MARK,
    },
    Case {
        name: "RSI, by which it would be no call for a tool",
        change: |regs| regs.rsi = MARK,
        rax: 0,
        rdi: GUEST_REQUEST[1],
    },
    Case {
        name: "RAX, with RIP behind the instruction",
        change: |regs| (regs.rax, regs.rip) = (MARK, regs.rip + 3),
        rax: MARK,
        rdi: GUEST_REQUEST[1],
    },
    Case {
        name: "RIP alone",
        change: |regs| regs.rip += 3,
        rax: GUEST_REQUEST[0],
        rdi: GUEST_REQUEST[1],
    },
];

fn registers_set(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    for (Case { name, change, rax, rdi }, round) in CASES.into_iter().zip(1..) {
        context.stage(name, Duration::from_secs(10));
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        let mut regs = event.arch.regs;
        change(&mut regs);
        wire.set_registers(0, &regs)?;
        check_eq!(
            wire.registers(0)?.regs,
            event.arch.regs,
            "registers before the reply: those of the guest"
        );
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, rax, "RAX after setting {name}");
        check_eq!(
            vm.guest.field(0, field!(hypercall_rdi))?,
            rdi,
            "RDI after setting {name}"
        );
        check_eq!(
            vm.guest.field(0, field!(hypercalls))?,
            round,
            "hypercalls that returned"
        );
        wire.expect_no_event()?;
    }
    vm.exit()
}

fn registers_in_a_shadow(context: &mut Context) -> Result<(), Failure> {
    /// RFLAGS.IF, which VM entry wants where interrupts are blocked by STI.
    const INTERRUPTS: u64 = 1 << 9;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    for (name, flags, moves) in [
        ("IF cleared, RIP moved", INTERRUPTS, true),
        ("IF cleared", INTERRUPTS, false),
        ("RIP moved", 0, true),
    ] {
        context.stage(name, Duration::from_secs(10));
        let number = vm.command(0, Op::ShadowedHypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        let mut regs = event.arch.regs;
        regs.rflags ^= flags;
        if moves {
            (regs.rax, regs.rip) = (0, regs.rip + 3);
        }
        wire.set_registers(0, &regs)?;
        wire.reply(&event, CONTINUE)?;
        check_eq!(vm.finished(context, 0, number)?, 0, "RAX after {name}");
        wire.expect_no_event()?;
    }
    vm.exit()
}

fn impossible_registers(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("refused", Duration::from_secs(20));
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    let good = event.arch.regs;
    let rflags = [0, 2, 5, 17, 22, 32, 63].map(|bit| match bit {
        // Bit 1 is always set.
        0 => good.rflags & !2,
        2 => good.rflags | 1 << 3,
        bit => good.rflags | 1 << bit,
    });
    let rips = [1 << 47, 1 << 48, 1 << 63, 0xffff_7fff_ffff_ffff];
    let bad = rflags
        .map(|rflags| Regs { rflags, ..good })
        .into_iter()
        .chain(rips.map(|rip| Regs { rip, ..good }));
    wire.set_registers(0, &Regs { rax: 1, ..good })?;
    for regs in bad {
        check_eq!(
            wire.ask(&SetRegisters { vcpu: 0, regs })?,
            Err(EINVAL),
            "VCPU_SET_REGISTERS with RIP {:#x}, RFLAGS {:#x}",
            regs.rip,
            regs.rflags
        );
    }
    context.stage("go on", Duration::from_secs(10));
    // The highest and the lowest address that are canonical are legal; the guest is not to go there.
    for rip in [0xffff_8000_0000_0000, 0x7fff_ffff_ffff] {
        wire.set_registers(0, &Regs { rip, ..good })?;
    }
    wire.set_registers(0, &good)?;
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    vm.exit()
}

fn command_behind_reply(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("hypercall", 1)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("both at once", Duration::from_secs(10));
    for _ in 0..2 {
        let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
        let event = wire.expect_event(HYPERCALL, 0)?;
        let mut regs = event.arch.regs;
        regs.rdi = MARK;
        wire.set_registers(0, &regs)?;
        // While the vCPU is not in KVM_RUN both wait for it.
        vm.pause(0)?;
        wire.reply(&event, CONTINUE)?;
        let seq = wire.submit(&GetRegisters { vcpu: 0, msrs: &[] })?;
        // The reader has both when it answers this.
        wire.expect_version()?;
        vm.resume(0)?;
        let data = expect_data(wire.answer(seq)?, "VCPU_GET_REGISTERS")?;
        let read: VcpuGetRegistersReply = read_exactly(&data, "VCPU_GET_REGISTERS")?;
        (regs.rax, regs.rip) = (0, regs.rip + 3);
        check_eq!(read.regs, regs, "registers behind the hypercall");
        check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
        wire.expect_no_event()?;
    }
    vm.exit()
}

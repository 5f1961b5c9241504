// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers that the tool sets while a HYPERCALL event is open.

use std::time::Duration;

use kvmi::command::GetRegisters;
use kvmi_guests::Op;
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

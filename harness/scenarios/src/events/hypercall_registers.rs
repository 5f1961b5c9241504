// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers that the tool sets while a HYPERCALL event is open.

use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, HYPERCALL};
use kvmi_uapi::{Regs, msg};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::field;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "events::hypercall_registers_set",
    "registers set in a HYPERCALL event: RAX returns 0 unless RIP moves, the others are the guest's, none makes it another call",
    registers_set,
)];

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
        check_eq!(
            wire.vcpu(0, msg::VCPU_SET_REGISTERS, &regs)?,
            Ok(vec![]),
            "VCPU_SET_REGISTERS"
        );
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

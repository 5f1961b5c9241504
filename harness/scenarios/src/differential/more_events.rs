// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events of the system registers, of memory and of single steps.

use kvmi::command::GetPageAccess;
use kvmi_guests::{Access, DescriptorOp, Op, Routine, layout};
use kvmi_uapi::PageAccessEntry;
use kvmi_uapi::event::{self, CONTINUE, HYPERCALL, RETRY};

use super::Script;
use crate::vmm::field;
use crate::{Context, Failure, check_eq};

const KERNEL_GS_BASE: u32 = 0xc000_0102;
const LSTAR: u32 = 0xc000_0082;

/// MSR, XSETBV, DESCRIPTOR.
pub(super) fn system(context: &mut Context) -> Result<(), Failure> {
    let mut script = Script::start(context, "system")?;
    script.wire.control_event(0, event::MSR, true)?;
    for msr in [KERNEL_GS_BASE, LSTAR] {
        let watched = script.wire.try_control_msr(0, msr, true)?;
        script.say_answer(&format!("VCPU_CONTROL_MSR of {msr:#x}"), &watched);
        for (what, new, answer) in [
            ("agreed to", 0x1000u64, 0x1000u64),
            ("replaced", 0x2000, 0x3000),
            ("vetoed", 0x4000, 0x3000),
            ("illegal", 0x5000, 1 << 60),
        ] {
            let name = format!("MSR {msr:#x} {what}");
            let args = [msr.into(), new, 0, 0];
            script.answered(&name, Op::WriteMsr, args, CONTINUE, &answer.to_ne_bytes())?;
            let now = script
                .vm
                .carry_out(script.context, 0, Op::ReadMsr, [msr.into(), 0, 0, 0])?;
            script.say(&format!("{name} afterwards: value={now:#x}"));
        }
    }
    let faults = script.vm.guest.field(0, field!(protection_faults))?;
    script.say(&format!("MSR in the guest: faults={faults}"));

    script.wire.control_event(0, event::XSETBV, true)?;
    for value in [3, 1] {
        script.answered(
            &format!("XSETBV of {value}"),
            Op::WriteXcr0,
            [value, 0, 0, 0],
            CONTINUE,
            &[],
        )?;
    }
    // Illegal: no event.
    let result = script.vm.carry_out(script.context, 0, Op::WriteXcr0, [2, 0, 0, 0])?;
    script.say(&format!("XSETBV of 2 done: result={result:#x}"));

    script.wire.control_event(0, event::DESCRIPTOR, true)?;
    for op in DescriptorOp::ALL {
        let name = format!("DESCRIPTOR of {op:?}");
        let number = script.vm.command(0, Op::Descriptor, [op as u64, 0, 0, 0])?;
        for action in [RETRY, CONTINUE] {
            let event = script.event(&name)?;
            script.wire.reply(&event, action)?;
        }
        let result = script.vm.finished(script.context, 0, number)?;
        script.say(&format!("{name} done: result={result:#x}"));
    }
    script.end()
}

/// TRAP, with each kind of exception.
pub(super) fn trap(context: &mut Context) -> Result<(), Failure> {
    let mut script = Script::start(context, "hypercall")?;
    let vectors = [6, 13, 14, 0, 17];
    script.vm.tolerate(&vectors.map(u64::from))?;
    script.wire.control_event(0, HYPERCALL, true)?;
    for (taken, nr) in (1..).zip(vectors) {
        // In an event it is sure where the exception finds the guest.
        let number = script.vm.command(0, Op::Hypercall, crate::lifecycle::GUEST_REQUEST)?;
        let event = script.wire.expect_event(HYPERCALL, 0)?;
        let answer = script.wire.inject(0, nr, 0x1238, 0xdead_b000)?;
        script.say_answer(&format!("VCPU_INJECT_EXCEPTION of {nr}"), &answer);
        script.wire.reply(&event, CONTINUE)?;
        let event = script.event(&format!("TRAP of {nr} behind a hypercall"))?;
        script.wire.reply(&event, CONTINUE)?;
        script.vm.finished(script.context, 0, number)?;
        let seen = script.vm.exception()?;
        script.say(&format!(
            "TRAP of {nr} in the guest: taken={} of={taken} vector={} code={:#x} cr2={:#x}",
            script.vm.exceptions()?,
            seen.vector,
            seen.error_code,
            seen.cr2
        ));
    }
    script.end()
}

/// PF, of each kind of access.
pub(super) fn pages(context: &mut Context) -> Result<(), Failure> {
    const DATA: u64 = layout::SCRATCH;
    const CODE: u64 = layout::SCRATCH + 0x2000;
    const R: u8 = PageAccessEntry::READ;
    const W: u8 = PageAccessEntry::WRITE;
    const X: u8 = PageAccessEntry::EXEC;
    let mut script = Script::start(context, "accesses")?;
    script.wire.control_event(0, event::PF, true)?;
    // mov eax, 5; ret
    script.vm.guest.write(CODE, &[0xb8, 5, 0, 0, 0, 0xc3])?;
    for (what, page, access, op, args) in [
        ("a read", DATA, 0, Access::Read, [DATA + 8, 0, 0]),
        ("a write", DATA, R | X, Access::Write, [DATA + 16, 7, 0]),
        ("a locked addition", DATA, R | X, Access::LockedAdd, [DATA + 16, 1, 1]),
        (
            "a write across two pages",
            DATA,
            R | X,
            Access::Write,
            [DATA + 0xffc, 9, 0],
        ),
        ("a push", DATA, R | X, Access::Push, [DATA + 0x800, 3, 0]),
        ("a call", CODE, R | W, Access::Call, [CODE, 0, 0]),
    ] {
        let set = script.wire.set_page_access(&[(page, access)])?;
        script.say_answer(&format!("VM_SET_PAGE_ACCESS for {what}"), &set);
        let name = format!("{what}, PF");
        let args = [op as u64, args[0], args[1], args[2]];
        let number = script.vm.command(0, Op::Access, args)?;
        let event = script.event(&name)?;
        script.wire.reply(&event, CONTINUE)?;
        if op == Access::Call {
            // Its second instruction, which is fetched from the same page.
            let event = script.event(&name)?;
            script.wire.reply(&event, CONTINUE)?;
        }
        let result = script.vm.finished(script.context, 0, number)?;
        script.say(&format!("{name} done: result={result:#x}"));
        let lift = script.wire.set_page_access(&[(page, R | W | X)])?;
        script.say_answer(&format!("VM_SET_PAGE_ACCESS after {what}"), &lift);
    }
    let gpas = &[DATA, CODE];
    script.ask("VM_GET_PAGE_ACCESS", &GetPageAccess { gpas })?;
    script.end()
}

/// SINGLESTEP, through routines that have something for either vendor to stumble over.
pub(super) fn steps(context: &mut Context) -> Result<(), Failure> {
    /// No routine is longer.
    const MOST: usize = 200;
    let mut script = Script::start(context, "steps")?;
    script.wire.control_event(0, HYPERCALL, true)?;
    for routine in [
        Routine::Straight,
        Routine::Flags,
        Routine::Iret,
        Routine::Syscall,
        Routine::MovSs,
        Routine::Sti,
        Routine::Store,
    ] {
        let number = script
            .vm
            .command(0, Op::Step, [routine as u64, layout::SCRATCH, 0, 0])?;
        let event = script.wire.expect_event(HYPERCALL, 0)?;
        script.wire.singlestep(true)?;
        script.wire.reply(&event, CONTINUE)?;
        let name = format!("SINGLESTEP through {routine:?}");
        for step in 1.. {
            let event = script.wire.event()?;
            if event.id == HYPERCALL {
                script.wire.singlestep(false)?;
                script.wire.reply(&event, CONTINUE)?;
                break;
            }
            script.say_event(&name, &event);
            check_eq!(
                (event.id, step <= MOST),
                (event::SINGLESTEP, true),
                "event, and whether it ends"
            );
            script.wire.reply(&event, CONTINUE)?;
        }
        let result = script.vm.finished(script.context, 0, number)?;
        script.say(&format!("{name} done: result={result:#x}"));
    }
    script.end()
}

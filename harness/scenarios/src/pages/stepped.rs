// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions in a page that may not be executed, each let through by one step: the guest does not notice.

use std::time::Duration;

use kvmi_guests::{Access, COUNTED_VECTOR, layout};
use kvmi_uapi::event::CONTINUE;

use super::{R, W, Watched, X};
use crate::vmm::field;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::stepped_flags",
        "PUSHF, POPF, IRET, STI, MOV SS and others in a page that may not be executed: the guest sees its own flags",
        flags,
    ),
    scenario(
        "pages::stepped_interrupts",
        "INT3, INT n and a fault in a page that may not be executed are delivered as ever",
        interrupts,
    ),
    scenario(
        "pages::stepped_exits",
        "instructions that KVM carries out, in a page that may not be executed",
        exits,
    ),
    scenario(
        "pages::stepped_on_stack",
        "PUSHF and others in a page that may not be executed, on a stack that may not be written: both are told",
        on_stack,
    ),
    scenario(
        "pages::stepped_in_storm",
        "doorbells and signals while accesses are let through: none is lost, each access is told once",
        storm,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x2_0000;
const TRAP_FLAG: u64 = 1 << 8;
const CARRY: u64 = 1;

/// A guest whose page at PLACE may not be executed and holds this code.
fn with_code(context: &mut Context, code: &[u8]) -> Result<Watched, Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.vm.guest.write(PLACE, code)?;
    watched.wire.restrict(&[(PLACE, R | W)])?;
    Ok(watched)
}

/// Has the guest call the code, whose instructions begin at these offsets, in this order; the result.
fn run(watched: &mut Watched, context: &Context, starts: &[u64]) -> Result<u64, Failure> {
    let told: Vec<_> = starts.iter().map(|at| (X, PLACE + at)).collect();
    watched.told(context, (Access::Call, [PLACE, 0, 0]), &told)
}

fn flags(context: &mut Context) -> Result<(), Failure> {
    // pushf; pop rax; ret
    let mut watched = with_code(context, &[0x9c, 0x58, 0xc3])?;
    let before = watched.silent(context, Access::Read, [layout::SCRATCH, 0, 0])?;
    check_eq!(before, 0, "an access beside it");
    context.stage("pushf", Duration::from_secs(10));
    let seen = run(&mut watched, context, &[0, 1, 2])?;
    check_eq!(seen & TRAP_FLAG, 0, "TF that the guest sees");

    context.stage("popf", Duration::from_secs(10));
    // pushf; or qword [rsp], 1; popf; setc al; movzx eax, al; ret
    let code = [
        0x9c, 0x48, 0x83, 0x0c, 0x24, 0x01, 0x9d, 0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0, 0xc3,
    ];
    watched.vm.guest.write(PLACE, &code)?;
    check_eq!(
        run(&mut watched, context, &[0, 1, 6, 7, 10, 13])?,
        CARRY,
        "CF that POPF set"
    );

    context.stage("iret", Duration::from_secs(10));
    // mov rcx, rsp; mov eax, ss; push rax; push rcx; pushf; mov eax, cs; push rax; lea rax, [rip + 3]; push rax; iretq; pushf; pop rax; ret
    let code = [
        0x48, 0x89, 0xe1, 0x8c, 0xd0, 0x50, 0x51, 0x9c, 0x8c, 0xc8, 0x50, 0x48, 0x8d, 0x05, 0x03, 0x00, 0x00, 0x00,
        0x50, 0x48, 0xcf, 0x9c, 0x58, 0xc3,
    ];
    watched.vm.guest.write(PLACE, &code)?;
    let seen = run(&mut watched, context, &[0, 3, 5, 6, 7, 8, 10, 11, 18, 19, 21, 22, 23])?;
    check_eq!(seen & TRAP_FLAG, 0, "TF behind IRET");

    context.stage("sti and mov ss", Duration::from_secs(10));
    // cli; sti; nop; mov eax, ss; mov ss, eax; pushf; pop rax; ret
    let code = [0xfa, 0xfb, 0x90, 0x8c, 0xd0, 0x8e, 0xd0, 0x9c, 0x58, 0xc3];
    watched.vm.guest.write(PLACE, &code)?;
    let seen = run(&mut watched, context, &[0, 1, 2, 3, 5, 7, 8, 9])?;
    check_eq!(seen & (TRAP_FLAG | 1 << 9), 1 << 9, "TF and IF behind them");
    watched.vm.exit()
}

fn interrupts(context: &mut Context) -> Result<(), Failure> {
    // int3; int 0x30; xor eax, eax; ret
    let mut watched = with_code(context, &[0xcc, 0xcd, COUNTED_VECTOR, 0x31, 0xc0, 0xc3])?;
    context.stage("software interrupts", Duration::from_secs(10));
    for round in 1..=3 {
        run(&mut watched, context, &[0, 1, 3, 5])?;
        let guest = &watched.vm.guest;
        check_eq!(guest.field(0, field!(breakpoints))?, round, "#BP taken");
        check_eq!(
            guest.field(0, field!(breakpoint_rip))?,
            PLACE + 1,
            "RIP of the last #BP"
        );
        check_eq!(guest.field(0, field!(counted_interrupts))?, round, "interrupts taken");
        check_eq!(
            guest.field(0, field!(counted_rip))?,
            PLACE + 3,
            "RIP of the last interrupt"
        );
    }
    context.stage("a fault", Duration::from_secs(10));
    // mov rax, 1 << 63; mov rax, [rax] (no canonical address: #GP); ret. The handler resumes at the ret.
    let code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x8b, 0x00, 0xc3];
    watched.vm.guest.write(PLACE, &code)?;
    watched.vm.guest.set_field(0, field!(resume), PLACE + 13)?;
    run(&mut watched, context, &[0, 10, 13])?;
    watched.vm.guest.set_field(0, field!(resume), 0)?;
    check_eq!(watched.vm.guest.field(0, field!(protection_faults))?, 1, "#GP taken");
    watched.vm.exit()
}

fn exits(context: &mut Context) -> Result<(), Failure> {
    // mov r8, rbx; xor eax, eax; cpuid; mov eax, ebx; mov rbx, r8; ret
    let code = [
        0x49, 0x89, 0xd8, 0x31, 0xc0, 0x0f, 0xa2, 0x89, 0xd8, 0x4c, 0x89, 0xc3, 0xc3,
    ];
    let mut watched = with_code(context, &code)?;
    context.stage("cpuid", Duration::from_secs(10));
    let vendor = run(&mut watched, context, &[0, 3, 5, 7, 9, 12])?;
    check_eq!(
        [*b"Genu", *b"Auth"].contains(&(vendor as u32).to_le_bytes()),
        true,
        "the vendor that CPUID names, {vendor:#x}"
    );
    context.stage("out", Duration::from_secs(10));
    // mov dx, 0x500; mov eax, 7; out dx, eax; ret
    watched
        .vm
        .guest
        .write(PLACE, &[0x66, 0xba, 0x00, 0x05, 0xb8, 7, 0, 0, 0, 0xef, 0xc3])?;
    run(&mut watched, context, &[0, 4, 9, 10])?;
    let marks = watched.vm.status(0)?.marks;
    check_eq!(
        marks.iter().map(|mark| mark.value).collect::<Vec<_>>(),
        [7],
        "marks that the VMM saw"
    );
    watched.vm.exit()
}

fn on_stack(context: &mut Context) -> Result<(), Failure> {
    // pushf; popf; pushf; pop rax; ret
    let mut watched = with_code(context, &[0x9c, 0x9d, 0x9c, 0x58, 0xc3])?;
    let page = layout::STACKS;
    let top = page + 0x800;
    watched.wire.restrict(&[(page, R | X)])?;
    context.stage("call", Duration::from_secs(10));
    let at = |offset| (X, PLACE + offset);
    let told = [
        (W, top - 8),
        at(0),
        (W, top - 16),
        at(1),
        at(2),
        (W, top - 16),
        at(3),
        at(4),
    ];
    for _ in 0..3 {
        let seen = watched.told(context, (Access::CallOnStack, [top, PLACE, 0]), &told)?;
        check_eq!(seen & TRAP_FLAG, 0, "TF that the guest sees");
        check_eq!(watched.word(top - 16)?, seen, "the flags on the stack");
    }
    watched.vm.exit()
}

fn storm(context: &mut Context) -> Result<(), Failure> {
    const ACCESSES: u64 = 200;
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    context.stage("let through, ring and signal", Duration::from_secs(60));
    let wakes = watched.vm.guest.field(0, field!(counter))?;
    let number = watched.begin(Access::Add, [PLACE, 1, ACCESSES])?;
    for i in 0..ACCESSES {
        let event = watched.expect(W, PLACE)?;
        check_eq!(watched.word(PLACE)?, i, "the sum while event {i} is open");
        if i % 8 == 0 {
            watched.vm.ring(0)?;
        }
        if i % 5 == 0 {
            watched.vm.signal(0)?;
        }
        watched.wire.reply(&event, CONTINUE)?;
        if i % 7 == 0 {
            watched.vm.signal(0)?;
        }
    }
    watched.vm.finished(context, 0, number)?;
    check_eq!(watched.word(PLACE)?, ACCESSES, "the sum");
    watched.wire.expect_no_event()?;
    // The doorbell is edge-triggered: those that came while one was pending are one with it.
    let taken = watched.vm.guest.field(0, field!(counter))? - wakes;
    check_eq!(
        taken > 1,
        true,
        "more than the command's own doorbell was taken ({taken})"
    );
    watched.vm.exit()
}

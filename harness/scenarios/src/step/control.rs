// SPDX-License-Identifier: MIT OR Apache-2.0
//! VCPU_CONTROL_SINGLESTEP, and what else a tool does while it steps.

use std::time::Duration;

use kvmi_guests::{Routine, layout};
use kvmi_uapi::error::EBUSY;
use kvmi_uapi::event::{CONTINUE, PAUSE, PF, Pf, SINGLESTEP};
use kvmi_uapi::{PageAccessEntry, Regs, VmPageAccess, msg};
use zerocopy::IntoBytes;

use super::{Stepped, check_rips};
use crate::vmm::Permission;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "step::one_owner",
        "single-step by the VMM and by the tool exclude each other: EBUSY both ways",
        one_owner,
    ),
    scenario(
        "step::commands",
        "PAUSE and commands between two steps; registers that the tool sets, RIP too",
        commands,
    ),
    scenario(
        "step::not_void",
        "the VMM writes the vCPU while SINGLESTEP is open: it stays open, and stepping goes on",
        not_void,
    ),
    scenario(
        "step::page_access",
        "a store to a restricted page, stepped: PF, and the let-through step is the instruction",
        page_access,
    ),
    scenario(
        "step::permission",
        "SINGLESTEP revoked while it is on: no event, and interrupts are taken; granted again, it goes on",
        permission,
    ),
];

/// KVM_GUESTDBG_ENABLE and KVM_GUESTDBG_SINGLESTEP.
const VMM_STEPS: u32 = 3;

fn one_owner(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("the tool has it", Duration::from_secs(10));
    wire.singlestep(true)?;
    vm.pause(0)?;
    check_eq!(vm.set_guest_debug(0, VMM_STEPS)?, EBUSY, "errno of KVM_SET_GUEST_DEBUG");
    vm.resume(0)?;
    wire.singlestep(false)?;
    context.stage("the VMM has it", Duration::from_secs(10));
    vm.pause(0)?;
    check_eq!(vm.set_guest_debug(0, VMM_STEPS)?, 0, "errno of KVM_SET_GUEST_DEBUG");
    vm.resume(0)?;
    check_eq!(wire.control_singlestep(0, true)?, Err(EBUSY), "VCPU_CONTROL_SINGLESTEP");
    check_eq!(wire.control_singlestep(0, false)?, Ok(vec![]), "the same, off");
    vm.pause(0)?;
    check_eq!(vm.set_guest_debug(0, 0)?, 0, "errno of KVM_SET_GUEST_DEBUG");
    vm.resume(0)?;
    wire.singlestep(true)?;
    vm.exit()
}

fn commands(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("PAUSE and commands", Duration::from_secs(20));
    let list = stepped.list(Routine::Straight)?;
    let (number, _) = stepped.begin(Routine::Straight, 0)?;
    let event = stepped.steps(2)?;
    check_eq!(stepped.wire.registers(0)?.regs, event.arch.regs, "registers");
    check_eq!(stepped.wire.inject(0, 6, 0, 0)?, Err(EBUSY), "VCPU_INJECT_EXCEPTION");
    check_eq!(stepped.wire.pause(0, false)?, Ok(vec![]), "VM_PAUSE_VCPU");
    stepped.wire.reply(&event, CONTINUE)?;
    let pause = stepped.wire.expect_event(PAUSE, 0)?;
    check_eq!(pause.arch.regs.rip, list[1], "RIP of PAUSE");
    stepped.wire.reply(&pause, CONTINUE)?;
    // Behind MOV to ECX: make it another number, and leave the ADD out.
    let event = stepped.step()?;
    check_eq!(event.arch.regs.rip, list[2], "RIP behind MOV");
    let regs = Regs {
        rcx: 7,
        rip: list[3],
        ..event.arch.regs
    };
    stepped.wire.set_registers(0, &regs)?;
    stepped.wire.reply(&event, CONTINUE)?;
    let event = stepped.step()?;
    check_eq!(
        (event.arch.regs.rip, event.arch.regs.rbx),
        (list[4], 15),
        "RIP and RBX behind LEA"
    );
    stepped.wire.singlestep(false)?;
    stepped.wire.reply(&event, CONTINUE)?;
    let end = stepped.wire.expect_event(kvmi_uapi::event::HYPERCALL, 0)?;
    check_eq!(
        stepped.finish_at(context, &end, number)?,
        15,
        "the result of what ran on unstepped"
    );
    stepped.vm.exit()
}

fn not_void(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("write", Duration::from_secs(20));
    let mut looked = 0;
    let seen = stepped.run(context, Routine::Straight, 0, |stepped, _| {
        if looked < 3 {
            stepped.vm.pause(0)?;
            stepped.vm.change_regs(0)?;
            stepped.vm.resume(0)?;
            looked += 1;
        }
        Ok(())
    })?;
    check_rips(&seen.rips, &stepped.list(Routine::Straight)?, Routine::Straight)?;
    check_eq!(seen.result, 16, "the result");
    stepped.vm.exit()
}

fn page_access(context: &mut Context) -> Result<(), Failure> {
    const PLACE: u64 = layout::SCRATCH + 0x2_0000;
    let mut stepped = Stepped::start(context)?;
    context.stage("store", Duration::from_secs(20));
    stepped.wire.control_event(0, PF, true)?;
    let head = VmPageAccess {
        count: 1,
        ..Default::default()
    };
    let entry = PageAccessEntry {
        gpa: PLACE,
        access: PageAccessEntry::READ | PageAccessEntry::EXEC,
        ..Default::default()
    };
    check_eq!(
        stepped.wire.vm(
            msg::VM_SET_PAGE_ACCESS,
            &[head.as_bytes(), entry.as_bytes()].concat()[..]
        )?,
        Ok(vec![]),
        "VM_SET_PAGE_ACCESS"
    );
    let list = stepped.list(Routine::Store)?;
    let (number, _) = stepped.begin(Routine::Store, PLACE)?;
    let event = stepped.steps(2)?;
    check_eq!(event.arch.regs.rip, list[1], "RIP before the store");
    stepped.wire.reply(&event, CONTINUE)?;
    let event = stepped.wire.expect_event(PF, 0)?;
    check_eq!(
        (event.arch.regs.rip, event.data::<Pf>()?.gpa),
        (list[1], PLACE),
        "RIP and gpa of PF"
    );
    stepped.wire.reply(&event, CONTINUE)?;
    for rip in &list[2..] {
        let event = stepped.step()?;
        check_eq!(event.arch.regs.rip, *rip, "RIP behind the store");
        stepped.wire.reply(&event, CONTINUE)?;
    }
    check_eq!(stepped.finish(context, number)?, 7, "what the guest read");
    stepped.vm.exit()
}

fn permission(context: &mut Context) -> Result<(), Failure> {
    let mut stepped = Stepped::start(context)?;
    context.stage("revoke", Duration::from_secs(20));
    let (number, _) = stepped.begin(Routine::Straight, 0)?;
    let event = stepped.steps(3)?;
    check_eq!(
        stepped.vm.permit(Permission::Event, 0, SINGLESTEP.into())?,
        0,
        "errno of revoking SINGLESTEP"
    );
    stepped.wire.reply(&event, CONTINUE)?;
    let end = stepped.wire.expect_event(kvmi_uapi::event::HYPERCALL, 0)?;
    check_eq!(stepped.finish_at(context, &end, number)?, 16, "the result");
    context.stage("interrupts", Duration::from_secs(20));
    check_eq!(stepped.run_unstepped(context, Routine::Straight, 0)?, 16, "the result");
    context.stage("grant", Duration::from_secs(20));
    check_eq!(
        stepped.vm.permit(Permission::Event, 1, SINGLESTEP.into())?,
        0,
        "errno of granting SINGLESTEP"
    );
    stepped.wire.singlestep(false)?;
    check_eq!(
        stepped.run_as_listed(context, Routine::Straight, 0)?,
        16,
        "the result, stepped again"
    );
    stepped.vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM_CONTROL_CLEANUP: which intercepts UNHOOK takes back, told by how often the guest is left.

use std::time::Duration;

use kvmi_guests::{Op, RepeatOp, layout};
use kvmi_uapi::event::{BREAKPOINT, CR, DESCRIPTOR, HYPERCALL, MSR};

use crate::vmm::{Permission, Vm};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "unhook::cleanup_of_msr",
        "MSR intercepts go at UNHOOK, or stay without cleanup",
        |c| cleanup(c, RepeatOp::KernelGsBase),
    ),
    scenario(
        "unhook::cleanup_of_descriptor",
        "descriptor-table intercepts go at UNHOOK, or stay without cleanup",
        |c| cleanup(c, RepeatOp::Sgdt),
    ),
    scenario(
        "unhook::cleanup_of_cr3",
        "CR3 intercepts go at UNHOOK, or stay without cleanup",
        |c| cleanup(c, RepeatOp::Cr3),
    ),
    scenario(
        "unhook::cleanup_of_breakpoint",
        "#BP intercepts go at UNHOOK, or stay without cleanup",
        |c| cleanup(c, RepeatOp::Int3),
    ),
];

/// How often a guest does what may leave it.
pub(crate) const ROUNDS: u64 = 1000;

/// Exits for other reasons, above all the host's timer, are far fewer.
const FEW: u64 = ROUNDS / 2;

/// Switches on what intercepts this operation, and forbids the event, so that the guest is not stopped.
fn intercept(vm: &Vm, wire: &mut Wire, op: RepeatOp) -> Result<(), Failure> {
    let event = match op {
        RepeatOp::KernelGsBase => MSR,
        RepeatOp::Sgdt => DESCRIPTOR,
        RepeatOp::Cr3 => CR,
        RepeatOp::Int3 => BREAKPOINT,
    };
    wire.control_event(0, event, true)?;
    match op {
        RepeatOp::KernelGsBase => wire.control_msr(0, 0xc000_0102, true)?,
        RepeatOp::Cr3 => wire.control_cr(0, 3, true)?,
        RepeatOp::Sgdt | RepeatOp::Int3 => {}
    }
    check_eq!(
        vm.permit(Permission::Event, 0, event.into())?,
        0,
        "errno of revoking the event"
    );
    Ok(())
}

/// Has the guest do it [`ROUNDS`] times; what came of the last, and how often the guest was left.
pub(crate) fn rounds(context: &Context, vm: &Vm, op: RepeatOp) -> Result<(u64, u64), Failure> {
    let before = vm.exits(0)?;
    let result = vm.carry_out(context, 0, Op::Repeat, [op as u64, ROUNDS, 0, 0])?;
    Ok((result, vm.exits(0)? - before))
}

/// The same, rightly; whether each time left the guest.
pub(crate) fn leaves(context: &Context, vm: &Vm, op: RepeatOp) -> Result<bool, Failure> {
    let breakpoints = vm.guest.field(0, crate::vmm::field!(breakpoints))?;
    let (result, exits) = rounds(context, vm, op)?;
    let wanted = match op {
        RepeatOp::KernelGsBase => ROUNDS,
        RepeatOp::Sgdt => layout::GDT,
        RepeatOp::Cr3 => layout::ROOT,
        RepeatOp::Int3 => breakpoints + ROUNDS,
    };
    check_eq!(result, wanted, "what the last {op:?} left");
    check!(!(FEW..ROUNDS).contains(&exits), "{exits} exits for {ROUNDS} {op:?}");
    Ok(exits >= ROUNDS)
}

fn cleanup(context: &mut Context, op: RepeatOp) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("system", 1)?;
    check!(!leaves(context, &vm, op)?, "{op:?} leaves a guest that nobody watches");
    for enable in [1, 0] {
        context.stage(&format!("cleanup {enable}"), Duration::from_secs(20));
        let mut wire = context.hook(&vm)?;
        intercept(&vm, &mut wire, op)?;
        check!(
            leaves(context, &vm, op)?,
            "{op:?} does not leave the guest while it is watched"
        );
        wire.expect_no_event()?;
        wire.control_cleanup(enable == 1)?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        let left = leaves(context, &vm, op)?;
        check_eq!(
            left,
            enable == 0,
            "whether {op:?} leaves the guest after UNHOOK with cleanup {enable}"
        );
    }
    context.stage("the next session", Duration::from_secs(20));
    let mut wire = context.hook(&vm)?;
    check!(
        leaves(context, &vm, op)?,
        "{op:?} does not leave the guest after HOOK alone"
    );
    // The first command that changes what is switched on recomputes all of it.
    wire.control_event(0, HYPERCALL, true)?;
    check!(!leaves(context, &vm, op)?, "{op:?} still leaves the guest");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

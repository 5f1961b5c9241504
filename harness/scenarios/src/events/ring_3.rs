// SPDX-License-Identifier: MIT OR Apache-2.0
//! DESCRIPTOR and ring 3, which CR4.UMIP keeps from looking.

use std::fs;
use std::time::Duration;

use kvmi_guests::{Op, StoreOp, layout};
use kvmi_lab_control::Lane;
use kvmi_uapi::event::{
    CONTINUE, DESCRIPTOR, DESCRIPTOR_GDTR, DESCRIPTOR_IDTR, DESCRIPTOR_LDTR, DESCRIPTOR_TR, Descriptor,
};

use super::owners::{faults, set_umip};
use crate::vmm::Vm;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "events::descriptor_in_ring_3",
    "SGDT, SIDT, SLDT, STR and SMSW in ring 3: DESCRIPTOR tells of all but SMSW; with CR4.UMIP they are #GP, and told is nothing",
    in_ring_3,
)
.not_on(&[(Lane::SvmBochs, "its CPU has no UMIP, and KVM emulates UMIP with VMX alone")])];

/// What an event says of the register that is stored; nothing tells of SMSW.
fn register(op: StoreOp) -> Option<u8> {
    match op {
        StoreOp::Sgdt => Some(DESCRIPTOR_GDTR),
        StoreOp::Sidt => Some(DESCRIPTOR_IDTR),
        StoreOp::Sldt => Some(DESCRIPTOR_LDTR),
        StoreOp::Str => Some(DESCRIPTOR_TR),
        StoreOp::Smsw => None,
    }
}

/// Has the guest do it in ring 3; what it has stored, and whether that was #GP.
fn store(context: &Context, vm: &Vm, wire: &mut Wire, op: StoreOp, is_told: bool) -> Result<(u64, bool), Failure> {
    let before = faults(vm)?;
    let number = vm.command(0, Op::StoreInRing3, [op as u64, 0, 0, 0])?;
    if is_told {
        let event = wire.expect_event(DESCRIPTOR, 0)?;
        let data = event.data::<Descriptor>()?;
        check_eq!(
            (Some(data.descriptor), data.write),
            (register(op), 0),
            "register and load of {op:?}"
        );
        check_eq!(event.arch.sregs.cs.selector & 3, 3, "the ring of {op:?}");
        wire.reply(&event, CONTINUE)?;
    }
    let stored = vm.finished(context, 0, number)?;
    wire.expect_no_event()?;
    Ok((stored, faults(vm)? != before))
}

fn in_ring_3(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    let sregs = wire.registers(0)?.sregs;
    // What KVM helps a CPU without UMIP with is what leaves the guest, and SMSW does not.
    let has_umip = fs::read_to_string("/proc/cpuinfo")?.contains(" umip");
    for is_on in [false, true] {
        wire.control_event(0, DESCRIPTOR, is_on)?;
        for op in StoreOp::ALL {
            let value = match op {
                StoreOp::Sgdt => layout::GDT,
                StoreOp::Sidt => sregs.idt.base,
                StoreOp::Sldt => 0,
                StoreOp::Str => layout::TSS_SELECTOR.into(),
                StoreOp::Smsw => sregs.cr0,
            };
            context.stage(&format!("{op:?}, event {is_on}, without UMIP"), Duration::from_secs(10));
            let is_told = is_on && register(op).is_some();
            let seen = store(context, &vm, &mut wire, op, is_told)?;
            check_eq!(seen, (value, false), "what {op:?} stored, and whether it was #GP");
            context.stage(&format!("{op:?}, event {is_on}, with UMIP"), Duration::from_secs(10));
            set_umip(context, &vm, true)?;
            let seen = store(context, &vm, &mut wire, op, false)?;
            let is_refused = has_umip || op != StoreOp::Smsw;
            let wanted = (if is_refused { 0 } else { value }, is_refused);
            check_eq!(seen, wanted, "what {op:?} stored with UMIP, and whether it was #GP");
            set_umip(context, &vm, false)?;
        }
    }
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! CR events of what 64-bit programs do not do: LMSW, and PAE paging.

use std::time::Duration;

use kvmi_guests::{Op, layout};
use kvmi_uapi::event::{self, CONTINUE, Cr};

use crate::vmm::{Vm, field};
use crate::wire::{Event, Wire};
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::cr0_lmsw",
        "LMSW: pass, replace by what LMSW cannot write, and #GP for an illegal value",
        lmsw,
    ),
    scenario(
        "events::cr0_pae",
        "CR0 turns PAE paging on: the page directory pointers are read after the event, as the tool has mended them",
        pae,
    ),
];

/// A hooked guest with CR0 events on.
fn watched(context: &mut Context) -> Result<(Vm, Wire), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("legacy", 1)?;
    wire.control_event(0, event::CR, true)?;
    wire.control_cr(0, 0, true)?;
    Ok((vm, wire))
}

fn cr0_event(wire: &mut Wire) -> Result<(Event, Cr), Failure> {
    let event = wire.expect_event(event::CR, 0)?;
    let data = event.data::<Cr>()?;
    check_eq!(data.cr, 0, "register");
    Ok((event, data))
}

fn lmsw(context: &mut Context) -> Result<(), Failure> {
    const MP: u64 = 1 << 1;
    const AM: u64 = 1 << 18;
    const NW: u64 = 1 << 29;
    let (vm, mut wire) = watched(context)?;
    let start = vm.carry_out(context, 0, Op::ReadCr, [0; 4])?;
    let mut old = start;
    for (what, answer, faults) in [
        ("passed", old ^ MP, 0),
        ("replaced", old ^ MP ^ AM, 0),
        // Not write-through without cache disable.
        ("replaced by an illegal value", old | NW, 1),
    ] {
        context.stage(what, Duration::from_secs(10));
        let wish = old ^ MP;
        let number = vm.command(0, Op::Lmsw, [wish & 0xf, 0, 0, 0])?;
        let (event, data) = cr0_event(&mut wire)?;
        check_eq!((data.old_value, data.new_value), (old, wish), "old and new value");
        wire.reply_with(&event, CONTINUE, &answer.to_ne_bytes())?;
        let wanted = if faults == 0 { answer } else { old };
        check_eq!(vm.finished(context, 0, number)?, wanted, "CR0 after LMSW was {what}");
        check_eq!(
            vm.guest.field(0, field!(protection_faults))?,
            faults,
            "#GP when LMSW was {what}"
        );
        old = wanted;
    }
    wire.expect_no_event()?;
    vm.exit()
}

fn pae(context: &mut Context) -> Result<(), Failure> {
    const PG: u64 = 1 << 31;
    const PRESENT: u64 = 1;
    /// Reserved in a page directory pointer of PAE paging.
    const RESERVED: u64 = 1 << 1;
    const PDPT: u64 = layout::SCRATCH;
    const PROBE: u64 = layout::SCRATCH + 0x1000;
    let good = layout::PAGE_DIRECTORY | PRESENT;
    let (vm, mut wire) = watched(context)?;
    vm.guest.write(PROBE, &0x1234_5678u32.to_le_bytes())?;
    for (what, first) in [("legal", good), ("illegal until the tool mends it", good | RESERVED)] {
        context.stage(&format!("the pointer is {what}"), Duration::from_secs(20));
        let mut table = [0u8; 32];
        table[..8].copy_from_slice(&first.to_le_bytes());
        vm.guest.write(PDPT, &table)?;
        let number = vm.command(0, Op::ReadByPae, [PDPT, PROBE, 0, 0])?;
        for (write, paging) in [false, true, false, true].into_iter().enumerate() {
            let (event, data) = cr0_event(&mut wire)?;
            check_eq!(
                (data.old_value & PG != 0, data.new_value & PG != 0),
                (!paging, paging),
                "paging before and after write {write}"
            );
            if write == 1 {
                check_eq!(
                    wire.write_physical(PDPT, &good.to_le_bytes())?,
                    Ok(vec![]),
                    "mending the pointer"
                );
            }
            wire.reply_with(&event, CONTINUE, &data.new_value.to_ne_bytes())?;
        }
        check_eq!(vm.finished(context, 0, number)?, 0x1234_5678, "what the guest read");
    }
    wire.expect_no_event()?;
    vm.exit()
}

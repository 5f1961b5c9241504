// SPDX-License-Identifier: MIT OR Apache-2.0
//! CR events: the value passes, is replaced, is illegal.

use std::time::Duration;

use kvmi_guests::{Op, layout};
use kvmi_uapi::event::{self, CONTINUE, Cr};

use crate::vmm::{Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("events::cr0", "CR0 writes: pass, replace, illegal value", |c| {
        control_register(c, 0)
    }),
    scenario("events::cr3", "CR3 writes: pass, replace, illegal value", |c| {
        control_register(c, 3)
    }),
    scenario("events::cr4", "CR4 writes: pass, replace, illegal value", |c| {
        control_register(c, 4)
    }),
    scenario(
        "events::cr_short_reply",
        "a reply without a value means 0, which CR4 cannot be here: #GP",
        short_reply,
    ),
    scenario(
        "events::cr_answered_then_closed",
        "a tool that answers and closes at once: its answer counts",
        answered_then_closed,
    ),
    scenario(
        "events::cr_needs_both_switches",
        "without VCPU_CONTROL_CR, or without the event, nothing is sent",
        both_switches,
    ),
];

/// Values to write to one register. None concerns the program; every bit is one that exits on VMX and SVM alike.
struct Values {
    /// What the guest writes first.
    first: u64,
    /// What the tool puts in the place of another write.
    replacement: u64,
    /// What the guest must not write.
    illegal: [u64; 2],
}

fn values(cr: u8, now: u64) -> Values {
    const CR0_AM: u64 = 1 << 18;
    const CR0_NE: u64 = 1 << 5;
    const CR0_NW: u64 = 1 << 29;
    const CR4_PSE: u64 = 1 << 4;
    const CR4_DE: u64 = 1 << 3;
    match cr {
        0 => Values {
            first: now ^ CR0_AM,
            replacement: now ^ CR0_AM ^ CR0_NE,
            // Not write-through without cache disable; one of the upper half, which is reserved.
            illegal: [now | CR0_NW, now | 1 << 40],
        },
        3 => Values {
            first: layout::OTHER_ROOT,
            // Write-through.
            replacement: layout::ROOT | 1 << 3,
            // Beyond what any CPU can address.
            illegal: [60, 52].map(|bit| layout::ROOT | 1 << bit),
        },
        _ => Values {
            first: now ^ CR4_PSE,
            replacement: now ^ CR4_PSE ^ CR4_DE,
            // Reserved.
            illegal: [31, 40].map(|bit| now | 1 << bit),
        },
    }
}

/// Has the guest write; the event that this must be, and the command's number.
fn write(wire: &mut Wire, vm: &Vm, cr: u8, old: u64, new: u64) -> Result<(crate::wire::Event, u64), Failure> {
    let number = vm.command(0, Op::WriteCr, [cr.into(), new, 0, 0])?;
    let event = wire.expect_event(event::CR, 0)?;
    let data = event.data::<Cr>()?;
    check_eq!((data.cr, data.pad), (cr, [0; 7]), "register, padding");
    check_eq!(data.old_value, old, "old value");
    check_eq!(data.new_value, new, "new value");
    Ok((event, number))
}

/// A guest that writes one control register, watched.
struct Watched {
    vm: Vm,
    wire: Wire,
    cr: u8,
}

impl Watched {
    fn start(context: &mut Context, cr: u8) -> Result<Self, Failure> {
        context.stage("start", Duration::from_secs(20));
        let (vm, mut wire) = context.hooked_vm("cr_writes", 1)?;
        wire.control_event(0, event::CR, true)?;
        wire.control_cr(0, cr, true)?;
        Ok(Self { vm, wire, cr })
    }

    /// What the register holds, by the guest.
    fn value(&self, context: &Context) -> Result<u64, Failure> {
        self.vm.carry_out(context, 0, Op::ReadCr, [self.cr.into(), 0, 0, 0])
    }

    /// The guest writes `new` over `old`, the tool answers with `answer`; what the register then holds.
    fn answered(&mut self, context: &Context, [old, new, answer]: [u64; 3]) -> Result<u64, Failure> {
        let (event, number) = write(&mut self.wire, &self.vm, self.cr, old, new)?;
        self.wire.reply_with(&event, CONTINUE, &answer.to_ne_bytes())?;
        self.vm.finished(context, 0, number)
    }

    /// The guest writes and no event comes; what the register then holds.
    fn silent(&mut self, context: &Context, new: u64) -> Result<u64, Failure> {
        let value = self
            .vm
            .carry_out(context, 0, Op::WriteCr, [self.cr.into(), new, 0, 0])?;
        self.wire.expect_no_event()?;
        Ok(value)
    }

    /// #GP that the guest took so far.
    fn faults(&self) -> Result<u64, Failure> {
        self.vm.guest.field(0, field!(protection_faults))
    }
}

fn control_register(context: &mut Context, cr: u8) -> Result<(), Failure> {
    let mut watched = Watched::start(context, cr)?;
    let start = watched.value(context)?;
    let Values {
        first,
        replacement,
        illegal,
    } = values(cr, start);

    context.stage("pass", Duration::from_secs(10));
    let (event, number) = write(&mut watched.wire, &watched.vm, cr, start, first)?;
    let seen = watched.wire.registers(0)?.sregs;
    let seen = [seen.cr0, seen.cr3, seen.cr4][usize::from(cr.saturating_sub(2))];
    check_eq!(seen, start, "CR{cr} while the event is open");
    watched.wire.reply_with(&event, CONTINUE, &first.to_ne_bytes())?;
    let value = watched.vm.finished(context, 0, number)?;
    check_eq!(value, first, "CR{cr} after a write that passed");

    context.stage("no change, no event", Duration::from_secs(10));
    let value = watched.silent(context, first)?;
    check_eq!(value, first, "CR{cr} after the same write");

    context.stage("replace", Duration::from_secs(10));
    let value = watched.answered(context, [first, start, replacement])?;
    check_eq!(value, replacement, "CR{cr} after a write that was replaced");
    let value = watched.answered(context, [replacement, start, replacement])?;
    check_eq!(value, replacement, "CR{cr} after a write that was kept out");

    for illegal in illegal {
        let before = watched.faults()?;
        context.stage("illegal by the tool", Duration::from_secs(10));
        let value = watched.answered(context, [replacement, start, illegal])?;
        check_eq!(value, replacement, "CR{cr} after an illegal replacement, {illegal:#x}");
        let faults = watched.faults()? - before;
        check_eq!(faults, 1, "#GP after an illegal replacement, {illegal:#x}");

        context.stage("illegal by the guest", Duration::from_secs(10));
        let value = watched.silent(context, illegal)?;
        check_eq!(value, replacement, "CR{cr} after an illegal write, {illegal:#x}");
        let faults = watched.faults()? - before;
        check_eq!(faults, 2, "#GP after an illegal write, {illegal:#x}");
    }

    context.stage("off", Duration::from_secs(10));
    watched.wire.control_cr(0, cr, false)?;
    let value = watched.silent(context, start)?;
    check_eq!(value, start, "CR{cr} after a write with the event off");
    watched.vm.exit()
}

fn answered_then_closed(context: &mut Context) -> Result<(), Failure> {
    /// Whether the vCPU sees the answer before the end is a matter of moments.
    const ROUNDS: usize = 30;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("cr_writes", 1)?;
    for round in 1..=ROUNDS {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        wire.control_event(0, event::CR, true)?;
        wire.control_cr(0, 3, true)?;
        let (event, number) = write(&mut wire, &vm, 3, layout::ROOT, layout::OTHER_ROOT)?;
        wire.reply_with(&event, CONTINUE, &layout::ROOT.to_ne_bytes())?;
        drop(wire);
        let value = vm.finished(context, 0, number)?;
        check_eq!(value, layout::ROOT, "CR3, whose write was kept out, in round {round}");
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        wire = context.hook(&vm)?;
    }
    vm.exit()
}

fn short_reply(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 4)?;
    let start = watched.value(context)?;
    context.stage("reply without a value", Duration::from_secs(10));
    let (event, number) = write(&mut watched.wire, &watched.vm, 4, start, start ^ 1 << 4)?;
    watched.wire.reply(&event, CONTINUE)?;
    let value = watched.vm.finished(context, 0, number)?;
    check_eq!(value, start, "CR4 after the reply");
    check_eq!(watched.faults()?, 1, "#GP");
    watched.vm.exit()
}

fn both_switches(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("cr_writes", 1)?;
    let mut roots = [layout::OTHER_ROOT, layout::ROOT].into_iter().cycle();
    let mut silent = |wire: &mut Wire, what: &str| -> Result<(), Failure> {
        let root = roots.next().unwrap_or_default();
        check_eq!(
            vm.carry_out(context, 0, Op::WriteCr, [3, root, 0, 0])?,
            root,
            "CR3 {what}"
        );
        wire.expect_no_event()
    };
    silent(&mut wire, "with nothing on")?;
    wire.control_cr(0, 3, true)?;
    silent(&mut wire, "with the register alone on")?;
    wire.control_event(0, event::CR, true)?;
    wire.control_cr(0, 3, false)?;
    silent(&mut wire, "with the event alone on")?;
    wire.control_cr(0, 4, true)?;
    silent(&mut wire, "with another register on")?;
    wire.control_cr(0, 3, true)?;
    let now = wire.registers(0)?.sregs.cr3;
    let other = now ^ layout::ROOT ^ layout::OTHER_ROOT;
    let (event, number) = write(&mut wire, &vm, 3, now, other)?;
    wire.reply_with(&event, CONTINUE, &other.to_ne_bytes())?;
    check_eq!(vm.finished(context, 0, number)?, other, "CR3 with both on");
    vm.exit()
}

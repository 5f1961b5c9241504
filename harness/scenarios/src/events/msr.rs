// SPDX-License-Identifier: MIT OR Apache-2.0
//! MSR events: the value passes, is replaced, is illegal; who else intercepts.

use std::time::Duration;

use kvmi_guests::{COUNTED_VECTOR, Op, layout};
use kvmi_uapi::event::{self, CONTINUE, Msr};

use crate::vmm::{Vm, field};
use crate::wire::{Event, Wire};
use crate::{Context, Failure, Scenario, check, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "events::msr_outside_of_the_ranges",
        "MSRs that leave the guest anyway: KVM's clock, and one of AMD's that both vendors know",
        outside_of_the_ranges,
    ),
    scenario("events::msr", "WRMSR: pass, replace, illegal value, no change", msr),
    scenario(
        "events::msr_that_kvm_passes_through",
        "MSRs that the guest writes without an exit, on one vendor or both, raise events while they are watched",
        passed_through,
    ),
    scenario(
        "events::msr_on_the_fast_path",
        "x2APIC's ICR, which KVM handles on a path of its own: an event, and the IPI after it",
        fast_path,
    ),
    scenario(
        "events::msr_emulated",
        "WRMSR inside the instruction emulator: pass, replace, illegal value",
        emulated,
    ),
    scenario(
        "events::msr_or_vmm_filter",
        "what the VMM's MSR filter denies raises no event; what it allows again does",
        vmm_filter,
    ),
    scenario(
        "events::msr_needs_both_switches",
        "without VCPU_CONTROL_MSR, or without the event, nothing is sent",
        both_switches,
    ),
    scenario(
        "events::msr_veto",
        "a tool that answers with the old value has nothing written: the TSC is not set back, LMA is no change",
        veto,
    ),
];

const KERNEL_GS_BASE: u32 = 0xc000_0102;
const ICR: u32 = 0x830;
/// No address of the guest's.
const VALUES: [u64; 2] = [0x1234_5000, 0x4321_6000];
const NOT_CANONICAL: u64 = 1 << 60;

/// A guest that writes MSRs, with the event on.
struct Watched {
    vm: Vm,
    wire: Wire,
    /// Behind the prefix that has KVM emulate the instruction.
    by_prefix: u64,
}

impl Watched {
    fn start(context: &mut Context, msrs: &[u32]) -> Result<Self, Failure> {
        context.stage("start", Duration::from_secs(20));
        let (vm, mut wire) = context.hooked_vm("system", 1)?;
        wire.control_event(0, event::MSR, true)?;
        for &msr in msrs {
            wire.control_msr(0, msr, true)?;
        }
        Ok(Self { vm, wire, by_prefix: 0 })
    }

    fn read(&self, context: &Context, msr: u32) -> Result<u64, Failure> {
        self.vm.carry_out(context, 0, Op::ReadMsr, [msr.into(), 0, 0, 0])
    }

    /// Has the guest write; the event that this must be, and the command's number.
    fn write(&mut self, msr: u32, old: u64, new: u64) -> Result<(Event, u64), Failure> {
        let number = self.vm.command(0, Op::WriteMsr, [msr.into(), new, self.by_prefix, 0])?;
        let event = self.wire.expect_event(event::MSR, 0)?;
        let data = event.data::<Msr>()?;
        check_eq!((data.msr, data.pad), (msr, 0), "MSR, padding");
        check_eq!(
            (data.old_value, data.new_value),
            (old, new),
            "old and new value of {msr:#x}"
        );
        let mut code = [0; 2];
        self.vm.guest.read(event.arch.regs.rip, &mut code)?;
        check_eq!(code, [0x0f, 0x30], "the instruction at the event's RIP");
        check_eq!(event.arch.regs.rcx as u32, msr, "ECX");
        Ok((event, number))
    }

    /// The guest writes `new` over `old`, the tool answers with `answer`; what the MSR then holds.
    fn answered(&mut self, context: &Context, msr: u32, [old, new, answer]: [u64; 3]) -> Result<u64, Failure> {
        let (event, number) = self.write(msr, old, new)?;
        self.wire.reply_with(&event, CONTINUE, &answer.to_ne_bytes())?;
        self.vm.finished(context, 0, number)?;
        self.read(context, msr)
    }

    /// The guest writes and no event comes; what the MSR then holds.
    fn silent(&mut self, context: &Context, msr: u32, new: u64) -> Result<u64, Failure> {
        self.vm
            .carry_out(context, 0, Op::WriteMsr, [msr.into(), new, self.by_prefix, 0])?;
        self.wire.expect_no_event()?;
        self.read(context, msr)
    }

    /// #GP that the guest took so far.
    fn faults(&self) -> Result<u64, Failure> {
        self.vm.guest.field(0, field!(protection_faults))
    }

    fn each_answer(&mut self, context: &mut Context) -> Result<(), Failure> {
        let [first, second] = VALUES;
        context.stage("pass", Duration::from_secs(10));
        let (event, number) = self.write(KERNEL_GS_BASE, 0, first)?;
        check_eq!(event.arch.shadow_gs, 0, "KERNEL_GS_BASE in the event");
        self.wire.reply_with(&event, CONTINUE, &first.to_ne_bytes())?;
        self.vm.finished(context, 0, number)?;
        check_eq!(
            self.read(context, KERNEL_GS_BASE)?,
            first,
            "the MSR after a write that passed"
        );
        context.stage("no change, no event", Duration::from_secs(10));
        check_eq!(
            self.silent(context, KERNEL_GS_BASE, first)?,
            first,
            "the MSR after the same write"
        );
        context.stage("replace", Duration::from_secs(10));
        let value = self.answered(context, KERNEL_GS_BASE, [first, 0x77, second])?;
        check_eq!(value, second, "the MSR after a write that was replaced");
        let value = self.answered(context, KERNEL_GS_BASE, [second, first, second])?;
        check_eq!(value, second, "the MSR after a write that was kept out");
        context.stage("illegal", Duration::from_secs(10));
        check_eq!(self.faults()?, 0, "#GP so far");
        let value = self.answered(context, KERNEL_GS_BASE, [second, first, NOT_CANONICAL])?;
        check_eq!(
            (value, self.faults()?),
            (second, 1),
            "the MSR and #GP after an illegal replacement"
        );
        // KVM learns that a value is illegal when it writes it.
        let value = self.answered(context, KERNEL_GS_BASE, [second, NOT_CANONICAL, NOT_CANONICAL])?;
        check_eq!(
            (value, self.faults()?),
            (second, 2),
            "the MSR and #GP after an illegal write"
        );
        let value = self.answered(context, KERNEL_GS_BASE, [second, NOT_CANONICAL, first])?;
        check_eq!(
            (value, self.faults()?),
            (first, 2),
            "the MSR and #GP after an illegal write that was replaced"
        );
        context.stage("off", Duration::from_secs(10));
        self.wire.control_msr(0, KERNEL_GS_BASE, false)?;
        check_eq!(
            self.silent(context, KERNEL_GS_BASE, second)?,
            second,
            "the MSR after a write unseen"
        );
        Ok(())
    }
}

fn msr(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, &[KERNEL_GS_BASE])?;
    watched.each_answer(context)?;
    watched.vm.exit()
}

fn emulated(context: &mut Context) -> Result<(), Failure> {
    modules::emulate_by_prefix()?;
    let mut watched = Watched::start(context, &[KERNEL_GS_BASE])?;
    watched.by_prefix = 1;
    watched.each_answer(context)?;
    watched.vm.exit()
}

fn passed_through(context: &mut Context) -> Result<(), Failure> {
    // SYSENTER_CS, ESP, EIP; STAR, LSTAR, CSTAR, SYSCALL_MASK; FS, GS and KERNEL_GS base; and EFER, which always exits.
    const MSRS: [(u32, u64); 11] = [
        (0x174, 0x10),
        (0x175, 0x5000),
        (0x176, 0x6000),
        (0xc000_0081, 0x0008_0000_0000_0000),
        (0xc000_0082, 0x7000),
        (0xc000_0083, 0x8000),
        (0xc000_0084, 0x200),
        (0xc000_0100, 0x9000),
        (0xc000_0101, 0xa000),
        (KERNEL_GS_BASE, 0xb000),
        (0xc000_0080, 0x501),
    ];
    let mut watched = Watched::start(context, &[])?;
    for (msr, value) in MSRS {
        context.stage(&format!("MSR {msr:#x}"), Duration::from_secs(10));
        let before = watched.read(context, msr)?;
        check_eq!(
            watched.silent(context, msr, value)?,
            value,
            "the MSR after a write unseen"
        );
        watched.wire.control_msr(0, msr, true)?;
        check_eq!(
            watched.answered(context, msr, [value, before, before])?,
            before,
            "the MSR after a write that passed"
        );
        check_eq!(
            watched.answered(context, msr, [before, value, before])?,
            before,
            "the MSR after one kept out"
        );
        watched.wire.control_msr(0, msr, false)?;
        check_eq!(
            watched.silent(context, msr, value)?,
            value,
            "the MSR after another write unseen"
        );
        watched.silent(context, msr, before)?;
    }
    check_eq!(watched.faults()?, 0, "#GP");
    watched.vm.exit()
}

fn fast_path(context: &mut Context) -> Result<(), Failure> {
    // To this CPU itself, by the shorthand; to APIC 0, which it is. The guest takes this interrupt once: it says no end of it.
    let to_self = 0x4_0000 | u64::from(COUNTED_VECTOR);
    let to_zero = u64::from(COUNTED_VECTOR);
    let mut watched = Watched::start(context, &[])?;
    let interrupts = |watched: &Watched| watched.vm.guest.field(0, field!(counted_interrupts));
    context.stage("ICR", Duration::from_secs(10));
    watched.wire.control_msr(0, ICR, true)?;
    let old = watched.read(context, ICR)?;
    let (event, number) = watched.write(ICR, old, to_self)?;
    check_eq!(interrupts(&watched)?, 0, "interrupts before the reply");
    watched.wire.reply_with(&event, CONTINUE, &to_self.to_ne_bytes())?;
    watched.vm.finished(context, 0, number)?;
    check_eq!(interrupts(&watched)?, 1, "interrupts after the reply");
    let old = watched.read(context, ICR)?;
    check_eq!(
        watched.answered(context, ICR, [old, to_zero, old])?,
        old,
        "ICR after a write that was kept out"
    );
    context.stage("TSC deadline", Duration::from_secs(10));
    watched.wire.control_msr(0, 0x6e0, true)?;
    // The timer is in another mode and forgets it.
    check_eq!(
        watched.answered(context, 0x6e0, [0, 1 << 40, 1 << 40])?,
        0,
        "TSC_DEADLINE"
    );
    watched.vm.exit()
}

fn vmm_filter(context: &mut Context) -> Result<(), Failure> {
    let [first, second] = VALUES;
    let mut watched = Watched::start(context, &[KERNEL_GS_BASE])?;
    context.stage("denied", Duration::from_secs(10));
    watched.vm.deny_msr_write(Some(KERNEL_GS_BASE))?;
    check_eq!(
        watched.silent(context, KERNEL_GS_BASE, first)?,
        0,
        "the MSR after a write that the VMM denies"
    );
    check_eq!(watched.faults()?, 1, "#GP");
    context.stage("not watched, still denied", Duration::from_secs(10));
    watched.wire.control_msr(0, KERNEL_GS_BASE, false)?;
    check_eq!(
        watched.silent(context, KERNEL_GS_BASE, first)?,
        0,
        "the MSR after a write that the VMM denies"
    );
    check_eq!(watched.faults()?, 2, "#GP");
    context.stage("allowed", Duration::from_secs(10));
    watched.vm.deny_msr_write(None)?;
    check_eq!(
        watched.silent(context, KERNEL_GS_BASE, first)?,
        first,
        "the MSR after a write unseen"
    );
    watched.wire.control_msr(0, KERNEL_GS_BASE, true)?;
    // A filter that is about something else takes nothing away.
    watched.vm.deny_msr_write(Some(0x174))?;
    let value = watched.answered(context, KERNEL_GS_BASE, [first, second, second])?;
    check_eq!(
        (value, watched.faults()?),
        (second, 2),
        "the MSR after a write that passed, and #GP"
    );
    watched.vm.exit()
}

fn both_switches(context: &mut Context) -> Result<(), Failure> {
    let [first, second] = VALUES;
    let mut watched = Watched::start(context, &[])?;
    let star = KERNEL_GS_BASE - 1;
    check_eq!(
        watched.silent(context, KERNEL_GS_BASE, first)?,
        first,
        "with the event alone on"
    );
    watched.wire.control_msr(0, star, true)?;
    check_eq!(
        watched.silent(context, KERNEL_GS_BASE, second)?,
        second,
        "with another MSR on"
    );
    watched.wire.control_event(0, event::MSR, false)?;
    watched.wire.control_msr(0, KERNEL_GS_BASE, true)?;
    check_eq!(
        watched.silent(context, KERNEL_GS_BASE, first)?,
        first,
        "with the MSR alone on"
    );
    watched.wire.control_event(0, event::MSR, true)?;
    let value = watched.answered(context, KERNEL_GS_BASE, [first, second, second])?;
    check_eq!(value, second, "with both on");
    watched.vm.exit()
}

fn veto(context: &mut Context) -> Result<(), Failure> {
    const TSC: u32 = 0x10;
    const EFER: u32 = 0xc000_0080;
    const EFER_LMA: u64 = 1 << 10;
    let mut watched = Watched::start(context, &[TSC, EFER])?;
    context.stage("TSC", Duration::from_secs(20));
    let number = watched.vm.command(0, Op::WriteMsr, [TSC.into(), 1, 0, 0])?;
    let event = watched.wire.expect_event(event::MSR, 0)?;
    let told = event.data::<Msr>()?;
    check_eq!((told.msr, told.new_value), (TSC, 1), "MSR and new value");
    let mut late = told.old_value;
    // Long enough that a TSC that is set back does not catch up until the guest reads it.
    for _ in 0..300 {
        late = watched.wire.msr(0, TSC)?;
    }
    check!(late > told.old_value, "the TSC stands still");
    watched
        .wire
        .reply_with(&event, CONTINUE, &told.old_value.to_ne_bytes())?;
    watched.vm.finished(context, 0, number)?;
    let after = watched.read(context, TSC)?;
    check!(
        after > late,
        "the TSC was {late:#x} before the reply and is {after:#x} after it"
    );
    context.stage("LMA", Duration::from_secs(10));
    let efer = watched.read(context, EFER)?;
    check!(efer & EFER_LMA != 0, "EFER {efer:#x}");
    check_eq!(watched.silent(context, EFER, efer & !EFER_LMA)?, efer, "EFER");
    check_eq!(watched.faults()?, 0, "#GP");
    watched.vm.exit()
}

fn outside_of_the_ranges(context: &mut Context) -> Result<(), Failure> {
    /// `MSR_KVM_SYSTEM_TIME_NEW`, whose bit 0 switches the clock on.
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    const CLOCK: u64 = layout::SCRATCH + 0x8_0001;
    /// HWCR, and the one bit of it that KVM keeps whatever the vendor.
    const HWCR: u32 = 0xc001_0015;
    const WRITABLE: u64 = 1 << 18;
    let mut watched = Watched::start(context, &[SYSTEM_TIME, HWCR])?;
    for (msr, value) in [(SYSTEM_TIME, CLOCK), (HWCR, WRITABLE)] {
        context.stage(&format!("{msr:#x}"), Duration::from_secs(10));
        check_eq!(
            watched.answered(context, msr, [0, value, 0])?,
            0,
            "{msr:#x} after a veto"
        );
        check_eq!(watched.answered(context, msr, [0, value, value])?, value, "{msr:#x}");
        check_eq!(watched.silent(context, msr, value)?, value, "{msr:#x}, written again");
        watched.wire.control_msr(0, msr, false)?;
        check_eq!(watched.silent(context, msr, 0)?, 0, "{msr:#x} that nobody watches");
    }
    check_eq!(watched.faults()?, 0, "#GP");
    watched.vm.exit()
}

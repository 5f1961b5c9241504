// SPDX-License-Identifier: MIT OR Apache-2.0
//! INIT and SIPI, which one vCPU sends to another: what the tool switched on stays on, what was open is void.

use std::time::Duration;

use kvmi::command::{GetVcpuInfo, TranslateGva};
use kvmi_guests::{Op, layout};
use kvmi_uapi::error::{EBUSY, EOPNOTSUPP};
use kvmi_uapi::event::{BREAKPOINT, CONTINUE, CR, CREATE_VCPU, Cr, HYPERCALL, MSR, Msr, PF, Pf, RETRY};
use kvmi_uapi::{PageAccessEntry, Regs, VcpuRunState};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Vm, VmConfig, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, modules, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "reset::unwatched",
        "INIT and SIPI in a VM that nobody hooks: what the others rest on",
        unwatched,
    ),
    scenario(
        "reset::watch_holds",
        "CR, MSR and BREAKPOINT events of a vCPU that gets INIT and SIPI: from its first instruction in real mode on",
        |c| watch_holds(c, &VmConfig::new("resets", 2)),
    ),
    scenario(
        "reset::voids_event",
        "INIT carried out while an event is open: the event is void, its reply ignored, the vCPU as after a reset",
        voids_event,
    ),
    scenario(
        "reset::waits_for_reply",
        "INIT that comes while a vCPU waits for a reply is carried out after it",
        waits_for_reply,
    ),
    scenario(
        "reset::no_injection",
        "a vCPU that waits for SIPI takes no exception, neither then nor when SIPI has come",
        no_injection,
    ),
    scenario(
        "reset::no_root_without_paging",
        "a vCPU that waits for SIPI has no paging: an address is where it lies, and page tables mean nothing",
        no_root_without_paging,
    ),
    scenario(
        "reset::created",
        "an AP that is created while hooked: CREATE_VCPU comes when INIT and SIPI have come, at its first instruction",
        created,
    ),
    scenario(
        "reset::within_a_step",
        "INIT and SIPI that come while an access is let through: what the old instruction was let do the new one is not",
        within_a_step,
    ),
    scenario(
        "reset::unwatched_emulated",
        "INIT and SIPI in a VM that nobody hooks, on a CPU without unrestricted guest: what the next rests on",
        |c| {
            modules::without_unrestricted_guest()?;
            unwatched(c)
        },
    )
    .on_intel(),
    scenario(
        "reset::watch_holds_emulated",
        "CR, MSR and BREAKPOINT events of such a vCPU that gets INIT and SIPI: KVM emulates its real mode",
        |c| {
            modules::without_unrestricted_guest()?;
            // Else work for the C library waits whenever the vCPU comes from its wait for the tool, and KVM emulates but one instruction.
            let config = VmConfig {
                without_rseq: true,
                ..VmConfig::new("resets", 2)
            };
            watch_holds(c, &config)
        },
    )
    .on_intel(),
];

/// The vCPU that is reset.
const AP: u16 = 1;

/// Interrupt command: INIT, level assert.
const INIT: u64 = 0x4500;
/// Interrupt command: start-up, at the trampoline's page.
const SIPI: u64 = 0x4600 | layout::TRAMPOLINE >> 12;

const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// RIP after INIT.
const RESET_RIP: u64 = 0xfff0;

/// `KVM_MP_STATE_INIT_RECEIVED`: waits for SIPI.
const WAITS_FOR_SIPI: u32 = 2;

/// Has vCPU 0 send this to the other one.
fn send(context: &Context, vm: &Vm, command: u64) -> Result<(), Failure> {
    let command = command | u64::from(AP) << 32;
    vm.carry_out(context, 0, Op::SendIpi, [command, 0, 0, 0])?;
    Ok(())
}

/// Waits until the vCPU is as INIT leaves it.
fn wait_until_reset(context: &Context, wire: &mut Wire) -> Result<(), Failure> {
    context.wait_for("the vCPU to be reset", || {
        let now = wire.registers(AP)?;
        Ok(now.regs.rip == RESET_RIP && now.sregs.cr3 == 0 && now.mode == 2)
    })
}

fn created(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.vm_with(&VmConfig {
        uninitialised_aps: true,
        ..VmConfig::new("resets", 1)
    })?;
    vm.run()?;
    vm.wait_ready_on(context, 0)?;
    let mut wire = context.hook(&vm)?;
    wire.control_create_vcpu(true)?;
    check_eq!(vm.add_vcpu()?, usize::from(AP), "index of the new vCPU");
    context.stage("INIT", Duration::from_secs(20));
    send(context, &vm, INIT)?;
    // Only once INIT has come does it take commands.
    context.wait_for("INIT to come", || Ok(wire.ask(&GetVcpuInfo { vcpu: AP })?.is_ok()))?;
    wire.expect_no_event()?;
    context.stage("SIPI", Duration::from_secs(20));
    send(context, &vm, SIPI)?;
    let event = wire.expect_event(CREATE_VCPU, AP)?;
    check_eq!(
        (event.arch.sregs.cs.base, event.arch.regs.rip),
        (layout::TRAMPOLINE, 0),
        "base of CS, and RIP"
    );
    wire.control_event(AP, HYPERCALL, true)?;
    wire.reply(&event, CONTINUE)?;
    vm.wait_ready_on(context, AP.into())?;
    wire.expect_no_event()?;
    vm.exit()
}

/// Sends SIPI and waits until the program is there again; what comes on the way there is the caller's to answer.
fn start_again(
    context: &Context,
    vm: &Vm,
    wire: &mut Wire,
    on_the_way: impl FnOnce(&mut Wire) -> Result<(), Failure>,
) -> Result<(), Failure> {
    vm.guest.set_field(AP.into(), field!(ready), 0)?;
    send(context, vm, SIPI)?;
    on_the_way(wire)?;
    vm.wait_ready(context)
}

/// The next event, which must be a write of this register; let through. Old and new value.
fn let_cr_through(wire: &mut Wire, cr: u8) -> Result<(u64, u64), Failure> {
    let event = wire.expect_event(CR, AP)?;
    let data = event.data::<Cr>()?;
    check_eq!(data.cr, cr, "register that is written");
    wire.reply_with(&event, CONTINUE, &data.new_value.to_ne_bytes())?;
    Ok((data.old_value, data.new_value))
}

/// The next event, which must be a write of KERNEL_GS_BASE; answered with this. Old and new value.
fn let_msr_through(wire: &mut Wire, answer: u64) -> Result<(u64, u64), Failure> {
    let event = wire.expect_event(MSR, AP)?;
    let data = event.data::<Msr>()?;
    check_eq!(data.msr, KERNEL_GS_BASE, "MSR that is written");
    wire.reply_with(&event, CONTINUE, &answer.to_ne_bytes())?;
    Ok((data.old_value, data.new_value))
}

/// Fails unless a CR3 write and an int3 of the program are events.
fn is_watched(context: &Context, vm: &Vm, wire: &mut Wire) -> Result<(), Failure> {
    for (old, new) in [(layout::ROOT, layout::OTHER_ROOT), (layout::OTHER_ROOT, layout::ROOT)] {
        let number = vm.command(AP.into(), Op::WriteCr, [3, new, 0, 0])?;
        check_eq!(let_cr_through(wire, 3)?, (old, new), "old and new CR3");
        check_eq!(vm.finished(context, AP.into(), number)?, new, "CR3");
    }
    let before = vm.guest.field(AP.into(), field!(breakpoints))?;
    let number = vm.command(AP.into(), Op::Int3, [0; 4])?;
    let event = wire.expect_event(BREAKPOINT, AP)?;
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, AP.into(), number)?;
    check_eq!(vm.guest.field(AP.into(), field!(breakpoints))?, before + 1, "#BP");
    wire.expect_no_event()
}

fn unwatched(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("resets", 2)?;
    for round in 1..=3 {
        context.stage(&format!("INIT and SIPI {round}"), Duration::from_secs(20));
        vm.guest.set_field(AP.into(), field!(ready), 0)?;
        send(context, &vm, INIT)?;
        send(context, &vm, SIPI)?;
        vm.wait_ready(context)?;
        vm.carry_out(context, AP.into(), Op::Nothing, [0; 4])?;
    }
    vm.exit()
}

fn watch_holds(context: &mut Context, config: &VmConfig) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.vm_with(config)?;
    vm.run()?;
    vm.wait_ready(context)?;
    let mut wire = context.hook(&vm)?;
    for event in [CR, BREAKPOINT, MSR] {
        wire.control_event(AP, event, true)?;
    }
    wire.control_msr(AP, KERNEL_GS_BASE, true)?;
    for cr in [0, 3, 4] {
        wire.control_cr(AP, cr, true)?;
    }
    is_watched(context, &vm, &mut wire)?;
    for round in 1..=3 {
        context.stage(&format!("INIT {round}"), Duration::from_secs(10));
        send(context, &vm, INIT)?;
        wait_until_reset(context, &mut wire)?;
        context.stage(&format!("SIPI {round}"), Duration::from_secs(20));
        // The trampoline's own writes, in its order.
        start_again(context, &vm, &mut wire, |wire| {
            let (_, cr4) = let_cr_through(wire, 4)?;
            check!(cr4 & 0x20 != 0, "CR4 {cr4:#x} is without PAE");
            check_eq!(let_cr_through(wire, 3)?, (0, layout::ROOT), "old and new CR3");
            let (old, _) = let_cr_through(wire, 0)?;
            check!(old & 1 == 0, "CR0 {old:#x} is not that of real mode");
            let (_, new) = let_cr_through(wire, 0)?;
            check!(new & 1 == 0, "CR0 {new:#x} is not that of real mode again");
            // The answer to one write is none to the next.
            let [first, second] = layout::TRAMPOLINE_WRITES.map(u64::from);
            check_eq!(let_msr_through(wire, 2 * second)?.1, first, "the first value");
            check_eq!(
                let_msr_through(wire, second)?,
                (2 * second, second),
                "the value before the second, and the second"
            );
            let (_, new) = let_cr_through(wire, 0)?;
            check_eq!(new & 0x8000_0001, 0x8000_0001, "PG and PE of the last CR0");
            Ok(())
        })?;
        is_watched(context, &vm, &mut wire)?;
    }
    vm.exit()
}

/// A VM whose vCPU 1 has a HYPERCALL event open, the event, and the registers in it.
fn with_open_event(context: &mut Context) -> Result<(Vm, Wire, crate::wire::Event), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("resets", 2)?;
    wire.control_event(AP, HYPERCALL, true)?;
    vm.command(AP.into(), Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, AP)?;
    Ok((vm, wire, event))
}

/// A hypercall of the program that runs again: an event that returns 0.
fn hypercall_again(context: &Context, vm: &Vm, wire: &mut Wire) -> Result<(), Failure> {
    let number = vm.command(AP.into(), Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, AP)?;
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, AP.into(), number)?, 0, "RAX after the reset");
    wire.expect_no_event()
}

fn voids_event(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, void) = with_open_event(context)?;
    context.stage("INIT", Duration::from_secs(10));
    vm.pause(AP.into())?;
    send(context, &vm, INIT)?;
    // KVM carries INIT out when the VMM asks for the state.
    check_eq!(vm.mp_state(AP.into())?, WAITS_FOR_SIPI, "KVM_GET_MP_STATE");
    let shown = wire.vcpu_states(2)?[usize::from(AP)];
    check!(
        shown.state != VcpuRunState::HELD,
        "a void event is shown as open: {shown:?}"
    );
    vm.resume(AP.into())?;
    context.stage("a late reply", Duration::from_secs(10));
    wait_until_reset(context, &mut wire)?;
    let after_reset: Regs = wire.registers(AP)?.regs;
    wire.reply(&void, CONTINUE)?;
    // A reply that counted would complete the instruction between two of these commands.
    for _ in 0..10 {
        check_eq!(wire.registers(AP)?.regs, after_reset, "registers after the late reply");
    }
    wire.expect_no_event()?;
    context.stage("SIPI", Duration::from_secs(20));
    start_again(context, &vm, &mut wire, |_| Ok(()))?;
    hypercall_again(context, &vm, &mut wire)?;
    vm.exit()
}

fn no_injection(context: &mut Context) -> Result<(), Failure> {
    const PROTECTION: u8 = 13;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("resets", 2)?;
    context.stage("INIT", Duration::from_secs(10));
    send(context, &vm, INIT)?;
    wait_until_reset(context, &mut wire)?;
    check_eq!(wire.inject(AP, PROTECTION, 0, 0)?, Err(EBUSY), "VCPU_INJECT_EXCEPTION");
    context.stage("SIPI", Duration::from_secs(20));
    start_again(context, &vm, &mut wire, |_| Ok(()))?;
    check_eq!(
        vm.carry_out(context, AP.into(), Op::Nothing, [0; 4])?,
        0,
        "the answer after SIPI"
    );
    vm.no_exception(AP.into())?;
    wire.expect_no_event()?;
    vm.exit()
}

fn no_root_without_paging(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("resets", 2)?;
    let by = |root: Option<u64>| TranslateGva {
        vcpu: AP,
        gva: layout::PROGRAM,
        root,
    };
    let itself = Ok(layout::PROGRAM.to_ne_bytes().to_vec());
    for root in [None, Some(layout::OTHER_ROOT)] {
        check_eq!(wire.ask(&by(root))?, itself, "with paging");
    }
    context.stage("INIT", Duration::from_secs(10));
    send(context, &vm, INIT)?;
    wait_until_reset(context, &mut wire)?;
    check_eq!(wire.ask(&by(None))?, itself, "without paging");
    check_eq!(
        wire.ask(&by(Some(layout::OTHER_ROOT)))?,
        Err(EOPNOTSUPP),
        "a root without paging"
    );
    context.stage("SIPI", Duration::from_secs(20));
    start_again(context, &vm, &mut wire, |_| Ok(()))?;
    vm.exit()
}

fn waits_for_reply(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, event) = with_open_event(context)?;
    context.stage("INIT and SIPI", Duration::from_secs(10));
    vm.guest.set_field(AP.into(), field!(ready), 0)?;
    send(context, &vm, INIT)?;
    send(context, &vm, SIPI)?;
    check_eq!(wire.registers(AP)?.regs, event.arch.regs, "registers while waiting");
    // KVM_RUN that is left and called anew goes on waiting.
    vm.signal(AP.into())?;
    vm.wait(AP.into(), crate::vmm::Until::Interrupted(1))?;
    check_eq!(
        wire.registers(AP)?.regs,
        event.arch.regs,
        "registers while waiting again"
    );
    wire.expect_no_event()?;
    context.stage("the reply", Duration::from_secs(20));
    wire.reply(&event, CONTINUE)?;
    vm.wait_ready(context)?;
    hypercall_again(context, &vm, &mut wire)?;
    vm.exit()
}

/// Has the first page of the guest's addresses be the page where a vCPU starts again, by a page table of its own, and the vCPU know it.
fn map_trampoline_at_zero(context: &Context, vm: &Vm) -> Result<(), Failure> {
    const PRESENT_WRITABLE: u64 = 3;
    const TABLE: u64 = layout::SCRATCH;
    let pages = (0..512).map(|page| if page == 0 { layout::TRAMPOLINE } else { page << 12 });
    let entries: Vec<u8> = pages.flat_map(|page| (page | PRESENT_WRITABLE).to_le_bytes()).collect();
    vm.guest.write(TABLE, &entries)?;
    vm.guest
        .write(layout::PAGE_DIRECTORY, &(TABLE | PRESENT_WRITABLE).to_le_bytes())?;
    vm.carry_out(context, AP.into(), Op::WriteCr, [3, layout::OTHER_ROOT, 0, 0])?;
    Ok(())
}

fn within_a_step(context: &mut Context) -> Result<(), Failure> {
    const NOT_EXECUTED: u8 = PageAccessEntry::READ | PageAccessEntry::WRITE;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("resets", 2)?;
    wire.control_event(AP, PF, true)?;
    for round in 1..=3 {
        context.stage(&format!("INIT and SIPI {round}"), Duration::from_secs(20));
        map_trampoline_at_zero(context, &vm)?;
        wire.restrict(&[(layout::TRAMPOLINE, NOT_EXECUTED)])?;
        vm.guest.set_field(AP.into(), field!(ready), 0)?;
        // Both instructions have RIP 0, and are fetched from the same page.
        vm.guest.set_field(AP.into(), field!(target), 0)?;
        vm.command(AP.into(), Op::CallTarget, [1, 0, 0, 0])?;
        for (base, mode) in [(0, 8), (layout::TRAMPOLINE, 2)] {
            let event = wire.expect_event(PF, AP)?;
            let arch = event.arch;
            check_eq!(
                (event.data::<Pf>()?.gpa, arch.regs.rip, arch.sregs.cs.base, arch.mode),
                (layout::TRAMPOLINE, 0, base, mode),
                "gpa, RIP, base of CS and mode"
            );
            if mode == 8 {
                send(context, &vm, INIT)?;
                send(context, &vm, SIPI)?;
                wire.reply(&event, CONTINUE)?;
            } else {
                wire.restrict(&[(layout::TRAMPOLINE, NOT_EXECUTED | PageAccessEntry::EXEC)])?;
                wire.reply(&event, RETRY)?;
            }
        }
        vm.wait_ready(context)?;
        wire.expect_no_event()?;
    }
    vm.exit()
}

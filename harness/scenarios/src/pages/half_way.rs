// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions for which the VMM has given something already when their access is told: they end once, whatever becomes of the event.

use std::time::Duration;

use kvmi::command::ControlEvents;
use kvmi_guests::{Access, COUNTED_VECTOR, Op, layout};
use kvmi_uapi::VcpuRunState;
use kvmi_uapi::event::PF;
use kvmi_uapi::ioctl::{HOOK_CRASH_ON_LOSS, HOOK_FAIL_CLOSED, HOOK_STOPPED};

use super::{R, W, Watched, X};
use crate::lifecycle::{becomes, wait_for_loss};
use crate::vmm::{Until, Vm, VmConfig, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::unhook_half_way",
        "UNHOOK while an INS and a MOVS from a device are told: what the VMM has given already is not lost",
        unhook_half_way,
    ),
    scenario(
        "pages::unhook_half_way_in_vmm",
        "UNHOOK while an INS is told and its vCPU is out in the VMM: KVM_RUN with immediate_exit ends it, and the port is read once",
        unhook_half_way_in_vmm,
    ),
    scenario(
        "pages::switched_off_half_way",
        "PF is switched off while an INS waits for the VMM: the port is read once, and nothing is told",
        switched_off_half_way,
    ),
    scenario(
        "pages::crashes_half_way",
        "the tool switches PF off and is lost while an INS waits for the VMM, crash on loss: KVM_RUN returns, each time",
        crashes_half_way,
    ),
    scenario(
        "pages::taken_over_half_way",
        "fail closed while an INS is told, taken over with STOPPED: nothing is written before VM_RELEASE, and it is told anew",
        taken_over_half_way,
    ),
    scenario(
        "pages::stopped_half_way",
        "HOOK with STOPPED while an INS waits for the VMM: what is denied then is told after VM_RELEASE",
        stopped_half_way,
    ),
    scenario(
        "pages::let_through_before_window",
        "an access is let through before the VMM is told that it may bring an interrupt, and told once",
        let_through_before_window,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x6_0000;
const INPUT_WORDS: u32 = 8;

/// Eight words that INS has read from the port, once.
fn check_input(watched: &Watched) -> Result<(), Failure> {
    let mut bytes = [0; 4 * INPUT_WORDS as usize];
    watched.vm.guest.read(PLACE, &mut bytes)?;
    check_eq!(
        bytes[..],
        (0..INPUT_WORDS).flat_map(u32::to_le_bytes).collect::<Vec<_>>()[..],
        "what the guest read from the port"
    );
    check_eq!(watched.vm.status(0)?.inputs, INPUT_WORDS, "words that the VMM gave");
    Ok(())
}

fn switched_off_half_way(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    context.stage("the port is read", Duration::from_secs(10));
    watched.vm.stop_at_input(0)?;
    let number = watched.begin(Access::Input, [PLACE, INPUT_WORDS.into(), 0])?;
    context.wait_for("the VMM to have the vCPU", || {
        Ok(watched.vm.status(0)?.inputs == INPUT_WORDS)
    })?;
    context.stage("PF is switched off", Duration::from_secs(10));
    let seq = watched.wire.submit(&ControlEvents {
        vcpu: 0,
        event: PF,
        enable: false,
    })?;
    // The reader takes one message after the other: that one waits for the vCPU now.
    watched.wire.vcpu_count()?;
    watched.vm.pause(0)?;
    watched.vm.resume(0)?;
    check_eq!(watched.wire.answer(seq)?, Ok(vec![]), "VCPU_CONTROL_EVENTS");
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    check_input(&watched)?;
    watched.vm.exit()
}

/// Waits until the VMM has given vCPU 0 what its INS reads, and keeps it out.
fn wait_for_input(context: &Context, vm: &Vm) -> Result<(), Failure> {
    context.wait_for("the VMM to have the vCPU", || Ok(vm.status(0)?.inputs == INPUT_WORDS))
}

fn begin_input(vm: &Vm) -> Result<u64, Failure> {
    vm.command(0, Op::Access, [Access::Input as u64, PLACE, INPUT_WORDS.into(), 0])
}

fn crashes_half_way(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 1)?;
    let mut wire = context.hook_with(&vm, HOOK_CRASH_ON_LOSS)?;
    wire.control_event(0, PF, true)?;
    wire.restrict(&[(PLACE, R | X)])?;
    context.stage("the port is read", Duration::from_secs(10));
    vm.stop_at_input(0)?;
    let number = begin_input(&vm)?;
    wait_for_input(context, &vm)?;
    context.stage("PF is switched off, and the tool is lost", Duration::from_secs(10));
    wire.submit(&ControlEvents {
        vcpu: 0,
        event: PF,
        enable: false,
    })?;
    wire.vcpu_count()?;
    drop(wire);
    wait_for_loss(context, &vm)?;
    vm.pause(0)?;
    for times in 1..=3 {
        vm.resume(0)?;
        vm.wait(0, Until::Exit("shutdown".to_owned(), times))?;
    }
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.resume(0)?;
    vm.finished(context, 0, number)?;
    vm.exit()
}

/// The word of the guest's that INS writes first.
fn first_word(vm: &Vm) -> Result<u32, Failure> {
    let mut word = [0; 4];
    vm.guest.read(PLACE, &mut word)?;
    Ok(u32::from_ne_bytes(word))
}

/// Fails unless vCPU 0 stands still with its write undone, whose event comes after VM_RELEASE, and ends well.
fn waits_and_is_told(context: &mut Context, watched: &mut Watched, number: u64, untouched: u32) -> Result<(), Failure> {
    becomes(context, &mut watched.wire, 0, VcpuRunState::STOPPED)?;
    watched.wire.control_event(0, PF, true)?;
    check_eq!(first_word(&watched.vm)?, untouched, "the word before VM_RELEASE");
    watched.wire.expect_no_event()?;
    context.stage("VM_RELEASE", Duration::from_secs(10));
    watched.wire.release()?;
    watched.expect(W, PLACE)?;
    check_eq!(first_word(&watched.vm)?, untouched, "the word while it is told");
    check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
    watched.vm.finished(context, 0, number)?;
    check_input(watched)?;
    Ok(())
}

/// A word that no port gives.
const MARK: u32 = 0xdead_beef;

fn taken_over_half_way(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 1)?;
    let mut wire = context.hook_with(&vm, HOOK_FAIL_CLOSED)?;
    wire.control_event(0, PF, true)?;
    wire.restrict(&[(PLACE, R | X)])?;
    vm.guest.write(PLACE, &MARK.to_ne_bytes())?;
    context.stage("it is told", Duration::from_secs(10));
    let number = begin_input(&vm)?;
    wire.expect_event(PF, 0)?;
    drop(wire);
    wait_for_loss(context, &vm)?;
    context.stage("another takes over", Duration::from_secs(10));
    let wire = context.hook_with(&vm, HOOK_FAIL_CLOSED | HOOK_STOPPED)?;
    let backend = context.backend;
    let mut watched = Watched { vm, wire, backend };
    waits_and_is_told(context, &mut watched, number, MARK)?;
    watched.vm.exit()
}

fn stopped_half_way(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 1)?;
    vm.guest.write(PLACE, &MARK.to_ne_bytes())?;
    context.stage("the port is read", Duration::from_secs(10));
    vm.stop_at_input(0)?;
    let number = begin_input(&vm)?;
    wait_for_input(context, &vm)?;
    context.stage("HOOK", Duration::from_secs(10));
    let mut wire = context.hook_with(&vm, HOOK_STOPPED)?;
    wire.restrict(&[(PLACE, R | X)])?;
    vm.pause(0)?;
    vm.resume(0)?;
    let backend = context.backend;
    let mut watched = Watched { vm, wire, backend };
    waits_and_is_told(context, &mut watched, number, MARK)?;
    watched.vm.exit()
}

fn unhook_half_way_in_vmm(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    context.stage("the event is open", Duration::from_secs(10));
    let number = watched.begin(Access::Input, [PLACE, INPUT_WORDS.into(), 0])?;
    let event = watched.expect(W, PLACE)?;
    watched.vm.pause(0)?;
    let at_event = watched.vm.regs(0)?;
    check_eq!(at_event.rip, event.arch.regs.rip, "RIP while the event is open");
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
    watched.vm.complete(0)?;
    let completed = watched.vm.regs(0)?;
    // It is a round for each word; RIP moves on when there is none left to begin.
    check_eq!(completed.rcx, 0, "RCX after KVM_RUN with immediate_exit");
    check_input(&watched)?;
    watched.vm.resume(0)?;
    watched.vm.finished(context, 0, number)?;
    check_input(&watched)?;
    watched.vm.exit()
}

fn unhook_half_way(context: &mut Context) -> Result<(), Failure> {
    const WORDS: u32 = 8;
    let device = layout::ANONYMOUS_SLOT;
    let mut watched = Watched::start(context, 1)?;
    context.stage("port", Duration::from_secs(10));
    watched.wire.restrict(&[(PLACE, R | X)])?;
    let number = watched.begin(Access::Input, [PLACE, WORDS.into(), 0])?;
    watched.expect(W, PLACE)?;
    check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
    watched.vm.finished(context, 0, number)?;
    let mut bytes = [0; 4 * WORDS as usize];
    watched.vm.guest.read(PLACE, &mut bytes)?;
    check_eq!(
        bytes[..],
        (0..WORDS).flat_map(u32::to_le_bytes).collect::<Vec<_>>()[..],
        "what the guest read from the port"
    );
    check_eq!(watched.vm.status(0)?.inputs, WORDS, "words that the VMM gave");

    context.stage("device", Duration::from_secs(10));
    watched.wire = context.hook(&watched.vm)?;
    watched.wire.control_event(0, PF, true)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    let number = watched.begin(Access::Copy, [PLACE, device, WORDS.into()])?;
    watched.expect(W, PLACE)?;
    check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
    watched.vm.finished(context, 0, number)?;
    let mut bytes = [0; WORDS as usize];
    watched.vm.guest.read(PLACE, &mut bytes)?;
    check_eq!(
        bytes[..],
        (0..WORDS as u8).collect::<Vec<_>>()[..],
        "what the guest read from the device"
    );
    check_eq!(watched.vm.status(0)?.device_reads, WORDS, "reads that the VMM saw");
    watched.vm.exit()
}

fn let_through_before_window(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    // With the PIC outside of the kernel the VMM asks for a window.
    let vm = context.vm_with(&VmConfig {
        split_irqchip: true,
        ..VmConfig::new("accesses", 1)
    })?;
    vm.run()?;
    vm.wait_ready(context)?;
    let wire = context.hook(&vm)?;
    let mut watched = Watched {
        vm,
        wire,
        backend: context.backend,
    };
    watched.wire.control_event(0, PF, true)?;
    watched.wire.restrict(&[(PLACE, R | X)])?;
    for round in 1..=3 {
        context.stage(&format!("an interrupt is to come, {round}"), Duration::from_secs(10));
        let number = watched.begin(Access::Write, [PLACE, round, 0])?;
        let event = watched.expect(W, PLACE)?;
        watched.vm.pause(0)?;
        watched.vm.interrupt_in_window(0, COUNTED_VECTOR)?;
        watched.vm.resume(0)?;
        watched.wire.reply(&event, kvmi_uapi::event::CONTINUE)?;
        watched.vm.finished(context, 0, number)?;
        watched.wire.expect_no_event()?;
        context.wait_for("the interrupt", || {
            Ok(watched.vm.guest.field(0, field!(counted_interrupts))? == round)
        })?;
        check!(
            watched.vm.guest.field(0, field!(counted_rip))? != event.arch.regs.rip,
            "the interrupt came before the instruction that was let through"
        );
        check_eq!(watched.word(PLACE)?, round, "the word");
        check_eq!(watched.vm.status(0)?.exits("interrupt window"), round, "windows");
    }
    watched.vm.exit()
}

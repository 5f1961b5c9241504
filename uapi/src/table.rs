// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! The one table of messages: a row for each command and each event.
//!
//! What can be derived from a row is derived: ids ([`crate::msg`], [`crate::event`]), what the kernel knows and what it
//! checks of each message as such, the C header, the tables of docs/protocol.md, names in transcripts, messages of the
//! fuzzer, generic rows of the conformance table.
//!
//! A row of a command: `ID NAME: REQUEST => REPLY`, each without the headers that precede it.
//!
//! - `none`: nothing.
//! - `VmPageAccess`: this structure.
//! - `VmPageAccess + entries: [PageAccessEntry; count]`: this structure, then as many entries as the *request's* field
//!   `count` says, which C calls `entries`.
//!
//! Behind it, in this order, where it is so:
//!
//! - `short CLOSES` or `short REFUSED`: what comes of a message in which something is missing of what follows the
//!   structure, or of the structure where nothing follows it: the connection closes, or EINVAL. Otherwise, what is
//!   missing reads as zero.
//! - `asks EVENT`: EPERM comes first where the VMM does not allow this event.
//! - `since N`: the extension level that brought it; 0 is the twelfth posting.
//!
//! A row of an event: `ID NAME: DATA => DATA OF THE REPLY`. CONTINUE and CRASH are always legal answers; `or RETRY` says
//! that this is too. UNHOOK has no answer.

pub use crate::row::{Command, Data, Event, Short, Tail};
use crate::{
    MsrEntry, Regs, Xsave,
    event::{Breakpoint, Cr, CrReply, Descriptor, Msr, MsrReply, Pf, Singlestep, Trap, Xsetbv},
    row::{commands, events},
    vcpu_command::*,
    vm_command::*,
};

commands! {
    VmCommand {
        /// Version, message size and features.
        2 GET_VERSION: none => GetVersionReply;
        /// Whether a command may be used.
        4 VM_CHECK_COMMAND: VmCheckCommand => none;
        /// Whether an event may be used.
        6 VM_CHECK_EVENT: VmCheckEvent => none;
        /// Number of vCPUs.
        8 VM_GET_INFO: none => VmGetInfoReply;
        /// Switches a VM event on or off.
        10 VM_CONTROL_EVENTS: VmControlEvents => none;
        /// Reads guest memory.
        12 VM_READ_PHYSICAL: VmReadPhysical => none + data: [u8; size];
        /// Writes guest memory.
        14 VM_WRITE_PHYSICAL: VmWritePhysical + data: [u8; size] => none, short CLOSES;
        /// Asks for a PAUSE event.
        16 VM_PAUSE_VCPU: VmPauseVcpu => none;
        /// Whether unhook undoes what the tool changed.
        18 VM_CONTROL_CLEANUP: VmControlCleanup => none;
        /// Restricts access to guest pages.
        20 VM_SET_PAGE_ACCESS: VmPageAccess + entries: [PageAccessEntry; count] => none, short CLOSES;
        /// Reads access restrictions of guest pages back (P21).
        128 VM_GET_PAGE_ACCESS: VmPageAccess + entries: [PageAccessEntry; count]
            => none + entries: [PageAccessEntry; count], short CLOSES, since 1;
        /// What each vCPU is doing.
        130 VM_GET_VCPU_STATES: VmGetVcpuStates => none + entries: [VcpuRunState; count], since 2;
        /// Lets vCPUs go that HOOK keeps stopped.
        132 VM_RELEASE: none => none, since 2;
    }
    VcpuCommand {
        /// Information about a vCPU.
        3 VCPU_GET_INFO: none => VcpuGetInfoReply;
        /// Switches an event on or off on one vCPU.
        5 VCPU_CONTROL_EVENTS: VcpuControlEvents => none;
        /// Reads general and special registers and MSRs.
        7 VCPU_GET_REGISTERS: VcpuGetRegisters + msr_index: [u32; nmsrs]
            => VcpuGetRegistersReply + entries: [MsrEntry; nmsrs], short REFUSED;
        /// Writes general registers while an event is open.
        9 VCPU_SET_REGISTERS: Regs => none, short REFUSED;
        /// Reads a CPUID leaf of the guest.
        11 VCPU_GET_CPUID: VcpuGetCpuid => VcpuGetCpuidReply;
        /// Switches CR events on or off for one control register.
        13 VCPU_CONTROL_CR: VcpuControlCr => none;
        /// Injects an exception.
        15 VCPU_INJECT_EXCEPTION: VcpuInjectException => none, asks TRAP;
        /// Reads an extended control register.
        17 VCPU_GET_XCR: VcpuGetXcr => VcpuGetXcrReply;
        /// Reads the extended state.
        19 VCPU_GET_XSAVE: none => Xsave;
        /// Writes the extended state.
        21 VCPU_SET_XSAVE: Xsave => none, short REFUSED;
        /// Memory type of a guest page.
        23 VCPU_GET_MTRR_TYPE: VcpuGetMtrrType => VcpuGetMtrrTypeReply;
        /// Switches MSR events on or off for one MSR.
        25 VCPU_CONTROL_MSR: VcpuControlMsr => none;
        /// Starts or stops stepping.
        27 VCPU_CONTROL_SINGLESTEP: VcpuControlSinglestep => none, asks SINGLESTEP;
        /// Translates a guest virtual address.
        29 VCPU_TRANSLATE_GVA: VcpuTranslateGva => VcpuTranslateGvaReply;
    }
}

events! {
    /// VM event: the VMM asks the tool to undo its hooks and close.
    0 UNHOOK: none => none;
    /// Answer to VM_PAUSE_VCPU.
    1 PAUSE: none => none;
    /// The guest signals to the tool.
    3 HYPERCALL: none => none;
    /// The guest executed int3.
    5 BREAKPOINT: Breakpoint => none, or RETRY;
    /// The guest changes a control register.
    7 CR: Cr => CrReply;
    /// What became of an injected exception.
    9 TRAP: Trap => none;
    /// The guest changed XCR0.
    11 XSETBV: Xsetbv => none;
    /// The guest touches a descriptor table register.
    13 DESCRIPTOR: Descriptor => none, or RETRY;
    /// The guest changes an MSR.
    15 MSR: Msr => MsrReply;
    /// The guest touches a restricted page.
    17 PF: Pf => none, or RETRY;
    /// The guest executed one instruction.
    19 SINGLESTEP: Singlestep => none;
    /// The VMM has created a vCPU, which is about to run.
    129 CREATE_VCPU: none => none, since 2;
}

/// Commands that each tool may use, so that it can find out what else it may: the VMM cannot forbid them.
pub const QUERIES: [u16; 3] = [
    command_ids::GET_VERSION,
    command_ids::VM_CHECK_COMMAND,
    command_ids::VM_CHECK_EVENT,
];

/// The command of this message id.
pub fn command(id: u16) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.id == id)
}

/// The event of this id.
pub fn event(id: u16) -> Option<&'static Event> {
    EVENTS.iter().find(|event| event.id == id)
}

const _: () = {
    let mut at = 0;
    while at < VmCommand::ALL.len() + VcpuCommand::ALL.len() {
        assert!(
            COMMANDS[at].is_vcpu() == (at >= VmCommand::ALL.len()),
            "an id of the wrong scope"
        );
        at += 1;
    }
};

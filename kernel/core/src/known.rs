// SPDX-License-Identifier: GPL-2.0-only
//! What this kernel knows of the protocol so far.

use kvmi_uapi::{event, msg};

/// Commands that this kernel carries out.
pub const COMMANDS: &[u16] = &[
    msg::GET_VERSION,
    msg::VM_CHECK_COMMAND,
    msg::VM_CHECK_EVENT,
    msg::VM_GET_INFO,
    msg::VM_CONTROL_EVENTS,
    msg::VM_READ_PHYSICAL,
    msg::VM_WRITE_PHYSICAL,
    msg::VM_PAUSE_VCPU,
    msg::VM_CONTROL_CLEANUP,
    msg::VM_SET_PAGE_ACCESS,
    msg::VM_GET_PAGE_ACCESS,
    msg::VCPU_GET_INFO,
    msg::VCPU_CONTROL_EVENTS,
    msg::VCPU_GET_REGISTERS,
    msg::VCPU_SET_REGISTERS,
    msg::VCPU_GET_CPUID,
    msg::VCPU_CONTROL_CR,
    msg::VCPU_INJECT_EXCEPTION,
    msg::VCPU_GET_XCR,
    msg::VCPU_GET_XSAVE,
    msg::VCPU_SET_XSAVE,
    msg::VCPU_GET_MTRR_TYPE,
    msg::VCPU_CONTROL_MSR,
    msg::VCPU_CONTROL_SINGLESTEP,
    msg::VCPU_TRANSLATE_GVA,
];

/// Events that this kernel sends.
pub const EVENTS: &[u16] = &[
    event::UNHOOK,
    event::PAUSE,
    event::HYPERCALL,
    event::BREAKPOINT,
    event::CR,
    event::TRAP,
    event::XSETBV,
    event::DESCRIPTOR,
    event::MSR,
    event::PF,
    event::SINGLESTEP,
];

pub(crate) fn command(id: u16) -> bool {
    COMMANDS.contains(&id)
}

pub(crate) fn event(id: u16) -> bool {
    EVENTS.contains(&id)
}

pub(crate) fn vcpu_event(id: u16) -> bool {
    msg::is_vcpu(id) && event(id)
}

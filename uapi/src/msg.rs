// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Message ids. Even: about the VM. Odd: about one vCPU. From 128 up: not in the twelfth posting.

/// VM event, kernel to tool.
pub const VM_EVENT: u16 = 0;
/// vCPU event, kernel to tool, and the reply to it.
pub const VCPU_EVENT: u16 = 1;
/// Version, message size and features.
pub const GET_VERSION: u16 = 2;
/// Information about a vCPU.
pub const VCPU_GET_INFO: u16 = 3;
/// Whether a command may be used.
pub const VM_CHECK_COMMAND: u16 = 4;
/// Switches an event on or off on one vCPU.
pub const VCPU_CONTROL_EVENTS: u16 = 5;
/// Whether an event may be used.
pub const VM_CHECK_EVENT: u16 = 6;
/// Reads general and special registers and MSRs.
pub const VCPU_GET_REGISTERS: u16 = 7;
/// Number of vCPUs.
pub const VM_GET_INFO: u16 = 8;
/// Writes general registers while an event is open.
pub const VCPU_SET_REGISTERS: u16 = 9;
/// Switches a VM event on or off.
pub const VM_CONTROL_EVENTS: u16 = 10;
/// Reads a CPUID leaf of the guest.
pub const VCPU_GET_CPUID: u16 = 11;
/// Reads guest memory.
pub const VM_READ_PHYSICAL: u16 = 12;
/// Switches CR events on or off for one control register.
pub const VCPU_CONTROL_CR: u16 = 13;
/// Writes guest memory.
pub const VM_WRITE_PHYSICAL: u16 = 14;
/// Injects an exception.
pub const VCPU_INJECT_EXCEPTION: u16 = 15;
/// Asks for a PAUSE event.
pub const VM_PAUSE_VCPU: u16 = 16;
/// Reads an extended control register.
pub const VCPU_GET_XCR: u16 = 17;
/// Whether unhook undoes what the tool changed.
pub const VM_CONTROL_CLEANUP: u16 = 18;
/// Reads the extended state.
pub const VCPU_GET_XSAVE: u16 = 19;
/// Restricts access to guest pages.
pub const VM_SET_PAGE_ACCESS: u16 = 20;
/// Writes the extended state.
pub const VCPU_SET_XSAVE: u16 = 21;
/// Memory type of a guest page.
pub const VCPU_GET_MTRR_TYPE: u16 = 23;
/// Switches MSR events on or off for one MSR.
pub const VCPU_CONTROL_MSR: u16 = 25;
/// Starts or stops stepping.
pub const VCPU_CONTROL_SINGLESTEP: u16 = 27;
/// Translates a guest virtual address.
pub const VCPU_TRANSLATE_GVA: u16 = 29;
/// Reads access restrictions of guest pages back (P21).
pub const VM_GET_PAGE_ACCESS: u16 = 128;

/// Every command with its name.
pub const COMMANDS: &[(u16, &str)] = &[
    (GET_VERSION, "GET_VERSION"),
    (VM_CHECK_COMMAND, "VM_CHECK_COMMAND"),
    (VM_CHECK_EVENT, "VM_CHECK_EVENT"),
    (VM_GET_INFO, "VM_GET_INFO"),
    (VM_CONTROL_EVENTS, "VM_CONTROL_EVENTS"),
    (VM_READ_PHYSICAL, "VM_READ_PHYSICAL"),
    (VM_WRITE_PHYSICAL, "VM_WRITE_PHYSICAL"),
    (VM_PAUSE_VCPU, "VM_PAUSE_VCPU"),
    (VM_CONTROL_CLEANUP, "VM_CONTROL_CLEANUP"),
    (VM_SET_PAGE_ACCESS, "VM_SET_PAGE_ACCESS"),
    (VM_GET_PAGE_ACCESS, "VM_GET_PAGE_ACCESS"),
    (VCPU_GET_INFO, "VCPU_GET_INFO"),
    (VCPU_CONTROL_EVENTS, "VCPU_CONTROL_EVENTS"),
    (VCPU_GET_REGISTERS, "VCPU_GET_REGISTERS"),
    (VCPU_SET_REGISTERS, "VCPU_SET_REGISTERS"),
    (VCPU_GET_CPUID, "VCPU_GET_CPUID"),
    (VCPU_CONTROL_CR, "VCPU_CONTROL_CR"),
    (VCPU_INJECT_EXCEPTION, "VCPU_INJECT_EXCEPTION"),
    (VCPU_GET_XCR, "VCPU_GET_XCR"),
    (VCPU_GET_XSAVE, "VCPU_GET_XSAVE"),
    (VCPU_SET_XSAVE, "VCPU_SET_XSAVE"),
    (VCPU_GET_MTRR_TYPE, "VCPU_GET_MTRR_TYPE"),
    (VCPU_CONTROL_MSR, "VCPU_CONTROL_MSR"),
    (VCPU_CONTROL_SINGLESTEP, "VCPU_CONTROL_SINGLESTEP"),
    (VCPU_TRANSLATE_GVA, "VCPU_TRANSLATE_GVA"),
];

/// Whether a message id is about one vCPU: its payload then begins with a [`crate::VcpuHdr`].
pub const fn is_vcpu(id: u16) -> bool {
    id & 1 == 1
}

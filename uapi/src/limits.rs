// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Versions, and the most that there can be of something.

use crate::{
    ErrorCode, MsrEntry, PageAccessEntry, VcpuGetRegistersReply, VcpuRunState, VmPageAccess, layout::constants,
};

constants! {
    /// What tells dialects apart.
    VERSIONS:

    /// `version` of GET_VERSION, in every dialect since the first, and what `KVM_CHECK_EXTENSION` answers.
    KVMI_VERSION = VERSION: u32 = 1;
    /// `extension` in the features of GET_VERSION (P20); v12 has 0 there.
    KVMI_EXTENSION_LEVEL = EXTENSION_LEVEL: u8 = 2;
}

constants! {
    /// Limits.
    LIMITS:

    /// Most bytes of payload in a message; GET_VERSION's `max_msg_size`.
    KVMI_MAX_PAYLOAD = MAX_PAYLOAD: usize = 8184;
    /// Most bytes of a message, header included.
    KVMI_MAX_MESSAGE = MAX_MESSAGE: usize = 8192;
    /// Most commands that wait for one vCPU (P15).
    KVMI_MAX_QUEUED_COMMANDS = MAX_QUEUED_COMMANDS: u32 = 1024;
    /// Most bytes of them, headers included (P15).
    KVMI_MAX_QUEUED_BYTES = MAX_QUEUED_BYTES: usize = 1 << 20;
    /// Most bytes that VM_READ_PHYSICAL and VM_WRITE_PHYSICAL move, all within one page.
    KVMI_MAX_PHYSICAL = MAX_PHYSICAL: usize = 4096;
    /// Most MSRs of one VCPU_GET_REGISTERS: what fits into the largest reply.
    KVMI_MAX_MSRS = MAX_MSRS: usize =
        (MAX_PAYLOAD - size_of::<ErrorCode>() - size_of::<VcpuGetRegistersReply>()) / size_of::<MsrEntry>();
    /// Most MSRs outside of 0 to 0x1fff and 0xc0000000 to 0xc0001fff that a vCPU's VCPU_CONTROL_MSR watches at a time.
    KVMI_MAX_OTHER_MSRS = MAX_OTHER_MSRS: usize = 128;
    /// Most vCPUs of one VM_GET_VCPU_STATES: what fits into the largest reply.
    KVMI_MAX_VCPU_STATES = MAX_VCPU_STATES: usize =
        (MAX_PAYLOAD - size_of::<ErrorCode>()) / size_of::<VcpuRunState>();
    /// Most entries of one VM_SET_PAGE_ACCESS or VM_GET_PAGE_ACCESS.
    KVMI_MAX_PAGE_ACCESS_ENTRIES = MAX_PAGE_ACCESS_ENTRIES: usize =
        (MAX_PAYLOAD - size_of::<VmPageAccess>()) / size_of::<PageAccessEntry>();
}

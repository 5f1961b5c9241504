// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Requests and replies of VM commands, without the headers that precede them.

use crate::layout::{constants, structs};

structs! {
    /// Feature bytes of [`GetVersionReply`] (P20).
    pub struct Features = kvmi_features, 8 {
        /// 1 when VCPU_CONTROL_SINGLESTEP works.
        pub singlestep: u8,
        /// 0: plain v12; else [`crate::EXTENSION_LEVEL`].
        pub extension: u8,
        /// Which access restrictions can be expressed: KVMI_FEATURE_* bits.
        pub access: u8,
        /// Zero.
        pub pad: [u8; 5],
    }

    /// Reply to GET_VERSION.
    pub struct GetVersionReply = kvmi_get_version_reply, 16 {
        /// [`crate::VERSION`].
        pub version: u32,
        /// [`crate::MAX_PAYLOAD`]; 0 in old dialects.
        pub max_msg_size: u32,
        /// What this kernel and CPU offer.
        pub features: Features,
    }

    /// Request of VM_CHECK_COMMAND.
    pub struct VmCheckCommand = kvmi_vm_check_command, 8 {
        /// Id of the command that is asked about.
        pub id: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Request of VM_CHECK_EVENT.
    pub struct VmCheckEvent = kvmi_vm_check_event, 8 {
        /// Id of the event that is asked about.
        pub id: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Reply to VM_GET_INFO.
    pub struct VmGetInfoReply = kvmi_vm_get_info_reply, 16 {
        /// vCPUs online now; indices are 0 to one less.
        pub vcpu_count: u32,
        /// Zero.
        pub pad: [u32; 3],
    }

    /// Request of VM_CONTROL_EVENTS.
    pub struct VmControlEvents = kvmi_vm_control_events, 8 {
        /// The event, by its id: that of UNHOOK or of CREATE_VCPU.
        pub event_id: u16,
        /// 1: send it, 0: do not.
        pub enable: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u32,
    }

    /// Request of VM_READ_PHYSICAL; the reply data are `size` raw bytes.
    pub struct VmReadPhysical = kvmi_vm_read_physical, 16 {
        /// Guest physical address of the first byte.
        pub gpa: u64,
        /// Bytes to read, 1 to 4096, all in one page.
        pub size: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Request of VM_WRITE_PHYSICAL; `size` raw bytes follow.
    pub struct VmWritePhysical = kvmi_vm_write_physical, 16 {
        /// Guest physical address of the first byte.
        pub gpa: u64,
        /// Bytes to write, 1 to 4096, all in one page.
        pub size: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }

    /// Request of VM_PAUSE_VCPU.
    pub struct VmPauseVcpu = kvmi_vm_pause_vcpu, 8 {
        /// Index of the vCPU.
        pub vcpu: u16,
        /// 1: reply after the vCPU has left guest mode, 0: reply at once.
        pub wait: u8,
        /// Zero.
        pub pad1: u8,
        /// Zero.
        pub pad2: u32,
    }

    /// Request of VM_CONTROL_CLEANUP.
    pub struct VmControlCleanup = kvmi_vm_control_cleanup, 8 {
        /// 1 (the default): unhook removes the intercepts that the tool asked for, 0: it leaves them.
        pub enable: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// Request of VM_GET_VCPU_STATES; the reply data are so many [`VcpuRunState`].
    pub struct VmGetVcpuStates = kvmi_vm_get_vcpu_states, 8 {
        /// Index of the first vCPU that is asked about.
        pub first: u16,
        /// How many are, at most [`crate::MAX_VCPU_STATES`].
        pub count: u16,
        /// Zero.
        pub pad: u32,
    }

    /// What a vCPU is doing.
    pub struct VcpuRunState = kvmi_vcpu_run_state, 8 {
        /// KVMI_VCPU_*: the highest that is true.
        pub state: u8,
        /// The event that is open, if the state is [`VcpuRunState::HELD`], otherwise 0.
        pub event: u8,
        /// 1 while the VMM has it in `KVM_RUN`.
        pub in_run: u8,
        /// Zero.
        pub pad: u8,
        /// `seq` of that event, otherwise 0.
        pub seq: u32,
    }

    /// One page and its access; also each entry of the reply to VM_GET_PAGE_ACCESS.
    pub struct PageAccessEntry = kvmi_page_access_entry, 16 {
        /// Guest physical address of the page.
        pub gpa: u64,
        /// What the guest may do: KVMI_PAGE_ACCESS_* bits; all three lift a restriction.
        pub access: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// Head of VM_SET_PAGE_ACCESS and of VM_GET_PAGE_ACCESS (P21); so many [`PageAccessEntry`] follow.
    pub struct VmPageAccess = kvmi_vm_page_access, 8 {
        /// Number of entries, at most [`crate::MAX_PAGE_ACCESS_ENTRIES`].
        pub count: u16,
        /// Zero.
        pub pad1: u16,
        /// Zero.
        pub pad2: u32,
    }
}

impl Features {
    constants! {
        /// Bits of `access` in [`Features`]: restrictions that can be expressed.
        FEATURE_BITS:

        /// Reads can be denied.
        KVMI_FEATURE_READ_DENY = READ_DENY: u8 = 1 << 0;
        /// Writes can be denied.
        KVMI_FEATURE_WRITE_DENY = WRITE_DENY: u8 = 1 << 1;
        /// Execution can be denied.
        KVMI_FEATURE_EXEC_DENY = EXEC_DENY: u8 = 1 << 2;
        /// Reads can be denied where execution is not.
        KVMI_FEATURE_EXEC_ONLY = EXEC_ONLY: u8 = 1 << 3;
    }
}

impl VcpuRunState {
    constants! {
        /// Values of `state` in [`VcpuRunState`].
        VCPU_STATES:

        /// In `KVM_RUN`: in the guest, or in the host on its behalf.
        KVMI_VCPU_RUNS = RUNS: u8 = 0;
        /// The VMM has it, outside of `KVM_RUN`.
        KVMI_VCPU_OUT = OUT: u8 = 1;
        /// It sleeps in HLT.
        KVMI_VCPU_HALTED = HALTED: u8 = 2;
        /// It waits for VM_RELEASE.
        KVMI_VCPU_STOPPED = STOPPED: u8 = 3;
        /// An AP that waits for INIT or SIPI.
        KVMI_VCPU_UNINITIALISED = UNINITIALISED: u8 = 4;
        /// It has an event open, and waits for the reply.
        KVMI_VCPU_HELD = HELD: u8 = 5;
        /// It crashed.
        KVMI_VCPU_CRASHED = CRASHED: u8 = 6;
    }
}

impl PageAccessEntry {
    constants! {
        /// Bits of `access` in [`PageAccessEntry`]: what the guest may do.
        PAGE_ACCESS_BITS:

        /// Read.
        KVMI_PAGE_ACCESS_R = READ: u8 = 1 << 0;
        /// Write.
        KVMI_PAGE_ACCESS_W = WRITE: u8 = 1 << 1;
        /// Execute.
        KVMI_PAGE_ACCESS_X = EXEC: u8 = 1 << 2;
    }
}

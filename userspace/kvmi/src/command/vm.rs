// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM commands.

use kvmi_uapi::{
    GetVersionReply, PageAccessEntry, VcpuRunState, VmCheckCommand, VmCheckEvent, VmControlCleanup, VmControlEvents,
    VmGetInfoReply, VmGetVcpuStates, VmPageAccess, VmPauseVcpu, VmReadPhysical, VmWritePhysical,
};

use super::{DATA, count, list, vm_commands};

vm_commands! {
    /// GET_VERSION.
    GetVersion unit; = GET_VERSION, |_c| () => GetVersionReply;

    /// VM_CHECK_COMMAND.
    CheckCommand {
        /// Id of the command that is asked about.
        pub id: u16,
    } = VM_CHECK_COMMAND, |c| VmCheckCommand { id: c.id, ..Default::default() } => ();

    /// VM_CHECK_EVENT.
    CheckEvent {
        /// Id of the event that is asked about.
        pub id: u16,
    } = VM_CHECK_EVENT, |c| VmCheckEvent { id: c.id, ..Default::default() } => ();

    /// VM_GET_INFO.
    GetInfo unit; = VM_GET_INFO, |_c| () => VmGetInfoReply;

    /// VM_CONTROL_EVENTS.
    ControlVmEvents {
        /// A VM event.
        pub event: u16,
        /// Whether it is to be sent.
        pub enable: bool,
    } = VM_CONTROL_EVENTS, |c| VmControlEvents {
        event_id: c.event,
        enable: c.enable.into(),
        ..Default::default()
    } => ();

    /// VM_READ_PHYSICAL; the reply is exactly the bytes that were asked for.
    ReadPhysical {
        /// Guest physical address of the first byte.
        pub gpa: u64,
        /// Bytes, 1 to 4096, all in one page.
        pub size: u16,
    } = VM_READ_PHYSICAL, |c| VmReadPhysical { gpa: c.gpa, size: c.size, ..Default::default() }
        => Vec<u8>, |c, message| list(message, DATA, c.size.into());

    /// VM_WRITE_PHYSICAL.
    WritePhysical<'a> {
        /// Guest physical address of the first byte.
        pub gpa: u64,
        /// What to write, 1 to 4096 bytes, all in one page.
        pub data: &'a [u8],
    } = VM_WRITE_PHYSICAL, |c| VmWritePhysical { gpa: c.gpa, size: count(c.data), ..Default::default() }, then c.data
        => ();

    /// VM_PAUSE_VCPU.
    PauseVcpu {
        /// Index of the vCPU.
        pub vcpu: u16,
        /// Whether the reply is to wait until the vCPU has left guest mode.
        pub wait: bool,
    } = VM_PAUSE_VCPU, |c| VmPauseVcpu { vcpu: c.vcpu, wait: c.wait.into(), ..Default::default() } => ();

    /// VM_CONTROL_CLEANUP.
    ControlCleanup {
        /// Whether unhook is to remove the intercepts.
        pub enable: bool,
    } = VM_CONTROL_CLEANUP, |c| VmControlCleanup { enable: c.enable.into(), ..Default::default() } => ();

    /// VM_SET_PAGE_ACCESS.
    SetPageAccess<'a> {
        /// Pages and their access, at most [`kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES`].
        pub entries: &'a [PageAccessEntry],
    } = VM_SET_PAGE_ACCESS, |c| VmPageAccess { count: count(c.entries), ..Default::default() }, then c.entries => ();

    /// VM_GET_PAGE_ACCESS; the reply has an entry for each.
    GetPageAccess<'a> {
        /// Pages, at most [`kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES`].
        pub gpas: &'a [u64],
    } = VM_GET_PAGE_ACCESS, |c| VmPageAccess { count: count(c.gpas), ..Default::default() }, then &*entries(c.gpas)
        => Vec<PageAccessEntry>, |c, message| list(message, DATA, c.gpas.len());

    /// VM_GET_VCPU_STATES; the reply has a state for each.
    GetVcpuStates {
        /// Index of the first vCPU.
        pub first: u16,
        /// How many vCPUs, at most [`kvmi_uapi::MAX_VCPU_STATES`].
        pub count: u16,
    } = VM_GET_VCPU_STATES, |c| VmGetVcpuStates { first: c.first, count: c.count, ..Default::default() }
        => Vec<VcpuRunState>, |c, message| list(message, DATA, c.count.into());

    /// VM_RELEASE.
    Release unit; = VM_RELEASE, |_c| () => ();
}

fn entries(gpas: &[u64]) -> Vec<PageAccessEntry> {
    let entry = |&gpa: &u64| PageAccessEntry {
        gpa,
        ..Default::default()
    };
    gpas.iter().map(entry).collect()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM commands as calls.

use kvmi_uapi::{GetVersionReply, MAX_VCPU_STATES, PageAccessEntry, VcpuRunState, event};

use crate::{
    Error, ProtocolError, Session,
    command::{
        CheckCommand, CheckEvent, ControlCleanup, ControlVmEvents, GetInfo, GetPageAccess, GetVcpuStates, GetVersion,
        PauseVcpu, Raw, ReadPhysical, Release, SetPageAccess, WritePhysical,
    },
};

/// Each waits for its reply. Errors are those of [`Session::call`]; [`Error::Kernel`] holds what the kernel answered.
impl Session {
    /// GET_VERSION: version, size of messages, features.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn version(&self) -> Result<GetVersionReply, Error> {
        self.call(GetVersion)
    }

    /// VM_CHECK_COMMAND: `Ok` when the command may be used.
    ///
    /// # Errors
    /// As [`Session::call`]: ENOENT when the kernel does not know it, EPERM when the VMM does not allow it.
    pub fn check_command(&self, id: u16) -> Result<(), Error> {
        self.call(CheckCommand { id })
    }

    /// VM_CHECK_EVENT: `Ok` when the event may be used.
    ///
    /// # Errors
    /// As [`Self::check_command`].
    pub fn check_event(&self, id: u16) -> Result<(), Error> {
        self.call(CheckEvent { id })
    }

    /// VM_GET_INFO: vCPUs online now; their indices are 0 to one less.
    ///
    /// # Errors
    /// As [`Session::call`]; [`ProtocolError::TooManyVcpus`] for more than messages can name.
    pub fn vcpu_count(&self) -> Result<u16, Error> {
        let count = self.call(GetInfo)?.vcpu_count;
        Ok(u16::try_from(count).map_err(|_| ProtocolError::TooManyVcpus(count))?)
    }

    /// VM_CONTROL_EVENTS: switches a VM event on or off.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn control_vm_event(&self, event: u16, enable: bool) -> Result<(), Error> {
        self.call(ControlVmEvents { event, enable })
    }

    /// VM_CONTROL_EVENTS for UNHOOK.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn control_unhook(&self, enable: bool) -> Result<(), Error> {
        self.control_vm_event(event::UNHOOK, enable)
    }

    /// VM_CONTROL_EVENTS for CREATE_VCPU: each vCPU that the VMM creates from now on tells so before it runs.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn control_create_vcpu(&self, enable: bool) -> Result<(), Error> {
        self.control_vm_event(event::CREATE_VCPU, enable)
    }

    /// VM_GET_VCPU_STATES: what each vCPU is doing at this moment, by index.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn vcpu_states(&self) -> Result<Vec<VcpuRunState>, Error> {
        let mut states = Vec::new();
        let vcpus = self.vcpu_count()?;
        for first in (0..vcpus).step_by(MAX_VCPU_STATES) {
            let count = (vcpus - first).min(MAX_VCPU_STATES as u16);
            states.extend(self.call(GetVcpuStates { first, count })?);
        }
        Ok(states)
    }

    /// VM_RELEASE: lets vCPUs go that HOOK keeps stopped; nothing happens if none is. What the session before had denied
    /// the guest, if this one took it over, stays denied until VM_SET_PAGE_ACCESS.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn release(&self) -> Result<(), Error> {
        self.call(Release)
    }

    /// VM_READ_PHYSICAL: 1 to 4096 bytes of one page of guest memory.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL, ENOENT.
    pub fn read_physical(&self, gpa: u64, size: u16) -> Result<Vec<u8>, Error> {
        self.call(ReadPhysical { gpa, size })
    }

    /// VM_WRITE_PHYSICAL: 1 to 4096 bytes into one page of guest memory.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL, ENOENT, EPERM for a read-only slot.
    pub fn write_physical(&self, gpa: u64, data: &[u8]) -> Result<(), Error> {
        self.call(WritePhysical { gpa, data })
    }

    /// VM_PAUSE_VCPU: asks for a PAUSE event; with `wait`, returns after the vCPU has left guest mode.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL, EPERM, EBUSY.
    pub fn pause_vcpu(&self, vcpu: u16, wait: bool) -> Result<(), Error> {
        self.call(PauseVcpu { vcpu, wait })
    }

    /// VM_CONTROL_CLEANUP: whether unhook removes the intercepts that this tool asked for.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn control_cleanup(&self, enable: bool) -> Result<(), Error> {
        self.call(ControlCleanup { enable })
    }

    /// VM_SET_PAGE_ACCESS: what the guest may do with pages, in force on every vCPU when this returns. At most
    /// [`kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES`].
    ///
    /// # Errors
    /// As [`Session::call`], for the first entry that fails: EINVAL, EOPNOTSUPP for what the hardware cannot express,
    /// ENOMEM. The others are set.
    pub fn set_page_access(&self, entries: &[PageAccessEntry]) -> Result<(), Error> {
        self.call(SetPageAccess { entries })
    }

    /// VM_GET_PAGE_ACCESS: what the guest may do with these pages, at most [`kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES`].
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL where there is no memory slot.
    pub fn page_access(&self, gpas: &[u64]) -> Result<Vec<PageAccessEntry>, Error> {
        self.call(GetPageAccess { gpas })
    }

    /// Any command with any payload (for a vCPU command with its vCPU header); gives the reply's data.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn call_raw(&self, id: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
        self.call(Raw { id, payload })
    }
}

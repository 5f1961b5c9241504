// SPDX-License-Identifier: GPL-2.0-only
//! What the core asks of KVM, asked of the C side.

use kvmi_core::{Control, KvmError, VcpuEffects, VmEffects};
use kvmi_uapi::VcpuRunState;

use crate::abi::{Session, Vcpu, outcome};

// The C side: `seam.h`, "C, called by Rust".
unsafe extern "C" {
    fn kvmi_glue_vcpu_count(session: *mut Session) -> u32;
    fn kvmi_glue_vcpu_ready(session: *mut Session, vcpu_idx: u16) -> i32;
    fn kvmi_glue_read_physical(session: *mut Session, gpa: u64, out: *mut u8, len: usize) -> i32;
    fn kvmi_glue_write_physical(session: *mut Session, gpa: u64, data: *const u8, len: usize) -> i32;
    fn kvmi_glue_pause_vcpu(session: *mut Session, vcpu_idx: u16, wait: bool) -> i32;
    fn kvmi_glue_set_page_access(session: *mut Session, view: u16, gfn: u64, access: u8) -> i32;
    fn kvmi_glue_page_access_set(session: *mut Session);
    fn kvmi_glue_page_access(session: *mut Session, view: u16, gfn: u64, access: *mut u8) -> i32;
    fn kvmi_glue_vcpu_state(session: *mut Session, vcpu_idx: u16, out: *mut VcpuRunState);
    fn kvmi_glue_release(session: *mut Session);
    fn kvmi_glue_access_bits() -> u8;
    fn kvmi_glue_singlestep() -> u8;

    fn kvmi_glue_vcpu_index(vcpu: *mut Vcpu) -> u16;
    fn kvmi_glue_tsc_hz(vcpu: *mut Vcpu) -> u64;
    fn kvmi_glue_get_arch(vcpu: *mut Vcpu, out: *mut u8);
    fn kvmi_glue_mode(vcpu: *mut Vcpu) -> u8;
    fn kvmi_glue_get_regs(vcpu: *mut Vcpu, out: *mut u8);
    fn kvmi_glue_get_sregs(vcpu: *mut Vcpu, out: *mut u8);
    fn kvmi_glue_get_msr(vcpu: *mut Vcpu, index: u32, value: *mut u64) -> i32;
    fn kvmi_glue_cpuid(vcpu: *mut Vcpu, function: u32, index: u32, regs: *mut u32) -> i32;
    fn kvmi_glue_xcr0(vcpu: *mut Vcpu) -> u64;
    fn kvmi_glue_get_xsave(vcpu: *mut Vcpu, out: *mut u8) -> i32;
    fn kvmi_glue_set_xsave(vcpu: *mut Vcpu, state: *const u8) -> i32;
    fn kvmi_glue_get_control(vcpu: *mut Vcpu, out: *mut Control);
    fn kvmi_glue_read_table(vcpu: *mut Vcpu, gpa: u64, out: *mut u8, len: usize) -> i32;
    fn kvmi_glue_msr_write_allowed(vcpu: *mut Vcpu, index: u32) -> i32;
    fn kvmi_glue_descriptor_exits() -> i32;
    fn kvmi_glue_injection_free(vcpu: *mut Vcpu) -> i32;
    fn kvmi_glue_breakpoint_free(vcpu: *mut Vcpu) -> i32;
    fn kvmi_glue_singlestep_free(vcpu: *mut Vcpu) -> i32;
    pub(crate) fn kvmi_glue_intercepts_changed(vcpu: *mut Vcpu);
}

/// The session that a message came from.
pub(crate) struct SessionEffects(*mut Session);

impl SessionEffects {
    /// # Safety
    /// `session` came with the call from C that this value lives in.
    pub(crate) unsafe fn new(session: *mut Session) -> Self {
        Self(session)
    }
}

impl VmEffects for SessionEffects {
    fn vcpu_count(&mut self) -> u32 {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_vcpu_count(self.0) }
    }

    fn vcpu_ready(&mut self, vcpu: u16) -> Result<(), KvmError> {
        // SAFETY: promise 4; the core checked the index.
        outcome(unsafe { kvmi_glue_vcpu_ready(self.0, vcpu) })
    }

    fn read_physical(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError> {
        // SAFETY: promise 4; the C side writes no more than `len` bytes.
        outcome(unsafe { kvmi_glue_read_physical(self.0, gpa, out.as_mut_ptr(), out.len()) })
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), KvmError> {
        // SAFETY: promise 4; the C side reads no more than `len` bytes.
        outcome(unsafe { kvmi_glue_write_physical(self.0, gpa, data.as_ptr(), data.len()) })
    }

    fn pause_vcpu(&mut self, vcpu: u16, wait: bool) -> Result<(), KvmError> {
        // SAFETY: promise 4; the core checked the index.
        outcome(unsafe { kvmi_glue_pause_vcpu(self.0, vcpu, wait) })
    }

    fn set_page_access(&mut self, view: u16, gfn: u64, access: u8) -> Result<(), KvmError> {
        // SAFETY: promise 4.
        outcome(unsafe { kvmi_glue_set_page_access(self.0, view, gfn, access) })
    }

    fn page_access_set(&mut self) {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_page_access_set(self.0) }
    }

    fn page_access(&mut self, view: u16, gfn: u64) -> Result<u8, KvmError> {
        let mut access = 0;
        // SAFETY: promise 4; `access` outlives the call.
        outcome(unsafe { kvmi_glue_page_access(self.0, view, gfn, &raw mut access) })?;
        Ok(access)
    }

    fn vcpu_state(&mut self, vcpu: u16) -> VcpuRunState {
        let mut state = VcpuRunState::default();
        // SAFETY: promise 4; the core checked the index; `state` outlives the call.
        unsafe { kvmi_glue_vcpu_state(self.0, vcpu, &raw mut state) }
        state
    }

    fn release(&mut self) {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_release(self.0) }
    }

    fn access_bits(&mut self) -> u8 {
        // SAFETY: takes no argument.
        unsafe { kvmi_glue_access_bits() }
    }

    fn singlestep(&mut self) -> bool {
        // SAFETY: takes no argument.
        unsafe { kvmi_glue_singlestep() != 0 }
    }
}

/// The vCPU whose thread this is.
pub(crate) struct ThisVcpu(*mut Vcpu);

impl ThisVcpu {
    /// # Safety
    /// `vcpu` came with the call from C that this value lives in.
    pub(crate) unsafe fn new(vcpu: *mut Vcpu) -> Self {
        Self(vcpu)
    }
}

impl VcpuEffects for ThisVcpu {
    fn index(&mut self) -> u16 {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_vcpu_index(self.0) }
    }

    fn tsc_hz(&mut self) -> u64 {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_tsc_hz(self.0) }
    }

    fn mode(&mut self) -> u8 {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_mode(self.0) }
    }

    fn arch(&mut self, out: &mut [u8; 536]) {
        // SAFETY: promise 4; the C side writes 536 bytes.
        unsafe { kvmi_glue_get_arch(self.0, out.as_mut_ptr()) }
    }

    fn regs(&mut self, out: &mut [u8; 144]) {
        // SAFETY: promise 4; the C side writes 144 bytes.
        unsafe { kvmi_glue_get_regs(self.0, out.as_mut_ptr()) }
    }

    fn sregs(&mut self, out: &mut [u8; 312]) {
        // SAFETY: promise 4; the C side writes 312 bytes.
        unsafe { kvmi_glue_get_sregs(self.0, out.as_mut_ptr()) }
    }

    fn msr(&mut self, index: u32) -> Result<u64, KvmError> {
        let mut value = 0;
        // SAFETY: promise 4; `value` outlives the call.
        outcome(unsafe { kvmi_glue_get_msr(self.0, index, &raw mut value) })?;
        Ok(value)
    }

    fn cpuid(&mut self, function: u32, index: u32) -> Result<[u32; 4], KvmError> {
        let mut regs = [0; 4];
        // SAFETY: promise 4; `regs` outlives the call, which writes no more than it holds.
        outcome(unsafe { kvmi_glue_cpuid(self.0, function, index, regs.as_mut_ptr()) })?;
        Ok(regs)
    }

    fn xcr0(&mut self) -> u64 {
        // SAFETY: promise 4.
        unsafe { kvmi_glue_xcr0(self.0) }
    }

    fn xsave(&mut self, out: &mut [u8; 4096]) -> Result<(), KvmError> {
        // SAFETY: promise 4; the C side writes no more than 4096 bytes.
        outcome(unsafe { kvmi_glue_get_xsave(self.0, out.as_mut_ptr()) })
    }

    fn set_xsave(&mut self, state: &[u8; 4096]) -> Result<(), KvmError> {
        // SAFETY: promise 4; the C side reads no more than 4096 bytes.
        outcome(unsafe { kvmi_glue_set_xsave(self.0, state.as_ptr()) })
    }

    fn control(&mut self) -> Control {
        let mut control = Control::default();
        // SAFETY: promise 4; `control` has the layout of struct kvmi_control and outlives the call.
        unsafe { kvmi_glue_get_control(self.0, &raw mut control) }
        control
    }

    fn read_table(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError> {
        // SAFETY: promise 4; the C side writes no more than `len` bytes.
        outcome(unsafe { kvmi_glue_read_table(self.0, gpa, out.as_mut_ptr(), out.len()) })
    }

    fn msr_write_allowed(&mut self, index: u32) -> Result<(), KvmError> {
        // SAFETY: promise 4.
        outcome(unsafe { kvmi_glue_msr_write_allowed(self.0, index) })
    }

    fn descriptor_exits(&mut self) -> Result<(), KvmError> {
        // SAFETY: takes no argument.
        outcome(unsafe { kvmi_glue_descriptor_exits() })
    }

    fn injection_free(&mut self) -> Result<(), KvmError> {
        // SAFETY: promise 4.
        outcome(unsafe { kvmi_glue_injection_free(self.0) })
    }

    fn breakpoint_free(&mut self) -> Result<(), KvmError> {
        // SAFETY: promise 4.
        outcome(unsafe { kvmi_glue_breakpoint_free(self.0) })
    }

    fn can_singlestep(&mut self) -> bool {
        // SAFETY: takes no argument.
        unsafe { kvmi_glue_singlestep() != 0 }
    }

    fn singlestep_free(&mut self) -> Result<(), KvmError> {
        // SAFETY: promise 4.
        outcome(unsafe { kvmi_glue_singlestep_free(self.0) })
    }
}

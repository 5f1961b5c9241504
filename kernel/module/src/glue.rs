// SPDX-License-Identifier: GPL-2.0-only
//! The C side: `seam.h`, "C, called by Rust".

use kvmi_core::Control;
use kvmi_uapi::VcpuRunState;

use crate::abi::{Session, Vcpu};

unsafe extern "C" {
    pub(crate) fn kvmi_glue_vcpu_count(session: *mut Session) -> u32;
    pub(crate) fn kvmi_glue_vcpu_ready(session: *mut Session, vcpu_idx: u16) -> i32;
    pub(crate) fn kvmi_glue_read_physical(session: *mut Session, gpa: u64, out: *mut u8, len: usize) -> i32;
    pub(crate) fn kvmi_glue_write_physical(session: *mut Session, gpa: u64, data: *const u8, len: usize) -> i32;
    pub(crate) fn kvmi_glue_pause_vcpu(session: *mut Session, vcpu_idx: u16, wait: bool) -> i32;
    pub(crate) fn kvmi_glue_set_page_access(session: *mut Session, view: u16, gfn: u64, access: u8) -> i32;
    pub(crate) fn kvmi_glue_page_access_set(session: *mut Session);
    pub(crate) fn kvmi_glue_page_access(session: *mut Session, view: u16, gfn: u64, access: *mut u8) -> i32;
    pub(crate) fn kvmi_glue_vcpu_state(session: *mut Session, vcpu_idx: u16, out: *mut VcpuRunState);
    pub(crate) fn kvmi_glue_release(session: *mut Session);
    pub(crate) fn kvmi_glue_access_bits() -> u8;
    pub(crate) fn kvmi_glue_singlestep() -> u8;

    pub(crate) fn kvmi_glue_vcpu_index(vcpu: *mut Vcpu) -> u16;
    pub(crate) fn kvmi_glue_tsc_hz(vcpu: *mut Vcpu) -> u64;
    pub(crate) fn kvmi_glue_get_arch(vcpu: *mut Vcpu, out: *mut u8);
    pub(crate) fn kvmi_glue_mode(vcpu: *mut Vcpu) -> u8;
    pub(crate) fn kvmi_glue_get_regs(vcpu: *mut Vcpu, out: *mut u8);
    pub(crate) fn kvmi_glue_get_sregs(vcpu: *mut Vcpu, out: *mut u8);
    pub(crate) fn kvmi_glue_get_msr(vcpu: *mut Vcpu, index: u32, value: *mut u64) -> i32;
    pub(crate) fn kvmi_glue_cpuid(vcpu: *mut Vcpu, function: u32, index: u32, regs: *mut u32) -> i32;
    pub(crate) fn kvmi_glue_xcr0(vcpu: *mut Vcpu) -> u64;
    pub(crate) fn kvmi_glue_get_xsave(vcpu: *mut Vcpu, out: *mut u8) -> i32;
    pub(crate) fn kvmi_glue_set_xsave(vcpu: *mut Vcpu, state: *const u8) -> i32;
    pub(crate) fn kvmi_glue_get_control(vcpu: *mut Vcpu, out: *mut Control);
    pub(crate) fn kvmi_glue_read_table(vcpu: *mut Vcpu, gpa: u64, out: *mut u8, len: usize) -> i32;
    pub(crate) fn kvmi_glue_guest_gpa(vcpu: *mut Vcpu, gpa: u64) -> u64;
    pub(crate) fn kvmi_glue_msr_write_allowed(vcpu: *mut Vcpu, index: u32) -> i32;
    pub(crate) fn kvmi_glue_descriptor_exits() -> i32;
    pub(crate) fn kvmi_glue_injection_free(vcpu: *mut Vcpu) -> i32;
    pub(crate) fn kvmi_glue_breakpoint_free(vcpu: *mut Vcpu) -> i32;
    pub(crate) fn kvmi_glue_singlestep_free(vcpu: *mut Vcpu) -> i32;
    pub(crate) fn kvmi_glue_intercepts_changed(vcpu: *mut Vcpu);
}

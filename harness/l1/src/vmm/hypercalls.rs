// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other hypervisors' hypercalls.

#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{CpuId, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, kvm_xen_hvm_config};
use kvm_ioctls::VmFd;
use kvmi_lab_scenarios::vmm::Refusal;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::Refused;
use rustix::io::Errno;

/// `KVM_XEN_HVM_CONFIG`: `_IOW(KVMIO, 0x7a, struct kvm_xen_hvm_config)`, which kvm-ioctls does not have.
const XEN_HVM_CONFIG: u64 = 0x4038_ae7a;

/// The leaf that names the hypervisor's interface, and Hyper-V's name.
const INTERFACE: u32 = 0x4000_0001;
const HYPERV: u32 = u32::from_le_bytes(*b"Hv#1");

/// Has each hypercall of the guest come to the VMM as one of Xen's.
pub(super) fn as_xen(vm: &VmFd) -> Result<(), Refusal> {
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
        // Where a guest would ask for its page of hypercalls.
        msr: 0x4000_0000,
        ..Default::default()
    };
    const { assert!(size_of::<kvm_xen_hvm_config>() == 56) };
    // SAFETY: the kernel reads the 56 bytes of the argument and keeps no pointer to them.
    let outcome = unsafe { ioctl_with_ref(vm, XEN_HVM_CONFIG, &config) };
    let errno = || Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO);
    (outcome == 0)
        .then_some(())
        .ok_or_else(errno)
        .refused("KVM_XEN_HVM_CONFIG")
}

/// Calls the hypervisor Hyper-V.
pub(super) fn as_hyperv(cpuid: &mut CpuId) {
    for leaf in cpuid.as_mut_slice() {
        if leaf.function == INTERFACE {
            leaf.eax = HYPERV;
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether KVM here could carry a lane. That it exists and makes VMs proves nothing; that a CPU's extension can be nested is the first
//! thing that says something, and even then only a guest that runs would prove it.

use std::fmt;
use std::path::Path;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};

/// How far the probe came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hardware {
    NoDevice(String),
    NoVm(String),
    NoNesting,
    Nests(&'static str),
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice(why) => write!(f, "not here: /dev/kvm does not open: {why}"),
            Self::NoVm(why) => write!(f, "not here: KVM makes no VM: {why}"),
            Self::NoNesting => f.write_str("not here: KVM offers guests neither VMX nor SVM"),
            Self::Nests(extension) => write!(f, "KVM offers guests {extension}; no lane uses it yet"),
        }
    }
}

/// Looks, in the order in which each step says more than the one before.
pub(crate) fn probe(device: &Path) -> Hardware {
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open(device) {
        return Hardware::NoDevice(e.to_string());
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return Hardware::NoDevice(e.to_string()),
    };
    if let Err(e) = kvm.create_vm() {
        return Hardware::NoVm(e.to_string());
    }
    if !kvm.check_extension(Cap::ExtCpuid) {
        return Hardware::NoNesting;
    }
    let Ok(cpuid) = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) else {
        return Hardware::NoNesting;
    };
    let has = |function: u32, bit: u32| {
        cpuid
            .as_slice()
            .iter()
            .any(|e| e.function == function && e.ecx & (1 << bit) != 0)
    };
    if has(1, 5) {
        Hardware::Nests("VMX")
    } else if has(0x8000_0001, 2) {
        Hardware::Nests("SVM")
    } else {
        Hardware::NoNesting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_device_is_no_error() {
        assert!(matches!(probe(Path::new("/no/such/device")), Hardware::NoDevice(_)));
    }
}

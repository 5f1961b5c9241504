// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's statistics of a vCPU, by `KVM_GET_STATS_FD`.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::VcpuFd;
use kvmi_lab_scenarios::vmm::Refusal;
use vmm_sys_util::ioctl::ioctl;

use super::refuse;

/// `KVM_GET_STATS_FD`: `_IO(KVMIO, 0xce)`, which kvm-ioctls does not have.
const GET_STATS_FD: u64 = 0xaece;

/// How often a vCPU has left the guest.
pub(super) struct Exits {
    file: File,
    /// Where the number lies in the file.
    at: u64,
}

impl Exits {
    /// Finds the number; the vCPU may run afterwards.
    pub(super) fn of(vcpu: &VcpuFd) -> Result<Self, Refusal> {
        // SAFETY: the request has no argument.
        let fd = unsafe { ioctl(vcpu, GET_STATS_FD) };
        if fd < 0 {
            return Err(refuse(format!("KVM_GET_STATS_FD: {}", io::Error::last_os_error())));
        }
        // SAFETY: the kernel made this descriptor for us.
        let file = unsafe { File::from_raw_fd(fd) };
        let at = find(&file, "exits").map_err(|e| refuse(format!("read a vCPU's statistics: {e}")))?;
        Ok(Self { file, at })
    }

    /// The number now.
    pub(super) fn count(&self) -> Result<u64, Refusal> {
        let mut bytes = [0; 8];
        self.file
            .read_exact_at(&mut bytes, self.at)
            .map_err(|e| refuse(format!("read a vCPU's exits: {e}")))?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// Four bytes at an offset.
fn word(file: &File, at: usize) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, at as u64)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Where the value of this name lies.
fn find(file: &File, wanted: &str) -> io::Result<u64> {
    let header = |at| word(file, at);
    let name_bytes = header(std::mem::offset_of!(kvm_stats_header, name_size))? as usize;
    let count = header(std::mem::offset_of!(kvm_stats_header, num_desc))? as usize;
    let first = header(std::mem::offset_of!(kvm_stats_header, desc_offset))? as usize;
    let data = header(std::mem::offset_of!(kvm_stats_header, data_offset))?;
    for n in 0..count {
        let at = first + n * (size_of::<kvm_stats_desc>() + name_bytes);
        let mut name = vec![0; name_bytes];
        file.read_exact_at(&mut name, (at + size_of::<kvm_stats_desc>()) as u64)?;
        if CStr::from_bytes_until_nul(&name).is_ok_and(|name| name.to_bytes() == wanted.as_bytes()) {
            let offset = word(file, at + std::mem::offset_of!(kvm_stats_desc, offset))?;
            return Ok(u64::from(data) + u64::from(offset));
        }
    }
    Err(io::Error::other(format!("KVM counts no `{wanted}`")))
}

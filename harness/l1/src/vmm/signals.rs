// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking a vCPU thread out of `KVM_RUN`: SIGUSR1 is blocked in the thread except within `KVM_RUN`, so that none is lost however early it
//! comes, and each one ends exactly one `KVM_RUN` with `EINTR`.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl};
use vmm_sys_util::signal::{block_signal, clear_signal};

/// The signal.
pub(super) const KICK: i32 = 10;

/// `KVM_SET_SIGNAL_MASK`: `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, whose size without its flexible tail is 4.
const SET_SIGNAL_MASK: u32 = 0x4004_ae8b;

/// `struct kvm_signal_mask` with the kernel's 8-byte signal set.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    sigset: [u8; 8],
}

/// Blocks the signal in this thread.
pub(super) fn block_kick() -> Result<(), Errno> {
    block_signal(KICK).map_err(|_| Errno::INVAL)
}

/// Lets `KVM_RUN` of this vCPU run with every signal unblocked.
pub(super) fn unblock_in_kvm_run(vcpu: &impl AsRawFd) -> Result<(), Errno> {
    let mask = SignalMask { len: 8, sigset: [0; 8] };
    // SAFETY: the descriptor is the vCPU's, which its owner keeps open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    // SAFETY: the kernel reads the 12 bytes of the mask and keeps no pointer to them.
    unsafe { ioctl(fd, Setter::<SET_SIGNAL_MASK, _>::new(mask)) }
}

/// Takes a pending signal away, after `KVM_RUN` returned because of it.
pub(super) fn take_kick() {
    // There is nothing to do about a failure but to see EINTR once more, which the scenario's count shows.
    let _ = clear_signal(KICK);
}

/// L1's time stamp counter.
pub(super) fn time_stamp() -> u64 {
    // SAFETY: every CPU on which KVM runs has RDTSC, and Linux lets user space execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

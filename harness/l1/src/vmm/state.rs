// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls by which a VMM writes a vCPU's state, most with what was there before.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_interrupt, kvm_mp_state, kvm_regs};
use kvm_ioctls::{KvmNestedStateBuffer, SyncReg, VcpuFd};
use kvmi_lab_scenarios::vmm::{Refusal, VcpuWrite};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl};

use super::Refused;

/// `KVM_INTERRUPT`: `_IOW(KVMIO, 0x86, struct kvm_interrupt)`, which kvm-ioctls does not have.
const INTERRUPT: u32 = 0x4004_ae86;

/// Writes the state of a vCPU that is out of `KVM_RUN`.
pub(super) fn write(vcpu: &mut VcpuFd, by: VcpuWrite) -> Result<(), Refusal> {
    match by {
        VcpuWrite::Regs => {
            let regs = vcpu.get_regs().refused("KVM_GET_REGS")?;
            vcpu.set_regs(&regs).refused("KVM_SET_REGS")
        }
        VcpuWrite::Sregs => {
            let sregs = vcpu.get_sregs().refused("KVM_GET_SREGS")?;
            vcpu.set_sregs(&sregs).refused("KVM_SET_SREGS")
        }
        VcpuWrite::DirtyRegs => {
            vcpu.sync_regs_mut().regs = vcpu.get_regs().refused("KVM_GET_REGS")?;
            vcpu.set_sync_dirty_reg(SyncReg::Register);
            Ok(())
        }
        VcpuWrite::Events => {
            let events = vcpu.get_vcpu_events().refused("KVM_GET_VCPU_EVENTS")?;
            vcpu.set_vcpu_events(&events).refused("KVM_SET_VCPU_EVENTS")
        }
        VcpuWrite::MpState => {
            let state = vcpu.get_mp_state().refused("KVM_GET_MP_STATE")?;
            vcpu.set_mp_state(state).refused("KVM_SET_MP_STATE")
        }
        VcpuWrite::NestedState => {
            let mut state = KvmNestedStateBuffer::empty();
            vcpu.nested_state(&mut state).refused("KVM_GET_NESTED_STATE")?;
            vcpu.set_nested_state(&state).refused("KVM_SET_NESTED_STATE")
        }
        VcpuWrite::ChangedRegs => {
            let regs = other_regs(vcpu)?;
            vcpu.set_regs(&regs).refused("KVM_SET_REGS")
        }
        VcpuWrite::ChangedSregs => {
            let mut sregs = vcpu.get_sregs().refused("KVM_GET_SREGS")?;
            sregs.cr2 ^= 0x1000;
            vcpu.set_sregs(&sregs).refused("KVM_SET_SREGS")
        }
        VcpuWrite::ChangedDirtyRegs => {
            vcpu.sync_regs_mut().regs = other_regs(vcpu)?;
            vcpu.set_sync_dirty_reg(SyncReg::Register);
            Ok(())
        }
        VcpuWrite::ChangedEvents => {
            let mut events = vcpu.get_vcpu_events().refused("KVM_GET_VCPU_EVENTS")?;
            events.nmi.masked ^= 1;
            vcpu.set_vcpu_events(&events).refused("KVM_SET_VCPU_EVENTS")
        }
        VcpuWrite::ChangedMpState => {
            let halted = kvm_mp_state {
                mp_state: KVM_MP_STATE_HALTED,
            };
            vcpu.set_mp_state(halted).refused("KVM_SET_MP_STATE")
        }
        VcpuWrite::InjectedInterrupt(vector) => {
            let mut events = vcpu.get_vcpu_events().refused("KVM_GET_VCPU_EVENTS")?;
            (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, 0);
            vcpu.set_vcpu_events(&events).refused("KVM_SET_VCPU_EVENTS")
        }
        VcpuWrite::InjectedNmi => {
            let mut events = vcpu.get_vcpu_events().refused("KVM_GET_VCPU_EVENTS")?;
            events.nmi.injected = 1;
            vcpu.set_vcpu_events(&events).refused("KVM_SET_VCPU_EVENTS")
        }
        VcpuWrite::PendingException(vector) => {
            let mut events = vcpu.get_vcpu_events().refused("KVM_GET_VCPU_EVENTS")?;
            // Without the capability for pending ones, an exception to be delivered is one that is injected.
            (
                events.exception.injected,
                events.exception.nr,
                events.exception.has_error_code,
            ) = (1, vector, 0);
            vcpu.set_vcpu_events(&events).refused("KVM_SET_VCPU_EVENTS")
        }
        VcpuWrite::Interrupt(vector) => interrupt(vcpu, vector).refused("KVM_INTERRUPT"),
        VcpuWrite::Smi => vcpu.smi().refused("KVM_SMI"),
        VcpuWrite::Nmi => vcpu.nmi().refused("KVM_NMI"),
    }
}

/// Its registers, but for a flag that changes nothing else.
fn other_regs(vcpu: &VcpuFd) -> Result<kvm_regs, Refusal> {
    const ID: u64 = 1 << 21;
    let mut regs = vcpu.get_regs().refused("KVM_GET_REGS")?;
    regs.rflags ^= ID;
    Ok(regs)
}

/// `KVM_INTERRUPT`.
pub(super) fn interrupt(vcpu: &VcpuFd, vector: u32) -> Result<(), Errno> {
    // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    // SAFETY: the kernel reads the 4 bytes of the argument and keeps no pointer to them.
    unsafe { ioctl(fd, Setter::<INTERRUPT, _>::new(kvm_interrupt { irq: vector })) }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory: the mapping of RAM, its slot, the read-only slot.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use kvmi_guests::layout;
use kvmi_lab_scenarios::unserved_memory::Withheld;
use kvmi_lab_scenarios::vmm::{Advice, Refusal};
use rustix::mm::{MprotectFlags, mprotect};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use super::{Refused, refuse};

/// Slot number of RAM.
pub(super) const RAM_SLOT: u32 = 0;
const READ_ONLY_SLOT: u32 = 1;
/// Slot number of the first that a scenario asked for.
const FIRST_MORE_SLOT: u32 = 2;

const PAGE_BYTES: usize = 4096;
/// Not in `libc` for this target.
const MADV_COLLAPSE: i32 = 25;

/// What a scenario finds in the read-only slot.
const READ_ONLY_BYTE: u8 = 0xa5;

/// A VM's memory. Dropped after the VM.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) ram: GuestMemoryMmap,
    read_only: Option<GuestMemoryMmap>,
    withheld: Option<Withheld>,
    more: Vec<GuestMemoryMmap>,
}

impl Slots {
    pub(super) fn new(ram: OwnedFd) -> Result<Self, Refusal> {
        let range = (
            GuestAddress(0),
            layout::RAM_BYTES as usize,
            Some(FileOffset::new(File::from(ram), 0)),
        );
        let ram =
            GuestMemoryMmap::from_ranges_with_files([range]).map_err(|e| refuse(format!("map guest RAM: {e}")))?;
        Ok(Self {
            ram,
            read_only: None,
            withheld: None,
            more: Vec::new(),
        })
    }

    pub(super) fn set_ram(&self, vm: &VmFd, log_dirty: bool) -> Result<(), Refusal> {
        let flags = if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        set(vm, RAM_SLOT, flags, 0, layout::RAM_BYTES, &self.ram)
    }

    pub(super) fn remake_ram(&self, vm: &VmFd) -> Result<(), Refusal> {
        set(vm, RAM_SLOT, 0, 0, 0, &self.ram)?;
        self.set_ram(vm, false)
    }

    /// RAM as SMM sees it: the same, in KVM's second address space.
    pub(super) fn show_ram_to_smm(&self, vm: &VmFd) -> Result<(), Refusal> {
        set(vm, RAM_SLOT | 1 << 16, 0, 0, layout::RAM_BYTES, &self.ram)
    }

    pub(super) fn add(&mut self, vm: &VmFd, gpa: u64, bytes: u64) -> Result<(), Refusal> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(gpa), bytes as usize)])
            .map_err(|e| refuse(format!("map {bytes} bytes for a slot: {e}")))?;
        set(vm, FIRST_MORE_SLOT + self.more.len() as u32, 0, gpa, bytes, &memory)?;
        self.more.push(memory);
        Ok(())
    }

    pub(super) fn delete(&self, vm: &VmFd, gpa: u64) -> Result<(), Refusal> {
        let (slot, memory) = self.added(gpa)?;
        set(vm, slot, 0, gpa, 0, memory)
    }

    /// The slot that a scenario asked for and that this address lies in.
    fn added(&self, gpa: u64) -> Result<(u32, &GuestMemoryMmap), Refusal> {
        // The latest: of those before it at the same place the slot is gone already.
        let lies_there = |memory: &&GuestMemoryMmap| memory.get_host_address(GuestAddress(gpa)).is_ok();
        let slot = (FIRST_MORE_SLOT..)
            .zip(&self.more)
            .filter(|(_, memory)| lies_there(memory))
            .last();
        slot.ok_or_else(|| refuse(format!("no slot at {gpa:#x}")))
    }

    pub(super) fn host_address(&self, gpa: u64) -> Result<u64, Refusal> {
        let (_, memory) = self.added(gpa)?;
        let slice = memory
            .get_slice(GuestAddress(gpa), PAGE_BYTES)
            .map_err(|e| refuse(format!("gpa {gpa:#x}: {e}")))?;
        Ok(slice.ptr_guard().as_ptr() as u64)
    }

    pub(super) fn advise(&self, gpa: u64, bytes: u64, advice: Advice) -> Result<(), Refusal> {
        let (_, memory) = self.added(gpa)?;
        let slice = memory
            .get_slice(GuestAddress(gpa), bytes as usize)
            .map_err(|e| refuse(format!("gpa {gpa:#x}: {e}")))?;
        let number = match advice {
            Advice::Mergeable => libc::MADV_MERGEABLE,
            Advice::Collapse => MADV_COLLAPSE,
            Advice::SoftOffline => libc::MADV_SOFT_OFFLINE,
        };
        let start = slice.ptr_guard_mut();
        // SAFETY: the memory is mapped for as long as `slice` is there, and none of these changes what is in it.
        if unsafe { libc::madvise(start.as_ptr().cast(), slice.len(), number) } == 0 {
            return Ok(());
        }
        Err(Refusal {
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            what: format!("madvise {advice:?} of {bytes} bytes at {gpa:#x}"),
        })
    }

    fn last(&self) -> Result<&GuestRegionMmap, Refusal> {
        let last = self.more.last().and_then(|memory| memory.iter().next());
        last.ok_or_else(|| refuse("no slot was added"))
    }

    pub(super) fn withhold(&mut self) -> Result<(), Refusal> {
        let region = self.last()?;
        // SAFETY: the mapping is this region's own and lives in `more`, which is dropped after `withheld`; KVM alone touches it.
        let withheld = unsafe { Withheld::new(region.as_ptr() as usize, region.size()) };
        self.withheld = Some(withheld.refused("userfaultfd")?);
        Ok(())
    }

    pub(super) fn wait_for_fault(&self) -> Result<(), Refusal> {
        let withheld = self.withheld.as_ref().ok_or_else(|| refuse("no slot is withheld"))?;
        withheld.wait_for_fault().refused("poll")
    }

    pub(super) fn serve(&mut self) {
        self.withheld = None;
    }

    pub(super) fn hide(&self) -> Result<(), Refusal> {
        let region = self.last()?;
        // SAFETY: the mapping is this region's own, and nothing but KVM, which copes, reads or writes it.
        unsafe { mprotect(region.as_ptr().cast(), region.size(), MprotectFlags::empty()) }.refused("mprotect")
    }

    pub(super) fn add_read_only(&mut self, vm: &VmFd, bytes: u64) -> Result<(), Refusal> {
        let gpa = layout::READ_ONLY_SLOT;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(gpa), bytes as usize)])
            .map_err(|e| refuse(format!("map the read-only slot: {e}")))?;
        memory
            .write_slice(&vec![READ_ONLY_BYTE; bytes as usize], GuestAddress(gpa))
            .map_err(|e| refuse(format!("fill the read-only slot: {e}")))?;
        set(vm, READ_ONLY_SLOT, KVM_MEM_READONLY, gpa, bytes, &memory)?;
        self.read_only = Some(memory);
        Ok(())
    }
}

fn set(vm: &VmFd, slot: u32, flags: u32, gpa: u64, bytes: u64, memory: &GuestMemoryMmap) -> Result<(), Refusal> {
    let address = memory
        .get_host_address(GuestAddress(gpa))
        .map_err(|e| refuse(format!("gpa {gpa:#x}: {e}")))?;
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: address as u64,
    };
    // SAFETY: the mapping is `bytes` long and lives in `Slots`, which the machine drops after the VM.
    unsafe { vm.set_user_memory_region(region) }.refused("KVM_SET_USER_MEMORY_REGION")
}

/// The VM's descriptor, for ioctls that kvm-ioctls does not have.
pub(super) fn borrow(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `vm` is borrowed.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

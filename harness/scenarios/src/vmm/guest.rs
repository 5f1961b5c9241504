// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's memory as a scenario sees it: the same pages, mapped a second time, so that it can be read while and after the VMM dies.

use std::fs::File;
use std::sync::atomic::Ordering::{Acquire, Release};

use kvmi_guests::{Slot, layout};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::Failure;

/// The guest's RAM and the mailbox in it.
#[derive(Debug)]
pub struct Guest {
    memory: GuestMemoryMmap,
    file: File,
}

/// Names a field of the slot, for [`Guest::field`].
macro_rules! field {
    ($name:ident) => {
        std::mem::offset_of!(kvmi_guests::Slot, $name)
    };
}
pub(crate) use field;

impl Guest {
    /// Makes RAM of zeros.
    pub(super) fn new() -> Result<Self, Failure> {
        let file = File::from(memfd_create("guest-ram", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, layout::RAM_BYTES)?;
        let range = (
            GuestAddress(0),
            layout::RAM_BYTES as usize,
            Some(FileOffset::new(file.try_clone()?, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range])?;
        Ok(Self { memory, file })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// A field of a vCPU's slot; `offset` from `field!`.
    ///
    /// # Errors
    ///
    /// A vCPU whose slot is not in RAM.
    pub fn field(&self, vcpu: usize, offset: usize) -> Result<u64, Failure> {
        Ok(self.memory.load(GuestAddress(Slot::field_gpa(vcpu, offset)), Acquire)?)
    }

    /// Sets a field of a vCPU's slot.
    ///
    /// # Errors
    ///
    /// As [`Guest::field`].
    pub fn set_field(&self, vcpu: usize, offset: usize, value: u64) -> Result<(), Failure> {
        Ok(self
            .memory
            .store(value, GuestAddress(Slot::field_gpa(vcpu, offset)), Release)?)
    }

    /// Writes a command into a vCPU's slot, without ringing; returns its number.
    pub(super) fn command(&self, vcpu: usize, op: u64, args: [u64; 4]) -> Result<u64, Failure> {
        self.set_field(vcpu, field!(op), op)?;
        for (i, arg) in args.into_iter().enumerate() {
            self.set_field(vcpu, field!(args) + 8 * i, arg)?;
        }
        let number = self.field(vcpu, field!(rung))? + 1;
        self.set_field(vcpu, field!(rung), number)?;
        Ok(number)
    }

    /// Copies memory out.
    ///
    /// # Errors
    ///
    /// An address outside of RAM.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        Ok(self.memory.read_slice(bytes, GuestAddress(gpa))?)
    }

    /// Copies into memory.
    ///
    /// # Errors
    ///
    /// As [`Guest::read`].
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.memory.write_slice(bytes, GuestAddress(gpa))?)
    }
}

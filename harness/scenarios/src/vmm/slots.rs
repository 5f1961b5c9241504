// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VM's memory slots, by its VMM.

use super::Vm;
use super::request::{Advice, Answer, Request};
use crate::Failure;

impl Vm {
    /// Turns dirty logging of RAM on or off.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn log_dirty(&self, on: bool) -> Result<(), Failure> {
        self.done(&Request::LogDirty { on })
    }

    /// The gfns of RAM that were written since the last call.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, or dirty logging that is off.
    pub fn dirty_gfns(&self) -> Result<Vec<u64>, Failure> {
        match self.ask(&Request::DirtyLog)? {
            Ok(Answer::Words(words)) => Ok((0u64..)
                .zip(words)
                .flat_map(|(i, word)| {
                    (0..64)
                        .filter(move |bit| word >> bit & 1 == 1)
                        .map(move |bit| i * 64 + bit)
                })
                .collect()),
            other => Err(Failure::new(format!("no dirty log: {other:?}"))),
        }
    }

    /// Maps the read-only slot.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn add_read_only_slot(&self, bytes: u64) -> Result<(), Failure> {
        self.done(&Request::AddReadOnlySlot { bytes })
    }

    /// Maps a slot of anonymous memory.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn add_slot(&self, gpa: u64, bytes: u64) -> Result<(), Failure> {
        self.done(&Request::AddSlot { gpa, bytes })
    }

    /// Deletes a slot of anonymous memory.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, or no such slot.
    pub fn delete_slot(&self, gpa: u64) -> Result<(), Failure> {
        self.done(&Request::DeleteSlot { gpa })
    }

    /// Leaves the slot that was added last without memory that could be read or written.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, or no such slot.
    pub fn hide_slot(&self) -> Result<(), Failure> {
        self.done(&Request::HideSlot)
    }

    /// Withholds the memory of the slot that was added last, which nobody has touched: who touches it stands still.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, or no such slot.
    pub fn withhold_slot(&self) -> Result<(), Failure> {
        self.done(&Request::WithholdSlot)
    }

    /// Waits until somebody stands still there.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, or no slot that is withheld.
    pub fn wait_for_fault(&self) -> Result<(), Failure> {
        self.done(&Request::WaitForFault)
    }

    /// Serves what stands still there.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn serve_slot(&self) -> Result<(), Failure> {
        self.done(&Request::ServeSlot)
    }

    /// Has L1's kernel do something with memory of a slot of anonymous memory.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, no such slot, or a kernel that does not.
    pub fn advise(&self, gpa: u64, bytes: u64, advice: Advice) -> Result<(), Failure> {
        self.done(&Request::Advise { gpa, bytes, advice })
    }

    /// Deletes the slot of RAM and makes it again; all vCPUs are out.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn remake_ram(&self) -> Result<(), Failure> {
        self.done(&Request::RemakeRam)
    }

    /// Lets a vCPU in SMM see RAM.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn show_ram_to_smm(&self) -> Result<(), Failure> {
        self.done(&Request::ShowRamToSmm)
    }
}

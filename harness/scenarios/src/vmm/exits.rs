// SPDX-License-Identifier: MIT OR Apache-2.0
//! What makes a guest exit, by the VMM's own wish, and how often it does.

use super::Vm;
use super::request::{Answer, Request};
use crate::Failure;

impl Vm {
    /// How often a vCPU has left the guest.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn exits(&self, vcpu: usize) -> Result<u64, Failure> {
        match self.ask(&Request::Exits { vcpu })? {
            Ok(Answer::Number(exits)) => Ok(exits.try_into()?),
            other => Err(Failure::new(format!("no exits of vCPU {vcpu}: {other:?}"))),
        }
    }

    /// Denies the guest writes of one MSR, or of none any more.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn deny_msr_write(&self, msr: Option<u32>) -> Result<(), Failure> {
        self.done(&Request::DenyMsrWrite { msr })
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions that a guest takes on vCPU 0 and goes on after.

use super::{Vm, field};
use crate::{Context, Failure};

/// What the guest has noted of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) vector: u64,
    /// 0 for one without.
    pub(crate) error_code: u64,
    pub(crate) cr2: u64,
    /// What it has pushed.
    pub(crate) rip: u64,
}

impl Vm {
    /// Has the guest take exceptions of these vectors, note them and go on.
    pub(crate) fn tolerate(&self, vectors: &[u64]) -> Result<(), Failure> {
        let mask = vectors.iter().fold(0, |mask, vector| mask | 1 << vector);
        self.guest.set_field(0, field!(tolerated), mask)
    }

    /// How many of those it has taken. Fails if it has taken another one.
    pub(crate) fn exceptions(&self) -> Result<u64, Failure> {
        self.no_exception(0)?;
        self.guest.field(0, field!(exceptions))
    }

    /// Waits until it has taken so many.
    pub(crate) fn wait_for_exceptions(&self, context: &Context, count: u64) -> Result<(), Failure> {
        context.wait_for("the guest to take its exception", || Ok(self.exceptions()? == count))
    }

    /// The last of them.
    pub(crate) fn exception(&self) -> Result<Taken, Failure> {
        let field = |field| self.guest.field(0, field);
        Ok(Taken {
            vector: field(field!(exception))?,
            error_code: field(field!(exception_error_code))?,
            cr2: field(field!(exception_cr2))?,
            rip: field(field!(exception_rip))?,
        })
    }
}

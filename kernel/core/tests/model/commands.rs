// SPDX-License-Identifier: GPL-2.0-only
//! Section 4 of docs/protocol.md as a table: what each command looks like, checks and does. A new command gets a row.

mod vcpu;
mod vcpu_control;
mod vcpu_query;
mod vm;

use std::collections::BTreeSet;

use kvmi_uapi::error::EINVAL;
use proptest::prelude::*;

use crate::spec::Spec;

/// A command that this kernel carries out.
pub(crate) struct Command {
    pub(crate) id: u16,
    pub(crate) name: &'static str,
    /// How often it is sent.
    pub(crate) weight: u32,
    /// Bytes of the request's structure.
    pub(crate) bytes: usize,
    /// Requests, most of them good; what they lack of the structure is zero.
    pub(crate) request: fn() -> BoxedStrategy<Vec<u8>>,
    /// Offsets of padding.
    pub(crate) pads: &'static [usize],
    /// What it may answer beside 0, dispatch (3.5) apart. Each has to occur.
    pub(crate) errors: &'static [i32],
    pub(crate) run: Run,
}

/// Who carries it out. What comes out is the reply's data.
pub(crate) enum Run {
    Vm(fn(&mut Spec, &Request<'_>) -> Result<Vec<u8>, Refusal>),
    Vcpu(fn(&mut Spec, usize, &Request<'_>) -> Result<Vec<u8>, Refusal>),
}

/// How a command fails.
pub(crate) enum Refusal {
    Error(i32),
    Close,
}

/// A request as its structure: beyond its end there are zeroes (3.2).
pub(crate) struct Request<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) pads: &'static [usize],
}

impl Request<'_> {
    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at + 1)])
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    /// EINVAL for padding that is not zero.
    fn padding(&self) -> Result<(), Refusal> {
        refuse_if(self.has_padding(), EINVAL)
    }

    pub(crate) fn has_padding(&self) -> bool {
        self.pads.iter().any(|at| self.u8(*at) != 0)
    }
}

fn refuse_if(is_bad: bool, err: i32) -> Result<(), Refusal> {
    if is_bad { Err(Refusal::Error(err)) } else { Ok(()) }
}

/// Switches one of a set on or off.
pub(crate) fn switch_on<T: Ord>(set: &mut BTreeSet<T>, which: T, on: bool) {
    if on {
        set.insert(which);
    } else {
        set.remove(&which);
    }
}

const DONE: Result<Vec<u8>, Refusal> = Ok(Vec::new());

fn nothing() -> BoxedStrategy<Vec<u8>> {
    Just(Vec::new()).boxed()
}

/// On, off, and what is neither.
fn switch() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0u8..2, 1 => any::<u8>()]
}

fn command_id() -> impl Strategy<Value = u16> {
    let known: Vec<u16> = Command::all().map(|command| command.id).collect();
    prop_oneof![6 => proptest::sample::select(known), 2 => 0u16..40, 1 => any::<u16>()]
}

fn event_id() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0u16..22, 1 => any::<u16>()]
}

impl Command {
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        vm::COMMANDS
            .iter()
            .chain(vcpu::COMMANDS)
            .chain(vcpu_query::COMMANDS)
            .chain(vcpu_control::COMMANDS)
    }

    pub(crate) fn by_id(id: u16) -> Option<&'static Self> {
        Self::all().find(|command| command.id == id)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU is to tell, and whether it was let.

use std::ops::RangeInclusive;

use kvmi::command::{Command, ControlCr, ControlEvents, ControlMsr, ControlSinglestep};
use kvmi::{Error, KvmError, Pending, Session, event};

/// The events that a vCPU is to tell.
const EVENTS: &[u16] = &[
    event::HYPERCALL,
    event::BREAKPOINT,
    event::CR,
    event::XSETBV,
    event::DESCRIPTOR,
    event::MSR,
    event::PF,
];

/// The MSRs that it is to tell of: those by which systems are set up, those of the TSC, of memory types and of the local APIC (x2APIC).
const MSRS: &[RangeInclusive<u32>] = &[
    0x10..=0x10,
    0x1b..=0x1b,
    0x3a..=0x3b,
    0x48..=0x48,
    0x174..=0x176,
    0x1a0..=0x1a0,
    0x1d9..=0x1d9,
    0x277..=0x277,
    0x2ff..=0x2ff,
    0x6e0..=0x6e0,
    0x800..=0x83f,
    0xda0..=0xda0,
    0xc000_0080..=0xc000_0084,
    0xc000_0100..=0xc000_0103,
];

/// Commands whose replies have not been looked at.
#[derive(Default)]
pub(super) struct Watches {
    events: Vec<Pending<ControlEvents>>,
    crs: Vec<Pending<ControlCr>>,
    msrs: Vec<Pending<ControlMsr>>,
    steps: Vec<Pending<ControlSinglestep>>,
}

impl Watches {
    /// Has a vCPU tell everything from the next instruction on; false where it takes no command yet.
    pub(super) fn begin(&mut self, session: &Session, vcpu: u16, steps: bool) -> Result<bool, Error> {
        let enable = true;
        let first = session.submit(ControlCr { vcpu, cr: 0, enable })?;
        // Answered when what was sent before has been refused or queued.
        session.vcpu_count()?;
        match first.poll() {
            Ok(Ok(())) => {}
            Ok(Err(waits)) => self.crs.push(waits),
            Err(Error::Kernel {
                error: KvmError::TryAgain,
                ..
            }) => return Ok(false),
            Err(e) => return Err(e),
        }
        for cr in [3, 4] {
            self.crs.push(session.submit(ControlCr { vcpu, cr, enable })?);
        }
        for msr in MSRS.iter().cloned().flatten() {
            self.msrs.push(session.submit(ControlMsr { vcpu, msr, enable })?);
        }
        for &event in EVENTS {
            self.events.push(session.submit(ControlEvents { vcpu, event, enable })?);
        }
        if steps {
            // Tests that send interrupts wait for them, which would never come.
            let interrupts = true;
            self.steps.push(session.submit(ControlSinglestep {
                vcpu,
                enable,
                interrupts,
            })?);
        }
        session.vcpu_count()?;
        Ok(true)
    }

    /// What was refused that should not have been.
    pub(super) fn errors(self) -> Vec<String> {
        let mut errors = Vec::new();
        // The VMM debugs the guest with breakpoints of its own; a CPU that cannot tell.
        let of_events = |e| matches!(e, KvmError::Busy | KvmError::NotSupported);
        self.events.into_iter().for_each(|p| look(p, of_events, &mut errors));
        self.crs.into_iter().for_each(|p| look(p, |_| false, &mut errors));
        // The VMM denies the guest to write it.
        let of_msrs = |e| matches!(e, KvmError::NotPermitted);
        self.msrs.into_iter().for_each(|p| look(p, of_msrs, &mut errors));
        // The VMM steps it.
        let of_steps = |e| matches!(e, KvmError::Busy);
        self.steps.into_iter().for_each(|p| look(p, of_steps, &mut errors));
        errors
    }
}

/// Looks at a reply, if there was one before the VM's end.
fn look<C: Command>(pending: Pending<C>, may_be: impl Fn(KvmError) -> bool, errors: &mut Vec<String>) {
    match pending.poll() {
        Err(Error::Kernel { error, .. }) if may_be(error) => {}
        Ok(_) | Err(Error::Closed(_)) => {}
        Err(e) => errors.push(e.to_string()),
    }
}

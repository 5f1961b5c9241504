// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single-step: each instruction is told, once, where the guest itself says that it is; the guest does not notice.

mod control;
mod end;
mod instructions;
mod interrupts;
mod protected;

use std::time::Duration;

use kvmi::command::ControlSinglestep;
use kvmi_guests::{Op, Routine};
use kvmi_lab_control::Backend;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, SINGLESTEP, Singlestep};

use crate::vmm::{Vm, VmConfig, field};
use crate::wire::{Answer, Event, Wire};
use crate::{Context, Failure, Scenario, check, check_eq};

pub(crate) fn scenarios() -> Vec<Scenario> {
    [
        instructions::SCENARIOS,
        interrupts::SCENARIOS,
        protected::SCENARIOS,
        control::SCENARIOS,
        end::SCENARIOS,
    ]
    .concat()
}

const TRAP_FLAG: u64 = 1 << 8;

impl Wire {
    /// VCPU_CONTROL_SINGLESTEP.
    fn control_singlestep(&mut self, vcpu: u16, enable: bool) -> Result<Answer, Failure> {
        self.ask(&ControlSinglestep {
            vcpu,
            enable,
            interrupts: false,
        })
    }

    /// The same for vCPU 0, with interrupts in between; must succeed.
    #[track_caller]
    fn singlestep_with_interrupts(&mut self) -> Result<(), Failure> {
        self.carry_out(&ControlSinglestep {
            vcpu: 0,
            enable: true,
            interrupts: true,
        })
    }

    /// The same, which must succeed.
    #[track_caller]
    pub(crate) fn singlestep(&mut self, on: bool) -> Result<(), Failure> {
        check_eq!(self.control_singlestep(0, on)?, Ok(vec![]), "VCPU_CONTROL_SINGLESTEP");
        Ok(())
    }
}

/// A guest that runs routines, hooked, with HYPERCALL switched on.
struct Stepped {
    vm: Vm,
    wire: Wire,
    backend: Backend,
}

/// What a tool saw of a routine.
struct Seen {
    /// RIP of each event, from the first instruction on; where the guest was elsewhere, in a handler, the first alone.
    rips: Vec<u64>,
    /// What the routine returned.
    result: u64,
}

impl Stepped {
    fn start(context: &mut Context) -> Result<Self, Failure> {
        Self::start_with(context, &Self::config())
    }

    fn config() -> VmConfig {
        VmConfig::new("steps", 1)
    }

    fn start_with(context: &mut Context, config: &VmConfig) -> Result<Self, Failure> {
        context.stage("start", Duration::from_secs(20));
        let vm = context.vm_with(config)?;
        vm.run()?;
        vm.wait_ready(context)?;
        let mut wire = context.hook(&vm)?;
        wire.control_event(0, HYPERCALL, true)?;
        Ok(Self {
            vm,
            wire,
            backend: context.backend,
        })
    }

    fn word(&self, gpa: u64) -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        self.vm.guest.read(gpa, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Where the routine's instructions are, in the order in which they are executed: from the guest's symbols.
    fn list(&self, routine: Routine) -> Result<Vec<u64>, Failure> {
        let routines = self.vm.guest.field(0, field!(target))?;
        let mut at = self.word(routines + 16 * routine as u64 + 8)?;
        let mut list = Vec::new();
        loop {
            match self.word(at)? {
                0 => break,
                rip => list.push(rip),
            }
            at += 8;
        }
        check!(list.len() > 4, "the list of {routine:?} has {} entries", list.len());
        Ok(list)
    }

    /// The first instruction of the handler of a vector.
    fn handler(&self, event: &Event, vector: u64) -> Result<u64, Failure> {
        let gate = event.arch.sregs.idt.base + 16 * vector;
        let (low, high) = (self.word(gate)?, self.word(gate + 8)?);
        Ok(low & 0xffff | low >> 48 << 16 | high << 32)
    }

    /// Has the guest begin a routine, and single-step switched on at its first hypercall; the command's number and that
    /// event, answered.
    fn begin(&mut self, routine: Routine, arg: u64) -> Result<(u64, Event), Failure> {
        let number = self.vm.command(0, Op::Step, [routine as u64, arg, 0, 0])?;
        let event = self.wire.expect_event(HYPERCALL, 0)?;
        self.wire.singlestep(true)?;
        self.wire.reply(&event, CONTINUE)?;
        Ok((number, event))
    }

    /// The next event, which must be SINGLESTEP.
    #[track_caller]
    fn step(&mut self) -> Result<Event, Failure> {
        let event = self.wire.expect_event(SINGLESTEP, 0)?;
        check_step(&event)?;
        Ok(event)
    }

    /// The next so many, answered; the last one is left open.
    fn steps(&mut self, count: usize) -> Result<Event, Failure> {
        for _ in 1..count {
            let event = self.step()?;
            self.wire.reply(&event, CONTINUE)?;
        }
        self.step()
    }

    /// Steps through a routine. `at` looks at each event before it is answered.
    fn run(
        &mut self,
        context: &Context,
        routine: Routine,
        arg: u64,
        mut at: impl FnMut(&mut Self, &Event) -> Result<(), Failure>,
    ) -> Result<Seen, Failure> {
        /// No handler is longer than that.
        const MOST: usize = 2000;
        let list = self.list(routine)?;
        let (number, _) = self.begin(routine, arg)?;
        let mut rips: Vec<u64> = Vec::new();
        for _ in 0..MOST {
            let event = self.wire.event()?;
            if event.id == HYPERCALL {
                self.wire.singlestep(false)?;
                let result = self.finish_at(context, &event, number)?;
                return Ok(Seen { rips, result });
            }
            check_eq!((event.id, event.vcpu), (SINGLESTEP, 0), "event and vCPU");
            check_step(&event)?;
            let rip = event.arch.regs.rip;
            let is_inside = list.contains(&rip);
            if is_inside || rips.last().is_none_or(|last| list.contains(last)) {
                rips.push(rip);
            }
            at(self, &event)?;
            self.wire.reply(&event, CONTINUE)?;
        }
        Err(Failure::new(format!("{routine:?} does not end: {rips:x?}")))
    }

    /// The end of a routine, with single-step switched off at its last hypercall; its result.
    fn finish(&mut self, context: &Context, number: u64) -> Result<u64, Failure> {
        let event = self.wire.expect_event(HYPERCALL, 0)?;
        self.wire.singlestep(false)?;
        self.finish_at(context, &event, number)
    }

    fn finish_at(&mut self, context: &Context, event: &Event, number: u64) -> Result<u64, Failure> {
        self.wire.reply(event, CONTINUE)?;
        let result = self.vm.finished(context, 0, number)?;
        self.wire.expect_no_event()?;
        Ok(result)
    }

    /// Steps through a routine without a look, one whose instructions are told as its list says; its result.
    fn run_as_listed(&mut self, context: &Context, routine: Routine, arg: u64) -> Result<u64, Failure> {
        let seen = self.run(context, routine, arg, |_, _| Ok(()))?;
        check_rips(&seen.rips, &self.list(routine)?, routine)?;
        Ok(seen.result)
    }

    /// Has the guest run a routine that nobody steps; its result.
    fn run_unstepped(&mut self, context: &Context, routine: Routine, arg: u64) -> Result<u64, Failure> {
        let number = self.vm.command(0, Op::Step, [routine as u64, arg, 0, 0])?;
        for _ in 0..2 {
            let event = self.wire.expect_event(HYPERCALL, 0)?;
            self.wire.reply(&event, CONTINUE)?;
        }
        let result = self.vm.finished(context, 0, number)?;
        self.wire.expect_no_event()?;
        Ok(result)
    }
}

/// What each SINGLESTEP carries.
#[track_caller]
fn check_step(event: &Event) -> Result<(), Failure> {
    let data = event.data::<Singlestep>()?;
    check_eq!((data.failed, data.pad), (0, [0; 7]), "failed and padding of SINGLESTEP");
    Ok(())
}

/// Compares what was seen with what is listed, by how far each is from the first.
#[track_caller]
fn check_rips(seen: &[u64], wanted: &[u64], routine: Routine) -> Result<(), Failure> {
    let first = wanted.first().copied().unwrap_or(0);
    let offsets = |rips: &[u64]| -> Vec<i64> { rips.iter().map(|rip| rip.wrapping_sub(first) as i64).collect() };
    check_eq!(
        offsets(seen),
        offsets(wanted),
        "where {routine:?} was seen, from {first:#x}"
    );
    Ok(())
}

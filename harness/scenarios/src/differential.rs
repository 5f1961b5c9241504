// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same guests and the same script of a tool on every lane. What the tool sees is said field by field; L0 lays the lanes' words beside
//! each other, and nothing may differ but what [`NAMED`] names.

mod answers;
mod fields;
mod more_events;
mod named;

use std::time::Duration;

use kvmi::command::{CheckCommand, CheckEvent, Command, ControlEvents, GetInfo, GetVersion};
use kvmi_guests::{Op, layout};
use kvmi_uapi::event::{self, CONTINUE, CR, HYPERCALL, RETRY};
use kvmi_uapi::msg;
use zerocopy::{Immutable, IntoBytes};

pub use named::{NAMED, Named};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Vm, field};
use crate::wire::{Answer, Event, Wire};
use crate::{Context, Failure, Scenario, scenario};

/// The group whose transcripts L0 compares.
pub const GROUP: &str = "differential::";

/// How the lines begin that are compared; between them are the messages themselves.
pub const MARK: &str = "= ";

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "differential::commands",
        "each command, answered and refused: what the tool sees is the same on every lane",
        commands,
    ),
    scenario(
        "differential::events",
        "events, their state and what comes of the replies: the same on every lane",
        events,
    ),
    scenario(
        "differential::answers",
        "each command with nothing wrong with it: the same answers on every lane",
        answers::answers,
    ),
    scenario(
        "differential::system",
        "MSR, XSETBV and DESCRIPTOR: the same on every lane",
        more_events::system,
    ),
    scenario(
        "differential::trap",
        "injected exceptions and TRAP: the same on every lane",
        more_events::trap,
    ),
    scenario(
        "differential::pages",
        "page access and PF: the same on every lane",
        more_events::pages,
    ),
    scenario(
        "differential::steps",
        "SINGLESTEP: the same on every lane",
        more_events::steps,
    ),
];

/// Commands that close the connection when they say to be longer than they are.
const CLOSING: [u16; 3] = [msg::VM_WRITE_PHYSICAL, msg::VM_SET_PAGE_ACCESS, msg::VM_GET_PAGE_ACCESS];

/// A session whose every step is said.
struct Script<'c> {
    context: &'c mut Context,
    vm: Vm,
    wire: Wire,
    /// Registers of which nothing is said, because the program keeps there what it knows of the vendor.
    kept: &'static [&'static str],
}

impl<'c> Script<'c> {
    fn start(context: &'c mut Context, guest: &str) -> Result<Self, Failure> {
        context.stage(guest, Duration::from_secs(30));
        let (vm, wire) = context.hooked_vm(guest, 1)?;
        let kept: &[&str] = match guest {
            "system" => &["rbx"],
            "steps" => &["rbp", "r8", "r9", "r10", "r11", "r13"],
            _ => &[],
        };
        let script = Self {
            context,
            vm,
            wire,
            kept,
        };
        script.say(&format!("guest {guest}"));
        Ok(script)
    }

    fn say(&self, text: &str) {
        self.context.wire(format!("{MARK}{text}"));
    }

    fn say_answer(&self, name: &str, answer: &Answer) {
        match answer {
            Ok(data) => self.say(&format!("{name}: data={}", fields::hex(data))),
            Err(errno) => self.say(&format!("{name}: err={errno}")),
        }
    }

    fn ask(&mut self, name: &str, command: &impl Command) -> Result<(), Failure> {
        let answer = self.wire.ask(command)?;
        self.say_answer(name, &answer);
        Ok(())
    }

    fn vm<T: IntoBytes + Immutable + ?Sized>(&mut self, name: &str, id: u16, request: &T) -> Result<(), Failure> {
        let answer = self.wire.vm(id, request)?;
        self.say_answer(name, &answer);
        Ok(())
    }

    fn vcpu<T: IntoBytes + Immutable + ?Sized>(&mut self, name: &str, id: u16, request: &T) -> Result<(), Failure> {
        let answer = self.wire.vcpu(0, id, request)?;
        self.say_answer(name, &answer);
        Ok(())
    }

    /// Takes the next event and says all of it.
    fn event(&mut self, name: &str) -> Result<Event, Failure> {
        let event = self.wire.event()?;
        self.say_event(name, &event);
        Ok(event)
    }

    fn say_event(&self, name: &str, event: &Event) {
        self.say(&format!(
            "{name} event: id={} vcpu={} seq={} {}",
            event.id,
            event.vcpu,
            event.seq,
            fields::of_data(&event.data)
        ));
        for line in fields::of_state(&event.arch, self.kept) {
            self.say(&format!("{name} {line}"));
        }
    }

    /// Has the guest do something that raises an event, answers it, and says what came of it.
    fn answered(&mut self, name: &str, op: Op, args: [u64; 4], action: u8, data: &[u8]) -> Result<(), Failure> {
        let number = self.vm.command(0, op, args)?;
        let event = self.event(name)?;
        self.wire.reply_with(&event, action, data)?;
        let result = self.vm.finished(self.context, 0, number)?;
        self.say(&format!("{name} done: result={result:#x}"));
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        let (vm, mut wire) = (self.vm, self.wire);
        wire.expect_no_event()?;
        vm.exit()
    }
}

fn commands(context: &mut Context) -> Result<(), Failure> {
    let mut script = Script::start(context, "hypercall")?;
    script.ask("GET_VERSION", &GetVersion)?;
    script.ask("VM_GET_INFO", &GetInfo)?;
    for &(id, name) in msg::COMMANDS {
        script.ask(&format!("VM_CHECK_COMMAND of {name}"), &CheckCommand { id })?;
    }
    for &(id, name) in event::ALL {
        script.ask(&format!("VM_CHECK_EVENT of {name}"), &CheckEvent { id })?;
        let enable = ControlEvents {
            vcpu: 0,
            event: id,
            enable: true,
        };
        script.ask(&format!("VCPU_CONTROL_EVENTS of {name}"), &enable)?;
    }
    // While an event is open it is sure what the vCPU does.
    let number = script.vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = script.wire.expect_event(HYPERCALL, 0)?;
    let registers = script.wire.registers(0)?;
    script.say(&format!("VCPU_GET_REGISTERS: mode={:#x}", registers.mode));
    script.say(&format!(
        "VCPU_GET_REGISTERS {}",
        fields::of_regs(&registers.regs, script.kept)
    ));
    for line in fields::of_sregs(&registers.sregs) {
        script.say(&format!("VCPU_GET_REGISTERS {line}"));
    }
    script.wire.reply(&event, CONTINUE)?;
    script.vm.finished(script.context, 0, number)?;
    for (name, gpa) in [("program", layout::PROGRAM), ("nothing", 1 << 40)] {
        let answer = script.wire.read_physical(gpa, 16)?;
        script.say_answer(&format!("VM_READ_PHYSICAL of {name}"), &answer);
    }
    // Requests of ones: padding, indices and values that are none.
    for &(id, name) in msg::COMMANDS.iter().filter(|(id, _)| !CLOSING.contains(id)) {
        let answer = if msg::is_vcpu(id) {
            script.wire.vcpu(0, id, &[0xff; 16])?
        } else {
            script.wire.vm(id, &[0xff; 16])?
        };
        script.say_answer(&format!("{name} of ones"), &answer);
    }
    script.end()
}

fn events(context: &mut Context) -> Result<(), Failure> {
    let mut script = Script::start(context, "hypercall")?;
    script.wire.control_event(0, HYPERCALL, true)?;
    let number = script.vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = script.event("HYPERCALL")?;
    // Asked for while the vCPU waits, it comes before the next instruction.
    let paused = script.wire.pause(0, false)?;
    script.say_answer("VM_PAUSE_VCPU", &paused);
    script.wire.reply(&event, CONTINUE)?;
    let event = script.event("PAUSE")?;
    script.wire.reply(&event, CONTINUE)?;
    let result = script.vm.finished(script.context, 0, number)?;
    script.say(&format!("HYPERCALL done: result={result:#x}"));
    script.end()?;

    let mut script = Script::start(context, "breakpoint")?;
    script.wire.control_event(0, event::BREAKPOINT, true)?;
    script.answered("BREAKPOINT", Op::Int3, [0; 4], CONTINUE, &[])?;
    let taken = script.vm.guest.field(0, field!(breakpoints))?;
    script.say(&format!("BREAKPOINT in the guest: taken={taken}"));
    let target = script.vm.guest.field(0, field!(target))?;
    let original = script.wire.plant_int3(target)?;
    let number = script.vm.command(0, Op::CallTarget, [1, 0, 0, 0])?;
    let event = script.event("planted BREAKPOINT")?;
    let put_back = script.wire.write_physical(target, &[original])?;
    script.say_answer("VM_WRITE_PHYSICAL of the original byte", &put_back);
    script.wire.reply(&event, RETRY)?;
    script.vm.finished(script.context, 0, number)?;
    let runs = script.vm.guest.field(0, field!(target_runs))?;
    script.say(&format!("planted BREAKPOINT done: runs={runs}"));
    script.end()?;

    let mut script = Script::start(context, "cr_writes")?;
    script.wire.control_event(0, CR, true)?;
    for cr in [0, 3, 4] {
        script.wire.control_cr(0, cr, true)?;
        let now = script
            .vm
            .carry_out(script.context, 0, Op::ReadCr, [cr.into(), 0, 0, 0])?;
        // CR0.AM, another root, CR4.PSE: of no matter to the program, seen on both vendors.
        let new = match cr {
            0 => now ^ 1 << 18,
            3 => layout::OTHER_ROOT,
            _ => now ^ 1 << 4,
        };
        for (what, answer) in [("agreed to", new), ("vetoed", now), ("illegal", u64::MAX)] {
            let name = format!("CR{cr} {what}");
            script.answered(
                &name,
                Op::WriteCr,
                [cr.into(), new, 0, 0],
                CONTINUE,
                &answer.to_ne_bytes(),
            )?;
            script
                .vm
                .carry_out(script.context, 0, Op::ReadCr, [cr.into(), 0, 0, 0])?;
            if what == "agreed to" {
                // Back to where it was.
                script.answered(&name, Op::WriteCr, [cr.into(), now, 0, 0], CONTINUE, &now.to_ne_bytes())?;
            }
        }
        let faults = script.vm.guest.field(0, field!(protection_faults))?;
        script.say(&format!("CR{cr} in the guest: faults={faults}"));
    }
    script.end()
}

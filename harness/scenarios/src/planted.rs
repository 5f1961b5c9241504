// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures, planted to prove that the lab gives each the right verdict. Run by `cargo xtask planted`, never by default.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::time::Duration;

use kvmi_lab_control::WATCHES_ITSELF;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Signal, getpid, kill_process};
use rustix::system::uname;

use crate::vmm::Until;
use crate::{Context, Failure, Scenario, check_eq, modules, scenario};

/// Never says that it starts.
const NO_START: &str = "planted::deadline_of_start";
/// Never powers off.
const NO_POWER_OFF: &str = "planted::deadline_of_power_off";

/// The stage in which L0 ends the emulator; it knows this name.
const END_EMULATOR: &str = "L0 ends the emulator";

pub(crate) fn scenarios() -> Vec<Scenario> {
    let row = |name, summary, run| scenario(name, summary, run).when_named();
    vec![
        row("planted::kernel_oops", "L1's kernel writes to address 0", |c| {
            module(c, "oops")
        }),
        row("planted::kernel_warn", "L1's kernel warns and goes on", |c| {
            module(c, "warn")
        }),
        row("planted::kernel_lockup", "L1's kernel loops with preemption off", |c| {
            fs::write("/proc/sys/kernel/watchdog_thresh", "1")?;
            module(c, "lockup")
        }),
        row(
            "planted::sanitizer::use_after_free",
            "L1's kernel reads memory that it gave back",
            |c| unseen_by_stock(c, "use-after-free"),
        ),
        row(
            "planted::sanitizer::lock_order",
            "L1's kernel takes two locks in one order and in the other",
            |c| unseen_by_stock(c, "lock-order"),
        ),
        row(
            "planted::sanitizer::sleep",
            "L1's kernel might sleep with preemption off",
            |c| unseen_by_stock(c, "sleep"),
        ),
        row(
            "planted::l2_triple_fault",
            "L2 cannot even take an exception",
            l2_triple_fault,
        ),
        row("planted::tool_panic", "the tool panics", |_| panic!("planted")),
        row("planted::runner_killed", "the scenario's own process is killed", |_| {
            kill_process(getpid(), Signal::KILL)?;
            hang()
        }),
        row("planted::vmm_abort", "the VMM aborts", vmm_abort),
        row(NO_START, "L1 never says that the scenario starts", |_| Ok(())),
        row("planted::deadline_of_stage", "a stage never ends", |c| {
            c.stage("for ever", Duration::from_secs(1));
            hang()
        }),
        row(NO_POWER_OFF, "L1 never powers off", |_| Ok(())),
        row("planted::emulator_gone", "the emulator is killed", |c| {
            c.stage(END_EMULATOR, Duration::from_secs(20));
            hang()
        }),
        row(
            "planted::truncated_message",
            "a message on the control channel lacks its end",
            truncated_message,
        ),
        row("planted::full_disk", "there is no room for the verdict", full_disk),
    ]
}

/// Where process 1 or the scenario's process, outside of its body, does what a planted failure wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before it says that it starts.
    BeforeStart,
    /// After the verdict, before power-off.
    AfterVerdict,
}

/// Does not return if this scenario is to hang here.
pub fn at(place: Place, scenario: &str) {
    let hangs = match place {
        Place::BeforeStart => NO_START,
        Place::AfterVerdict => NO_POWER_OFF,
    };
    if scenario == hangs {
        hang()
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn module(context: &mut Context, what: &str) -> Result<(), Failure> {
    context.stage(what, Duration::from_secs(90));
    Ok(modules::load_planted(what)?)
}

/// Does what a stock kernel does not notice.
fn unseen_by_stock(context: &mut Context, what: &str) -> Result<(), Failure> {
    let release = uname();
    if !release.release().to_bytes().ends_with(WATCHES_ITSELF.as_bytes()) {
        return Err(Failure::Skipped(
            "this kernel does not watch itself: --sanitize".to_owned(),
        ));
    }
    module(context, what)
}

fn l2_triple_fault(context: &mut Context) -> Result<(), Failure> {
    // Where nothing is mapped: neither the next instruction nor a stack for the exception.
    const NOWHERE: u64 = 0x7fff_0000_0000;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    vm.pause(0)?;
    let mut regs = vm.regs(0)?;
    regs.rip = NOWHERE;
    regs.rsp = NOWHERE;
    vm.set_regs(0, regs)?;
    context.stage("triple fault", Duration::from_secs(20));
    vm.resume(0)?;
    let status = vm.wait(0, Until::Exit("shutdown".to_owned(), 1))?;
    check_eq!(status.exits.get("shutdown"), None, "how often L2 shut down");
    vm.exit()
}

fn vmm_abort(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.running_vm("counter", 1)?;
    context.stage("abort", Duration::from_secs(20));
    vm.abort()?;
    vm.signal(0)
}

fn truncated_message(_: &mut Context) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(br#"{"type":"log","source":"planted","te"#)?;
    out.flush()?;
    // Without a verdict: what process 1 says next stands right behind.
    std::process::exit(1)
}

fn full_disk(context: &mut Context) -> Result<(), Failure> {
    context.stage("fill the disk", Duration::from_secs(30));
    mount_remount("/tmp", MountFlags::empty(), "size=64k")?;
    let mut file = File::create("/tmp/planted")?;
    loop {
        match file.write(&[0; 4096]) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

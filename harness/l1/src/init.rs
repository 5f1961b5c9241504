// SPDX-License-Identifier: MIT OR Apache-2.0
//! Process 1 of L1: file systems, modules, the control channel, one scenario, power-off.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;

use anyhow::{Context, anyhow};
use kvmi_lab_control::{
    Backend, FromL1, HOOK_BEFORE_SNAPSHOT, LineReader, PLACES, SCENARIO, SEED, SELFTESTS, SNAPSHOT, ToL1, Verdict,
    brief, encode,
};
use kvmi_lab_scenarios::modules::{self, Origin};
use kvmi_lab_scenarios::planted::{self, Place};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, QueueSelector, tcdrain, tcflush, tcgetattr, tcsetattr};

use crate::runner::{self, Waiting};
use crate::{selftest, shell, vmm};

/// The second serial port.
pub(crate) const CHANNEL: &str = "/dev/ttyS1";

/// Runs until the power is off.
pub(crate) fn main() -> ! {
    if let Err(e) = run() {
        // The kernel console is what L0 can still see.
        eprintln!("kvmi-lab-l1: {e:#}");
    }
    // Nothing is mounted that would lose data; if this fails, the kernel panics on the end of process 1 and L0 sees that.
    let _ = reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}

fn run() -> anyhow::Result<()> {
    mount_all()?;
    let mut channel = open_channel()?;
    let prepared = prepare(&channel);
    let backend = match &prepared {
        Ok((backend, _)) => *backend,
        // L0 gets to the snapshot all the same, and hears the reason as the verdict.
        Err(_) => modules::backend().unwrap_or(Backend::Svm),
    };
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let order = if let Some(order) = order_on_command_line()? {
        // Who replays this may want to debug it, and then asks nothing of L1.
        for text in modules::places(backend)? {
            let source = PLACES.to_owned();
            channel.write_all(encode(&FromL1::Log { source, text }).as_bytes())?;
        }
        Ok(Some(order))
    } else {
        channel.write_all(encode(&FromL1::Ready { backend, kernel }).as_bytes())?;
        tcdrain(&channel)?;
        // From here on everything may happen any number of times, each time in another machine.
        channel.write_all(&[SNAPSHOT])?;
        read_order(&channel)
    };
    let name = match &order {
        Ok(Some(ToL1::Run { scenario, .. })) => scenario.clone(),
        _ => String::new(),
    };
    let verdict = match (prepared, order) {
        (Err(e), _) => fail(&e.context("L1 could not be set up")),
        (_, Err(e)) => fail(&e),
        (_, Ok(None)) => fail(&anyhow!("the control channel was closed before the order to run")),
        (Ok((backend, Work::Scenarios(waiting))), Ok(Some(order @ ToL1::Run { .. }))) => {
            waiting.run(backend, &order).unwrap_or_else(|e| fail(&e))
        }
        (Ok((_, Work::Selftests)), Ok(Some(ToL1::Run { scenario, .. }))) => {
            selftest::run(&channel, &scenario).unwrap_or_else(|e| fail(&e))
        }
        // The channel is a person's terminal then: nothing else is said on it.
        (Ok((_, Work::Scenarios(waiting))), Ok(Some(order @ ToL1::Shell { .. }))) => {
            waiting.dismiss()?;
            return shell::run(&channel, &order);
        }
        (Ok((_, Work::Selftests)), Ok(Some(ToL1::Shell { .. }))) => {
            fail(&anyhow!("an L1 that runs selftests has no shell"))
        }
    };
    channel.write_all(encode(&FromL1::Done { verdict }).as_bytes())?;
    tcdrain(&channel)?;
    planted::at(Place::AfterVerdict, &name);
    Ok(())
}

fn fail(error: &anyhow::Error) -> Verdict {
    Verdict::Fail {
        message: format!("{error:#}"),
    }
}

/// What L0 says is to be run.
fn read_order(channel: &File) -> anyhow::Result<Option<ToL1>> {
    let Some(line) = LineReader::new(channel).line()? else {
        return Ok(None);
    };
    let order = brief::order(&line, kvmi_lab_scenarios::transport::names()).map_err(anyhow::Error::msg);
    order
        .with_context(|| format!("no order: {:?}", String::from_utf8_lossy(&line)))
        .map(Some)
}

/// What to run, where the kernel's arguments say it: a machine that is recorded hears nothing from outside.
fn order_on_command_line() -> anyhow::Result<Option<ToL1>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let value = |name| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let Some(scenario) = value(SCENARIO) else {
        return Ok(None);
    };
    let seed = value(SEED).unwrap_or_default();
    let seed = seed.parse().with_context(|| format!("{SEED}={seed}"))?;
    let scenario = scenario.to_owned();
    Ok(Some(ToL1::Run { scenario, seed }))
}

fn is_on_command_line(argument: &str) -> anyhow::Result<bool> {
    Ok(fs::read_to_string("/proc/cmdline")?
        .split_whitespace()
        .any(|word| word == argument))
}

fn mount_all() -> anyhow::Result<()> {
    let options: Option<&CStr> = None;
    for (kind, folder) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ] {
        mount(kind, folder, kind, MountFlags::empty(), options).with_context(|| format!("mount {kind} on {folder}"))?;
    }
    Ok(())
}

fn open_channel() -> anyhow::Result<File> {
    let channel = OpenOptions::new()
        .read(true)
        .write(true)
        .open(CHANNEL)
        .with_context(|| format!("open {CHANNEL}"))?;
    let mut settings = tcgetattr(&channel)?;
    settings.make_raw();
    settings.set_speed(115_200)?;
    tcsetattr(&channel, OptionalActions::Now, &settings)?;
    tcflush(&channel, QueueSelector::IFlush)?;
    Ok(channel)
}

/// What L1 is there for.
enum Work {
    /// A scenario or a person: KVM is loaded, and this process waits for its order.
    Scenarios(Waiting),
    /// KVM's own selftests: each says which KVM it is to meet.
    Selftests,
}

/// Loads the modules (those under test, ours with introspection on; the distribution's where the image has no others) and starts what every
/// scenario needs.
fn prepare(channel: &File) -> anyhow::Result<(Backend, Work)> {
    let backend = modules::backend()?;
    modules::load_dependencies(backend)?;
    if is_on_command_line(SELFTESTS)? {
        selftest::prepare()?;
        return Ok((backend, Work::Selftests));
    }
    let origin = Origin::under_test();
    modules::load_kvm(origin, backend, true)?;
    if origin == Origin::Kvmi && is_on_command_line(HOOK_BEFORE_SNAPSHOT)? {
        vmm::hook_and_unhook().context("hook a VM before the snapshot")?;
    }
    runner::warm_up()?;
    Ok((backend, Work::Scenarios(Waiting::start(channel)?)))
}

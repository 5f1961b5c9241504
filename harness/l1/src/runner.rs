// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running one scenario in a process of its own, and looking for what it left behind.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Child, Command};

use anyhow::{Context as _, bail};
use kvmi_lab_control::{Backend, FromL1, LineReader, ToL1, Verdict, encode};
use kvmi_lab_scenarios::planted::{self, Place};
use kvmi_lab_scenarios::{Context, Failure, explore, modules, say, transport, vmm, wire};

/// Where the scenario's process leaves its verdict.
const VERDICT: &str = "/tmp/verdict";

/// Reads once what every scenario needs, so that it is in memory before the snapshot.
pub(crate) fn warm_up() -> anyhow::Result<()> {
    for entry in fs::read_dir("/guests").context("list /guests")? {
        fs::read(entry?.path())?;
    }
    fs::read("/proc/slabinfo")?;
    Ok(())
}

/// A scenario's process that waits to be told which scenario it is to run. It is there before the snapshot: to start a process takes an
/// emulator longer than many a scenario.
#[derive(Debug)]
pub(crate) struct Waiting {
    process: Child,
    order: UnixStream,
}

impl Waiting {
    /// In process 1: starts it, with the channel as its standard output, and waits until it waits.
    pub(crate) fn start(channel: &File) -> anyhow::Result<Self> {
        let (mut order, theirs) = UnixStream::pair()?;
        let process = Command::new("/proc/self/exe")
            .arg("scenario")
            .stdin(OwnedFd::from(theirs))
            .stdout(channel.try_clone()?)
            .spawn()
            .context("start the scenario's process")?;
        order
            .read_exact(&mut [0])
            .context("the scenario's process ended before it was ready")?;
        Ok(Self { process, order })
    }

    /// In process 1: has it run a scenario.
    pub(crate) fn run(mut self, backend: Backend, order: &ToL1) -> anyhow::Result<Verdict> {
        self.order
            .write_all(encode(order).as_bytes())
            .context("tell the scenario's process what to run")?;
        let status = self.process.wait().context("wait for the scenario")?;
        verdict(backend, &status.to_string())
    }
}

impl Waiting {
    /// In process 1: has it end, with nothing to run.
    pub(crate) fn dismiss(self) -> anyhow::Result<()> {
        let Self { mut process, order } = self;
        drop(order);
        process.wait().context("wait for the scenario's process to end")?;
        Ok(())
    }
}

/// In process 1, when the scenario's process has ended: what it came to.
fn verdict(backend: Backend, status: &str) -> anyhow::Result<Verdict> {
    let verdict = match fs::read(VERDICT) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("the verdict was not written whole, the scenario's process ended: {status}"))?,
        Err(_) => bail!("the scenario's process ended without a verdict: {status}"),
    };
    if verdict == Verdict::Pass {
        left_behind(backend)?;
    }
    Ok(verdict)
}

/// In the scenario's process.
pub(crate) fn scenario() -> anyhow::Result<()> {
    vmm::start_spare().map_err(|failure| anyhow::anyhow!("start a VMM: {failure:?}"))?;
    let mut order = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    order.write_all(b"\n").context("say that this process is ready")?;
    match LineReader::new(order).message().context("read what to run")? {
        Some(ToL1::Run { scenario, seed }) => run(&scenario, seed),
        // There is no scenario: L1 is switched off, or has a person at it.
        Some(ToL1::Shell { .. }) | None => {
            vmm::end_spare();
            Ok(())
        }
    }
}

fn run(name: &str, seed: u64) -> anyhow::Result<()> {
    let backend = modules::backend()?;
    let Some((scenario, transport)) = transport::find(name, backend) else {
        bail!("no scenario `{name}`, `cargo xtask e2e --list` lists them");
    };
    planted::at(Place::BeforeStart, name);
    say(&FromL1::Started {
        scenario: name.to_owned(),
    });
    let mut context = Context::new(backend, seed);
    context.transport = transport;
    if let Some(preemption) = explore::begin(seed).context("explore")? {
        context.log(format!(
            "threads are held by seed {seed}, kernel preemption is {preemption}"
        ));
    }
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut context)));
    let verdict = match outcome {
        Ok(Ok(())) => Verdict::Pass,
        Ok(Err(failure)) => Failure::verdict(failure),
        Err(panic) => Verdict::Fail {
            message: format!("panicked: {}", panic_text(&*panic)),
        },
    };
    if let Some(holds) = explore::holds() {
        context.measure(explore::MEASURE, holds.into(), "times");
    }
    if let Verdict::Fail { .. } = verdict {
        wire::say_recent();
    }
    vmm::end_spare();
    fs::write(VERDICT, serde_json::to_vec(&verdict)?).context("write the verdict")?;
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no text)")
}

/// Fails if a VM, a process or a thread of the scenario is still there.
fn left_behind(backend: Backend) -> anyhow::Result<()> {
    let references = modules::vendor_references(backend)?;
    if references != 0 {
        bail!("{references} references to the vendor module are left: a VM still exists");
    }
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_a_process = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.parse::<u32>().is_ok());
        if !is_a_process {
            continue;
        }
        let Ok(comm) = fs::read_to_string(path.join("comm")) else {
            continue;
        };
        let comm = comm.trim();
        let is_process_1 = path.ends_with("1");
        if comm.starts_with("kvmi-") && !is_process_1 {
            bail!("`{comm}` is left ({})", path.display());
        }
        let is_of_ours = fs::read_link(path.join("exe")).is_ok();
        if is_of_ours && !is_process_1 {
            bail!("process `{comm}` is left ({})", path.display());
        }
    }
    Ok(())
}

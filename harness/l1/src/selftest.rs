// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running one of KVM's own selftests: with the KVM that its mode asks for, and where the mode hooks, with a tool that is told of each VM.

mod output;
mod tool;

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kvmi_lab_control::{Backend, FromL1, SELFTEST_ARGUMENTS, SelftestMode, Verdict, encode};
use kvmi_lab_scenarios::modules::{self, Origin};
use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};

use tool::Tool;

/// Where the tests are.
const TESTS: &str = "/selftests";

/// What a test writes goes there.
const OUTPUT: &str = "/tmp/output";

/// How long loading and unloading KVM may take.
const MODULES: Duration = Duration::from_secs(60);

/// How long a test may run, in every mode: what steps is given no more, and has to be named if it does not come to its end.
const TEST: Duration = Duration::from_secs(60);

/// How long a test's processes and VMs may take to be gone.
const END: Duration = Duration::from_secs(30);

/// What tells a test where the tool is; the other side of it is harness/selftests/hook.c.
const VARIABLE: &str = "KVMI_SELFTEST_TOOL";

/// Where the C library keeps semaphores that processes share.
const SHARED_MEMORY: &str = "/dev/shm";

/// In process 1, before the snapshot: what every test needs.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let options: Option<&CStr> = None;
    fs::create_dir(SHARED_MEMORY).with_context(|| format!("make {SHARED_MEMORY}"))?;
    mount("tmpfs", SHARED_MEMORY, "tmpfs", MountFlags::empty(), options)
        .with_context(|| format!("mount tmpfs on {SHARED_MEMORY}"))
}

/// In process 1: all of it.
pub(crate) fn run(channel: &File, name: &str) -> anyhow::Result<Verdict> {
    let (mode, test) = SelftestMode::of_run(name).with_context(|| format!("`{name}` is no run of a selftest"))?;
    let program = Path::new(TESTS).join(test);
    ensure!(program.is_file(), "no selftest `{test}` in {TESTS}");
    let l0 = L0(channel);
    l0.say(&FromL1::Started {
        scenario: name.to_owned(),
    })?;
    let backend = modules::backend()?;
    l0.stage("load KVM", MODULES)?;
    load(mode, backend)?;
    let tool = mode.hooks().then(|| Tool::start(mode)).transpose()?;
    l0.stage("run", TEST)?;
    let status = run_test(&program, test, tool.as_ref())?;
    l0.stage("end its processes", END)?;
    let seen = tool.map(Tool::end);
    wait_for_all()?;
    let text = String::from_utf8_lossy(&fs::read(OUTPUT)?).into_owned();
    for line in output::some_lines(&text) {
        l0.say(&FromL1::Log {
            source: "selftest".to_owned(),
            text: line.to_owned(),
        })?;
    }
    let mut verdict = output::verdict(status, &text);
    if let Some(seen) = seen {
        for (name, value) in seen.counts {
            l0.say(&FromL1::Measure {
                name: name.to_owned(),
                value: f64::from(value),
                unit: "times".to_owned(),
            })?;
        }
        if let Some(error) = seen.errors.first() {
            verdict = Verdict::Fail {
                message: format!("the tool: {error}"),
            };
        }
    }
    l0.stage("unload KVM", MODULES)?;
    let references = modules::vendor_references(backend)?;
    if references != 0 {
        return Ok(Verdict::Fail {
            message: format!("a VM still exists: {references} references to the vendor module are left"),
        });
    }
    modules::unload_kvm(backend)?;
    Ok(verdict)
}

/// Loads the KVM that a mode asks for.
fn load(mode: SelftestMode, backend: Backend) -> anyhow::Result<()> {
    let (origin, introspection) = match mode {
        SelftestMode::Stock => (Origin::Stock, false),
        SelftestMode::Off => (Origin::Kvmi, false),
        _ => (Origin::Kvmi, true),
    };
    Ok(modules::load_kvm(origin, backend, introspection)?)
}

/// Runs the test to its end.
fn run_test(program: &Path, test: &str, tool: Option<&Tool>) -> anyhow::Result<ExitStatus> {
    let output = File::create(OUTPUT).with_context(|| format!("write {OUTPUT}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments(test)?)
        .env_clear()
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    if let Some(tool) = tool {
        command.env(VARIABLE, tool.socket());
    }
    let mut child = command.spawn().with_context(|| format!("run {}", program.display()))?;
    Ok(child.wait()?)
}

/// The arguments of a test; most have none.
fn arguments(test: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(SELFTEST_ARGUMENTS).with_context(|| format!("read {SELFTEST_ARGUMENTS}"))?;
    let mut lines = text.lines().map(str::split_whitespace);
    let words = lines.find_map(|mut words| (words.next() == Some(test)).then_some(words));
    Ok(words.into_iter().flatten().map(str::to_owned).collect())
}

/// Waits until no process is left but this one: descriptors of VMs are closed then.
fn wait_for_all() -> anyhow::Result<()> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(e) => return Err(e).context("wait for what the test has left"),
        }
    }
}

/// The control channel.
struct L0<'c>(&'c File);

impl L0<'_> {
    fn say(&self, message: &FromL1) -> anyhow::Result<()> {
        let mut channel = self.0;
        Ok(channel.write_all(encode(message).as_bytes())?)
    }

    fn stage(&self, name: &str, limit: Duration) -> anyhow::Result<()> {
        self.say(&FromL1::Stage {
            name: name.to_owned(),
            deadline_ms: u64::try_from(limit.as_millis())?,
        })
    }
}

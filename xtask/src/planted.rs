// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab's verdicts, proved: failures that are planted, the verdict that each must get, and their bundles, which must give the same again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_machine::bundle;
use kvmi_lab_machine::cache::Key;
use kvmi_lab_machine::outcome::{Outcome, Record};
use kvmi_lab_machine::run_folder;

use crate::e2e::{self, Wanted};
use crate::exit;
use crate::kernel::Built;
use crate::output::show;
use crate::repro::{Reproducer, repeats_itself};
use crate::transcript::{Transcripts, ended_by_itself};
use crate::workshop::Workshop;

/// The group that they are in.
pub(crate) const GROUP: &str = "planted::";

/// How each verdict must begin, and what it must say.
const VERDICTS: &[(&str, &str, &str)] = &[
    ("kernel_oops", "splat (oops)", "NULL pointer dereference"),
    ("kernel_warn", "splat (warning)", "(otherwise pass)"),
    ("kernel_lockup", "splat (lockup)", "soft lockup"),
    (
        "l2_triple_fault",
        "fail",
        "how often L2 shut down: expected None, got Some(1)",
    ),
    ("tool_panic", "fail", "panicked: planted"),
    ("runner_killed", "fail", "ended without a verdict: signal: 9"),
    ("vmm_abort", "fail", "Broken pipe"),
    ("deadline_of_start", "timeout", "`start`"),
    ("deadline_of_stage", "timeout", "`for ever`"),
    ("deadline_of_power_off", "timeout", "`power off`"),
    (
        "emulator_gone",
        "lost",
        "ended without a verdict, in stage `L0 ends the emulator`",
    ),
    ("truncated_message", "lost", "no control message"),
    ("full_disk", "fail", "not written whole"),
];

/// The part of the group that a stock kernel does not notice, and what a kernel that watches itself says of each.
pub(crate) const SANITIZED: &str = "planted::sanitizer::";
const SANITIZED_VERDICTS: &[(&str, &str, &str)] = &[
    (
        "sanitizer::use_after_free",
        "splat (memory)",
        "KASAN: slab-use-after-free",
    ),
    ("sanitizer::lock_order", "splat (locking)", "possible circular locking"),
    ("sanitizer::sleep", "splat (locking)", "sleeping function called"),
];

/// The kernel module by which scenarios plant failures, from the cache or built.
pub(crate) fn module(shop: &Workshop, built: &Built) -> Result<PathBuf> {
    let (kernel, tools) = (&built.kernel, &built.tools);
    let sources = shop.path("harness/planted");
    let key = Key::of("planted 2")
        .text("kernel", &kernel.version.package)
        .text("release", &kernel.version.release())
        .text("config", &kernel.config()?)
        .tree("sources", &sources, |_| true)?
        .finish();
    let entry = shop.cache.entry("planted", &key, |into| {
        let task = shop.progress.task("build the module that plants failures");
        for name in ["Kbuild", "planted.c"] {
            fs::copy(sources.join(name), into.join(name)).with_context(|| format!("copy {name}"))?;
        }
        tools
            .program("make")
            .arg("-C")
            .arg(&kernel.headers)
            .arg(format!("M={}", into.display()))
            .arg("modules")
            .env_remove("MAKEFLAGS")
            .env_remove("MFLAGS")
            .env("LC_ALL", "C")
            .run(&task)
            .context("build harness/planted")?;
        tools
            .program("strip")
            .arg("--strip-debug")
            .arg(into.join("planted.ko"))
            .output()?;
        task.done();
        anyhow::Ok(())
    })?;
    Ok(entry.join("planted.ko"))
}

/// Plants them and looks at what comes of it.
pub(crate) fn run(shop: &Workshop, wanted: &Wanted) -> Result<u8> {
    let ran = e2e::run(shop, wanted)?;
    let mut reproducer = Reproducer::new(shop, ran.run.folder.join("again"))?;
    let mut wrong = Vec::new();
    for record in &ran.records {
        let name = format!("{} on {}", record.scenario, record.lane);
        let bundle = ran
            .run
            .scenario_folder(record.lane, &record.scenario)
            .join(bundle::FILE);
        match look_at(record, wanted.choice.sanitize, &bundle, &mut reproducer) {
            Ok(verdict) => show!("{name}: right verdict, and its bundle gives it again: {verdict}"),
            Err(e) => wrong.push(format!("{name}: {e:#}")),
        }
    }
    show!("\n{} planted failures, {} wrong", ran.records.len(), wrong.len());
    for line in &wrong {
        show!("  {line}");
    }
    Ok(if wrong.is_empty() {
        exit::OK
    } else {
        exit::SCENARIO_FAILED
    })
}

/// Where a CPU stands, as QEMU and Bochs show it.
const RIP: [&str; 2] = ["RIP=", " RIP = "];

/// Fails unless the file says where each CPU stood when a deadline passed.
fn require_registers(file: &Path) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    ensure!(
        RIP.iter().any(|rip| text.contains(rip)),
        "{} has no CPU's registers: {}",
        file.display(),
        text.lines().next().unwrap_or_default()
    );
    Ok(())
}

/// Fails unless the verdict is the one that is due, and the bundle gives it again; the verdict that it gives.
fn look_at(record: &Record, is_sanitized: bool, bundle: &Path, reproducer: &mut Reproducer<'_>) -> Result<Outcome> {
    let seen = record.outcome.to_string();
    if record.scenario.starts_with(SANITIZED) && !is_sanitized {
        ensure!(
            matches!(record.outcome, Outcome::Skip { .. }),
            "must be skipped on a stock kernel, is: {seen}"
        );
        return Ok(record.outcome.clone());
    }
    let due = VERDICTS
        .iter()
        .chain(SANITIZED_VERDICTS)
        .find(|(scenario, ..)| record.scenario.strip_prefix(GROUP) == Some(scenario));
    let (_, begins, says) = due.context("xtask/src/planted.rs does not say which verdict it must get")?;
    ensure!(
        seen.starts_with(begins) && seen.contains(says),
        "must be `{begins}` and say `{says}`, is: {seen}"
    );
    if matches!(record.outcome, Outcome::Timeout { .. }) {
        require_registers(&bundle.with_file_name(run_folder::REGISTERS))?;
    }
    let repro = reproducer.again(bundle)?;
    ensure!(
        repro.is_same(),
        "its bundle gives another verdict: {}, was: {seen}",
        repro.record.outcome
    );
    if repeats_itself(&repro.bundle.manifest)
        && ended_by_itself(record)
        && let Transcripts::Differ(how) = repro.transcripts()
    {
        bail!("not the same to the byte: {how}");
    }
    Ok(repro.record.outcome)
}

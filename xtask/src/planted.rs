// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab's verdicts, proved: failures that are planted, the verdict that each must get, and their bundles, which must give the same again.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_machine::bundle;
use kvmi_lab_machine::cache::Key;

use crate::e2e::{self, Wanted};
use crate::emulators::is_bochs;
use crate::exit;
use crate::kernel::Built;
use crate::output::show;
use crate::repro::{self, Transcripts};
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

/// Verdicts of machines that L0 ended, at an instant that nothing in the machine decides.
const ENDED_BY_L0: &[&str] = &["timeout", "lost"];

/// The kernel module by which scenarios plant failures, from the cache or built.
pub(crate) fn module(shop: &Workshop, built: &Built) -> Result<PathBuf> {
    let (kernel, tools) = (&built.kernel, &built.tools);
    let sources = shop.path("harness/planted");
    let key = Key::of("planted 1")
        .text("kernel", &kernel.version.package)
        .text("release", &kernel.version.release())
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
    let mut wrong = Vec::new();
    for record in &ran.records {
        let name = format!("{} on {}", record.scenario, record.lane);
        let seen = record.outcome.to_string();
        let row = VERDICTS
            .iter()
            .find(|(s, ..)| record.scenario.strip_prefix(GROUP) == Some(s));
        let Some((_, begins, says)) = row else {
            wrong.push(format!(
                "{name}: xtask/src/planted.rs does not say which verdict it must get"
            ));
            continue;
        };
        if !seen.starts_with(begins) || !seen.contains(says) {
            wrong.push(format!("{name}: must be `{begins}` and say `{says}`, is: {seen}"));
            continue;
        }
        // The runs that bundles make push out old ones: from a copy.
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join(bundle::FILE);
        let logs = ran.run.scenario_folder(record.lane, &record.scenario);
        fs::copy(logs.join(bundle::FILE), &copy).with_context(|| format!("{name}: no bundle"))?;
        let repro = repro::again(shop, &copy).with_context(|| name.clone())?;
        let is_exact = is_bochs(record.lane) && !ENDED_BY_L0.iter().any(|word| *word == record.outcome.word());
        if let (true, Transcripts::Differ(how)) = (is_exact, repro.transcripts()) {
            wrong.push(format!("{name}: not the same to the byte in Bochs: {how}"));
        } else if repro.is_same() {
            show!(
                "{name}: right verdict, and its bundle gives it again: {}",
                repro.record.outcome
            );
        } else {
            wrong.push(format!(
                "{name}: its bundle gives another verdict: {}, was: {seen}",
                repro.record.outcome
            ));
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

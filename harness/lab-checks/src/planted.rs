// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab's verdicts, proved: failures that are planted, the verdict that each must get, and their bundles, which must give the same again.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use kvmi_lab::e2e::{self, Options};
use kvmi_lab::repro::{Reproducer, repeats_itself};
use kvmi_lab::summary;
use kvmi_lab::table::relative;
use kvmi_lab::transcript::{Transcripts, ended_by_itself};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::exit;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::show;
use kvmi_lab_machine::bundle;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::{Outcome, Record};
use kvmi_lab_machine::run_folder;
use serde_json::json;

/// The group that they are in.
pub const GROUP: &str = "planted::";

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
pub const SANITIZED: &str = "planted::sanitizer::";
const SANITIZED_VERDICTS: &[(&str, &str, &str)] = &[
    (
        "sanitizer::use_after_free",
        "splat (memory)",
        "KASAN: slab-use-after-free",
    ),
    ("sanitizer::lock_order", "splat (locking)", "possible circular locking"),
    ("sanitizer::sleep", "splat (locking)", "sleeping function called"),
];

/// What came of one.
struct Planted {
    record: Record,
    /// The verdict that it must get.
    due: String,
    /// What is wrong with its verdict.
    verdict: Result<(), String>,
    /// What its bundle gave, or what is wrong with that; nothing where there is none to run.
    bundle: Option<Result<&'static str, String>>,
}

impl Planted {
    fn wrong(&self) -> Option<&str> {
        let of_bundle = || self.bundle.as_ref()?.as_ref().err();
        self.verdict.as_ref().err().or_else(of_bundle).map(String::as_str)
    }

    fn name(&self) -> String {
        name(&self.record)
    }
}

fn name(record: &Record) -> String {
    format!("{} on {}", record.scenario, record.lane)
}

/// Plants them and looks at what comes of it. Tests that fail are what this is for, and so nothing of their runner's is shown.
pub fn run(env: &Environment, wanted: &Options) -> Result<u8> {
    let is_sanitized = wanted.choice.sanitize;
    let say = |record: &Record| {
        let how = look_at(record, is_sanitized)
            .map_or_else(|wrong| format!("WRONG: {wrong}"), |due| format!("as it must: {due}"));
        env.progress.say(format!("{} ended {how}", name(record)));
    };
    let (records, run) = e2e::run_quietly(env, wanted, say)?;
    let mut reproducer = Reproducer::new(env, run.folder.join("again"))?;
    let planted: Vec<Planted> = records
        .into_iter()
        .map(|record| {
            let planted = planted(record, is_sanitized, &run, &mut reproducer);
            if let Some(bundle) = &planted.bundle {
                let gives = bundle
                    .as_ref()
                    .map_or_else(|wrong| format!("WRONG: {wrong}"), |gives| (*gives).to_owned());
                env.progress.say(format!("{}: its bundle {gives}", planted.name()));
            }
            planted
        })
        .collect();
    let wrong = planted.iter().filter(|p| p.wrong().is_some()).count();
    show(env, wanted.json, &planted, wrong, &run);
    summary::add_table(&table(&planted))?;
    Ok(if wrong == 0 { exit::OK } else { exit::SCENARIO_FAILED })
}

/// Looks at the verdict of one, and if that is right runs its bundle.
fn planted(record: Record, is_sanitized: bool, run: &LabRun, reproducer: &mut Reproducer<'_>) -> Planted {
    let folder = run.scenario_folder(record.lane, &record.scenario);
    let due = look_at(&record, is_sanitized);
    let bundle = match &due {
        Ok(Due::Verdict { .. }) => {
            let gives = run_bundle(&record, &folder.join(bundle::FILE), reproducer);
            Some(gives.map_err(|e| format!("{e:#}")))
        }
        Ok(Due::Skipped) | Err(_) => None,
    };
    Planted {
        due: due_of(&record, is_sanitized).map_or_else(|| "none is named".to_owned(), |due| due.to_string()),
        verdict: due.map(drop),
        record,
        bundle,
    }
}

fn show(env: &Environment, json: bool, planted: &[Planted], wrong: usize, run: &LabRun) {
    if json {
        for p in planted {
            show!(
                "{}",
                json!({
                    "event": "planted", "record": p.record, "due": p.due, "wrong": p.wrong(),
                    "bundle": p.bundle.as_ref().and_then(|b| b.as_ref().ok()),
                })
            );
        }
        return;
    }
    show!("\n{}", table(planted));
    for p in planted {
        if let Some(wrong) = p.wrong() {
            let logs = run.scenario_folder(p.record.lane, &p.record.scenario);
            show!("\n{}: {wrong}\n  logs: {}", p.name(), relative(&logs, &env.checkout));
        }
    }
    show!(
        "\n{}, {wrong} wrong; logs are in {}",
        count(planted.len(), "planted failure"),
        relative(&run.folder, &env.checkout)
    );
}

fn table(planted: &[Planted]) -> Table {
    let mut table = output::table(["planted", "lane", "must end as", "ended so", "its bundle"]);
    for p in planted {
        let scenario = p.record.scenario.strip_prefix(GROUP).unwrap_or(&p.record.scenario);
        let bundle = match &p.bundle {
            None => "",
            Some(Ok(gives)) => gives,
            Some(Err(_)) => "WRONG",
        };
        let verdict = if p.verdict.is_ok() { "yes" } else { "WRONG" };
        table.add_row([scenario, p.record.lane.name(), &p.due, verdict, bundle]);
    }
    table
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

/// How one must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// With a verdict that begins so and says this.
    Verdict { begins: &'static str, says: &'static str },
    /// Not at all: a stock kernel does not notice it.
    Skipped,
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict { begins, says } => write!(f, "{begins}: … {says}"),
            Self::Skipped => f.write_str("skip: a stock kernel does not notice it"),
        }
    }
}

/// How this one must end, if the tables above say.
fn due_of(record: &Record, is_sanitized: bool) -> Option<Due> {
    if record.scenario.starts_with(SANITIZED) && !is_sanitized {
        return Some(Due::Skipped);
    }
    let name = record.scenario.strip_prefix(GROUP)?;
    let mut all = VERDICTS.iter().chain(SANITIZED_VERDICTS);
    let &(_, begins, says) = all.find(|(scenario, ..)| *scenario == name)?;
    Some(Due::Verdict { begins, says })
}

/// The verdict that is due, which this one has; what is wrong where it has another.
fn look_at(record: &Record, is_sanitized: bool) -> Result<Due, String> {
    let due = due_of(record, is_sanitized)
        .ok_or("harness/lab-checks/src/planted.rs does not say which verdict it must get")?;
    let seen = record.outcome.to_string();
    let is_right = match due {
        Due::Verdict { begins, says } => seen.starts_with(begins) && seen.contains(says),
        Due::Skipped => matches!(record.outcome, Outcome::Skip { .. }),
    };
    if is_right {
        Ok(due)
    } else {
        Err(format!("must be `{due}`, is: {seen}"))
    }
}

/// Runs the bundle and says what it gives; fails unless that is the same verdict.
fn run_bundle(record: &Record, bundle: &Path, reproducer: &mut Reproducer<'_>) -> Result<&'static str> {
    if matches!(record.outcome, Outcome::Timeout { .. }) {
        require_registers(&bundle.with_file_name(run_folder::REGISTERS))?;
    }
    let repro = reproducer.again(bundle)?;
    ensure!(
        repro.is_same(),
        "its bundle gives another verdict: {}, was: {}",
        repro.record.outcome,
        record.outcome
    );
    if !repeats_itself(&repro.bundle.manifest) || !ended_by_itself(record) {
        return Ok("gives it again");
    }
    match repro.transcripts() {
        Transcripts::Same(_) => Ok("gives it again, to the byte"),
        Transcripts::Differ(how) => bail!("its bundle gives it again, but not to the byte: {how}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_control::Lane;
    use kvmi_lab_scenarios::all;

    fn record(scenario: &str, outcome: Outcome) -> Record {
        Record {
            scenario: scenario.to_owned(),
            lane: Lane::SvmTcg,
            seed: 1,
            outcome,
            seconds: 1.0,
            measures: Vec::new(),
        }
    }

    fn fail(message: &str) -> Outcome {
        Outcome::Fail {
            message: message.to_owned(),
        }
    }

    #[test]
    fn each_planted_failure_has_a_verdict_that_is_due() {
        for scenario in all().iter().filter(|s| s.name.starts_with(GROUP)) {
            for is_sanitized in [false, true] {
                let due = due_of(&record(scenario.name, Outcome::Pass), is_sanitized);
                assert!(due.is_some(), "{}", scenario.name);
            }
        }
    }

    #[test]
    fn another_verdict_is_wrong() {
        let seen = |outcome| look_at(&record("planted::tool_panic", outcome), false);
        assert!(seen(fail("panicked: planted")).is_ok());
        for other in [fail("panicked: otherwise"), Outcome::Pass] {
            let wrong = seen(other).unwrap_err();
            assert!(
                wrong.starts_with("must be `fail: … panicked: planted`, is: "),
                "{wrong}"
            );
        }
        let skipped = |outcome, is_sanitized| look_at(&record("planted::sanitizer::sleep", outcome), is_sanitized);
        let skip = || Outcome::Skip { reason: "no".into() };
        assert_eq!(skipped(skip(), false), Ok(Due::Skipped));
        assert!(skipped(skip(), true).is_err() && skipped(Outcome::Pass, false).is_err());
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let planted = |verdict: Result<(), String>, bundle| Planted {
            record: record("planted::tool_panic", Outcome::Pass),
            due: "fail".to_owned(),
            verdict,
            bundle,
        };
        let right = planted(Ok(()), Some(Ok("gives it again")));
        let bad_bundle = planted(Ok(()), Some(Err("not to the byte".to_owned())));
        let bad = planted(Err("is: pass".to_owned()), None);
        assert_eq!(
            [&right, &bad_bundle, &bad].map(Planted::wrong),
            [None, Some("not to the byte"), Some("is: pass")]
        );
        let rows = table(&[right, bad_bundle, bad]).to_string();
        let wrong: Vec<usize> = rows.lines().map(|row| row.matches("WRONG").count()).collect();
        assert_eq!(wrong, [0, 0, 0, 1, 1]);
    }
}

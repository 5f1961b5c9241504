// SPDX-License-Identifier: MIT OR Apache-2.0
//! The main job: set up what is missing, build, boot each lane's L1 once, run the scenarios, tell how they ended.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt;
use kvmi_lab_environment::tools::NEXTEST;
use kvmi_lab_kernel::{self as kernel, Built, Choice};
use kvmi_lab_machine::boot::Boot;
use kvmi_lab_machine::bundle::{self, Source};
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::lab_run::{LabRun, VARIABLE};
use kvmi_lab_machine::outcome::{Outcome, Record};
use kvmi_lab_machine::process::{ProcessError, Program, end_with_us};

use crate::emulators::{self, Fetched};
use crate::filter::{self, Filter};
use crate::hardware::{self, Facts};
use crate::images;
use crate::nextest;
use crate::snapshots;
use crate::{differential, parity, summary, table};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A part of the scenarios' names, or the whole name of one.
    pub filter: Option<String>,
    /// The lanes; those of every run if none is given.
    pub lanes: Vec<Lane>,
    /// The hardware lanes that the machine has, and nothing else.
    pub hardware: bool,
    /// Which modules L1 loads.
    pub choice: Choice,
    /// Where random numbers start.
    pub seed: u64,
    /// A part of the scenarios.
    pub slice: Option<Slice>,
    /// Whether a program reads what is said.
    pub json: bool,
}

/// Every `of`th thing, from the `part`th on; all slices together are all things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    part: u32,
    of: u32,
}

impl Slice {
    /// Those of the things that are in it.
    pub fn of<T>(self, things: Vec<T>) -> Vec<T> {
        let (part, of) = (self.part as usize, self.of as usize);
        things.into_iter().skip(part - 1).step_by(of).collect()
    }
}

impl FromStr for Slice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no slice: it is K/N with K from 1 to N, e.g. 1/2");
        let (part, of) = text.split_once('/').ok_or_else(wrong)?;
        let slice = Self {
            part: part.parse().map_err(|_| wrong())?,
            of: of.parse().map_err(|_| wrong())?,
        };
        (1..=slice.of).contains(&slice.part).then_some(slice).ok_or_else(wrong)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.part, self.of)
    }
}

/// The lanes of a run: those that are wanted, or those of every run that this machine has.
fn lanes(env: &Environment, wanted: &Options, facts: &Facts) -> Result<Vec<Lane>> {
    let lack = |lane| hardware::lack(facts, lane);
    if !wanted.lanes.is_empty() {
        for &lane in &wanted.lanes {
            if let Some(lack) = lack(lane) {
                bail!("lane {lane} does not run on this machine: {}", lack.text());
            }
        }
        return Ok(Lane::ALL
            .iter()
            .copied()
            .filter(|lane| wanted.lanes.contains(lane))
            .collect());
    }
    // A machine that came as far as the last step looks as if it could.
    for (lane, lack) in Lane::ALL.iter().filter_map(|&lane| Some((lane, lack(lane)?))) {
        if lack.step == 4 {
            env.progress.say(format!("without {lane}: {}", lack.text()));
        }
    }
    let is_wanted = |lane: &Lane| !wanted.hardware || !lane.platform().is_emulated();
    let here = |lane: &Lane| lane.by_default() && is_wanted(lane) && lack(*lane).is_none();
    let here: Vec<Lane> = Lane::ALL.iter().copied().filter(here).collect();
    ensure!(
        !here.is_empty(),
        "no lane left to run on; each lane, and why not: cargo xtask list --why"
    );
    Ok(here)
}

/// How it went.
#[derive(Clone, Debug)]
pub struct RunResults {
    /// How each scenario ended.
    pub records: Vec<Record>,
    /// What a tool saw on one lane and not on another.
    pub differences: Vec<String>,
    /// Where docs/parity.md is not what the scenarios show.
    pub stale: Vec<String>,
    /// Where, and of what.
    pub run: LabRun,
}

impl RunResults {
    /// How many scenarios passed or had a reason not to run.
    pub fn passed(&self) -> usize {
        self.records.iter().filter(|r| r.outcome.is_fine()).count()
    }

    /// How many did not, and how many other things a person has to mend.
    pub fn failed(&self) -> usize {
        self.records.len() - self.passed() + self.differences.len() + self.stale.len()
    }
}

/// Sets everything up, runs the scenarios, and shows how they ended.
pub fn run(env: &Environment, wanted: &Options) -> Result<RunResults> {
    let (records, run) = run_by(env, wanted, run_tests)?;
    table::show(env, wanted, &records, &run);
    let differences = differential::compare(&run, &records)?;
    table::show_differences(wanted, &differences);
    let stale = parity::compare(&env.checkout, &run, &records)?;
    table::show_stale(env, wanted, &stale, &run);
    summary::add(&records, &differences, &run)?;
    Ok(RunResults {
        records,
        differences,
        stale,
        run,
    })
}

/// Sets everything up and runs the scenarios, for one who has something of their own to say of them: each is told as it ends.
pub fn run_quietly(
    env: &Environment,
    wanted: &Options,
    mut ended: impl FnMut(&Record),
) -> Result<(Vec<Record>, LabRun)> {
    run_by(env, wanted, |tests| run_tests_quietly(tests, &mut ended))
}

/// What runs are done with, and what stays the same from one to the next.
pub struct Equipment {
    fetched: Fetched,
    runner: PathBuf,
}

/// Sets up all that a run on emulated lanes needs, but for the modules.
pub fn equip(env: &Environment) -> Result<Equipment> {
    apt::require_debian()?;
    apt::install_needed(env)?;
    let fetched = emulators::fetch(env)?;
    let runner = NEXTEST.program(env)?;
    compile_tests(env, &runner)?;
    Ok(Equipment { fetched, runner })
}

/// Runs scenarios on `wanted.lanes`, which are emulated ones, with modules that the caller has built; quietly, as [`run_quietly`].
pub fn run_built_quietly(
    env: &Environment,
    wanted: &Options,
    built: &Built,
    equipment: &Equipment,
) -> Result<(Vec<Record>, LabRun)> {
    let filter = Filter::of(wanted.filter.as_deref())?;
    let quietly = |tests: &Tests<'_>| run_tests_quietly(tests, |_| {});
    run_built(env, wanted, &filter, &wanted.lanes, built, equipment, quietly)
}

fn run_by(
    env: &Environment,
    wanted: &Options,
    run_tests: impl FnOnce(&Tests<'_>) -> Result<Option<i32>>,
) -> Result<(Vec<Record>, LabRun)> {
    let filter = Filter::of(wanted.filter.as_deref())?;
    apt::require_debian()?;
    let mut facts = hardware::look();
    for &lane in &wanted.lanes {
        if let Some(lack) = hardware::lack(&facts, lane)
            && lack.step < 4
        {
            bail!("lane {lane} does not run on this machine: {}", lack.text());
        }
    }
    apt::install_needed(env)?;
    // The emulators come over the network while the processor is busy with the kernel.
    let (built, fetched) = thread::scope(|scope| {
        let fetching = scope.spawn(|| emulators::fetch(env));
        let built = kernel::build(env, &wanted.choice);
        let fetched = fetching
            .join()
            .unwrap_or_else(|_| bail!("fetching the emulators panicked"));
        anyhow::Ok((built?, fetched?))
    })?;
    if wanted.lanes.is_empty() || wanted.lanes.iter().any(|lane| !lane.platform().is_emulated()) {
        let kernel = built.kernel.image.join("vmlinuz");
        hardware::try_guest(env, &mut facts, &fetched.emulators, &kernel)?;
    }
    let chosen = lanes(env, wanted, &facts)?;
    let runner = NEXTEST.program(env)?;
    compile_tests(env, &runner)?;
    let equipment = Equipment { fetched, runner };
    run_built(env, wanted, &filter, &chosen, &built, &equipment, run_tests)
}

/// Boots L1 with these modules on each lane and runs the scenarios.
fn run_built(
    env: &Environment,
    wanted: &Options,
    filter: &Filter,
    chosen: &[Lane],
    built: &Built,
    Equipment { fetched, runner }: &Equipment,
    run_tests: impl FnOnce(&Tests<'_>) -> Result<Option<i32>>,
) -> Result<(Vec<Record>, LabRun)> {
    let folder = env.runs.new_folder()?;
    let boot = images::boot(env, built)?;
    let source = source(env, &boot, Clock::Host, &built.kernel.version.release(), fetched);
    let lanes = snapshots::prepare(env, chosen, Clock::Host, &boot, fetched, &folder)?;
    let run = LabRun {
        folder,
        seed: wanted.seed,
        source,
        lanes: lanes.iter().map(|l| l.prepared.clone()).collect(),
    };
    let file = run.folder.join("run.json");
    run.write(&file).with_context(|| format!("write {}", file.display()))?;
    let status = run_tests(&Tests {
        env,
        wanted,
        selection: filter::selection(filter, wanted.choice.without_introspection, chosen),
        runner,
        run: &run,
        run_file: &file,
    })?;
    // nextest writes it to one place for all runs.
    let junit = env.path("target/nextest/lab/junit.xml");
    if junit.is_file() {
        fs::copy(&junit, run.folder.join("junit.xml")).context("keep the JUnit report")?;
    }
    drop(lanes);
    let records = collect(env, &run)?;
    match status {
        Some(0) => {}
        Some(nextest::TESTS_FAILED) if !records.is_empty() => {}
        Some(nextest::NO_TESTS) => bail!(filter::nothing_matches(filter, wanted.choice.without_introspection)),
        other => bail!("the test runner ended with {other:?}; its output says why"),
    }
    Ok((records, run))
}

/// What all scenarios of a run have in common, for bundles.
pub fn source(env: &Environment, boot: &Boot, clock: Clock, kernel: &str, fetched: &Fetched) -> Source {
    let git = |arguments: &[&str]| {
        let output = Program::new("git").args(arguments).in_dir(&env.checkout).output();
        String::from_utf8(output.unwrap_or_default())
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty();
    let commit = git(&["rev-parse", "HEAD"]);
    let emulator = |lane| (lane, fetched.emulator(lane));
    Source {
        boot: boot.clone(),
        kernel: kernel.to_owned(),
        clock,
        checkout: if changed { format!("{commit}-dirty") } else { commit },
        emulators: Lane::ALL.iter().copied().map(emulator).collect(),
    }
}

fn compile_tests(env: &Environment, runner: &Path) -> Result<()> {
    let task = env.progress.task("build the scenarios' runner");
    Program::new(runner)
        .args(["nextest", "run", "--no-run", "--locked", "--package", "kvmi-lab-tests"])
        .in_dir(&env.checkout)
        .env("CARGO_TERM_COLOR", "never")
        .run(&task)?;
    task.done();
    Ok(())
}

/// What nextest is to run.
struct Tests<'a> {
    env: &'a Environment,
    wanted: &'a Options,
    /// Which tests, in nextest's words.
    selection: String,
    runner: &'a Path,
    run: &'a LabRun,
    run_file: &'a Path,
}

impl Tests<'_> {
    fn arguments(&self) -> Vec<String> {
        let mut all: Vec<String> = "nextest run --locked --package kvmi-lab-tests --profile lab -E"
            .split(' ')
            .map(str::to_owned)
            .collect();
        all.push(self.selection.clone());
        all.extend(self.wanted.slice.map(|slice| format!("--partition=slice:{slice}")));
        if self.wanted.filter.is_some() {
            all.extend(["--run-ignored", "all"].map(str::to_owned));
        }
        all
    }
}

/// Runs nextest over the prepared lanes, which shows what it does, and returns its exit code.
fn run_tests(tests: &Tests<'_>) -> Result<Option<i32>> {
    let mut command = Command::new(tests.runner);
    command
        .args(tests.arguments())
        .current_dir(&tests.env.checkout)
        .env(VARIABLE, tests.run_file);
    if tests.wanted.json {
        // Standard output belongs to the JSON lines.
        command.stdout(std::io::stderr());
    }
    let status = end_with_us(&mut command)
        .status()
        .with_context(|| format!("run {}", tests.runner.display()))?;
    Ok(status.code())
}

/// The same without a word of nextest's, which are in a file of the run's folder; `ended` is told of each scenario as it ends.
fn run_tests_quietly(tests: &Tests<'_>, mut ended: impl FnMut(&Record)) -> Result<Option<i32>> {
    let task = tests.env.progress.task("run the scenarios");
    let mut told = BTreeSet::new();
    let runner = Program::new(tests.runner)
        .args(tests.arguments())
        .in_dir(&tests.env.checkout)
        .env(VARIABLE, tests.run_file)
        .env("CARGO_TERM_COLOR", "never")
        .log(tests.run.folder.join("nextest.log"));
    let ran = runner.each_line(|line| {
        // The end of a test is a line with its name behind all else, as some others are: only its own process has a record of it.
        let Some((lane, scenario)) = test_of(line) else { return };
        if let Ok(record) = Record::read(&tests.run.scenario_folder(lane, scenario))
            && told.insert((lane, scenario.to_owned()))
        {
            task.note(format!("{} scenarios have ended", told.len()));
            ended(&record);
        }
    });
    task.done();
    match ran {
        Ok(_) => Ok(Some(0)),
        Err(ProcessError::Failed { status, .. })
            if [nextest::TESTS_FAILED, nextest::NO_TESTS]
                .map(Some)
                .contains(&status.code()) =>
        {
            Ok(status.code())
        }
        Err(e) => Err(e.into()),
    }
}

/// The lane and the scenario of the test whose name a line of nextest's ends with.
fn test_of(line: &str) -> Option<(Lane, &str)> {
    let (lane, scenario) = line.split_whitespace().last()?.split_once("::")?;
    Some((lane.parse().ok()?, scenario))
}

/// The records of a run, by lane and name. A scenario without one is lost: the process that ran it was ended.
fn collect(env: &Environment, run: &LabRun) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for lane in run.lanes.iter().map(|prepared| prepared.lane) {
        let mut folders: Vec<PathBuf> = fs::read_dir(run.folder.join(lane.name()))?
            .filter_map(Result::ok)
            // Bochs has a link there, to its plugins.
            .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|e| e.path())
            .collect();
        folders.sort();
        for folder in folders {
            let scenario = folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .replace('.', "::");
            let record = Record::read(&folder).unwrap_or_else(|_| Record {
                scenario,
                lane,
                seed: run.seed,
                outcome: Outcome::Lost {
                    message: "the test's process ended before its verdict".to_owned(),
                },
                seconds: 0.0,
                measures: Vec::new(),
            });
            // As a rule its own process made it; one that was ended could not.
            if !record.outcome.is_fine() && !folder.join(bundle::FILE).is_file() {
                // Its verdict counts all the same.
                if let Err(e) = run.bundle(&record) {
                    env.progress
                        .say(format!("no bundle of {} on {lane}: {e}", record.scenario));
                }
            }
            records.push(record);
        }
    }
    Ok(records)
}

/// The command that runs one scenario again.
pub fn again(record: &Record, choice: &Choice) -> String {
    format!(
        "cargo xtask e2e {} --lane {} --seed {}{choice}",
        record.scenario, record.lane, record.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_runs_it_again_builds_the_same() {
        let record = Record {
            scenario: "a::b".to_owned(),
            lane: Lane::SvmTcg,
            seed: 7,
            outcome: Outcome::Pass,
            seconds: 1.0,
            measures: Vec::new(),
        };
        let choice = Choice {
            kernel: Some("trixie".to_owned()),
            kvm_source: Some("/tmp/my kvm".into()),
            without_introspection: true,
            sanitize: true,
        };
        assert_eq!(
            again(&record, &Choice::default()),
            "cargo xtask e2e a::b --lane svm-tcg --seed 7"
        );
        assert_eq!(
            again(&record, &choice),
            "cargo xtask e2e a::b --lane svm-tcg --seed 7 --kernel trixie --kvm-source '/tmp/my kvm' --without-introspection --sanitize"
        );
    }

    #[test]
    fn the_runners_lines_name_a_test_at_their_end() {
        let line = "        FAIL [   3.214s] ( 1/16) kvmi-lab-tests::bin/kvmi-lab-tests svm-tcg::planted::kernel_oops";
        assert_eq!(test_of(line), Some((Lane::SvmTcg, "planted::kernel_oops")));
        for other in [
            "",
            "  Summary [ 3.2s] 1 test run: 0 passed",
            "kvmi-lab-tests::bin/kvmi-lab-tests",
        ] {
            assert_eq!(test_of(other), None);
        }
    }

    #[test]
    fn a_slice_is_a_part_of_a_whole() {
        assert_eq!("2/3".parse(), Ok(Slice { part: 2, of: 3 }));
        assert_eq!("2/3".parse::<Slice>().map(|s| s.to_string()), Ok("2/3".to_owned()));
        for wrong in ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2"] {
            assert!(wrong.parse::<Slice>().unwrap_err().contains(wrong), "{wrong}");
        }
        let all = vec![1, 2, 3, 4, 5];
        assert_eq!(Slice { part: 1, of: 2 }.of(all.clone()), [1, 3, 5]);
        assert_eq!(Slice { part: 2, of: 2 }.of(all), [2, 4]);
    }
}

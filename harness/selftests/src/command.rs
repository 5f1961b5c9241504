// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's own selftests: built from the kernel's source package, run in L1 with each KVM, compared with stock KVM.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Result, bail, ensure};
use kvmi_lab::e2e::{Slice, source};
use kvmi_lab::emulators::{self, Fetched};
use kvmi_lab::images::{self, Programs as InL1};
use kvmi_lab::{hardware, snapshots};
use kvmi_lab_control::{Lane, Platform, SELFTEST_ARGUMENTS, SELFTESTS, SelftestMode};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output::count;
use kvmi_lab_environment::{apt, exit};
use kvmi_lab_kernel::{self as kernel, Built, Choice};
use kvmi_lab_machine::boot::{Boot, Hardware};
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::Record;

use crate::build::{self, Programs};
use crate::compare::{Seen, compare, idle_modes, unknown_names};
use crate::expected::Expected;
use crate::record::{KERNEL, read_results};
use crate::run::{self, Job};
use crate::show;

/// The lanes of a run that names none.
const LANES: &[Lane] = &[Lane::SvmTcg, Lane::VmxBochs];

/// L1's memory in QEMU, of which a restored machine takes what it touches, and in Bochs, which saves all of it.
const QEMU_MIB: u32 = 3072;
const BOCHS_MIB: u32 = 1024;

/// What is wanted.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Arguments {
    /// A part of tests' names, or the whole name of one
    filter: Option<String>,
    /// On this lane; may be given several times. svm-tcg and vmx-bochs when not given
    #[arg(long)]
    lane: Vec<Lane>,
    /// In this mode, beside stock: off, on, hooked, paused, protected or stepped; may be given several times. All when not given
    #[arg(long)]
    mode: Vec<SelftestMode>,
    /// The few tests that each push runs
    #[arg(long, conflicts_with = "filter")]
    each_push: bool,
    /// Run one part of many of the tests, e.g. 1/2: a job of CI each
    #[arg(long, value_name = "K/N")]
    slice: Option<Slice>,
    #[command(flatten)]
    choice: Choice,
}

impl Arguments {
    /// What each push runs.
    pub fn of_push() -> Self {
        Self {
            lane: vec![Lane::SvmTcg],
            mode: vec![SelftestMode::Hooked],
            each_push: true,
            ..Self::default()
        }
    }

    /// The lanes, in the order of tables.
    fn lanes(&self) -> Vec<Lane> {
        let wanted = if self.lane.is_empty() { LANES } else { &self.lane };
        Lane::ALL.iter().copied().filter(|lane| wanted.contains(lane)).collect()
    }

    /// The modes; what others are compared with is always among them.
    fn modes(&self) -> Vec<SelftestMode> {
        let is_wanted =
            |mode: &SelftestMode| *mode == SelftestMode::Stock || self.mode.is_empty() || self.mode.contains(mode);
        SelftestMode::ALL.iter().copied().filter(is_wanted).collect()
    }

    /// Those of the tests that are meant.
    fn tests<'p>(&self, programs: &'p Programs, expected: &Expected) -> Result<BTreeSet<&'p str>> {
        let all = programs.keys().map(String::as_str);
        let tests: Vec<&str> = match &self.filter {
            _ if self.each_push => all
                .filter(|test| expected.each_push.iter().any(|t| t == test))
                .collect(),
            None => all.collect(),
            Some(name) if programs.contains_key(name) => all.filter(|test| test == name).collect(),
            Some(part) => all.filter(|test| test.contains(part.as_str())).collect(),
        };
        if let (Some(part), []) = (&self.filter, &tests[..]) {
            bail!("no selftest's name has `{part}` in it; docs/selftests.md lists them");
        }
        Ok(match self.slice {
            Some(slice) => slice.of(tests).into_iter().collect(),
            None => tests.into_iter().collect(),
        })
    }

    /// Whether so many tests run that each mode has to have something to show.
    fn is_of_many(&self) -> bool {
        self.filter.is_none()
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Those that ended as they should.
    pub passed: usize,
    /// Findings.
    pub failed: usize,
}

/// Builds, runs, compares, and shows.
pub fn run(env: &Environment, wanted: &Arguments, json: bool) -> Result<u8> {
    let count = run_counted(env, wanted, json)?;
    Ok(if count.failed == 0 {
        exit::OK
    } else {
        exit::SCENARIO_FAILED
    })
}

/// The same; what is as it should be is passed, each finding has failed.
pub fn run_counted(env: &Environment, wanted: &Arguments, json: bool) -> Result<Count> {
    let expected = Expected::own()?;
    apt::require_debian()?;
    apt::install_needed(env)?;
    ensure!(
        !wanted.choice.without_introspection,
        "selftests compare KVM with introspection and stock KVM; leave --without-introspection out"
    );
    let (built, fetched) = thread::scope(|scope| {
        let fetching = scope.spawn(|| emulators::fetch(env));
        let built = kernel::build(env, &wanted.choice);
        let fetched = fetching
            .join()
            .unwrap_or_else(|_| bail!("fetching the emulators panicked"));
        anyhow::Ok((built?, fetched?))
    })?;
    let lanes = wanted.lanes();
    require(env, &lanes, &fetched, &built)?;
    let programs = programs(env, &built)?;
    let names = programs.keys().map(String::as_str).collect();
    let unknown = unknown_names(&expected, &names);
    ensure!(
        unknown.is_empty() || wanted.choice != Choice::default(),
        "expected.toml names tests that there are none: {}",
        unknown.join(", ")
    );
    let tests = wanted.tests(&programs, &expected)?;
    let jobs = run::jobs(&lanes, &wanted.modes(), &programs, &expected, |test| {
        tests.contains(test)
    });
    ensure!(
        !jobs.is_empty(),
        "no test is left to run: docs/selftests.md says which are left out, and why"
    );
    let folder = env.runs.new_folder()?;
    fs::write(folder.join(KERNEL), &built.kernel.version.package)?;
    let arguments = folder.join("arguments");
    fs::write(&arguments, expected.arguments_file())?;
    let mut prepared = Vec::new();
    for &lane in &lanes {
        let boot = boot(env, &built, &programs, &arguments, lane)?;
        prepared.extend(snapshots::prepare(env, &[lane], Clock::Host, &boot, &fetched, &folder)?);
    }
    let lab = LabRun {
        folder,
        seed: 1,
        source: source(
            env,
            &boot(env, &built, &programs, &arguments, lanes[0])?,
            Clock::Host,
            &built.kernel.version.release(),
            &fetched,
        ),
        lanes: prepared.iter().map(|l| l.prepared.clone()).collect(),
    };
    let records = run_jobs(env, &lab, jobs)?;
    let seen = Seen::of(&records);
    let mut findings = compare(&seen, &expected);
    if wanted.is_of_many() {
        findings.extend(idle_modes(&seen));
    }
    let results = read_results(&env.checkout)?;
    // What stands in the record is of its own kernel and its own modules.
    let stale = if wanted.choice == Choice::default() {
        results.stale(&seen)
    } else {
        Vec::new()
    };
    show::show_all(env, &lab, &records, &seen, json);
    show::show_findings(env, &lab, &findings, &stale, json);
    let failed = findings.len() + stale.len();
    let passed = records.len().saturating_sub(failed);
    Ok(Count { passed, failed })
}

/// Fails unless the machine has these lanes.
fn require(env: &Environment, lanes: &[Lane], fetched: &Fetched, built: &Built) -> Result<()> {
    let mut facts = hardware::look();
    if lanes.iter().any(|lane| !lane.platform().is_emulated()) {
        let kernel = built.kernel.image.join("vmlinuz");
        hardware::try_guest(env, &mut facts, &fetched.emulators, &kernel)?;
    }
    for &lane in lanes {
        if let Some(lack) = hardware::lack(&facts, lane) {
            bail!("lane {lane} does not run on this machine: {}", lack.text());
        }
    }
    Ok(())
}

/// The tests of the kernel's source package, whatever KVM is under test.
fn programs(env: &Environment, built: &Built) -> Result<Programs> {
    let (version, archive) = kernel::resolve(env, Some(&built.kernel.version.release()))?;
    let package = version.package.clone();
    Ok(build::build(
        &env.cache,
        &env.progress,
        &package,
        env.jobs(),
        |into, parts, task| Ok(kernel::unpack_source(&version, &archive, into, parts, task)?),
    )?)
}

/// An L1 with the tests in `/selftests`.
fn boot(env: &Environment, built: &Built, programs: &Programs, arguments: &Path, lane: Lane) -> Result<Boot> {
    let files = programs
        .iter()
        .map(|(name, path)| (format!("selftests/{name}"), path.clone()));
    let mut files: InL1 = files.collect();
    files.insert(
        SELFTEST_ARGUMENTS.trim_start_matches('/').to_owned(),
        arguments.to_owned(),
    );
    let mut boot = images::boot_with(env, built, &files)?;
    boot.arguments.push(SELFTESTS.to_owned());
    boot.hardware = Hardware {
        memory_mib: if lane.platform() == Platform::Bochs {
            BOCHS_MIB
        } else {
            QEMU_MIB
        },
        // Each test loads KVM anew, which patches the kernel's text; so does much of what tests do.
        one_thread: true,
    };
    Ok(boot)
}

fn run_jobs(env: &Environment, lab: &LabRun, jobs: Vec<Job>) -> Result<Vec<Record>> {
    let all = jobs.len();
    let task = env.progress.task(format!("run {}", count(all, "selftest")));
    let mut ended = 0;
    let records = run::run(lab, jobs, env.jobs(), |record| {
        ended += 1;
        task.note(format!(
            "{ended} of {all}: {} on {}: {}",
            record.scenario,
            record.lane,
            record.outcome.word()
        ));
    })?;
    task.done();
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        ["smm_test", "smm_test_2", "state_test"]
            .map(|name| (name.to_owned(), name.into()))
            .into()
    }

    #[test]
    fn a_whole_name_means_that_test_alone() {
        let of = |filter: &str| {
            let wanted = Arguments {
                filter: Some(filter.to_owned()),
                ..Arguments::default()
            };
            let programs = programs();
            let tests = wanted.tests(&programs, &Expected::default())?;
            anyhow::Ok(tests.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(of("smm_test").unwrap(), ["smm_test"]);
        assert_eq!(of("smm").unwrap(), ["smm_test", "smm_test_2"]);
        assert!(of("nothing").unwrap_err().to_string().contains("`nothing`"));
    }

    #[test]
    fn stock_is_always_among_the_modes() {
        let wanted = Arguments {
            mode: vec![SelftestMode::Stepped],
            ..Arguments::default()
        };
        assert_eq!(wanted.modes(), [SelftestMode::Stock, SelftestMode::Stepped]);
        assert_eq!(Arguments::default().modes(), SelftestMode::ALL);
    }

    #[test]
    fn each_push_runs_tests_of_the_table_alone() {
        let expected = Expected {
            each_push: vec!["state_test".to_owned()],
            ..Expected::default()
        };
        let programs = programs();
        assert_eq!(
            Arguments::of_push().tests(&programs, &expected).unwrap(),
            ["state_test"].into()
        );
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Schedule exploration: a scenario run by many seeds, each of which has something else come first.
//!
//! A seed says where and for how long threads are held in the glue (kernel/glue/explore.c), when L1's kernel takes the CPU from a thread,
//! and, in QEMU, how much time an instruction takes and so how long the CPUs' turns are.

mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab::e2e;
use kvmi_lab::repro::Reproducer;
use kvmi_lab::snapshots::{self, ReadyLane};
use kvmi_lab::{emulators, hardware, images};
use kvmi_lab_control::brief::MAX_SEED;
use kvmi_lab_control::{Lane, Platform};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::{apt, exit};
use kvmi_lab_kernel::{self as kernel, Choice, Variant};
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::Record;
use kvmi_lab_scenarios::all;
use report::{Report, Tried};

/// The scenario in which a planted race shows.
const RACE: &str = "unhook::at_any_moment";

/// Clocks in QEMU, by the seed's remainder.
const CLOCKS: [Clock; 3] = [Clock::Counted(1), Clock::Counted(3), Clock::Counted(5)];

/// What to explore.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The scenario, by its whole name
    #[arg(required_unless_present = "planted_race")]
    scenario: Option<String>,
    /// How many seeds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// The first seed; the others follow it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MAX_SEED))]
    seed: u64,
    /// The lane
    #[arg(long, default_value_t = Lane::SvmTcg)]
    lane: Lane,
    /// Hold no thread and let time pass as in e2e: as many plain runs, to compare with
    #[arg(long)]
    plain: bool,
    /// Leave a wait out of the modules that must be there, and look whether exploration finds that
    #[arg(long)]
    planted_race: bool,
    /// In a kernel that watches itself, as for e2e
    #[arg(long)]
    sanitize: bool,
}

impl Arguments {
    fn scenario(&self) -> Result<&'static str> {
        let name = self.scenario.as_deref().unwrap_or(RACE);
        let found = all().iter().find(|s| s.name == name);
        let found = found.with_context(|| format!("no scenario `{name}`; for the list: cargo xtask list"))?;
        if let Some(why) = found.needs.why_not_on(self.lane) {
            bail!("{name} does not run on {}: {why}", self.lane);
        }
        Ok(found.name)
    }

    fn variant(&self) -> Variant {
        Variant {
            explores: !self.plain,
            has_race: self.planted_race,
        }
    }

    /// How time passes in the machine of a seed.
    fn clock(&self, seed: u64) -> Clock {
        if self.plain || self.lane.platform() != Platform::Tcg {
            return Clock::Host;
        }
        CLOCKS[(seed % CLOCKS.len() as u64) as usize]
    }

    fn seeds(&self) -> std::ops::Range<u64> {
        self.seed..self.seed.saturating_add(self.runs).min(MAX_SEED + 1)
    }
}

/// Explores, tells what was found, and has each kind of failure shown again by its bundle.
pub fn run(env: &Environment, wanted: &Arguments, json: bool) -> Result<u8> {
    let scenario = wanted.scenario()?;
    apt::require_debian()?;
    if let Some(lack) = hardware::lack(&hardware::look(), wanted.lane) {
        bail!("lane {} does not run on this machine: {}", wanted.lane, lack.text());
    }
    apt::install_needed(env)?;
    let choice = Choice {
        sanitize: wanted.sanitize,
        ..Choice::default()
    };
    let built = kernel::build_variant(env, &choice, wanted.variant())?;
    let fetched = emulators::fetch(env)?;
    let boot = images::boot(env, &built)?;
    let folder = env.runs.new_folder()?;
    let mut machines = BTreeMap::new();
    for clock in wanted.seeds().take(CLOCKS.len()).map(|seed| wanted.clock(seed)) {
        if machines.contains_key(&clock) {
            continue;
        }
        let standing = snapshots::prepare(env, &[wanted.lane], clock, &boot, &fetched, &folder)?;
        let source = e2e::source(env, &boot, clock, &built.kernel.version.release(), &fetched);
        let run = LabRun {
            folder: folder.clone(),
            seed: 0,
            source,
            lanes: standing.iter().map(|s| s.prepared.clone()).collect(),
        };
        machines.insert(clock, (run, standing));
    }
    let tried = try_all(env, wanted, scenario, &machines)?;
    drop(machines);
    let mut report = Report::new(wanted, scenario, folder.clone(), tried);
    ensure!(
        wanted.plain || report.holds() > 0,
        "no thread was held in any run: the scenario does not come where threads are held, or kvm.ko was loaded anew in it"
    );
    report.reproduce(&mut Reproducer::new(env, folder.join("again"))?)?;
    report.show(env, json);
    let is_well = if wanted.planted_race && !wanted.plain {
        report.has_found_and_reproduced()
    } else {
        report.failed() == 0
    };
    Ok(if is_well { exit::OK } else { exit::SCENARIO_FAILED })
}

/// Runs every seed, as many at once as there are processors.
fn try_all(
    env: &Environment,
    wanted: &Arguments,
    scenario: &str,
    machines: &BTreeMap<Clock, (LabRun, Vec<ReadyLane>)>,
) -> Result<Vec<Tried>> {
    let task = env.progress.task(format!("explore {scenario} on {}", wanted.lane));
    let next = AtomicU64::new(wanted.seed);
    let tried = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !wanted.seeds().contains(&seed) {
                return Ok(());
            }
            let clock = wanted.clock(seed);
            let (run, _) = machines.get(&clock).context("no machine of that clock stands")?;
            let one = try_seed(run, seed, wanted.lane, scenario)?;
            let mut tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
            tried.push(Tried { clock, ..one });
            let failed = tried.iter().filter(|t| !t.record.outcome.is_fine()).count();
            task.note(format!("{} of {} runs, {failed} failed", tried.len(), wanted.runs));
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..env.jobs()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| bail!("a thread that explores panicked"))
        })
    })?;
    task.done();
    let mut tried = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
    tried.sort_by_key(|t| t.record.seed);
    Ok(tried)
}

/// Runs one seed. Of what passes nothing is kept but the record.
fn try_seed(run: &LabRun, seed: u64, lane: Lane, scenario: &str) -> Result<Tried> {
    let run = LabRun {
        folder: run.folder.join(format!("seed-{seed}")),
        seed,
        ..run.clone()
    };
    let record: Record = run.run(lane, scenario)?;
    let bundle = if record.outcome.is_fine() {
        remove(&run.folder)?;
        None
    } else {
        Some(run.bundle(&record).with_context(|| format!("bundle seed {seed}"))?)
    };
    Ok(Tried {
        clock: Clock::Host,
        record,
        bundle,
    })
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

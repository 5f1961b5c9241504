// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the lab itself costs: how long until the first scenario has run, and where the time of each goes.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table};
use kvmi_lab::e2e;
use kvmi_lab::emulators::{self, Fetched};
use kvmi_lab::hardware;
use kvmi_lab::images;
use kvmi_lab::points::{self, Standing};
use kvmi_lab_control::{FromL1, Lane};
use kvmi_lab_environment::apt;
use kvmi_lab_environment::output;
use kvmi_lab_environment::show;
use kvmi_lab_environment::workshop::Workshop;
use kvmi_lab_kernel::{self as kernel, Choice};
use kvmi_lab_machine::boot::Boot;
use kvmi_lab_machine::cache::Cache;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::Record;
use kvmi_lab_machine::pace::Pace;
use kvmi_lab_machine::run_folder;
use serde::Serialize;
use serde_json::json;

/// A scenario that does what most do, and little of it.
const SCENARIO: &str = "lifecycle::hook_then_unhook";

/// What is measured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The lane; those of every run if none is given.
    pub lane: Option<Lane>,
    /// How often the scenario runs on each lane.
    pub runs: u32,
    /// Which modules L1 loads.
    pub choice: Choice,
    /// Where random numbers start.
    pub seed: u64,
    /// Whether a program reads what is said.
    pub json: bool,
}

/// Where the time of one scenario goes, in seconds of host time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Parts {
    /// From the request for a machine until L1 says that the scenario starts.
    start: f64,
    /// The scenario's own work.
    work: f64,
    /// From its verdict until the machine is gone.
    power_off: f64,
    /// What the lab adds to the scenario's own work: its start and its power-off.
    beyond: f64,
    /// All of it.
    whole: f64,
}

/// What a scenario may cost beyond its own work, in seconds, on a machine of two processors.
const AT_MOST: f64 = 0.6;

/// What one lane costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Cost {
    lane: Lane,
    /// Until the first scenario has run, from an empty cache of started machines.
    cold: f64,
    /// The same in the next run of the lab.
    warm: f64,
    runs: u32,
    /// Of all runs, each part's median.
    median: Parts,
}

/// Measures and shows.
pub fn run(shop: &Workshop, wanted: &Wanted) -> Result<()> {
    apt::require_debian()?;
    apt::install_needed(shop)?;
    ensure!(wanted.runs > 0, "--runs 0: nothing could be measured");
    let built = kernel::build(shop, &wanted.choice)?;
    let fetched = emulators::fetch(shop)?;
    let mut facts = hardware::look();
    if wanted.lane.is_none_or(|lane| !lane.platform().is_emulated()) {
        let kernel = built.kernel.image.join("vmlinuz");
        hardware::try_guest(shop, &mut facts, &fetched.emulators, &kernel)?;
    }
    let boot = images::boot(shop, &built)?;
    let lanes = Lane::ALL.iter().copied();
    let lanes: Vec<Lane> = lanes
        .filter(|lane| wanted.lane.is_none_or(|only| only == *lane) && hardware::lack(&facts, *lane).is_none())
        .collect();
    ensure!(
        !lanes.is_empty(),
        "that lane does not run on this machine; cargo xtask list --why says why"
    );
    let mut costs = Vec::new();
    for lane in lanes {
        costs.push(measure(shop, lane, &boot, &fetched, wanted)?);
    }
    if wanted.json {
        for cost in &costs {
            show!("{}", json!({ "event": "harness", "scenario": SCENARIO, "cost": cost }));
        }
    } else {
        show!(
            "\n{}\n\nseconds; {SCENARIO}, {} times, one at a time, medians",
            table(&costs),
            wanted.runs
        );
        for Cost { lane, median, .. } in costs.iter().filter(|c| c.median.beyond > AT_MOST) {
            show!(
                "on {lane} a scenario costs {:.2} s beyond its own work, more than {AT_MOST} s: is the machine busy?",
                median.beyond
            );
        }
    }
    Ok(())
}

fn measure(shop: &Workshop, lane: Lane, boot: &Boot, fetched: &Fetched, wanted: &Wanted) -> Result<Cost> {
    // What machines start from is made anew here; everything else is as it is.
    let empty = tempfile::tempdir_in(shop.cache.work("bench")?).context("make an empty cache")?;
    let shop = Workshop {
        cache: Cache::at(empty.path()),
        ..shop.clone()
    };
    let first = |shop: &Workshop| {
        let began = Instant::now();
        let folder = shop.runs.new_folder()?;
        let standing = points::prepare(shop, &[lane], Pace::Host, boot, fetched, &folder)?;
        let run = lab_run(shop, boot, fetched, folder, &standing, wanted.seed);
        one(&run, lane)?;
        anyhow::Ok((began.elapsed().as_secs_f64(), run, standing))
    };
    let (cold, ..) = first(&shop)?;
    let (warm, run, standing) = first(&shop)?;
    let task = shop
        .progress
        .task(format!("run {SCENARIO} {} times ({lane})", wanted.runs));
    let mut parts = Vec::new();
    for number in 1..=wanted.runs {
        task.note(format!("{number} of {}", wanted.runs));
        parts.push(one(&run, lane)?);
    }
    task.done();
    drop(standing);
    Ok(Cost {
        lane,
        cold,
        warm,
        runs: wanted.runs,
        median: Parts {
            start: median(parts.iter().map(|p| p.start)),
            work: median(parts.iter().map(|p| p.work)),
            power_off: median(parts.iter().map(|p| p.power_off)),
            beyond: median(parts.iter().map(|p| p.beyond)),
            whole: median(parts.iter().map(|p| p.whole)),
        },
    })
}

fn lab_run(
    shop: &Workshop,
    boot: &Boot,
    fetched: &Fetched,
    folder: std::path::PathBuf,
    standing: &[Standing],
    seed: u64,
) -> LabRun {
    LabRun {
        folder,
        seed,
        source: e2e::source(shop, boot, Pace::Host, "", fetched),
        lanes: standing.iter().map(|s| s.prepared.clone()).collect(),
    }
}

/// One run of the scenario.
fn one(run: &LabRun, lane: Lane) -> Result<Parts> {
    let record = run.run(lane, SCENARIO)?;
    ensure!(
        record.outcome.is_fine(),
        "{SCENARIO} on {lane}: {}; its time would say nothing: cargo xtask e2e {SCENARIO} --lane {lane}",
        record.outcome
    );
    let log = run.scenario_folder(lane, SCENARIO).join(run_folder::CONTROL);
    parts(&record, &log)
}

/// Where the time went, by the times of L0 in the transcript of the control channel.
fn parts(record: &Record, log: &Path) -> Result<Parts> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let when = |is_it: fn(&FromL1) -> bool| {
        let mut said = text.lines().filter_map(|line| {
            let (time, said) = line.strip_prefix('[')?.split_once("] < ")?;
            Some((time.trim().parse::<f64>().ok()?, serde_json::from_str(said).ok()?))
        });
        said.find_map(|(time, message)| is_it(&message).then_some(time))
    };
    let started = when(|m| matches!(m, FromL1::Started { .. })).context("the scenario did not start")?;
    let done = when(|m| matches!(m, FromL1::Done { .. })).context("the scenario has no verdict")?;
    Ok(Parts {
        start: started,
        work: done - started,
        power_off: record.seconds - done,
        beyond: started + record.seconds - done,
        whole: record.seconds,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn table(costs: &[Cost]) -> Table {
    let mut table = output::table([
        "lane",
        "cold to first",
        "warm to first",
        "a scenario",
        "its start",
        "own work",
        "power off",
        "beyond own work",
    ]);
    for cost in costs {
        let seconds = |value: f64, digits| Cell::new(format!("{value:.digits$}")).set_alignment(CellAlignment::Right);
        let Parts {
            start,
            work,
            power_off,
            beyond,
            whole,
        } = cost.median;
        let mut row = vec![Cell::new(cost.lane), seconds(cost.cold, 1), seconds(cost.warm, 1)];
        row.extend([whole, start, work, power_off, beyond].map(|value| seconds(value, 2)));
        table.add_row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_machine::outcome::Outcome;

    #[test]
    fn the_transcript_says_where_the_time_went() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("control.log");
        let record = Record {
            scenario: SCENARIO.to_owned(),
            lane: Lane::SvmTcg,
            seed: 1,
            outcome: Outcome::Pass,
            seconds: 1.5,
            measures: Vec::new(),
        };
        let text = "[    0.400] > {\"type\":\"run\",\"scenario\":\"a\",\"seed\":1}\n\
                    [    0.500] < {\"type\":\"started\",\"scenario\":\"a\"}\n\
                    [    0.600] < {\"type\":\"log\",\"source\":\"x\",\"text\":\"] < done\"}\n\
                    [    1.250] < {\"type\":\"done\",\"verdict\":{\"is\":\"pass\"}}\n";
        fs::write(&log, text).unwrap();
        let parts = parts(&record, &log).unwrap();
        assert_eq!(
            (parts.start, parts.work, parts.power_off, parts.beyond, parts.whole),
            (0.5, 0.75, 0.25, 0.75, 1.5)
        );
        fs::write(&log, "").unwrap();
        assert!(super::parts(&record, &log).is_err());
    }

    #[test]
    fn the_middle_one_counts() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}

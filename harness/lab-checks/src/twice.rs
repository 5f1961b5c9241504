// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exactness, proved: scenarios run twice in Bochs, each time in a machine that is restored anew, say the same to the byte.

use anyhow::{Result, bail};
use comfy_table::Table;
use kvmi_lab::e2e::{self, Options, RunResults};
use kvmi_lab::transcript::{Transcripts, compare, ended_by_itself};
use kvmi_lab_control::{Lane, Platform};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::exit;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::show;
use kvmi_lab_machine::outcome::Record;
use serde_json::json;

/// What each push looks at: a short scenario on the lane in Bochs that runs by default.
const SAMPLE: (&str, Lane) = ("lifecycle::hook_then_unhook", Lane::VmxBochs);

/// One scenario's two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    scenario: String,
    lane: Lane,
    /// How many lines are the same, or how they differ.
    said: Result<usize, String>,
}

/// Runs them twice on each lane in Bochs that is wanted, and compares.
pub fn run(env: &Environment, wanted: &Options) -> Result<u8> {
    let is_exact = |lane: &&Lane| lane.platform() == Platform::Bochs;
    if let Some(lane) = wanted.lanes.iter().find(|lane| !is_exact(lane)) {
        bail!("on {lane} no run is like another: only in Bochs time counts instructions");
    }
    let lanes = if wanted.lanes.is_empty() {
        Lane::ALL
    } else {
        &wanted.lanes
    };
    let mut pairs = Vec::new();
    for &lane in lanes.iter().filter(is_exact) {
        let wanted = Options {
            lanes: vec![lane],
            ..wanted.clone()
        };
        let (first, second) = (e2e::run(env, &wanted)?, e2e::run(env, &wanted)?);
        pairs.extend(first.records.iter().map(|record| pair(record, &first, &second)));
    }
    let differ = pairs.iter().filter(|p| p.said.is_err()).count();
    if wanted.json {
        for Pair { scenario, lane, said } in &pairs {
            let (lines, difference) = (said.as_ref().ok(), said.as_ref().err());
            show!(
                "{}",
                json!({ "event": "twice", "scenario": scenario, "lane": lane, "lines": lines, "difference": difference })
            );
        }
    } else {
        show!("\n{}\n\n{}", table(&pairs), closing(pairs.len(), differ));
    }
    Ok(if differ == 0 { exit::OK } else { exit::SCENARIO_FAILED })
}

/// Runs the sample once more, in a machine restored anew, and compares it with a run of all; in how many lines they are the same, or how
/// they differ.
pub fn sample_again(env: &Environment, wanted: &Options, first: &RunResults) -> Result<Result<usize, String>> {
    let (scenario, lane) = SAMPLE;
    let is_it = |record: &&Record| record.scenario == scenario && record.lane == lane;
    let Some(record) = first.records.iter().find(is_it) else {
        return Ok(Err(format!("{scenario} did not run on {lane}")));
    };
    let again = Options {
        filter: Some(scenario.to_owned()),
        lanes: vec![lane],
        ..wanted.clone()
    };
    let said = pair(record, first, &e2e::run(env, &again)?).said;
    Ok(said.map_err(|how| format!("{scenario} on {lane}, run twice: {how}")))
}

fn pair(record: &Record, first: &RunResults, second: &RunResults) -> Pair {
    let Record { scenario, lane, .. } = record;
    let folder = |ran: &RunResults| ran.run.scenario_folder(*lane, scenario);
    let again = second.records.iter().find(|r| r.scenario == *scenario);
    let said = match again {
        None => Err("it ran but once".to_owned()),
        Some(again) if again.outcome.signature() != record.outcome.signature() => {
            Err(format!("{}, then {}", record.outcome, again.outcome))
        }
        // It did not come to an end by itself: there is nothing to compare.
        Some(again) if !ended_by_itself(again) => Err(again.outcome.to_string()),
        Some(_) => match compare(&folder(first), &folder(second)) {
            Transcripts::Same(lines) => Ok(lines),
            Transcripts::Differ(how) => Err(how),
        },
    };
    Pair {
        scenario: scenario.clone(),
        lane: *lane,
        said,
    }
}

fn table(pairs: &[Pair]) -> Table {
    let mut table = output::table(["scenario", "lane", "kernel log and control channel"]);
    for Pair { scenario, lane, said } in pairs {
        let said = match said {
            Ok(lines) => format!("the same {lines} lines"),
            Err(how) => how.clone(),
        };
        table.add_row([scenario.clone(), lane.to_string(), said]);
    }
    table
}

fn closing(pairs: usize, differ: usize) -> String {
    format!(
        "{} of {} said the same both times, byte for byte, time stamps included",
        pairs - differ,
        count(pairs, "scenario")
    )
}

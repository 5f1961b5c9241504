// SPDX-License-Identifier: MIT OR Apache-2.0
//! What introspection costs: the figures that benchmark scenarios measured, set against the stock modules'.

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table};
use kvmi_lab::e2e::{self, Options};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output;
use kvmi_lab_environment::show;
use kvmi_lab_machine::outcome::Record;
use serde_json::json;

/// The group that benchmarks are in.
pub const GROUP: &str = "bench::";

/// The scenario that the others are set against.
const BASE: &str = "bench::exits_stock";

/// The figure that counts, by the name that scenarios give it.
const FIGURE: &str = "L1 ticks";

/// Scenarios that must cost nothing, and how much of the base's figure still counts as nothing.
const FREE: &[&str] = &["bench::exits_off", "bench::exits_unhooked"];
const NOTHING: f64 = 0.01;

/// A benchmark's figure, set against the base's.
#[derive(Clone, Debug, PartialEq)]
struct Ratio {
    scenario: String,
    ticks: f64,
    ratio: f64,
    too_much: bool,
}

/// Runs the benchmarks and shows the ratios; false when something that must cost nothing does not.
pub fn run(env: &Environment, wanted: &Options) -> Result<bool> {
    let ran = e2e::run(env, wanted)?;
    if ran.failed() > 0 {
        return Ok(false);
    }
    let ratios = ratios(&ran.records)?;
    let is_fine = !ratios.iter().any(|r| r.too_much);
    if wanted.json {
        for r in &ratios {
            show!(
                "{}",
                json!({ "event": "ratio", "scenario": r.scenario, "ticks": r.ticks, "ratio": r.ratio, "too_much": r.too_much })
            );
        }
        return Ok(is_fine);
    }
    show!("\n{}", table(&ratios));
    if !is_fine {
        show!(
            "\nsomething costs more than {} % of what it must not cost",
            NOTHING * 100.0
        );
    }
    Ok(is_fine)
}

fn ratios(records: &[Record]) -> Result<Vec<Ratio>> {
    let figure = |r: &Record| r.measures.iter().find(|m| m.name == FIGURE).map(|m| m.value);
    let base = records.iter().find(|r| r.scenario == BASE).and_then(figure);
    let base = base.with_context(|| format!("{BASE} measured no `{FIGURE}`"))?;
    let of = |r: &Record| {
        let ticks = figure(r)?;
        let ratio = ticks / base;
        let too_much = FREE.contains(&r.scenario.as_str()) && (ratio - 1.0).abs() > NOTHING;
        Some(Ratio {
            scenario: r.scenario.clone(),
            ticks,
            ratio,
            too_much,
        })
    };
    Ok(records.iter().filter_map(of).collect())
}

fn table(ratios: &[Ratio]) -> Table {
    let mut table = output::table(["benchmark", "L1 ticks for 100,000 exits", "to stock"]);
    for r in ratios {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let mark = if r.too_much { " too much" } else { "" };
        table.add_row([
            Cell::new(&r.scenario),
            right(format!("{:.0}", r.ticks)),
            right(format!("{:.4}{mark}", r.ratio)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_control::Lane;
    use kvmi_lab_machine::outcome::{Measure, Outcome};

    fn record(scenario: &str, ticks: f64) -> Record {
        let measures = vec![Measure {
            name: FIGURE.to_owned(),
            value: ticks,
            unit: "ticks".to_owned(),
        }];
        Record {
            scenario: scenario.to_owned(),
            lane: Lane::VmxBochs,
            seed: 1,
            outcome: Outcome::Pass,
            seconds: 1.0,
            measures,
        }
    }

    #[test]
    fn only_what_must_be_free_can_cost_too_much() {
        let records = [
            record(BASE, 1000.0),
            record(FREE[0], 1009.0),
            record(FREE[1], 1011.0),
            record("bench::exits_hooked", 1100.0),
        ];
        let ratios = ratios(&records).unwrap();
        let too_much: Vec<bool> = ratios.iter().map(|r| r.too_much).collect();
        assert_eq!(too_much, [false, false, true, false]);
        assert!(super::ratios(&records[1..]).is_err());
    }
}

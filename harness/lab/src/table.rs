// SPDX-License-Identifier: MIT OR Apache-2.0
//! How scenarios ended, for people and for programs.

use std::collections::BTreeMap;
use std::path::Path;

use comfy_table::{Cell, CellAlignment, Table};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::show;
use kvmi_lab_machine::bundle;
use kvmi_lab_machine::lab_run::{LabRun, Prepared};
use kvmi_lab_machine::outcome::Record;
use kvmi_lab_scenarios::differential::GROUP;
use serde_json::json;

use crate::e2e::{Options, again};

/// Shows the table and, for each failure, where its logs are and the command that runs just it again.
pub fn show(env: &Environment, wanted: &Options, records: &[Record], run: &LabRun) {
    if wanted.json {
        let acceleration = |lane| run.lanes.iter().find(|l| l.lane == lane).map(Prepared::acceleration);
        for record in records {
            let logs = run.scenario_folder(record.lane, &record.scenario);
            let bundle = Some(logs.join(bundle::FILE)).filter(|path| path.is_file());
            show!(
                "{}",
                json!({ "event": "scenario", "record": record, "acceleration": acceleration(record.lane), "logs": logs, "again": again(record, &wanted.choice), "bundle": bundle })
            );
        }
        return;
    }
    show!("\n{}", scenarios(records));
    for record in records.iter().filter(|r| !r.outcome.is_fine()) {
        show!("\n{} on {}: {}", record.scenario, record.lane, record.outcome);
        let logs = run.scenario_folder(record.lane, &record.scenario);
        show!("  logs:      {}", relative(&logs, &env.checkout));
        show!("  again:     {}", again(record, &wanted.choice));
        let bundle = logs.join(bundle::FILE);
        if bundle.is_file() {
            show!("  reproduce: cargo xtask repro {}", relative(&bundle, &env.checkout));
        }
    }
    show!("");
    for lane in &run.lanes {
        show!("{} ran in {}", lane.lane, lane.acceleration());
    }
    let failed = records.iter().filter(|r| !r.outcome.is_fine()).count();
    show!(
        "\n{} passed, {failed} failed; logs are in {}",
        count(records.len() - failed, "scenario"),
        relative(&run.folder, &env.checkout)
    );
}

/// Shows what the lanes do not agree in.
pub fn show_differences(wanted: &Options, differences: &[String]) {
    for difference in differences {
        if wanted.json {
            show!("{}", json!({ "event": "difference", "text": difference }));
        } else {
            show!("differs: {difference}");
        }
    }
    if !differences.is_empty() && !wanted.json {
        show!(
            "{} that nobody named; the words of each lane are in wire.log\n  again:     cargo xtask e2e {GROUP}",
            count(differences.len(), "difference")
        );
    }
}

/// Shows where docs/parity.md is not what the scenarios show.
pub fn show_stale(env: &Environment, wanted: &Options, stale: &[String], run: &LabRun) {
    for what in stale {
        if wanted.json {
            show!("{}", json!({ "event": "stale", "text": what }));
        } else {
            show!("stale: {what}");
        }
    }
    if !stale.is_empty() && !wanted.json {
        let folder = relative(&run.folder, &env.checkout);
        show!("  where it should be as this run has it: cargo xtask docs --results {folder}");
    }
}

/// A path as seen from a folder, or the whole path where it is elsewhere.
pub fn relative(path: &Path, to: &Path) -> String {
    path.strip_prefix(to).unwrap_or(path).display().to_string()
}

/// The table, in a form that Markdown takes as it is.
pub fn scenarios(records: &[Record]) -> Table {
    let lanes: Vec<Lane> = Lane::ALL
        .iter()
        .copied()
        .filter(|l| records.iter().any(|r| r.lane == *l))
        .collect();
    let mut rows: BTreeMap<&str, BTreeMap<Lane, &Record>> = BTreeMap::new();
    for record in records {
        rows.entry(&record.scenario).or_default().insert(record.lane, record);
    }
    let mut table = output::table(std::iter::once("scenario").chain(lanes.iter().map(|l| l.name())));
    for (scenario, on) in rows {
        let cells = lanes.iter().map(|lane| {
            let text = on
                .get(lane)
                .map_or_else(String::new, |r| format!("{} {:.1} s", r.outcome.word(), r.seconds));
            Cell::new(text).set_alignment(CellAlignment::Right)
        });
        table.add_row(std::iter::once(Cell::new(scenario)).chain(cells));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_machine::outcome::Outcome;

    #[test]
    fn a_row_for_each_scenario_and_a_column_for_each_lane() {
        let record = |scenario: &str, lane, outcome| Record {
            scenario: scenario.to_owned(),
            lane,
            seed: 1,
            outcome,
            seconds: 0.44,
            measures: Vec::new(),
        };
        let records = [
            record("b::two", Lane::SvmTcg, Outcome::Pass),
            record("a::one", Lane::SvmTcg, Outcome::Fail { message: "no".into() }),
            record("a::one", Lane::VmxBochs, Outcome::Pass),
        ];
        let text = scenarios(&records).to_string();
        let lines: Vec<String> = text
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines[0], "| scenario | svm-tcg | vmx-bochs |");
        assert_eq!(lines[2], "| a::one | fail 0.4 s | pass 0.4 s |");
        assert_eq!(lines[3], "| b::two | pass 0.4 s | |");
    }
}

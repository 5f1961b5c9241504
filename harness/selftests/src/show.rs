// SPDX-License-Identifier: MIT OR Apache-2.0
//! How selftests ended, for people and for programs.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use kvmi_lab::table::relative;
use kvmi_lab_control::{Lane, SelftestMode};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::show;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::Record;
use serde_json::json;

use crate::compare::{Cell, Finding, Hooks, Seen};
use crate::expected::Word;

/// Says how each test ended, to programs, or how many did how, to people.
pub(crate) fn show_all(env: &Environment, lab: &LabRun, records: &[Record], seen: &Seen, json: bool) {
    if json {
        for record in records {
            let logs = lab.scenario_folder(record.lane, &record.scenario);
            let of = SelftestMode::of_run(&record.scenario);
            let (mode, test) = of.map_or((None, None), |(mode, test)| (Some(mode), Some(test)));
            show!(
                "{}",
                json!({ "event": "selftest", "mode": mode, "test": test, "record": record, "logs": logs })
            );
        }
        return;
    }
    show!("\n{}", summary(seen));
    let slowest = records.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    if let Some(Record {
        scenario,
        lane,
        seconds,
        ..
    }) = slowest
    {
        show!("the slowest was {scenario} on {lane}: {seconds:.0} s");
    }
    show!("logs are in {}", relative(&lab.folder, &env.checkout));
}

/// How many tests ended how, on each lane in each mode.
fn summary(seen: &Seen) -> Table {
    let words = Word::ALL.iter().map(|word| word.name());
    let head = ["lane", "mode"]
        .into_iter()
        .chain(words)
        .chain(["VMs hooked", "events"]);
    let mut table = output::table(head);
    let mut counts: BTreeMap<(Lane, SelftestMode), BTreeMap<Word, usize>> = BTreeMap::new();
    for ((lane, _), cells) in &seen.tests {
        for (&mode, Cell { word, .. }) in cells {
            *counts.entry((*lane, mode)).or_default().entry(*word).or_default() += 1;
        }
    }
    for ((lane, mode), counts) in counts {
        let mut row = vec![lane.to_string(), mode.to_string()];
        row.extend(
            Word::ALL
                .iter()
                .map(|word| counts.get(word).copied().unwrap_or(0).to_string()),
        );
        match seen.hooks.get(&(lane, mode)) {
            Some(Hooks { vms, events, .. }) => row.extend([vms.to_string(), events.to_string()]),
            None => row.extend([String::new(), String::new()]),
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Says what is not as it should be, with the command that shows it again.
pub(crate) fn show_findings(env: &Environment, lab: &LabRun, findings: &[Finding], stale: &[String], json: bool) {
    for finding in findings {
        let Finding { lane, mode, test, what } = finding;
        if json {
            show!(
                "{}",
                json!({ "event": "difference", "lane": lane, "mode": mode, "test": test, "text": what })
            );
            continue;
        }
        show!("\nwrong: {finding}");
        if let Some(test) = test {
            let logs = lab.scenario_folder(*lane, &mode.run_name(test));
            show!("  logs:  {}", relative(&logs, &env.checkout));
            show!("  again: cargo xtask selftests {test} --lane {lane} --mode {mode}");
        }
    }
    for what in stale {
        if json {
            show!("{}", json!({ "event": "stale", "text": what }));
        } else {
            show!("stale: {what}");
        }
    }
    if !stale.is_empty() && !json {
        show!(
            "  to mend it: cargo xtask docs --selftests {}",
            relative(&lab.folder, &env.checkout)
        );
    }
    if !json {
        show!(
            "\n{}",
            if findings.is_empty() && stale.is_empty() {
                "each test ends as with stock KVM, or as harness/selftests/expected.toml says".to_owned()
            } else {
                count(findings.len() + stale.len(), "finding")
            }
        );
    }
}

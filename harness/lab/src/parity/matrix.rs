// SPDX-License-Identifier: MIT OR Apache-2.0
//! The record in short: how many rows of each command and event are shown, and for README what works on which kind of host.

use std::collections::BTreeSet;

use kvmi_lab_control::{Backend, Lane};
use kvmi_lab_scenarios::conformance::{Part, Row};

use super::{Results, cell, cell_on};

/// The columns of README's table.
const HOSTS: [(&str, Backend, bool); 4] = [
    ("AMD, emulated", Backend::Svm, true),
    ("Intel, emulated", Backend::Vmx, true),
    ("AMD, real", Backend::Svm, false),
    ("Intel, real", Backend::Vmx, false),
];

/// Of each command and event, how many of its rows pass with each vendor.
pub(super) fn counts(table: &[Row], results: &Results) -> String {
    let mut text = "| command or event | vmx | svm |\n|---|---|---|\n".to_owned();
    for rows in table.chunk_by(|a, b| (a.part, a.of) == (b.part, b.of)) {
        let counts = [Backend::Vmx, Backend::Svm].map(|backend| count(rows, backend, results));
        text += &format!("| {} | {} |\n", rows[0].of, counts.join(" | "));
    }
    text
}

fn count(rows: &[Row], backend: Backend, results: &Results) -> String {
    let (mut passed, mut reasons, mut missing) = (0, 0, 0);
    for row in rows {
        match cell(row, backend, results) {
            Ok(cell) if cell == "pass" => passed += 1,
            Ok(_) => reasons += 1,
            Err(_) => missing += 1,
        }
    }
    let parts = [(passed, "pass"), (missing, "not shown"), (reasons, "with a reason")];
    let parts = parts.iter().filter(|(number, _)| *number > 0);
    let parts: Vec<String> = parts.map(|(number, what)| format!("{number} {what}")).collect();
    parts.join(", ")
}

/// What works where: a row for each event, and one for all commands.
pub(super) fn works(table: &[Row], results: &Results) -> String {
    let heads: Vec<&str> = HOSTS.iter().map(|(head, ..)| *head).collect();
    let mut text = format!("| | {} |\n|---|---|---|---|---|\n", heads.join(" | "));
    let mut line = |of: &str, rows: &[&Row]| {
        let cells = HOSTS.map(|(_, backend, emulated)| on_host(rows, results, backend, emulated));
        text += &format!("| {of} | {} |\n", cells.join(" | "));
    };
    let commands: Vec<&Row> = table.iter().filter(|row| row.part == Part::Commands).collect();
    line("all commands", &commands);
    for rows in table.chunk_by(|a, b| (a.part, a.of) == (b.part, b.of)) {
        if rows[0].part == Part::Events {
            line(&format!("event {}", rows[0].of), &rows.iter().collect::<Vec<_>>());
        }
    }
    text
}

/// What the record says of these rows on emulated hosts of this vendor, or on real ones.
fn on_host(rows: &[&Row], results: &Results, backend: Backend, emulated: bool) -> &'static str {
    let is_meant = |lane: &Lane| lane.backend() == backend && lane.platform().is_emulated() == emulated;
    let lanes: BTreeSet<Lane> = results.lanes().into_iter().filter(is_meant).collect();
    if lanes.is_empty() {
        return "never run";
    }
    let shown = |row: &&&Row| cell_on(row, backend, results, &lanes).is_ok();
    match rows.iter().filter(shown).count() {
        0 => "no",
        shown if shown < rows.len() => "in part",
        _ => "yes",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{table, whole};
    use super::*;

    #[test]
    fn what_was_never_run_is_not_said_to_work() {
        let table = table();
        let text = works(&table, &whole(&table, &[Lane::SvmTcg, Lane::VmxBochs]));
        assert!(
            text.contains("| event SINGLESTEP | yes | yes | never run | never run |"),
            "{text}"
        );
        let text = works(&table, &whole(&table, &[Lane::SvmKvm]));
        assert!(
            text.contains("| event SINGLESTEP | never run | never run | yes | never run |"),
            "{text}"
        );
    }

    #[test]
    fn what_is_shown_in_part_says_so() {
        let table = table();
        let mut results = whole(&table, &[Lane::SvmTcg, Lane::VmxBochs]);
        results.0.retain(|what, _| !what.starts_with("SINGLESTEP works"));
        let text = counts(&table, &results);
        let row = text.lines().find(|line| line.starts_with("| SINGLESTEP |")).unwrap();
        assert_eq!(row.matches(" not shown").count(), 2, "{row}");
        assert!(works(&table, &results).contains("| event SINGLESTEP | in part | in part |"));
    }
}

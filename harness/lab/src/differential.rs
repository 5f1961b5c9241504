// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a tool saw on one lane, laid beside what it saw on another: the transcripts of the scenarios that say everything field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_control::Lane;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::{Outcome, Record};
use kvmi_lab_machine::run_folder;
use kvmi_lab_scenarios::differential::{GROUP, MARK, NAMED, Named};

/// What differs, in a line each; empty where fewer than two lanes have said anything.
pub(crate) fn compare(run: &LabRun, records: &[Record]) -> Result<Vec<String>> {
    let mut said: BTreeMap<&str, Vec<(Lane, PathBuf)>> = BTreeMap::new();
    for record in records {
        if record.scenario.starts_with(GROUP) && record.outcome == Outcome::Pass {
            let folder = run.scenario_folder(record.lane, &record.scenario);
            said.entry(&record.scenario)
                .or_default()
                .push((record.lane, folder.join(run_folder::WIRE)));
        }
    }
    let mut differences = Vec::new();
    let mut seen = BTreeSet::new();
    let mut vendors = BTreeSet::new();
    for (scenario, lanes) in &said {
        let [(first, one), others @ ..] = &lanes[..] else {
            continue;
        };
        vendors.extend(lanes.iter().map(|(lane, _)| lane.backend()));
        for (other, two) in others {
            let between = format!("{scenario}, {first} and {other}");
            let found = lines_that_differ(&read(one)?, &read(two)?, NAMED, &mut seen);
            differences.extend(found.into_iter().map(|what| format!("{between}: {what}")));
        }
    }
    // Some show on some lanes or in some scenarios only: what all of them together do not show is gone.
    let whole = vendors.len() > 1
        && kvmi_lab_scenarios::all()
            .iter()
            .filter(|s| s.name.starts_with(GROUP))
            .all(|s| said.contains_key(s.name));
    if whole {
        let gone = (0..NAMED.len()).filter(|index| !seen.contains(index));
        differences.extend(gone.map(|index| {
            let Named { line, key, .. } = NAMED[index];
            format!(
                "`{line}: {key}` is named as a difference and is none (harness/scenarios/src/differential/named.rs)"
            )
        }));
    }
    Ok(differences)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// What a scenario said of what the tool saw.
fn said(transcript: &str) -> impl Iterator<Item = &str> {
    transcript.lines().filter_map(|line| line.strip_prefix(MARK))
}

/// Lines that differ otherwise than is named; what was met of `named`, by its index, is added to `seen`.
fn lines_that_differ(one: &str, two: &str, named: &[Named], seen: &mut BTreeSet<usize>) -> Vec<String> {
    let mut differences = Vec::new();
    let (one, two): (Vec<&str>, Vec<&str>) = (said(one).collect(), said(two).collect());
    for (number, (a, b)) in (1..).zip(one.iter().zip(&two)) {
        let (about_a, fields_a) = a.split_once(':').unwrap_or((a, ""));
        let (about_b, fields_b) = b.split_once(':').unwrap_or((b, ""));
        if about_a != about_b {
            differences.push(format!("line {number} is about `{about_a}` and `{about_b}`"));
            // All that follows would differ.
            return differences;
        }
        let (fields_a, fields_b): (Vec<&str>, Vec<&str>) = (
            fields_a.split_whitespace().collect(),
            fields_b.split_whitespace().collect(),
        );
        if fields_a.len() != fields_b.len() {
            differences.push(format!(
                "line {number}, {about_a}: `{}` and `{}`",
                fields_a.join(" "),
                fields_b.join(" ")
            ));
            continue;
        }
        for (a, b) in fields_a.iter().zip(&fields_b).filter(|(a, b)| a != b) {
            let key = a.split('=').next().unwrap_or_default();
            match named.iter().position(|n| about_a.ends_with(n.line) && n.key == key) {
                Some(index) => {
                    seen.insert(index);
                }
                None => differences.push(format!("line {number}, {about_a}: `{a}` and `{b}`")),
            }
        }
    }
    if one.len() != two.len() {
        differences.push(format!("{} lines and {}", one.len(), two.len()));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[Named] = &[Named {
        line: " cs",
        key: "type",
        reason: "for a test",
    }];

    fn differ(one: &str, two: &str) -> (Vec<String>, usize) {
        let mut seen = BTreeSet::new();
        let marked = |text: &str| {
            text.lines()
                .map(|line| format!("{MARK}{line}\n> #1 a message\n"))
                .collect::<String>()
        };
        let lines = lines_that_differ(&marked(one), &marked(two), NAMES, &mut seen);
        (lines, seen.len())
    }

    #[test]
    fn what_is_named_may_differ_and_nothing_else() {
        assert_eq!(
            differ("PAUSE cs: base=0 type=1\n", "PAUSE cs: base=0 type=2\n"),
            (vec![], 1)
        );
        let (lines, seen) = differ(
            "PAUSE cs: base=0\nPAUSE: is=true\n",
            "PAUSE cs: base=1\nPAUSE: is=true\n",
        );
        assert_eq!(
            (lines, seen),
            (vec!["line 1, PAUSE cs: `base=0` and `base=1`".to_owned()], 0)
        );
        assert_eq!(differ("PAUSE ss: type=1\n", "PAUSE ss: type=2\n").0.len(), 1);
    }

    #[test]
    fn another_order_or_length_differs() {
        assert_eq!(
            differ("a: x=1\nb: x=1\n", "b: x=1\na: x=1\n").0,
            ["line 1 is about `a` and `b`"]
        );
        assert_eq!(differ("a: x=1\n", "a: x=1\nb: x=1\n").0, ["1 lines and 2"]);
        assert_eq!(differ("a: err=22\n", "a: data= more=1\n").0.len(), 1);
    }
}

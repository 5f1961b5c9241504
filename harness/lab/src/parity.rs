// SPDX-License-Identifier: MIT OR Apache-2.0
//! docs/parity.md: what each command and event does with kvm-intel and with kvm-amd. The rows are the scenarios' own table; `pass` comes from
//! a record of what scenarios have shown, which only runs write.

mod matrix;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_control::{Backend, Lane};
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::{Outcome, Record};
use kvmi_lab_machine::run_folder;
use kvmi_lab_scenarios::conformance::{GROUP, MARK, Part, Proof, Row, rows};

const PAGE: &str = "docs/parity.md";
const RESULTS: &str = "docs/parity.results";

/// The page that says in short what works, and the lines around that.
const README: &str = "README.md";
const BEGIN: &str = "<!-- what works: cargo xtask docs -->\n";
const END: &str = "<!-- end of what works -->";

/// How to have a record that is true.
const MEND: &str = "cargo xtask e2e, on each lane of the record, then cargo xtask docs --results FOLDER of each run";

/// Which lanes have shown what, by a row's own name or that of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Results(BTreeMap<String, BTreeSet<Lane>>);

impl Results {
    fn read(checkout: &Path) -> Result<Self> {
        let text = fs::read_to_string(checkout.join(RESULTS)).with_context(|| format!("read {RESULTS}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let line = |line: &str| -> Result<(String, BTreeSet<Lane>)> {
            let (lanes, what) = line
                .split_once(" | ")
                .with_context(|| format!("{RESULTS}: no ` | ` in `{line}`"))?;
            let lanes = lanes.split_whitespace().map(str::parse);
            Ok((what.to_owned(), lanes.collect::<Result<_, _>>()?))
        };
        let lines = text.lines().filter(|text| !text.is_empty() && !text.starts_with('#'));
        Ok(Self(lines.map(line).collect::<Result<_>>()?))
    }

    fn text(&self) -> String {
        let head =
            "# Which lanes have shown what, by `cargo xtask docs --results`. What each line is: docs/parity.md.\n";
        self.0.iter().fold(head.to_owned(), |text, (what, lanes)| {
            let lanes: Vec<&str> = lanes.iter().map(|lane| lane.name()).collect();
            format!("{text}{} | {what}\n", lanes.join(" "))
        })
    }

    /// The lanes of which the record knows anything.
    fn lanes(&self) -> BTreeSet<Lane> {
        self.0.values().flatten().copied().collect()
    }

    fn has(&self, what: &str, lane: Lane) -> bool {
        self.0.get(what).is_some_and(|lanes| lanes.contains(&lane))
    }

    /// Takes over what one run of a scenario has shown, in the place of what it had shown before.
    fn take(&mut self, table: &[Row], ran: &ScenarioRun) {
        for (what, _) in needed(table, ran.lane).filter(|(_, scenario)| *scenario == ran.scenario) {
            let lanes = self.0.entry(what.clone()).or_default();
            if ran.shows.contains(&what) {
                lanes.insert(ran.lane);
            } else {
                lanes.remove(&ran.lane);
            }
        }
        // Rows that there are no more, and rows that nobody shows.
        let known: BTreeSet<String> = Lane::ALL
            .iter()
            .flat_map(|lane| needed(table, *lane))
            .map(|(what, _)| what)
            .collect();
        self.0.retain(|what, lanes| known.contains(what) && !lanes.is_empty());
    }
}

/// What has to be shown on a lane, and by which scenario.
fn needed(table: &[Row], lane: Lane) -> impl Iterator<Item = (String, &'static str)> {
    table.iter().filter_map(move |row| match row.proof(lane.backend()) {
        Proof::Said(scenario) if runs_on(scenario, lane) => Some((row.key(), scenario)),
        Proof::Passed(scenario) if runs_on(scenario, lane) => Some((scenario.to_owned(), scenario)),
        _ => None,
    })
}

fn runs_on(scenario: &str, lane: Lane) -> bool {
    let mut all = kvmi_lab_scenarios::all().iter();
    all.any(|s| s.name == scenario && s.needs.why_not_on(lane).is_none())
}

/// One scenario's run, and what it has shown.
#[derive(Clone, Debug)]
struct ScenarioRun {
    lane: Lane,
    scenario: String,
    shows: BTreeSet<String>,
}

impl ScenarioRun {
    fn read(record: &Record, folder: &Path) -> Result<Self> {
        let mut shows = BTreeSet::new();
        if record.outcome == Outcome::Pass {
            shows.insert(record.scenario.clone());
            if record.scenario.starts_with(GROUP) {
                let path = folder.join(run_folder::WIRE);
                let said = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                shows.extend(
                    said.lines()
                        .filter_map(|line| line.strip_prefix(MARK))
                        .map(str::to_owned),
                );
            }
        }
        Ok(Self {
            lane: record.lane,
            scenario: record.scenario.clone(),
            shows,
        })
    }
}

/// Where a run says something else than the page, in a line each.
pub fn compare(checkout: &Path, run: &LabRun, records: &[Record]) -> Result<Vec<String>> {
    let results = Results::read(checkout)?;
    let table = rows();
    let lanes = results.lanes();
    let mut stale = Vec::new();
    // What fails is said already.
    let passed = records
        .iter()
        .filter(|r| r.outcome.is_fine() && lanes.contains(&r.lane));
    for record in passed {
        let ran = ScenarioRun::read(record, &run.scenario_folder(record.lane, &record.scenario))?;
        stale.extend(disagreements(&table, &results, &ran));
    }
    Ok(stale)
}

fn disagreements(table: &[Row], results: &Results, ran: &ScenarioRun) -> Vec<String> {
    let (lane, scenario) = (ran.lane, &ran.scenario);
    let of_it: BTreeSet<String> = needed(table, lane)
        .filter(|(_, by)| by == scenario)
        .map(|(what, _)| what)
        .collect();
    let differs = of_it
        .iter()
        .filter(|what| ran.shows.contains(*what) != results.has(what, lane));
    differs
        .map(|what| {
            let verb = if ran.shows.contains(what) {
                "shows"
            } else {
                "does not show"
            };
            format!("{scenario} on {lane} {verb} `{what}`; {RESULTS} says otherwise")
        })
        .collect()
}

/// Writes record and page anew; whether that changed anything. `runs` are folders of runs whose results the record takes over.
pub fn write(checkout: &Path, runs: &[PathBuf]) -> Result<bool> {
    let table = rows();
    let mut results = Results::read(checkout).unwrap_or_default();
    for folder in runs {
        let taken = verdicts(folder)?;
        ensure!(!taken.is_empty(), "no verdict of a scenario in {}", folder.display());
        taken.iter().for_each(|ran| results.take(&table, ran));
    }
    let readme = fs::read_to_string(checkout.join(README)).with_context(|| format!("read {README}"))?;
    let readme = with_works(&readme, &table, &results)?;
    let mut changed = false;
    for (name, text) in [
        (RESULTS, results.text()),
        (PAGE, page(&table, &results).0),
        (README, readme),
    ] {
        let path = checkout.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        fs::write(&path, text).with_context(|| format!("write {name}"))?;
        changed = true;
    }
    Ok(changed)
}

/// What a run's folder holds of verdicts.
fn verdicts(folder: &Path) -> Result<Vec<ScenarioRun>> {
    let mut all = Vec::new();
    for lane in Lane::ALL {
        let Ok(scenarios) = fs::read_dir(folder.join(lane.name())) else {
            continue;
        };
        for scenario in scenarios {
            let scenario = scenario?.path();
            if let Ok(record) = Record::read(&scenario) {
                all.push(ScenarioRun::read(&record, &scenario)?);
            }
        }
    }
    Ok(all)
}

/// README with the table of what works.
fn with_works(readme: &str, table: &[Row], results: &Results) -> Result<String> {
    let lacks = |what: &str| format!("{README} has no line `{}`", what.trim());
    let (before, rest) = readme.split_once(BEGIN).with_context(|| lacks(BEGIN))?;
    let (_, after) = rest.split_once(END).with_context(|| lacks(END))?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", matrix::works(table, results)))
}

/// What is stale, or not shown.
pub fn findings(checkout: &Path) -> Result<Vec<Finding>> {
    let results = match Results::read(checkout) {
        Ok(results) => results,
        Err(e) => return Ok(vec![finding(RESULTS, format!("{e:#}"))]),
    };
    let table = rows();
    let (page, missing) = page(&table, &results);
    let mut findings: Vec<Finding> = missing
        .into_iter()
        .map(|what| finding(RESULTS, format!("{what}: {MEND}")))
        .collect();
    if fs::read_to_string(checkout.join(PAGE)).unwrap_or_default() != page {
        findings.push(finding(PAGE, "is stale: cargo xtask docs"));
    }
    let readme = fs::read_to_string(checkout.join(README)).unwrap_or_default();
    match with_works(&readme, &table, &results) {
        Ok(new) if new == readme => {}
        Ok(_) => findings.push(finding(README, "the table of what works is stale: cargo xtask docs")),
        Err(e) => findings.push(finding(README, format!("{e:#}"))),
    }
    Ok(findings)
}

const HEAD: &str = "\
# Parity

Does each command and each event do the same with kvm-intel (vmx) and with kvm-amd (svm)? This page
answers for each of them, and for each error of [protocol.md](protocol.md).

`cargo xtask docs` writes the page. Its rows are the table in `harness/scenarios/src/conformance`.
Its results are `parity.results`, the record of what scenarios have shown. Only a run of the lab can
add to that record, and each run is compared with it.
";

/// What stands between the short table and the long one.
const LEGEND: &str = "
A row of the long tables below says one thing of a command or event: that it works, one of its
errors, one of its replies. The short table above counts these rows.

`pass` means: the scenario named below the heading has provoked it and has seen what protocol.md
says. This holds on every lane of that vendor that the record knows and that can run the scenario.
Where the row names a scenario of its own, that one has passed there. A row with a reason says why
there is no such outcome, or why no scenario shows it.
";

/// The page, and what of it is neither shown nor has a reason.
fn page(table: &[Row], results: &Results) -> (String, Vec<String>) {
    let mut text = HEAD.to_owned();
    let mut missing = Vec::new();
    for backend in [Backend::Vmx, Backend::Svm] {
        let lanes = results.lanes().into_iter().filter(|lane| lane.backend() == backend);
        let lanes: Vec<&str> = lanes.map(Lane::name).collect();
        text += &format!("\nLanes of the record with {backend}: {}.\n", lanes.join(", "));
    }
    text += &format!("\n{}{LEGEND}", matrix::counts(table, results));
    for part in [Part::Commands, Part::Events, Part::Messages] {
        text += &format!("\n## {}\n", part.title());
        for rows in table.chunk_by(|a, b| (a.part, a.of) == (b.part, b.of)) {
            let first = &rows[0];
            if first.part != part {
                continue;
            }
            text += &format!("\n### {}\n", first.of);
            if let Some(scenario) = rows.iter().find_map(Row::scenario) {
                text += &format!("\n`{scenario}`\n");
            }
            text += "\n| | vmx | svm |\n|---|---|---|\n";
            let cells = |row: &Row, missing: &mut Vec<String>| {
                [Backend::Vmx, Backend::Svm].map(|backend| {
                    cell(row, backend, results).unwrap_or_else(|what| {
                        missing.push(what);
                        "not shown".to_owned()
                    })
                })
            };
            let mut lines: Vec<(Vec<String>, [String; 2])> = Vec::new();
            for row in rows {
                let cells = cells(row, &mut missing);
                match lines.last_mut() {
                    // What has the same reason stands together.
                    Some((names, last)) if row.is_reason_alone() && *last == cells => names.push(row.title()),
                    _ => lines.push((vec![row.title()], cells)),
                }
            }
            for (names, [vmx, svm]) in lines {
                text += &format!("| {} | {vmx} | {svm} |\n", names.join(", "));
            }
        }
    }
    (text, missing)
}

/// What stands in a cell; or what is missing for it.
fn cell(row: &Row, backend: Backend, results: &Results) -> Result<String, String> {
    cell_on(row, backend, results, &results.lanes())
}

/// The same by what these lanes have shown.
fn cell_on(row: &Row, backend: Backend, results: &Results, lanes: &BTreeSet<Lane>) -> Result<String, String> {
    let (what, scenario) = match row.proof(backend) {
        Proof::Reason(reason) => return Ok(reason.to_owned()),
        Proof::Said(scenario) => (row.key(), scenario),
        Proof::Passed(scenario) => (scenario.to_owned(), scenario),
    };
    let mut lanes = lanes
        .iter()
        .copied()
        .filter(|lane| lane.backend() == backend && runs_on(scenario, *lane))
        .peekable();
    if lanes.peek().is_none() {
        return Err(format!("`{what}` has been shown on no lane with {backend}"));
    }
    match lanes.find(|lane| !results.has(&what, *lane)) {
        Some(lane) => Err(format!("`{what}` has not been shown on {lane}")),
        None => Ok("pass".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the real table: scenarios are looked up by name.
    pub(super) fn table() -> Vec<Row> {
        let is_wanted = |row: &Row| row.of == "VM_GET_INFO" || row.of == "SINGLESTEP";
        rows().into_iter().filter(is_wanted).collect()
    }

    fn ran(lane: Lane, scenario: &str, shows: &[&str]) -> ScenarioRun {
        ScenarioRun {
            lane,
            scenario: scenario.to_owned(),
            shows: shows.iter().map(|what| (*what).to_owned()).collect(),
        }
    }

    /// Everything shown on these lanes.
    pub(super) fn whole(table: &[Row], lanes: &[Lane]) -> Results {
        let mut results = Results::default();
        for &lane in lanes {
            for (what, scenario) in needed(table, lane) {
                let mut shows: Vec<String> = needed(table, lane).map(|(what, _)| what).collect();
                shows.push(what);
                let shows: Vec<&str> = shows.iter().map(String::as_str).collect();
                results.take(table, &ran(lane, scenario, &shows));
            }
        }
        results
    }

    #[test]
    fn a_cell_passes_by_what_was_shown_alone() {
        let table = table();
        let results = whole(&table, &[Lane::SvmTcg, Lane::VmxBochs]);
        let (text, missing) = page(&table, &results);
        assert_eq!(missing, [""; 0]);
        assert!(text.contains("| works: a good request | pass | pass |"), "{text}");
        assert!(!text.contains("not shown |"), "{text}");
        let (text, missing) = page(&table, &whole(&table, &[Lane::VmxBochs]));
        assert!(text.contains("| works: a good request | pass | not shown |"), "{text}");
        assert!(missing[0].contains("on no lane with svm"), "{missing:?}");
    }

    #[test]
    fn a_lane_that_showed_less_spoils_the_cell() {
        let table = table();
        let lanes = [Lane::SvmTcg, Lane::VmxBochs, Lane::SvmBochs];
        let mut results = whole(&table, &lanes);
        // Stepping does not run there, and so is not missed.
        assert_eq!(page(&table, &results).1, [""; 0]);
        results.take(&table, &ran(Lane::SvmBochs, "conformance::vm_get_info", &[]));
        let missing = page(&table, &results).1;
        assert!(
            missing.iter().all(|what| what.contains("svm-bochs")) && !missing.is_empty(),
            "{missing:?}"
        );
    }

    #[test]
    fn a_run_that_shows_less_or_more_than_the_record_is_told() {
        let table = table();
        let results = whole(&table, &[Lane::SvmTcg]);
        let scenario = "conformance::vm_get_info";
        let less = disagreements(&table, &results, &ran(Lane::SvmTcg, scenario, &[]));
        assert!(
            less.iter()
                .any(|what| what.contains("does not show `VM_GET_INFO works: a good request`")),
            "{less:?}"
        );
        let more = ran(Lane::SvmTcg, scenario, &["VM_GET_INFO works: a good request"]);
        let more = disagreements(&table, &Results::default(), &more);
        assert_eq!(more.len(), 1, "{more:?}");
    }

    #[test]
    fn the_table_of_what_works_takes_the_place_of_the_old_one() {
        let table = table();
        let results = whole(&table, &[Lane::SvmTcg, Lane::VmxBochs]);
        let readme = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let new = with_works(&readme, &table, &results).unwrap();
        assert!(
            new.starts_with("before\n") && new.ends_with("\nafter\n") && !new.contains("old"),
            "{new}"
        );
        assert!(new.contains("| event SINGLESTEP | yes |"), "{new}");
        assert!(with_works("no table", &table, &results).is_err());
    }

    #[test]
    fn the_record_reads_what_it_writes() {
        let results = whole(&table(), &[Lane::SvmTcg, Lane::VmxBochs]);
        assert_eq!(Results::parse(&results.text()).unwrap(), results);
        assert!(Results::parse("svm-tcg works\n").is_err());
        assert!(Results::parse("no-lane | works\n").is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What GitHub shows of a job beside its log: the processor, the lanes, how the scenarios ended.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;

use anyhow::{Context, Result};
use comfy_table::Table;
use kvmi_lab_environment::output::count;
use kvmi_lab_machine::lab_run::{LabRun, Prepared};
use kvmi_lab_machine::outcome::Record;

use crate::table;

/// The variable that names the file to write to.
const VARIABLE: &str = "GITHUB_STEP_SUMMARY";

/// Adds a run to the job's summary, where there is one.
pub fn add(records: &[Record], differences: &[String], run: &LabRun) -> Result<()> {
    let lanes = run.lanes.iter().map(ran_in);
    add_text(|| text(&processor(), lanes.collect(), records, differences))
}

/// Adds a table to the job's summary.
pub fn add_table(table: &Table) -> Result<()> {
    add_text(|| format!("Processor: {}\n\n{table}\n", processor()))
}

/// Says in the job's summary why nothing ran.
pub fn add_lacks(lacks: &[String]) -> Result<()> {
    add_text(|| format!("Processor: {}\n\n{}\n", processor(), lines(lacks)))
}

fn add_text(text: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text().as_bytes()))
        .with_context(|| format!("write {}, which {VARIABLE} names", path.display()))
}

fn ran_in(lane: &Prepared) -> String {
    format!("{} ran in {}", lane.lane, lane.acceleration())
}

fn text(processor: &str, lanes: Vec<String>, records: &[Record], differences: &[String]) -> String {
    let mut failures: Vec<String> = records
        .iter()
        .filter(|r| !r.outcome.is_fine())
        .map(|r| format!("{} on {}: `{}`", r.scenario, r.lane, r.outcome))
        .collect();
    let mut text = format!("Processor: {processor}\n\n{}\n", lines(&lanes));
    let passed = records.len() - failures.len();
    failures.extend(differences.iter().map(|what| format!("differs: {what}")));
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "\n{} passed, {} failed\n\n{}",
        count(passed, "scenario"),
        failures.len(),
        lines(&failures)
    );
    let _ = writeln!(
        text,
        "<details><summary>all of them</summary>\n\n{}\n\n</details>\n",
        table::scenarios(records)
    );
    text
}

fn lines(all: &[String]) -> String {
    all.iter().fold(String::new(), |text, line| text + "- " + line + "\n")
}

/// Vendor and model, as the kernel names them.
fn processor() -> String {
    processor_of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn processor_of(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let value = fields.find(|(n, _)| n.trim() == name).map(|(_, value)| value.trim());
        value.unwrap_or("unknown").to_owned()
    };
    format!("{} ({})", field("model name"), field("vendor_id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_control::Lane;
    use kvmi_lab_machine::outcome::Outcome;

    #[test]
    fn the_processor() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU @ 2.00GHz\n\nvendor_id\t: x\n";
        assert_eq!(processor_of(cpuinfo), "Some CPU @ 2.00GHz (GenuineIntel)");
        assert_eq!(processor_of(""), "unknown (unknown)");
    }

    #[test]
    fn failures_stand_above_the_table() {
        let record = |scenario: &str, outcome| Record {
            scenario: scenario.to_owned(),
            lane: Lane::SvmTcg,
            seed: 1,
            outcome,
            seconds: 0.4,
            measures: Vec::new(),
        };
        let records = [
            record("a::fine", Outcome::Pass),
            record("a::bad", Outcome::Fail { message: "no".into() }),
        ];
        let text = text("a CPU", vec!["svm-tcg ran in x".into()], &records, &["cs".into()]);
        assert!(text.starts_with("Processor: a CPU\n\n- svm-tcg ran in x\n"), "{text}");
        assert!(
            text.contains("1 scenario passed, 2 failed\n\n- a::bad on svm-tcg: `fail"),
            "{text}"
        );
        let table = text.find("<details>").unwrap();
        assert!(text.find("- a::bad").unwrap() < table && text[table..].contains("| a::fine"));
    }
}

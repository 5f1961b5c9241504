// SPDX-License-Identifier: MIT OR Apache-2.0
//! docs/selftests.md and the record that it is made of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_machine::outcome::Record;

use crate::compare::{Seen, compare};
use crate::expected::Expected;
use crate::page::page;
use crate::results::Results;

const PAGE: &str = "docs/selftests.md";
const RESULTS: &str = "docs/selftests.results";

/// How to have a page that is true.
const MEND: &str = "cargo xtask selftests, then cargo xtask docs --selftests FOLDER of that run";

/// The file in a run's folder that says of which kernel its tests are.
pub(crate) const KERNEL: &str = "kernel";

/// The record of what runs have shown; empty where there is none yet.
pub(crate) fn read_results(checkout: &Path) -> Result<Results> {
    let path = checkout.join(RESULTS);
    if !path.is_file() {
        return Ok(Results::default());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {RESULTS}"))?;
    Results::parse(&text).with_context(|| format!("understand {RESULTS}"))
}

/// Takes what runs have shown into the record, and makes the page anew; whether anything changed.
pub fn write(checkout: &Path, folders: &[PathBuf]) -> Result<bool> {
    let expected = Expected::own()?;
    let mut results = read_results(checkout)?;
    for folder in folders {
        let path = folder.join(KERNEL);
        let kernel = fs::read_to_string(&path)
            .with_context(|| format!("{} is no run of `cargo xtask selftests`", folder.display()))?;
        results.take(kernel.trim(), &Seen::of(&records_below(folder)?));
    }
    results.retain(|lane, mode, test| expected.left_out(lane, mode, test).is_none());
    let mut changed = false;
    for (name, text) in [(RESULTS, results.text()), (PAGE, page(&results, &expected))] {
        let path = checkout.join(name);
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(&path, text).with_context(|| format!("write {name}"))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// The records in a run's folder: a folder for each lane, which has one for each test.
fn records_below(folder: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for lane in Lane::ALL {
        let Ok(tests) = fs::read_dir(folder.join(lane.name())) else {
            continue;
        };
        for test in tests {
            let folder = test?.path();
            if folder.join(Record::FILE).is_file() {
                records
                    .push(Record::read(&folder).with_context(|| format!("read the record in {}", folder.display()))?);
            }
        }
    }
    Ok(records)
}

/// Where page, record and table are not of one mind.
pub fn findings(checkout: &Path) -> Result<Vec<Finding>> {
    let expected = match Expected::own() {
        Ok(expected) => expected,
        Err(e) => return Ok(vec![finding("harness/selftests/expected.toml", e.to_string())]),
    };
    let results = read_results(checkout)?;
    let mut found = Vec::new();
    if fs::read_to_string(checkout.join(PAGE)).ok() != Some(page(&results, &expected)) {
        found.push(finding(PAGE, "is stale; to write it anew: cargo xtask docs"));
    }
    let disagree = compare(&results.seen, &expected);
    found.extend(
        disagree
            .iter()
            .map(|what| finding(RESULTS, format!("{what}; to mend it: {MEND}"))),
    );
    Ok(found)
}

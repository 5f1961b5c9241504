// SPDX-License-Identifier: MIT OR Apache-2.0
//! `docs/selftests.md`: what is known of each test, on each lane, in each mode.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use kvmi_lab_control::{Lane, SelftestMode};

use crate::compare::{Cells, Hooks};
use crate::expected::{Expected, Word};
use crate::results::Results;

const HEAD: &str = "# KVM's own selftests

This page is generated: `cargo xtask docs --selftests target/lab/NUMBER` takes what a run has shown
into `docs/selftests.results`, and makes this page of it and of `harness/selftests/expected.toml`.

The kernel's source package has selftests of KVM (`tools/testing/selftests/kvm`).
`cargo xtask selftests` builds them, runs each in an L1 of its own, and compares how it ends with
how it ends with the distribution's KVM on the same lane.

| mode | KVM | tool |
|---|---|---|
| stock | the distribution's modules | none |
| off | our modules, introspection off | none |
| on | our modules, introspection on | none |
| hooked | our modules, introspection on | hooks each VM that the test makes, watches every vCPU, agrees to each event |
| paused | our modules, introspection on | the same, and pauses vCPUs at random moments |
| protected | our modules, introspection on | as hooked, and denies writes to guest memory, so that each is a PF event |
| stepped | our modules, introspection on | as hooked, and steps each instruction |

A hooked vCPU tells HYPERCALL, BREAKPOINT, CR (0, 3, 4), XSETBV, DESCRIPTOR, PF and MSR. The MSRs
are listed in `harness/l1/src/selftest/tool/watches.rs`.

A skip is the test's own: it says why it cannot run there. A verdict in **bold** is not that of
stock KVM; the last column says why. A `-` stands where a test is left out, which the last column
says too, or where the record has no run of it.
";

/// The page.
#[must_use]
pub fn page(results: &Results, expected: &Expected) -> String {
    let mut page = HEAD.to_owned();
    let _ = writeln!(page, "\nThe record is of kernel {}.", results.kernel);
    let lanes: BTreeSet<Lane> = results.seen.tests.keys().map(|(lane, _)| *lane).collect();
    for lane in lanes {
        let _ = write!(page, "\n## {lane}\n\n{}", summary(results, lane));
        let modes: Vec<&str> = SelftestMode::ALL.iter().map(|mode| mode.name()).collect();
        let _ = write!(
            page,
            "\n| test | {} | why |\n|---|{}---|\n",
            modes.join(" | "),
            "---|".repeat(modes.len())
        );
        for ((_, test), cells) in results.seen.tests.iter().filter(|((of, _), _)| *of == lane) {
            page += &row(lane, test, cells, expected);
        }
    }
    page += "\n## Run with arguments\n\n| test | arguments | why |\n|---|---|---|\n";
    for entry in &expected.with_arguments {
        let _ = writeln!(
            page,
            "| {} | `{}` | {} |",
            entry.test,
            entry.arguments,
            cell(&entry.reason)
        );
    }
    page += "\n## Left out\n\n| tests | where | why |\n|---|---|---|\n";
    for entry in &expected.left_out {
        let lanes = entry.lanes.iter().map(|lane| lane.name());
        let modes = entry.modes.iter().map(|mode| mode.name());
        let place: Vec<&str> = lanes.chain(modes).collect();
        let place = if place.is_empty() {
            "everywhere".to_owned()
        } else {
            place.join(", ")
        };
        let _ = writeln!(
            page,
            "| {} | {place} | {} |",
            entry.tests.join(", "),
            cell(&entry.reason)
        );
    }
    page
}

/// How many tests ended how, and what tools saw.
fn summary(results: &Results, lane: Lane) -> String {
    let words: Vec<Word> = Word::ALL
        .iter()
        .copied()
        .filter(|word| count(results, lane, None, *word) > 0)
        .collect();
    let heads: Vec<&str> = words.iter().map(|word| word.name()).collect();
    let mut text = format!("| mode | {} | VMs hooked | events |\n", heads.join(" | "));
    text += &format!("|---|{}---|---|\n", "---|".repeat(words.len()));
    for &mode in SelftestMode::ALL {
        let counts: Vec<String> = words
            .iter()
            .map(|&word| count(results, lane, Some(mode), word).to_string())
            .collect();
        if counts.iter().all(|count| count == "0") {
            continue;
        }
        let hooks = match results.seen.hooks.get(&(lane, mode)) {
            Some(Hooks { vms, events, .. }) => format!("{vms} | {events}"),
            None => " | ".to_owned(),
        };
        let _ = writeln!(text, "| {mode} | {} | {hooks} |", counts.join(" | "));
    }
    text
}

fn count(results: &Results, lane: Lane, mode: Option<SelftestMode>, word: Word) -> usize {
    let of_lane = results.seen.tests.iter().filter(|((of, _), _)| *of == lane);
    let cells = of_lane.flat_map(|(_, cells)| cells.iter());
    cells
        .filter(|(of, cell)| mode.is_none_or(|mode| mode == **of) && cell.word == word)
        .count()
}

fn row(lane: Lane, test: &str, cells: &Cells, expected: &Expected) -> String {
    let stock = cells.get(&SelftestMode::Stock);
    let mut reasons: Vec<&str> = Vec::new();
    match (stock, expected.stock(lane, test)) {
        (_, Some((_, reason))) => reasons.push(reason),
        (Some(stock), None) if !stock.text.is_empty() => reasons.push(&stock.text),
        _ => {}
    }
    let mut text = format!("| {test} |");
    for &mode in SelftestMode::ALL {
        let shown = match cells.get(&mode) {
            None => {
                reasons.extend(expected.left_out(lane, mode, test));
                "-".to_owned()
            }
            Some(cell) if stock.is_some_and(|stock| stock.word != cell.word) => {
                reasons.extend(expected.differs(lane, mode, test).map(|(_, reason)| reason));
                format!("**{}**", cell.word)
            }
            Some(cell) => cell.word.to_string(),
        };
        let _ = write!(text, " {shown} |");
    }
    reasons.dedup();
    let _ = writeln!(text, " {} |", cell(&reasons.join("; ")));
    text
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_it_ended_and_why() {
        let record = "kernel | 6.12.1-1\n\
            hooks | svm-tcg | hooked | 5 | 6 | 7\n\
            svm-tcg | amx_test | skip skip skip skip skip skip skip | no AMX | here\n\
            svm-tcg | bad | fail fail fail fail fail fail - | a.c:1\n\
            svm-tcg | slow | pass pass pass pass pass pass timeout | \n";
        let table = "each_push = []\n\
            [[with_arguments]]\ntest='slow'\narguments='-b 16M'\nreason='long'\n\
            [[left_out]]\ntests=['bad']\nmodes=['stepped']\nreason='hangs'\n\
            [[stock]]\ntests=['bad']\nlanes=['svm-tcg']\nverdict='fail'\nreason='TCG lacks it'\n\
            [[differs]]\ntests=['slow']\nlanes=['svm-tcg']\nmodes=['stepped']\nverdict='timeout'\nreason='steps'\n";
        let page = page(&Results::parse(record).unwrap(), &Expected::parse(table).unwrap());
        for line in [
            "The record is of kernel 6.12.1-1.",
            "| amx_test | skip | skip | skip | skip | skip | skip | skip | no AMX \\| here |",
            "| bad | fail | fail | fail | fail | fail | fail | - | TCG lacks it; hangs |",
            "| slow | pass | pass | pass | pass | pass | pass | **timeout** | steps |",
            "| mode | pass | skip | fail | timeout | VMs hooked | events |",
            "| stock | 1 | 1 | 1 | 0 |  |  |",
            "| hooked | 1 | 1 | 1 | 0 | 5 | 7 |",
            "| slow | `-b 16M` | long |",
            "| bad | stepped | hangs |",
        ] {
            assert!(page.lines().any(|l| l == line), "no `{line}` in\n{page}");
        }
    }
}

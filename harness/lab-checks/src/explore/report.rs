// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an exploration found, for people and for programs.

use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table};
use kvmi_lab::repro::Reproducer;
use kvmi_lab::table::relative;
use kvmi_lab::transcript::Transcripts;
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::show;
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::outcome::Record;
use kvmi_lab_scenarios::explore::MEASURE;
use serde::Serialize;
use serde_json::json;

use super::Arguments;

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) clock: Clock,
    pub(super) record: Record,
    /// If it did not pass.
    pub(super) bundle: Option<PathBuf>,
}

impl Tried {
    fn holds(&self) -> f64 {
        let measures = self.record.measures.iter();
        measures.filter(|m| m.name == MEASURE).map(|m| m.value).sum()
    }
}

/// Runs that ended the same way.
#[derive(Clone, Debug, Serialize)]
struct Kind {
    verdict: String,
    #[serde(skip)]
    signature: String,
    fine: bool,
    runs: u32,
    first_seed: u64,
    bundle: Option<PathBuf>,
    again: Option<Again>,
}

/// How a bundle's scenario ended when it was run again.
#[derive(Clone, Debug, Serialize)]
struct Again {
    verdict: String,
    same: bool,
    /// All that L1 said is the same, to the byte.
    exact: bool,
}

/// All that was found.
#[derive(Debug)]
pub(super) struct Report {
    scenario: &'static str,
    lane: Lane,
    folder: PathBuf,
    tried: Vec<Tried>,
    kinds: Vec<Kind>,
}

impl Report {
    pub(super) fn new(wanted: &Arguments, scenario: &'static str, folder: PathBuf, tried: Vec<Tried>) -> Self {
        Self {
            scenario,
            lane: wanted.lane,
            folder,
            kinds: kinds(&tried),
            tried,
        }
    }

    /// How often a thread was held, in all runs together.
    pub(super) fn holds(&self) -> u64 {
        self.tried.iter().map(Tried::holds).sum::<f64>() as u64
    }

    pub(super) fn failed(&self) -> usize {
        self.tried.iter().filter(|t| !t.record.outcome.is_fine()).count()
    }

    pub(super) fn has_found_and_reproduced(&self) -> bool {
        self.kinds
            .iter()
            .any(|k| !k.fine && k.again.as_ref().is_some_and(|again| again.same))
    }

    /// Runs the first bundle of each kind of failure again.
    pub(super) fn reproduce(&mut self, reproducer: &mut Reproducer<'_>) -> Result<()> {
        for kind in &mut self.kinds {
            if let Some(bundle) = &kind.bundle {
                let repro = reproducer.again(bundle)?;
                kind.again = Some(Again {
                    verdict: repro.record.outcome.to_string(),
                    same: repro.is_same(),
                    exact: matches!(repro.transcripts(), Transcripts::Same(_)),
                });
            }
        }
        Ok(())
    }

    pub(super) fn show(&self, env: &Environment, json: bool) {
        if json {
            for Tried { clock, record, bundle } in &self.tried {
                show!(
                    "{}",
                    json!({ "event": "explored", "record": record, "clock": clock, "bundle": bundle })
                );
            }
            show!(
                "{}",
                json!({
                    "event": "exploration", "scenario": self.scenario, "lane": self.lane, "runs": self.tried.len(),
                    "failed": self.failed(), "holds": self.holds(), "verdicts": self.kinds,
                })
            );
            return;
        }
        show!("\n{}", table(&self.kinds));
        for kind in self.kinds.iter().filter(|k| !k.fine) {
            show!(
                "\n{} on {}, seed {}: {}",
                self.scenario,
                self.lane,
                kind.first_seed,
                kind.verdict
            );
            if let Some(Again {
                verdict, same: false, ..
            }) = &kind.again
            {
                show!("  its bundle gave another verdict: {verdict}");
            }
            if let Some(bundle) = &kind.bundle {
                show!("  reproduce: cargo xtask repro {}", relative(bundle, &env.checkout));
            }
        }
        show!(
            "\n{} of {} on {}, {} failed; threads were held {}; logs of failures are in {}",
            count(self.tried.len(), "run"),
            self.scenario,
            self.lane,
            self.failed(),
            count(self.holds() as usize, "time"),
            relative(&self.folder, &env.checkout)
        );
    }
}

/// Verdicts, and how many runs had each; those that came first are first.
fn kinds(tried: &[Tried]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for Tried { record, bundle, .. } in tried {
        let signature = record.outcome.signature();
        if let Some(kind) = kinds.iter_mut().find(|k| k.signature == signature) {
            kind.runs += 1;
            continue;
        }
        kinds.push(Kind {
            verdict: record.outcome.to_string(),
            signature,
            fine: record.outcome.is_fine(),
            runs: 1,
            first_seed: record.seed,
            bundle: bundle.clone(),
            again: None,
        });
    }
    kinds
}

fn table(kinds: &[Kind]) -> Table {
    let mut table = output::table(["runs", "first seed", "its bundle", "verdict"]);
    for kind in kinds {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let again = match kind.again {
            None => "",
            Some(Again { exact: true, .. }) => "gives it again, to the byte",
            Some(Again { same: true, .. }) => "gives it again",
            Some(_) => "does not",
        };
        table.add_row([
            right(kind.runs.to_string()),
            right(kind.first_seed.to_string()),
            Cell::new(again),
            Cell::new(&kind.verdict),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_machine::outcome::{Measure, Outcome};

    fn tried(seed: u64, outcome: Outcome) -> Tried {
        let bundle = (!outcome.is_fine()).then(|| PathBuf::from(format!("seed-{seed}")));
        let measures = vec![Measure {
            name: MEASURE.to_owned(),
            value: 3.0,
            unit: "times".to_owned(),
        }];
        let record = Record {
            scenario: "a::b".to_owned(),
            lane: Lane::SvmTcg,
            seed,
            outcome,
            seconds: 1.0,
            measures,
        };
        Tried {
            clock: Clock::Host,
            record,
            bundle,
        }
    }

    fn fail(message: &str) -> Outcome {
        Outcome::Fail {
            message: message.to_owned(),
        }
    }

    #[test]
    fn failures_of_one_kind_are_one_line_with_the_first_seed() {
        let all = [
            tried(1, Outcome::Pass),
            tried(2, fail("rip 0x12345678")),
            tried(3, Outcome::Pass),
            tried(4, fail("rip 0x87654321")),
            tried(5, fail("no")),
        ];
        let kinds = kinds(&all);
        let rows: Vec<_> = kinds.iter().map(|k| (k.runs, k.first_seed, k.fine)).collect();
        assert_eq!(rows, [(2, 1, true), (2, 2, false), (1, 5, false)]);
        assert_eq!(kinds[1].bundle, Some(PathBuf::from("seed-2")));
        let text = table(&kinds).to_string();
        assert!(text.contains("| fail: no") || text.contains("no |"), "{text}");
        assert!((all.iter().map(Tried::holds).sum::<f64>() - 15.0).abs() < 0.1);
    }
}

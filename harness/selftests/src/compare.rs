// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether each test ends as it does with stock KVM on the same lane, or else as the table says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kvmi_lab_control::{Lane, SelftestMode};
use kvmi_lab_machine::outcome::{Outcome, Record};

use crate::expected::{Expected, Word};

/// How one test ended in one mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// In one word.
    pub word: Word,
    /// What makes two of the same word different: where it failed, why it was skipped. Empty where there is nothing to say or it is not known.
    pub text: String,
}

impl From<&Outcome> for Cell {
    fn from(outcome: &Outcome) -> Self {
        let text = match outcome {
            Outcome::Pass | Outcome::Timeout { .. } | Outcome::Lost { .. } => String::new(),
            Outcome::Skip { reason } => reason.clone(),
            Outcome::Fail { message } => message.clone(),
            splat @ Outcome::Splat { .. } => splat.signature(),
        };
        Self {
            word: outcome.into(),
            text,
        }
    }
}

impl Cell {
    fn is_same_as(&self, other: &Self) -> bool {
        let is_unknown = self.text.is_empty() || other.text.is_empty();
        self.word == other.word && (is_unknown || self.text == other.text)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            return write!(f, "{}", self.word);
        }
        write!(f, "{} ({})", self.word, self.text)
    }
}

/// How one test ended in each mode.
pub type Cells = BTreeMap<SelftestMode, Cell>;

/// How often tools hooked and what they were told, in one mode on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// VMs that were hooked.
    pub vms: u64,
    /// vCPUs that were watched.
    pub vcpus: u64,
    /// Events that were agreed to.
    pub events: u64,
}

/// What is known of tests on lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By lane and name.
    pub tests: BTreeMap<(Lane, String), Cells>,
    /// By lane and mode.
    pub hooks: BTreeMap<(Lane, SelftestMode), Hooks>,
}

impl Seen {
    /// What records of runs say; those of scenarios are passed over.
    pub fn of<'r>(records: impl IntoIterator<Item = &'r Record>) -> Self {
        let mut seen = Self::default();
        for record in records {
            let Some((mode, test)) = SelftestMode::of_run(&record.scenario) else {
                continue;
            };
            let cells = seen.tests.entry((record.lane, test.to_owned())).or_default();
            cells.insert(mode, Cell::from(&record.outcome));
            if mode.hooks() {
                seen.hooks.entry((record.lane, mode)).or_default().add(record);
            }
        }
        seen
    }
}

/// The names that L1 gives to what it counts; all others are kinds of events.
const VMS: &str = "VMs";
const VCPUS: &str = "vCPUs";
const REFUSED: &str = "VMs refused";

impl Hooks {
    fn add(&mut self, record: &Record) {
        for measure in &record.measures {
            // Counts of up to a few millions.
            let count = measure.value as u64;
            match measure.name.as_str() {
                VMS => self.vms += count,
                VCPUS => self.vcpus += count,
                REFUSED => {}
                _ => self.events += count,
            }
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The lane.
    pub lane: Lane,
    /// The mode.
    pub mode: SelftestMode,
    /// The test; none where all are concerned.
    pub test: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lane, mode, test, what } = self;
        match test {
            Some(test) => write!(f, "{lane} {mode} {test}: {what}"),
            None => write!(f, "{lane} {mode}: {what}"),
        }
    }
}

/// The table's entries that hold no longer, and all differences that it does not explain. A test whose stock verdict is not there is not
/// compared.
#[must_use]
pub fn compare(seen: &Seen, expected: &Expected) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((lane, test), cells) in &seen.tests {
        let Some(stock) = cells.get(&SelftestMode::Stock) else {
            continue;
        };
        let mut find = |mode, what: Option<String>| {
            findings.extend(what.map(|what| Finding {
                lane: *lane,
                mode,
                test: Some(test.clone()),
                what,
            }));
        };
        find(SelftestMode::Stock, of_stock(stock, expected.stock(*lane, test)));
        for (&mode, cell) in cells.iter().filter(|(mode, _)| **mode != SelftestMode::Stock) {
            find(mode, of_other(stock, cell, expected.differs(*lane, mode, test)));
        }
    }
    findings
}

fn of_stock(stock: &Cell, entry: Option<(Word, &str)>) -> Option<String> {
    match entry {
        None if stock.word.is_fine() => None,
        None => Some(format!("{stock}, and expected.toml gives no reason for it")),
        Some((word, _)) if word == stock.word => None,
        Some((word, _)) => Some(format!("{stock}; expected.toml says {word}, which holds no longer")),
    }
}

fn of_other(stock: &Cell, cell: &Cell, entry: Option<(Word, &str)>) -> Option<String> {
    match entry {
        None if cell.is_same_as(stock) => None,
        None => Some(format!("{cell}; with stock KVM {stock}")),
        Some(_) if cell.is_same_as(stock) => Some(format!(
            "{cell} as with stock KVM; expected.toml says that it differs, which holds no longer"
        )),
        Some((word, _)) if word == cell.word => None,
        Some((word, _)) => Some(format!("{cell}; expected.toml says {word}, with stock KVM {stock}")),
    }
}

/// Modes that were to hook and in which no VM was hooked, or nothing told: they show nothing. Of a few tests this may be as it should.
#[must_use]
pub fn idle_modes(seen: &Seen) -> Vec<Finding> {
    let idle = seen
        .hooks
        .iter()
        .filter(|(_, hooks)| hooks.vms == 0 || hooks.events == 0);
    let finding = |(&(lane, mode), hooks): (&(Lane, SelftestMode), &Hooks)| Finding {
        lane,
        mode,
        test: None,
        what: format!("{} VMs were hooked, {} events told", hooks.vms, hooks.events),
    };
    idle.map(finding).collect()
}

/// Names of the table that no test has.
#[must_use]
pub fn unknown_names<'e>(expected: &'e Expected, built: &BTreeSet<&str>) -> Vec<&'e str> {
    let unknown: BTreeSet<&str> = expected.names().filter(|name| !built.contains(name)).collect();
    unknown.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_machine::outcome::Measure;

    const TABLE: &str = r#"
        each_push = []
        [[stock]]
        tests = ["bad"]
        lanes = ["svm-tcg"]
        verdict = "fail"
        reason = "TCG"
        [[differs]]
        tests = ["slow"]
        lanes = ["svm-tcg"]
        modes = ["stepped"]
        verdict = "timeout"
        reason = "steps"
    "#;

    fn fail(message: &str) -> Outcome {
        Outcome::Fail {
            message: message.to_owned(),
        }
    }

    fn timeout() -> Outcome {
        Outcome::Timeout {
            stage: "run".to_owned(),
            deadline_ms: 7,
        }
    }

    fn record(mode: SelftestMode, test: &str, outcome: Outcome) -> Record {
        let measure = |name: &str| Measure {
            name: name.to_owned(),
            value: 2.0,
            unit: "times".to_owned(),
        };
        Record {
            scenario: mode.run_name(test),
            lane: Lane::SvmTcg,
            seed: 1,
            outcome,
            seconds: 1.0,
            measures: [VMS, VCPUS, "CR", "MSR"].map(measure).to_vec(),
        }
    }

    /// What is found when stock KVM ends a test in the first way and a mode in the second.
    fn found(test: &str, stock: Outcome, mode: SelftestMode, other: Outcome) -> Vec<String> {
        let records = [record(SelftestMode::Stock, test, stock), record(mode, test, other)];
        let findings = compare(&Seen::of(&records), &Expected::parse(TABLE).unwrap());
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_as_with_stock_kvm_is_no_finding() {
        let (pass, skip) = (Outcome::Pass, |reason: &str| Outcome::Skip {
            reason: reason.to_owned(),
        });
        for &mode in &SelftestMode::ALL[1..] {
            assert!(found("good", pass.clone(), mode, pass.clone()).is_empty());
            assert!(found("absent", skip("no AMX"), mode, skip("no AMX")).is_empty());
            assert!(found("bad", fail("a.c:1"), mode, fail("a.c:1")).is_empty());
        }
    }

    #[test]
    fn a_planted_difference_is_found_with_its_name() {
        let hooked = SelftestMode::Hooked;
        assert_eq!(
            found("good", Outcome::Pass, hooked, fail("a.c:1")),
            ["svm-tcg hooked good: fail (a.c:1); with stock KVM pass"]
        );
        assert_eq!(
            found("good", Outcome::Pass, hooked, timeout()),
            ["svm-tcg hooked good: timeout; with stock KVM pass"]
        );
        // It fails both times, and at another place.
        assert_eq!(
            found("bad", fail("a.c:1"), hooked, fail("a.c:2")),
            ["svm-tcg hooked bad: fail (a.c:2); with stock KVM fail (a.c:1)"]
        );
        assert_eq!(
            found("bad", fail("a.c:1"), SelftestMode::Off, Outcome::Pass),
            ["svm-tcg off bad: pass; with stock KVM fail (a.c:1)"]
        );
    }

    #[test]
    fn what_stock_kvm_fails_needs_a_reason() {
        let on = SelftestMode::On;
        assert_eq!(
            found("new", fail("a.c:1"), on, fail("a.c:1")),
            ["svm-tcg stock new: fail (a.c:1), and expected.toml gives no reason for it"]
        );
    }

    #[test]
    fn an_entry_that_holds_no_longer_is_found() {
        let (on, stepped) = (SelftestMode::On, SelftestMode::Stepped);
        assert!(found("slow", Outcome::Pass, stepped, timeout()).is_empty());
        let said = found("slow", Outcome::Pass, stepped, Outcome::Pass);
        assert!(
            said.len() == 1 && said[0].ends_with("which holds no longer"),
            "{said:?}"
        );
        let said = found("slow", Outcome::Pass, stepped, fail("a.c:1"));
        assert!(
            said.len() == 1 && said[0].contains("expected.toml says timeout"),
            "{said:?}"
        );
        let said = found("bad", Outcome::Pass, on, Outcome::Pass);
        assert!(
            said.len() == 1 && said[0].ends_with("which holds no longer"),
            "{said:?}"
        );
        let said = found("bad", timeout(), on, timeout());
        assert!(said.len() == 1 && said[0].contains("says fail"), "{said:?}");
    }

    #[test]
    fn a_mode_that_hooks_nothing_is_found() {
        let mut records = [
            record(SelftestMode::Stock, "good", Outcome::Pass),
            record(SelftestMode::Hooked, "good", Outcome::Pass),
        ];
        records[1].measures.retain(|m| m.name == VCPUS);
        let seen = Seen::of(&records);
        let said: Vec<String> = idle_modes(&seen).iter().map(ToString::to_string).collect();
        assert_eq!(said, ["svm-tcg hooked: 0 VMs were hooked, 0 events told"]);
    }

    #[test]
    fn records_say_what_was_hooked_and_scenarios_are_passed_over() {
        let mut records = vec![record(SelftestMode::Hooked, "a", Outcome::Pass)];
        records.push(record(SelftestMode::Hooked, "b", Outcome::Pass));
        let mut scenario = record(SelftestMode::Hooked, "c", Outcome::Pass);
        scenario.scenario = "lifecycle::hook".to_owned();
        records.push(scenario);
        let seen = Seen::of(&records);
        assert_eq!(seen.tests.len(), 2);
        let hooks = Hooks {
            vms: 4,
            vcpus: 4,
            events: 8,
        };
        assert_eq!(seen.hooks[&(Lane::SvmTcg, SelftestMode::Hooked)], hooks);
    }

    #[test]
    fn names_that_no_test_has_are_found() {
        let table = Expected::parse(TABLE).unwrap();
        assert_eq!(unknown_names(&table, &["bad", "good"].into()), ["slow"]);
    }
}

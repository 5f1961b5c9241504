// SPDX-License-Identifier: MIT OR Apache-2.0
//! The record of what runs have shown, from which the page is made: `docs/selftests.results`, lines of fields between ` | `.

use std::fmt::Write as _;

use kvmi_lab_control::{Lane, SelftestMode};

use crate::compare::{Cell, Cells, Hooks, Seen};
use crate::expected::Word;

/// What is known of tests, and of which kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// The version of the kernel's package that the last run had.
    pub kernel: String,
    /// How tests ended. Of what they said there is the text with stock KVM.
    pub seen: Seen,
}

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the record makes no sense: {text}")]
pub struct Unreadable {
    /// Its number, from 1 on.
    pub line: usize,
    /// What stands there.
    pub text: String,
}

const HEAD: &str = "# What `cargo xtask docs --selftests` has taken from runs; docs/selftests.md shows it.\n\
    # kernel | version of the package\n\
    # hooks | lane | mode | VMs hooked | vCPUs watched | events\n\
    # lane | test | verdicts in the modes, in their order | what it says with stock\n";

/// The page that is made of the record.
const PAGE: &str = "docs/selftests.md";

const KERNEL: &str = "kernel";
const HOOKS: &str = "hooks";

/// What stands where a test has not run.
const NOTHING: &str = "-";

impl Results {
    /// Reads a record.
    ///
    /// # Errors
    ///
    /// [`Unreadable`]
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        let mut results = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            results.take_line(line).ok_or_else(|| Unreadable {
                line: number,
                text: line.to_owned(),
            })?;
        }
        Ok(results)
    }

    fn take_line(&mut self, line: &str) -> Option<()> {
        let fields: Vec<&str> = line.splitn(6, " | ").collect();
        match fields[..] {
            [KERNEL, version] => self.kernel = version.to_owned(),
            [HOOKS, lane, mode, vms, vcpus, events] => {
                let hooks = Hooks {
                    vms: vms.parse().ok()?,
                    vcpus: vcpus.parse().ok()?,
                    events: events.parse().ok()?,
                };
                self.seen.hooks.insert((lane.parse().ok()?, mode.parse().ok()?), hooks);
            }
            _ => {
                let fields: Vec<&str> = line.splitn(4, " | ").collect();
                let [lane, test, words, text] = fields[..] else {
                    return None;
                };
                let key = (lane.parse().ok()?, test.to_owned());
                self.seen.tests.insert(key, cells(words, text)?);
            }
        }
        Some(())
    }

    /// The record as a file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{HEAD}{KERNEL} | {}\n", self.kernel);
        for ((lane, mode), Hooks { vms, vcpus, events }) in &self.seen.hooks {
            let _ = writeln!(text, "{HOOKS} | {lane} | {mode} | {vms} | {vcpus} | {events}");
        }
        for ((lane, test), cells) in &self.seen.tests {
            let word = |mode| cells.get(mode).map_or(NOTHING, |cell: &Cell| cell.word.name());
            let words: Vec<&str> = SelftestMode::ALL.iter().map(word).collect();
            let said = cells.get(&SelftestMode::Stock).map_or("", |cell| cell.text.as_str());
            let _ = writeln!(
                text,
                "{lane} | {test} | {} | {}",
                words.join(" "),
                said.replace('\n', " ")
            );
        }
        text
    }

    /// Takes over what a run has shown of a kernel, in the place of what was known before.
    pub fn take(&mut self, kernel: &str, run: &Seen) {
        kernel.clone_into(&mut self.kernel);
        for (key, cells) in &run.tests {
            let known = self.seen.tests.entry(key.clone()).or_default();
            for (&mode, cell) in cells {
                let mut cell = cell.clone();
                if mode != SelftestMode::Stock {
                    cell.text.clear();
                }
                known.insert(mode, cell);
            }
        }
        // A run of a few tests says little of how much was hooked.
        for (&key, hooks) in &run.hooks {
            let known = self.seen.hooks.entry(key).or_default();
            if hooks.vms >= known.vms {
                *known = *hooks;
            }
        }
    }

    /// Forgets what is run no longer.
    pub fn retain(&mut self, is_run: impl Fn(Lane, SelftestMode, &str) -> bool) {
        for ((lane, test), cells) in &mut self.seen.tests {
            cells.retain(|&mode, _| is_run(*lane, mode, test));
        }
        self.seen.tests.retain(|_, cells| !cells.is_empty());
    }

    /// Where a run says something else than the record, of what the record has; a line each.
    #[must_use]
    pub fn stale(&self, run: &Seen) -> Vec<String> {
        let mut stale = Vec::new();
        for ((lane, test), cells) in &run.tests {
            let Some(known) = self.seen.tests.get(&(*lane, test.clone())) else {
                continue;
            };
            for (mode, cell) in cells {
                if let Some(known) = known.get(mode).filter(|known| known.word != cell.word) {
                    stale.push(format!(
                        "{lane} {mode} {test}: {}; {PAGE} has {}",
                        cell.word, known.word
                    ));
                }
            }
        }
        stale
    }
}

fn cells(words: &str, text: &str) -> Option<Cells> {
    let words: Vec<&str> = words.split(' ').collect();
    if words.len() != SelftestMode::ALL.len() {
        return None;
    }
    let mut cells = Cells::new();
    for (&mode, word) in SelftestMode::ALL.iter().zip(words) {
        if word == NOTHING {
            continue;
        }
        let word = Word::ALL.iter().copied().find(|w| w.name() == word)?;
        let text = if mode == SelftestMode::Stock { text } else { "" };
        cells.insert(
            mode,
            Cell {
                word,
                text: text.to_owned(),
            },
        );
    }
    Some(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(word: Word, text: &str) -> Cell {
        let text = text.to_owned();
        Cell { word, text }
    }

    fn run() -> Seen {
        let mut seen = Seen::default();
        let cells = [
            (SelftestMode::Stock, cell(Word::Skip, "no | AMX")),
            (SelftestMode::Stepped, cell(Word::Skip, "no | AMX")),
        ];
        seen.tests.insert((Lane::SvmTcg, "amx_test".to_owned()), cells.into());
        let hooks = Hooks {
            vms: 1,
            vcpus: 2,
            events: 3,
        };
        seen.hooks.insert((Lane::SvmTcg, SelftestMode::Stepped), hooks);
        seen
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let mut results = Results::default();
        results.take("6.12.1-1", &run());
        let text = results.text();
        assert!(
            text.contains("\nsvm-tcg | amx_test | skip - - - - - skip | no | AMX\n"),
            "{text}"
        );
        assert!(text.contains("\nhooks | svm-tcg | stepped | 1 | 2 | 3\n"), "{text}");
        assert_eq!(Results::parse(&text).unwrap(), results);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for wrong in [
            "svm-tcg | a | pass",
            "x86 | a | pass - - - - - - | ",
            "svm-tcg | a | fine - - - - - - | ",
            "a",
        ] {
            let error = Results::parse(&format!("kernel | 6\n{wrong}\n")).unwrap_err();
            assert_eq!((error.line, error.text.as_str()), (2, wrong));
        }
    }

    #[test]
    fn a_run_replaces_what_it_ran_and_nothing_else() {
        let mut results = Results::default();
        results.take("6.12.1-1", &run());
        let mut later = Seen::default();
        let cells = [(SelftestMode::Stepped, cell(Word::Timeout, ""))];
        later.tests.insert((Lane::SvmTcg, "amx_test".to_owned()), cells.into());
        assert_eq!(
            results.stale(&later),
            ["svm-tcg stepped amx_test: timeout; docs/selftests.md has skip"]
        );
        results.take("6.12.2-1", &later);
        assert!(results.stale(&later).is_empty() && results.kernel == "6.12.2-1");
        let cells = &results.seen.tests[&(Lane::SvmTcg, "amx_test".to_owned())];
        assert_eq!(cells[&SelftestMode::Stock].word, Word::Skip);
        assert_eq!(cells[&SelftestMode::Stepped].word, Word::Timeout);
        results.retain(|_, mode, _| mode == SelftestMode::Stock);
        assert_eq!(results.seen.tests[&(Lane::SvmTcg, "amx_test".to_owned())].len(), 1);
        results.retain(|_, _, _| false);
        assert!(results.seen.tests.is_empty());
    }

    #[test]
    fn what_the_record_does_not_know_is_not_compared() {
        let mut results = Results::default();
        assert!(results.stale(&run()).is_empty());
        results.take("6", &run());
        let mut other = Seen::default();
        let cells = [(SelftestMode::On, cell(Word::Pass, ""))];
        other
            .tests
            .insert((Lane::SvmTcg, "new_test".to_owned()), cells.clone().into());
        other.tests.insert((Lane::SvmTcg, "amx_test".to_owned()), cells.into());
        assert!(results.stale(&other).is_empty());
    }
}

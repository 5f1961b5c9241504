// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of the tests: which are left out, which stock KVM does not pass, and which end otherwise with introspection, each with its
//! reason. The table is `expected.toml`.

use std::fmt;

use kvmi_lab_control::{Lane, SelftestMode};
use kvmi_lab_machine::outcome::Outcome;
use serde::Deserialize;

/// How a test ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is described at Outcome")]
pub enum Word {
    Pass,
    Skip,
    Fail,
    Lost,
    Timeout,
    Splat,
}

impl Word {
    /// Every word, in the order in which summaries count them.
    pub const ALL: &'static [Self] = &[
        Self::Pass,
        Self::Skip,
        Self::Fail,
        Self::Timeout,
        Self::Splat,
        Self::Lost,
    ];

    /// As tables have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Fail => "fail",
            Self::Lost => "lost",
            Self::Timeout => "timeout",
            Self::Splat => "splat",
        }
    }

    /// Whether a test of stock KVM may end so without a reason of ours: a skip has one of its own.
    #[must_use]
    pub fn is_fine(self) -> bool {
        matches!(self, Self::Pass | Self::Skip)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<&Outcome> for Word {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Pass => Self::Pass,
            Outcome::Skip { .. } => Self::Skip,
            Outcome::Fail { .. } => Self::Fail,
            Outcome::Lost { .. } => Self::Lost,
            Outcome::Timeout { .. } => Self::Timeout,
            Outcome::Splat { .. } => Self::Splat,
        }
    }
}

/// The table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The tests that each push runs.
    pub each_push: Vec<String>,
    /// Tests that are run with arguments.
    #[serde(default)]
    pub with_arguments: Vec<WithArguments>,
    /// Tests that are not run.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Tests that stock KVM neither passes nor skips.
    #[serde(default)]
    pub stock: Vec<Stock>,
    /// Tests that end otherwise than with stock KVM.
    #[serde(default)]
    pub differs: Vec<Differs>,
}

/// A test that is run with arguments.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithArguments {
    /// Its name.
    pub test: String,
    /// They, between spaces.
    pub arguments: String,
    /// Why.
    pub reason: String,
}

/// Tests that are not run, and why not.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Their names.
    pub tests: Vec<String>,
    /// On these lanes; on every lane if there is none.
    #[serde(default)]
    pub lanes: Vec<Lane>,
    /// In these modes; in every mode if there is none.
    #[serde(default)]
    pub modes: Vec<SelftestMode>,
    /// Why not.
    pub reason: String,
}

/// Tests that stock KVM neither passes nor skips.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stock {
    /// Their names.
    pub tests: Vec<String>,
    /// On these lanes.
    pub lanes: Vec<Lane>,
    /// How they end there.
    pub verdict: Word,
    /// Why.
    pub reason: String,
}

/// Tests that end otherwise than with stock KVM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    /// Their names.
    pub tests: Vec<String>,
    /// On these lanes.
    pub lanes: Vec<Lane>,
    /// In these modes.
    pub modes: Vec<SelftestMode>,
    /// How they end there.
    pub verdict: Word,
    /// Why.
    pub reason: String,
}

/// Why the table cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is no such table.
    #[error("expected.toml cannot be read: {0}")]
    Unreadable(String),
    /// An entry explains nothing.
    #[error("an entry of expected.toml for {0} gives no reason")]
    NoReason(String),
    /// An entry is about nothing.
    #[error("an entry of expected.toml ({0}) names no test, no lane or no mode")]
    Empty(String),
    /// Stock KVM cannot differ from itself, and needs no reason for what is fine.
    #[error("the entry of expected.toml for {0} says nothing: stock KVM is what others are compared with")]
    Pointless(String),
    /// Two entries are about the same.
    #[error("expected.toml has {test} on {lane} in mode {mode} twice")]
    Twice {
        /// The test.
        test: String,
        /// The lane.
        lane: Lane,
        /// The mode.
        mode: SelftestMode,
    },
}

/// The lab's own table, as it is in the sources.
const TABLE: &str = include_str!("../expected.toml");

impl Expected {
    /// The lab's own.
    ///
    /// # Errors
    ///
    /// [`TableError`]
    pub fn own() -> Result<Self, TableError> {
        Self::parse(TABLE)
    }

    /// Understands a table.
    ///
    /// # Errors
    ///
    /// [`TableError`]
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let table: Self = toml::from_str(text).map_err(|e| TableError::Unreadable(e.message().to_owned()))?;
        let left_out = table.left_out.iter().map(|e| (&e.tests, &e.reason));
        let stock = table.stock.iter().map(|e| (&e.tests, &e.reason));
        let differs = table.differs.iter().map(|e| (&e.tests, &e.reason));
        let mut with_arguments = table.with_arguments.iter();
        if let Some(entry) = with_arguments.find(|e| e.reason.trim().is_empty()) {
            return Err(TableError::NoReason(entry.test.clone()));
        }
        for (tests, reason) in left_out.chain(stock).chain(differs) {
            if reason.trim().is_empty() {
                return Err(TableError::NoReason(tests.join(", ")));
            }
            if tests.is_empty() {
                return Err(TableError::Empty(reason.clone()));
            }
        }
        let is_empty = |e: &Differs| e.lanes.is_empty() || e.modes.is_empty();
        let empty = table.differs.iter().find(|e| is_empty(e)).map(|e| &e.reason);
        let empty = empty.or_else(|| table.stock.iter().find(|e| e.lanes.is_empty()).map(|e| &e.reason));
        if let Some(reason) = empty {
            return Err(TableError::Empty(reason.clone()));
        }
        let of_stock = |e: &&Differs| e.modes.contains(&SelftestMode::Stock);
        if let Some(entry) = table.differs.iter().find(of_stock) {
            return Err(TableError::Pointless(entry.tests.join(", ")));
        }
        if let Some(entry) = table.stock.iter().find(|e| e.verdict.is_fine()) {
            return Err(TableError::Pointless(entry.tests.join(", ")));
        }
        table.refuse_twice()?;
        Ok(table)
    }

    fn refuse_twice(&self) -> Result<(), TableError> {
        let mut seen = std::collections::BTreeSet::new();
        let stock = self.stock.iter().flat_map(|e| {
            let lanes = e.lanes.iter();
            lanes.flat_map(move |&lane| e.tests.iter().map(move |test| (test, lane, SelftestMode::Stock)))
        });
        let differs = self.differs.iter().flat_map(|e| {
            let places = e
                .lanes
                .iter()
                .flat_map(|&lane| e.modes.iter().map(move |&mode| (lane, mode)));
            places.flat_map(move |(lane, mode)| e.tests.iter().map(move |test| (test, lane, mode)))
        });
        for (test, lane, mode) in stock.chain(differs) {
            if !seen.insert((test, lane, mode)) {
                let test = test.clone();
                return Err(TableError::Twice { test, lane, mode });
            }
        }
        Ok(())
    }

    /// Why a test is not run there, if it is not.
    #[must_use]
    pub fn left_out(&self, lane: Lane, mode: SelftestMode, test: &str) -> Option<&str> {
        let concerns = |e: &&LeftOut| {
            has(&e.tests, test)
                && (e.lanes.is_empty() || e.lanes.contains(&lane))
                && (e.modes.is_empty() || e.modes.contains(&mode))
        };
        self.left_out.iter().find(concerns).map(|e| e.reason.as_str())
    }

    /// The file by which L1 knows the arguments of tests.
    #[must_use]
    pub fn arguments_file(&self) -> String {
        let lines = self
            .with_arguments
            .iter()
            .map(|e| format!("{} {}\n", e.test, e.arguments));
        lines.collect()
    }

    /// How stock KVM ends that test, and why, where it neither passes nor skips it.
    #[must_use]
    pub fn stock(&self, lane: Lane, test: &str) -> Option<(Word, &str)> {
        let entry = self
            .stock
            .iter()
            .find(|e| has(&e.tests, test) && e.lanes.contains(&lane))?;
        Some((entry.verdict, &entry.reason))
    }

    /// How the test ends there, and why, where that is not as with stock KVM.
    #[must_use]
    pub fn differs(&self, lane: Lane, mode: SelftestMode, test: &str) -> Option<(Word, &str)> {
        let concerns = |e: &&Differs| has(&e.tests, test) && e.lanes.contains(&lane) && e.modes.contains(&mode);
        let entry = self.differs.iter().find(concerns)?;
        Some((entry.verdict, &entry.reason))
    }

    /// Every test that the table names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let left_out = self.left_out.iter().flat_map(|e| &e.tests);
        let stock = self.stock.iter().flat_map(|e| &e.tests);
        let differs = self.differs.iter().flat_map(|e| &e.tests);
        let with_arguments = self.with_arguments.iter().map(|e| &e.test);
        let all = self
            .each_push
            .iter()
            .chain(with_arguments)
            .chain(left_out)
            .chain(stock)
            .chain(differs);
        all.map(String::as_str)
    }
}

fn has(tests: &[String], test: &str) -> bool {
    tests.iter().any(|t| t == test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_own_table_is_in_order() {
        Expected::own().unwrap();
    }

    #[test]
    fn entries_are_found_by_what_they_are_about() {
        let table = Expected::parse(
            r#"
            each_push = ["a"]
            [[with_arguments]]
            test = "a"
            arguments = "-b 16M"
            reason = "takes long"
            [[left_out]]
            tests = ["big"]
            reason = "needs 8 GiB"
            [[left_out]]
            tests = ["slow"]
            lanes = ["vmx-bochs"]
            modes = ["stepped"]
            reason = "takes an hour"
            [[stock]]
            tests = ["b"]
            lanes = ["svm-tcg"]
            verdict = "fail"
            reason = "TCG has no such thing"
            [[differs]]
            tests = ["a", "b"]
            lanes = ["svm-tcg"]
            modes = ["stepped"]
            verdict = "timeout"
            reason = "steps are slow"
            "#,
        )
        .unwrap();
        let (tcg, bochs) = (Lane::SvmTcg, Lane::VmxBochs);
        assert_eq!(table.left_out(bochs, SelftestMode::On, "big"), Some("needs 8 GiB"));
        assert_eq!(
            table.left_out(bochs, SelftestMode::Stepped, "slow"),
            Some("takes an hour")
        );
        assert_eq!(table.left_out(bochs, SelftestMode::On, "slow"), None);
        assert_eq!(table.left_out(tcg, SelftestMode::Stepped, "slow"), None);
        assert_eq!(table.stock(tcg, "b"), Some((Word::Fail, "TCG has no such thing")));
        assert_eq!((table.stock(bochs, "b"), table.stock(tcg, "a")), (None, None));
        assert_eq!(
            table.differs(tcg, SelftestMode::Stepped, "a"),
            Some((Word::Timeout, "steps are slow"))
        );
        assert_eq!(table.differs(tcg, SelftestMode::Hooked, "a"), None);
        assert_eq!(table.arguments_file(), "a -b 16M\n");
        assert_eq!(
            table.names().collect::<Vec<_>>(),
            ["a", "a", "big", "slow", "b", "a", "b"]
        );
    }

    #[test]
    fn a_table_that_explains_nothing_is_refused() {
        let refused = |entry: &str| {
            Expected::parse(&format!("each_push = []\n{entry}"))
                .unwrap_err()
                .to_string()
        };
        let differs = |tests: &str, modes: &str, reason: &str| {
            format!("[[differs]]\ntests={tests}\nlanes=['svm-tcg']\nmodes={modes}\nverdict='fail'\nreason='{reason}'\n")
        };
        assert!(refused(&differs("['a']", "['on']", " ")).contains("gives no reason"));
        assert!(refused(&differs("[]", "['on']", "x")).contains("names no test"));
        assert!(refused(&differs("['a']", "[]", "x")).contains("names no test"));
        assert!(refused(&differs("['a']", "['stock']", "x")).contains("says nothing"));
        let twice = differs("['a']", "['on']", "x") + &differs("['b', 'a']", "['off', 'on']", "y");
        assert!(refused(&twice).contains("a on svm-tcg in mode on twice"));
        let fine = "[[stock]]\ntests=['a']\nlanes=['svm-tcg']\nverdict='skip'\nreason='x'\n";
        assert!(refused(fine).contains("says nothing"));
        assert!(refused("[[with_arguments]]\ntest='a'\narguments='-x'\nreason=''\n").contains("gives no reason"));
        assert!(refused("[[left_out]]\ntests=['a']\nwhy='x'\n").contains("cannot be read"));
    }
}

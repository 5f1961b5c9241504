// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of mutations, `harness/lab-checks/mutations.toml`: what each changes and which scenario notices.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_scenarios::all;
use serde::Deserialize;

/// Where the table is.
pub(super) const FILE: &str = "harness/lab-checks/mutations.toml";

/// The folders that a mutation may be in.
const FOLDERS: &[&str] = &[
    "kernel/glue/",
    "kernel/core/src/",
    "kernel/module/src/",
    "kernel/patches/",
];

/// One fault, and who notices it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutation {
    /// `group::what`, of which no two are the same.
    pub name: String,
    /// The file, from the top of the checkout.
    pub file: String,
    /// A text that the file has once.
    pub find: String,
    /// What stands in its place.
    pub replace: String,
    /// The scenario that does not pass with it, by its whole name.
    pub catch: String,
    /// The lane that the scenario runs on.
    pub lane: Lane,
    /// What is wrong then, in a few words.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutation: Vec<Mutation>,
}

impl Mutation {
    /// The text of its file with the fault, or why there is no telling where it belongs.
    pub(super) fn apply(&self, text: &str) -> Result<String, String> {
        let found = text.matches(&self.find).count();
        if found != 1 {
            return Err(format!(
                "mutation {}: {} must have the text of `find` once, and has it {found} times",
                self.name, self.file
            ));
        }
        Ok(text.replacen(&self.find, &self.replace, 1))
    }

    /// Everything wrong with it; `read` gives a file of the checkout.
    fn faults(&self, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut faults = Vec::new();
        let mut wrong = |what: String| faults.push(format!("mutation {}: {what}", self.name));
        if self.why.is_empty() || self.find.is_empty() || self.find == self.replace {
            wrong("it must say why, and change something".to_owned());
        }
        if !FOLDERS.iter().any(|folder| self.file.starts_with(folder)) {
            wrong(format!("{} is not of {}", self.file, FOLDERS.join(", ")));
        }
        match all().iter().find(|s| s.name == self.catch) {
            None => wrong(format!("no scenario is called {}", self.catch)),
            Some(scenario) => {
                if let Some(why) = scenario.needs.why_not_on(self.lane) {
                    wrong(format!("{} does not run on {}: {why}", self.catch, self.lane));
                }
            }
        }
        if !self.lane.platform().is_emulated() {
            wrong(format!("not each machine has {}", self.lane));
        }
        match read(&self.file) {
            None => wrong(format!("there is no {}", self.file)),
            Some(text) => faults.extend(self.apply(&text).err()),
        }
        faults
    }
}

/// All mutations.
pub(super) fn read(checkout: &Path) -> Result<Vec<Mutation>> {
    let text = fs::read_to_string(checkout.join(FILE)).with_context(|| format!("read {FILE}"))?;
    parse(&text).with_context(|| format!("read {FILE}"))
}

fn parse(text: &str) -> Result<Vec<Mutation>> {
    Ok(toml::from_str::<Table>(text)?.mutation)
}

/// Everything to mend in the table of a checkout: builds nothing.
///
/// # Errors
///
/// When the table cannot be read.
pub fn findings(checkout: &Path) -> Result<Vec<Finding>> {
    let faults = faults(&read(checkout)?, |file| fs::read_to_string(checkout.join(file)).ok());
    Ok(faults.into_iter().map(|what| finding(FILE, what)).collect())
}

fn faults(mutations: &[Mutation], read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut names = BTreeSet::new();
    let twice = mutations.iter().filter(|m| !names.insert(&m.name));
    let mut faults: Vec<String> = twice.map(|m| format!("mutation {}: there are two", m.name)).collect();
    faults.extend(mutations.iter().flat_map(|m| m.faults(&read)));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many were asked for when the table was begun.
    const FEWEST: usize = 40;

    const GOOD: &str = "[[mutation]]\nname = \"a::b\"\nfile = \"kernel/glue/a.c\"\nfind = \"if (x)\"\nreplace = \"if (!x)\"\n\
                        catch = \"lifecycle::hook_then_unhook\"\nlane = \"svm-tcg\"\nwhy = \"x is asked for\"\n";

    fn found(table: &str) -> Vec<String> {
        let read = |file: &str| (file == "kernel/glue/a.c").then(|| "if (x)\n\treturn;\n".to_owned());
        faults(&parse(table).unwrap(), read)
    }

    #[test]
    fn the_table_is_as_it_must_be() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let count = read(checkout).unwrap().len();
        assert!(count >= FEWEST, "{count} mutations, fewer than {FEWEST}");
        assert_eq!(findings(checkout).unwrap(), [] as [Finding; 0]);
    }

    #[test]
    fn a_mutation_changes_one_place_that_there_is() {
        assert_eq!(found(GOOD), [""; 0]);
        let mutation = &parse(GOOD).unwrap()[0];
        assert_eq!(mutation.apply("a if (x) b").unwrap(), "a if (!x) b");
        let wrong = mutation.apply("if (x) if (x)").unwrap_err();
        assert_eq!(
            wrong,
            "mutation a::b: kernel/glue/a.c must have the text of `find` once, and has it 2 times"
        );
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        for (right, wrong, said) in [
            ("if (x)\"", "if (y)\"", "has it 0 times"),
            ("glue/a.c", "glue/b.c", "there is no kernel/glue/b.c"),
            ("kernel/glue/", "harness/", "harness/a.c is not of"),
            ("hook_then_unhook", "hook", "no scenario is called lifecycle::hook"),
            ("svm-tcg", "svm-kvm", "not each machine has svm-kvm"),
            ("x is asked for", "", "must say why"),
            ("if (!x)", "if (x)", "change something"),
        ] {
            let faults = found(&GOOD.replacen(right, wrong, 1)).join("\n");
            assert!(faults.contains("mutation a::b: ") && faults.contains(said), "{faults}");
        }
        assert_eq!(found(&GOOD.repeat(2)), ["mutation a::b: there are two"]);
        assert!(parse(&GOOD.replace("svm-tcg", "no-lane")).is_err() && parse(&GOOD.replace("why", "because")).is_err());
    }
}

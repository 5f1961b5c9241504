// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of Cargo.lock that one package depends on, so that other crates' updates do not rebuild kernels.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

/// The records of all that `root` depends on, as text.
pub(crate) fn closure(lock: &str, root: &str) -> Result<String> {
    let mut records: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for record in lock.split("\n\n") {
        if let Some(name) = quoted_after(record, "name = ") {
            records.entry(name).or_default().push(record);
        }
    }
    ensure!(records.contains_key(root), "Cargo.lock does not know {root}");
    let mut todo = vec![root];
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if seen.insert(name) {
            for record in records.get(name).into_iter().flatten() {
                // Entries are ` "name",` or, where two versions exist, ` "name version",`.
                let entries = record.lines().filter_map(|l| l.strip_prefix(" \""));
                todo.extend(entries.filter_map(|l| l.split(['"', ' ']).next()));
            }
        }
    }
    Ok(seen
        .iter()
        .flat_map(|name| records.get(name).into_iter().flatten())
        .copied()
        .collect::<Vec<_>>()
        .join("\n\n"))
}

fn quoted_after<'a>(record: &'a str, label: &str) -> Option<&'a str> {
    record
        .lines()
        .find_map(|l| l.strip_prefix(label))?
        .strip_prefix('"')?
        .strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_depended_on_counts() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1\"\ndependencies = [\n \"b\",\n \"c 2\",\n]\n\n\
                    [[package]]\nname = \"b\"\nversion = \"1\"\n\n[[package]]\nname = \"c\"\nversion = \"2\"\n\n[[package]]\nname = \"d\"\nversion = \"9\"\n";
        let text = closure(lock, "a").unwrap();
        assert!(
            text.contains("\"b\"") && text.contains("\"c\"") && !text.contains("\"d\""),
            "{text}"
        );
        assert!(closure(lock, "x").is_err());
    }
}

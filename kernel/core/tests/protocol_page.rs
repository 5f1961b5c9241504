// SPDX-License-Identifier: GPL-2.0-only
//! What `docs/protocol.md` says is there today is what this kernel knows. `uapi` compares the rest of the page.

use std::{collections::BTreeSet, fs, path::Path};

/// Ids whose row says "yes" under "today", in the tables whose second column is `kind`.
fn there_today(kind: &str) -> BTreeSet<u16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let page = fs::read_to_string(path).expect("docs/protocol.md is there");
    let mut ids = BTreeSet::new();
    let mut inside = false;
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
        match cells[..] {
            ["id", second, ..] => inside = second == kind,
            [id, .., today] if inside && today == "yes" => {
                ids.insert(id.parse().expect("the first column is an id"));
            }
            [] => inside = false,
            _ => {}
        }
    }
    ids
}

fn compare(kind: &str, known: &[u16]) {
    let page = there_today(kind);
    let known: BTreeSet<u16> = known.iter().copied().collect();
    let missing: Vec<_> = known.difference(&page).collect();
    let untrue: Vec<_> = page.difference(&known).collect();
    assert!(
        missing.is_empty() && untrue.is_empty(),
        "docs/protocol.md is stale: in the column \"today\", {kind}s {missing:?} should say yes and {untrue:?} no, \
         and so should the text below the table"
    );
}

#[test]
fn commands() {
    compare("command", kvmi_core::COMMANDS);
}

#[test]
fn events() {
    compare("event", kvmi_core::EVENTS);
}

// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Sources and commits cite sections and P numbers of `docs/protocol.md`. Its tables are written by `cargo xtask docs`.

use std::{fs, path::Path};

#[test]
fn numbers_that_are_cited_stay() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let page = fs::read_to_string(path).expect("docs/protocol.md is there");
    for section in [
        "## 1. ", "## 2. ", "## 3. ", "### 3.4 ", "### 3.6 ", "## 4. ", "## 5. ", "## 6. ",
    ] {
        assert!(
            page.lines().any(|line| line.starts_with(section)),
            "docs/protocol.md has no section \"{section}\" any more: give it its number back"
        );
    }
    let rows = page.lines().filter_map(|line| line.strip_prefix("| P"));
    let numbers: Vec<&str> = rows.filter_map(|row| row.split(' ').next()).collect();
    let expected: Vec<String> = (1..=numbers.len().max(21)).map(|n| n.to_string()).collect();
    assert_eq!(
        numbers, expected,
        "docs/protocol.md, appendix: a difference from v12 keeps its number, and a new one gets the next"
    );
}

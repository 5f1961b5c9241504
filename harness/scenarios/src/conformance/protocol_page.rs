// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table beside docs/protocol.md: what that says each command can come to, dispatch (3.5) and the command's own checks (section 4) apart,
//! and what rows are about.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kvmi_uapi::error::{self, ENOSYS};
use kvmi_uapi::msg;

use super::command::commands;
use super::{Aspect, Case, Shown, message};

/// Errors by name, and the end of the connection, as [`Aspect::label`] has them.
type Outcomes = BTreeSet<&'static str>;

fn closes() -> &'static str {
    Aspect::Closes.label()
}

/// What a text of the page speaks of.
fn outcomes(text: &str) -> Outcomes {
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let names = error::ALL.iter().map(|(_, name)| *name).chain([closes()]);
    names.filter(|name| words.contains(name)).collect()
}

/// The page between two of its headings.
fn section(from: &str, to: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let page = fs::read_to_string(path).expect("docs/protocol.md is there");
    let behind = page.split_once(&format!("\n{from}")).map(|(_, behind)| behind);
    let text = behind.and_then(|text| text.split_once(&format!("\n{to}")));
    let (text, _) = text.unwrap_or_else(|| panic!("docs/protocol.md has no \"{from}\" before a \"{to}\""));
    text.to_owned()
}

/// By command, what the paragraphs "Errors of NAME, NAME: …" list.
fn checked_by_commands() -> BTreeMap<String, Outcomes> {
    let mut all = BTreeMap::new();
    for paragraph in section("## 4. ", "## 5. ").split("\n\n") {
        let Some(paragraph) = paragraph.trim_start().strip_prefix("Errors of ") else {
            continue;
        };
        let (names, text) = paragraph.split_once(':').expect("behind the names is a colon");
        for name in names.split(", ") {
            let before = all.insert(name.to_owned(), outcomes(text));
            assert_eq!(before, None, "docs/protocol.md has two paragraphs \"Errors of {name}\"");
        }
    }
    all
}

/// What the items of 3.5 list: for any message, and for vCPU commands in addition.
fn checked_by_dispatch() -> [Outcomes; 2] {
    const ANY: usize = 0;
    const VCPU: usize = 1;
    let mut all = [Outcomes::new(), Outcomes::new()];
    let text = section("### 3.5 ", "### 3.6 ");
    // Text behind the list is about event replies.
    let items = text.split("\n\n").find(|paragraph| paragraph.starts_with("1. "));
    let mut of = ANY;
    for line in items.expect("3.5 has a list").lines() {
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            of = if line.contains(". For an odd id") { VCPU } else { ANY };
        }
        all[of].extend(outcomes(line));
    }
    all
}

/// What rows are about that stand for an outcome: with the reason why not, too.
fn about<S>(cases: &[&Case<S>]) -> Outcomes {
    cases
        .iter()
        .map(|case| case.about)
        .filter(|about| *about != Aspect::Works)
        .map(Aspect::label)
        .collect()
}

fn is_shown<S>(case: &Case<S>) -> bool {
    [case.vmx, case.svm]
        .iter()
        .any(|shown| !matches!(shown, Shown::Never(_)))
}

/// What is wrong between the page and these rows. A row that only says why there is no such outcome needs no word of the page.
fn complaints<S>(of: &str, page: &Outcomes, place: &str, rows: &[&Case<S>]) -> Vec<String> {
    let said = about(rows);
    let without = page.difference(&said);
    let without = without
        .map(|outcome| format!("{place} has {outcome}, and no row says so: provoke it, or say why it cannot be"));
    let untold = rows.iter().filter(|case| is_shown(case) && case.about != Aspect::Works);
    let untold = untold.filter(|case| !page.contains(case.about.label())).map(|case| {
        format!(
            "the row `{}` shows what {place} does not have: write it there",
            case.name()
        )
    });
    without.chain(untold).map(|what| format!("{of}: {what}")).collect()
}

fn assert_none(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "docs/protocol.md and the table in harness/scenarios/src/conformance differ:\n  {}",
        complaints.join("\n  ")
    );
}

#[test]
fn each_error_of_a_command_has_a_row_and_each_row_an_error() {
    let mut page = checked_by_commands();
    let mut all = Vec::new();
    for command in commands() {
        let name = command.name();
        let rows: Vec<_> = command.checked().into_iter().flatten().collect();
        match page.remove(name) {
            Some(listed) => all.extend(complaints(name, &listed, &format!("\"Errors of {name}\""), &rows)),
            None => all.push(format!("{name}: section 4 has no paragraph \"Errors of {name}: …\"")),
        }
    }
    all.extend(
        page.keys()
            .map(|name| format!("\"Errors of {name}\": no command has that name")),
    );
    assert_none(&all);
}

#[test]
fn each_error_of_dispatch_has_a_row_of_each_command_and_each_row_an_error() {
    let [mut any, vcpu] = checked_by_dispatch();
    // What no command of this table is answered with, for it is one.
    assert!(any.remove(Aspect::Error(ENOSYS).label()), "3.5 has no ENOSYS");
    let mut all = Vec::new();
    for command in commands() {
        let mut listed = any.clone();
        if msg::is_vcpu(command.id) {
            listed.extend(&vcpu);
        }
        let rows: Vec<_> = command.dispatched().into_iter().flatten().collect();
        all.extend(complaints(command.name(), &listed, "3.5", &rows));
    }
    let rows: Vec<_> = message::CASES.iter().collect();
    let unknown = Outcomes::from([Aspect::Error(ENOSYS).label()]);
    if !unknown.is_subset(&about(&rows)) {
        all.push(format!("{}: 3.5 has ENOSYS, and no row says so", message::NAME));
    }
    assert_none(&all);
}

#[test]
fn a_text_lists_what_it_names() {
    assert_eq!(outcomes("none."), Outcomes::new());
    assert_eq!(
        outcomes("it closes the connection; -KVM_EPERM, then EINVAL\nfor padding"),
        Outcomes::from(["EINVAL", "EPERM", "closes"])
    );
    assert_eq!(outcomes("EINVALID"), Outcomes::new());
}

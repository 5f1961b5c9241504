// SPDX-License-Identifier: MIT OR Apache-2.0
//! The series of patches as ARCHITECTURE.md shows it: each patch, its files, what it adds, and what for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_machine::cache::files_below;

/// The page that has the table, and the lines around it.
const PAGE: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- series: cargo xtask docs -->\n";
const END: &str = "<!-- end of series -->";

/// Where most of the files are; the table leaves it out.
const KVM: &str = "arch/x86/kvm/";

/// The line of a patch's description that says what it is for.
const SERVES: &str = "Serves: ";

/// What the table says of a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    number: String,
    subject: String,
    files: BTreeSet<String>,
    added: usize,
    serves: String,
}

/// Writes the table anew; whether that changed the page.
pub fn write(checkout: &Path) -> Result<bool> {
    let path = checkout.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    let new = with_table(&page, &table(&rows(checkout)?))?;
    if new == page {
        return Ok(false);
    }
    fs::write(&path, new).with_context(|| format!("write {PAGE}"))?;
    Ok(true)
}

/// What is stale, or cannot be shown.
pub fn findings(checkout: &Path) -> Result<Vec<Finding>> {
    let rows = match rows(checkout) {
        Ok(rows) => rows,
        Err(e) => return Ok(vec![finding("kernel/patches", format!("{e:#}"))]),
    };
    let page = fs::read_to_string(checkout.join(PAGE)).unwrap_or_default();
    Ok(match with_table(&page, &table(&rows)) {
        Ok(new) if new == page => Vec::new(),
        Ok(_) => vec![finding(PAGE, "the table of the series is stale: cargo xtask docs")],
        Err(e) => vec![finding(PAGE, format!("{e:#}"))],
    })
}

fn rows(checkout: &Path) -> Result<Vec<Row>> {
    let patches = files_below(&checkout.join("kernel/patches"))?;
    patches
        .iter()
        // Further down stand the same patches for kernels that keep something elsewhere.
        .filter(|(name, _)| name.ends_with(".patch") && name.matches('/').count() == 1)
        .map(|(name, path)| row(name, &fs::read_to_string(path)?).with_context(|| name.clone()))
        .collect()
}

fn row(name: &str, patch: &str) -> Result<Row> {
    let (head, diff) = patch.split_once("\ndiff --git ").context("no diff")?;
    let subject = head
        .strip_prefix("Subject: [PATCH] ")
        .context("no subject in the first line")?;
    let (subject, description) = subject.split_once("\n\n").unwrap_or((subject, ""));
    let serves = description.lines().rev().find_map(|line| line.strip_prefix(SERVES));
    let serves = serves.with_context(|| format!("no line `{SERVES}…` says what it is for"))?;
    let file = name.rsplit('/').next().unwrap_or_default();
    let number: String = file.chars().take_while(char::is_ascii_digit).collect();
    ensure!(!number.is_empty(), "its name does not begin with a number");
    let is_header = |line: &&str| line.starts_with("+++ ");
    let files = diff.lines().filter(is_header).map(|line| {
        let name = line.trim_start_matches("+++ b/");
        name.strip_prefix(KVM).unwrap_or(name).to_owned()
    });
    Ok(Row {
        number,
        // A long subject goes on in a line of its own.
        subject: subject.split_whitespace().collect::<Vec<_>>().join(" "),
        files: files.collect(),
        added: diff
            .lines()
            .filter(|line| line.starts_with('+') && !is_header(line))
            .count(),
        serves: serves.trim().to_owned(),
    })
}

fn table(rows: &[Row]) -> String {
    let mut text = "| patch | files | lines added | serves |\n|---|---|---|---|\n".to_owned();
    for row in rows {
        let files: Vec<String> = row.files.iter().map(|file| format!("`{file}`")).collect();
        text += &format!(
            "| {} {} | {} | {} | {} |\n",
            row.number,
            row.subject.replace('|', "\\|"),
            files.join(", "),
            row.added,
            row.serves
        );
    }
    let added: usize = rows.iter().map(|row| row.added).sum();
    text + &format!("| all {} | | {added} | |\n", rows.len())
}

fn with_table(page: &str, table: &str) -> Result<String> {
    let lacks = |what: &str| format!("{PAGE} has no line `{}`", what.trim());
    let (before, rest) = page.split_once(BEGIN).with_context(|| lacks(BEGIN))?;
    let (_, after) = rest.split_once(END).with_context(|| lacks(END))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Subject: [PATCH] KVM: x86: Do one\n thing\n\nBecause.\n\nServes: events\n\n\
        diff --git a/arch/x86/kvm/x86.c b/arch/x86/kvm/x86.c\n--- a/arch/x86/kvm/x86.c\n+++ b/arch/x86/kvm/x86.c\n@@ -1,2 +1,3 @@\n a\n+b\n-c\n\
        diff --git a/include/linux/kvm_host.h b/include/linux/kvm_host.h\n--- a/include/linux/kvm_host.h\n+++ b/include/linux/kvm_host.h\n@@ -1 +1,2 @@\n+d\n+e\n";

    #[test]
    fn what_a_patch_is() {
        let row = row("6.12/0007-KVM-x86-Do-one-thing.patch", PATCH).unwrap();
        assert_eq!(
            table(&[row]).lines().nth(2).unwrap(),
            "| 0007 KVM: x86: Do one thing | `include/linux/kvm_host.h`, `x86.c` | 3 | events |"
        );
    }

    #[test]
    fn a_patch_says_what_it_is_for() {
        let silent = PATCH.replace(SERVES, "Serving: ");
        let refused = row("0007-a.patch", &silent).unwrap_err().to_string();
        assert!(refused.contains("says what it is for"), "{refused}");
        assert!(row("a.patch", PATCH).is_err() && row("0007-a.patch", "text").is_err());
    }

    #[test]
    fn the_table_takes_the_place_of_the_old_one() {
        let page = format!("before\n{BEGIN}old\n{END}\nafter\n");
        assert_eq!(
            with_table(&page, "new\n").unwrap(),
            format!("before\n{BEGIN}new\n{END}\nafter\n")
        );
        assert!(with_table("no table", "new\n").is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What documents are held to: prose that fits a window, a README that is short, links that lead somewhere.

use super::{Finding, finding};

/// The longest line of prose, in characters. Tables, code and what has no space to wrap at may be longer.
const COLUMNS: usize = 100;

const README: &str = "README.md";
const README_LINES: usize = 150;

/// Everything to mend in a document; `read` gives a file of the checkout, if that is there, `is_there` knows folders too.
pub(super) fn findings(
    name: &str,
    text: &str,
    read: impl Fn(&str) -> Option<String>,
    is_there: impl Fn(&str) -> bool,
) -> Vec<Finding> {
    if !name.ends_with(".md") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in prose(text) {
        let at = format!("{name}:{number}");
        if line.chars().count() > COLUMNS && line.trim_start_matches(['-', '>', ' ']).contains(' ') {
            findings.push(finding(&at, format!("prose of more than {COLUMNS} columns: wrap it")));
        }
    }
    for (number, line) in outside_code(text) {
        for link in links(line) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                name.to_owned()
            } else {
                beside(name, file)
            };
            let leads = is_there(&target)
                && (anchor.is_empty() || read(&target).is_some_and(|text| anchors(&text).any(|a| a == anchor)));
            if !leads {
                findings.push(finding(
                    format!("{name}:{number}"),
                    format!("a link that leads nowhere: {link}"),
                ));
            }
        }
    }
    let lines = text.lines().count();
    if name == README && lines > README_LINES {
        findings.push(finding(
            name,
            format!("{lines} lines, more than {README_LINES}: a newcomer reads it whole"),
        ));
    }
    findings
}

/// The lines that are not within blocks of code, with their numbers.
fn outside_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    })
}

/// The lines that can be wrapped.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    outside_code(text).filter(|(_, line)| !line.trim_start().starts_with(['|', '#', '<']))
}

/// Where the links of a line lead that stay in the checkout.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// A path as seen from the folder of a document.
fn beside(document: &str, path: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            ".." => {
                parts.pop();
            }
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What GitHub makes of each heading.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = outside_code(text).filter_map(|(_, line)| line.strip_prefix('#'));
    headings.map(|heading| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "# The other\n\n## 2.2 The five ioctls\n\n```text\n# no heading\n```\n";

    fn whats(name: &str, text: &str) -> Vec<String> {
        let read = |file: &str| match file {
            "docs/other.md" => Some(OTHER.to_owned()),
            _ if file == name => Some(text.to_owned()),
            _ => None,
        };
        let is_there = |file: &str| matches!(file, "docs/other.md" | "uapi") || file == name;
        findings(name, text, read, is_there)
            .into_iter()
            .map(|f| format!("{} {}", f.at, f.what))
            .collect()
    }

    #[test]
    fn prose_fits_a_window() {
        let long = "word ".repeat(21);
        assert_eq!(whats("a.md", &long).len(), 1);
        assert_eq!(whats("a.md", &format!("text\n\n- {long}\n")).len(), 1);
        assert_eq!(whats("a.rs", &long), [""; 0]);
        let fine = format!("| {long} |\n\n```text\n{long}\n```\n\n{}\n", "w".repeat(120));
        assert_eq!(whats("a.md", &fine), [""; 0]);
    }

    #[test]
    fn links_lead_somewhere() {
        let right =
            "[a](other.md), [b](other.md#22-the-five-ioctls), [c](../uapi), [d](#here), [e](https://a.b/c)\n\n# Here\n";
        assert_eq!(whats("docs/a.md", right), [""; 0]);
        for wrong in ["[a](no.md)", "[a](other.md#no-heading)", "[a](uapi)", "| [a](#there) |"] {
            let said = whats("docs/a.md", wrong);
            assert!(
                said.len() == 1 && said[0].contains("leads nowhere"),
                "{wrong}: {said:?}"
            );
        }
        assert_eq!(whats("docs/a.md", "```text\n[a](no.md)\n```\n"), [""; 0]);
    }

    #[test]
    fn readme_is_short() {
        assert_eq!(whats(README, &"a\n".repeat(150)), [""; 0]);
        assert_eq!(whats(README, &"a\n".repeat(151)).len(), 1);
        assert_eq!(whats("docs/a.md", &"a\n".repeat(151)), [""; 0]);
    }
}

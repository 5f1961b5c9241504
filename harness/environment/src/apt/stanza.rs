// SPDX-License-Identifier: MIT OR Apache-2.0
//! The form in which Debian writes package records: `Field: value` lines, records apart by an empty line.

use std::collections::BTreeMap;

/// One record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stanza(BTreeMap<String, String>);

impl Stanza {
    /// A field's value; continuation lines follow after `\n`.
    pub fn get(&self, field: &str) -> Option<&str> {
        self.0.get(&field.to_ascii_lowercase()).map(String::as_str)
    }

    /// The package's name, empty if the record has none.
    pub fn package(&self) -> &str {
        self.get("Package").unwrap_or_default()
    }

    /// The package's version, empty if the record has none.
    pub fn version(&self) -> &str {
        self.get("Version").unwrap_or_default()
    }

    /// Whether an archive offers it; a record of an installed package need not be on offer any more.
    pub fn is_on_offer(&self) -> bool {
        self.get("Filename").is_some()
    }
}

/// Splits a text into its records. Comment lines are skipped, as in sources files.
pub fn parse_stanzas(text: &str) -> Vec<Stanza> {
    let mut all = Vec::new();
    let mut current = Stanza::default();
    let mut last_field = String::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            if !current.0.is_empty() {
                all.push(std::mem::take(&mut current));
            }
        } else if line.starts_with('#') {
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = current.0.get_mut(&last_field) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            last_field = field.trim().to_ascii_lowercase();
            current.0.insert(last_field.clone(), value.trim().to_owned());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_fields_and_continuations() {
        let text = "Package: a\nVersion: 1-1\nDescription: short\n long\n # not a comment\n\n\n# comment\nPackage: b\nFilename: pool/b.deb\n";
        let all = parse_stanzas(text);
        assert_eq!(all.len(), 2);
        assert_eq!(
            (all[0].package(), all[0].version(), all[0].is_on_offer()),
            ("a", "1-1", false)
        );
        assert_eq!(all[0].get("description"), Some("short\nlong\n# not a comment"));
        assert_eq!(
            (all[1].package(), all[1].version(), all[1].is_on_offer()),
            ("b", "", true)
        );
        assert!(parse_stanzas("").is_empty());
    }
}

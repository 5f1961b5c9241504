// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which kernels there are to choose from: the table `kernels.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

/// The table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// The series that kernel/patches is for, e.g. `6.12`.
    pub series: String,
    /// Files that not every kernel of the series has.
    pub elsewhere: Vec<MovedFile>,
    #[serde(rename = "flavour")]
    /// The configurations.
    pub flavours: Vec<Flavour>,
    #[serde(rename = "suite")]
    /// The releases, the one that is taken when none is named first.
    pub suites: Vec<Suite>,
}

/// A file that not every kernel of the series has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovedFile {
    /// Its path in the kernel source.
    pub file: String,
    /// The folder, beside the patches, that says what they do to it where it is missing.
    pub instead: String,
}

/// A configuration in which Debian builds its kernels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flavour {
    /// The end of its kernels' names, e.g. `cloud-amd64`.
    pub name: String,
    /// What it is for.
    pub summary: String,
}

/// A release of Debian.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its code name, e.g. `trixie`.
    pub name: String,
    /// What its kernels' names carry, e.g. `+deb12`.
    pub tag: String,
    /// The lines of a sources list that its kernels come from.
    pub archives: Vec<Origin>,
    /// What its kernels are compiled with.
    pub compiler: String,
    /// The packages that have that compiler and what belongs to it; empty where it is installed.
    pub toolchain: Vec<String>,
}

/// One line of a sources list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The last part of the mirror's address, `debian` or `debian-security`.
    pub folder: String,
    /// The suite, e.g. `trixie-updates`.
    pub suite: String,
}

/// The table of this checkout.
pub fn matrix() -> &'static Matrix {
    static MATRIX: LazyLock<Matrix> =
        LazyLock::new(|| toml::from_str(include_str!("../kernels.toml")).expect("kernels.toml is tested"));
    &MATRIX
}

impl Matrix {
    /// Whether a kernel of that name can only be another suite's.
    pub(crate) fn is_of_another(&self, wanted: &str, suite: &Suite) -> bool {
        let others = self.suites.iter().filter(|s| s.name != suite.name);
        others
            .into_iter()
            .any(|s| wanted.contains(s.tag.trim_start_matches('+')) || wanted.split('-').next() == Some(&s.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let matrix = matrix();
        assert!(!matrix.flavours.is_empty() && !matrix.suites.is_empty());
        for suite in &matrix.suites {
            assert!(!suite.archives.is_empty(), "{}", suite.name);
            assert!(suite.toolchain.is_empty() || suite.toolchain.contains(&suite.compiler));
            let alike = matrix
                .suites
                .iter()
                .filter(|s| s.tag == suite.tag || s.name == suite.name);
            assert_eq!(alike.count(), 1, "{}", suite.name);
        }
        assert!(matrix.flavours.iter().all(|f| !f.summary.is_empty()));
    }

    #[test]
    fn names_say_which_suite_they_are_of() {
        let [bookworm, trixie] = &matrix().suites[..] else {
            panic!("two suites")
        };
        for (wanted, is_of_trixie) in [
            ("6.12.117+deb13-amd64", true),
            ("trixie", true),
            ("trixie-amd64", true),
            ("6.12.117", false),
        ] {
            assert_eq!(matrix().is_of_another(wanted, bookworm), is_of_trixie, "{wanted}");
        }
        assert!(matrix().is_of_another("6.12.117-1~deb12u1", trixie));
    }
}

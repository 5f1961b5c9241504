// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of Debian's kernels: the newest of which source, headers and image are all on offer.

use std::fmt;

use kvmi_lab_environment::apt::Stanza;
use serde::{Deserialize, Serialize};

use super::matrix::{Matrix, Suite};

/// One of Debian's kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelVersion {
    /// The release of Debian, by its name in the table of kernels.
    pub suite: String,
    /// The packages' version, e.g. `6.12.117-1~deb12u1`.
    pub package: String,
    /// What packages' names carry, e.g. `6.12.117+deb12`.
    pub(crate) abi: String,
    /// The configuration, e.g. `cloud-amd64`.
    pub flavour: String,
    /// The package with the image; a signed one holds the same kernel.
    pub image: String,
}

impl KernelVersion {
    /// `uname -r`.
    pub fn release(&self) -> String {
        format!("{}-{}", self.abi, self.flavour)
    }

    /// The packages that together are what modules are built against.
    pub(crate) fn header_packages(&self) -> [String; 3] {
        [
            format!("linux-headers-{}", self.release()),
            format!("linux-headers-{}-common", self.abi),
            format!("linux-kbuild-{}", self.abi),
        ]
    }

    /// Upstream's number, e.g. `6.12.117`.
    pub fn upstream(&self) -> &str {
        self.package.split('-').next().unwrap_or_default()
    }

    /// Whether a person who wrote `name` means this one: a version, a suite or a flavour, or one of the first two with a flavour.
    fn is_called(&self, name: &str) -> bool {
        let wholes = [self.package.as_str(), &self.abi, self.upstream(), &self.suite];
        let with_flavour = |whole: &&str| name.strip_prefix(*whole) == Some(&format!("-{}", self.flavour));
        name == self.flavour || wholes.contains(&name) || wholes.iter().any(with_flavour)
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.release())
    }
}

/// Why no kernel could be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKernel {
    /// There is none of this series.
    #[error("no {0} kernel with source, headers and image in apt's lists")]
    None(String),
    /// There are others.
    #[error("no kernel {wanted} with source, headers and image in apt's lists; there are: {}", offered.join(", "))]
    NotThatOne {
        /// What was typed.
        wanted: String,
        /// The names that would do.
        offered: Vec<String>,
    },
}

/// The package with the source of a series.
pub(crate) fn source_package(series: &str) -> String {
    format!("linux-source-{series}")
}

/// All kernels of a suite that are complete in apt's records, newest first, and each in the flavours of the table.
pub(crate) fn complete(records: &[Stanza], matrix: &Matrix, suite: &Suite) -> Vec<KernelVersion> {
    let on_offer = |package: &str, version: &str| {
        records
            .iter()
            .any(|r| r.package() == package && r.version() == version && r.is_on_offer())
    };
    let mut found: Vec<(usize, KernelVersion)> = Vec::new();
    for (rank, flavour) in matrix.flavours.iter().enumerate() {
        let suffix = format!("-{}", flavour.name);
        for record in records {
            let image = record.package();
            let release = image.strip_prefix("linux-image-").unwrap_or_default();
            let release = release.strip_suffix("-unsigned").unwrap_or(release);
            let Some(abi) = release.strip_suffix(&suffix) else {
                continue;
            };
            // The tag may have a number behind it; in place of a flavour's first part it has none.
            if !abi.starts_with(&format!("{}.", matrix.series)) || !abi.contains(&suite.tag) || abi.contains('-') {
                continue;
            }
            let version = KernelVersion {
                suite: suite.name.clone(),
                package: record.version().to_owned(),
                abi: abi.to_owned(),
                flavour: flavour.name.clone(),
                image: image.to_owned(),
            };
            let mut parts = version.header_packages().to_vec();
            parts.extend([source_package(&matrix.series), version.image.clone()]);
            let is_known =
                |(_, v): &(usize, KernelVersion)| v.package == version.package && v.release() == version.release();
            if parts.iter().all(|p| on_offer(p, &version.package)) && !found.iter().any(is_known) {
                found.push((rank, version));
            }
        }
    }
    found.sort_by(|(rank_a, a), (rank_b, b)| {
        deb_version::compare_versions(&b.package, &a.package).then(rank_a.cmp(rank_b))
    });
    found.into_iter().map(|(_, version)| version).collect()
}

/// The kernel that `wanted` names, or the newest one.
pub(crate) fn choose(offered: &[KernelVersion], wanted: Option<&str>) -> Option<KernelVersion> {
    let fits = |v: &&KernelVersion| wanted.is_none_or(|name| v.is_called(name));
    offered.iter().find(fits).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::matrix;
    use kvmi_lab_environment::apt::parse_stanzas;

    /// Records of a kernel, without the packages whose names contain `without`.
    fn records(package: &str, abi: &str, flavour: &str, without: &str) -> String {
        let names = [
            format!("linux-headers-{abi}-{flavour}"),
            format!("linux-headers-{abi}-common"),
            format!("linux-kbuild-{abi}"),
            "linux-source-6.12".to_owned(),
            format!("linux-image-{abi}-{flavour}-unsigned"),
            format!("linux-image-{abi}-{flavour}"),
        ];
        names
            .iter()
            .filter(|n| without.is_empty() || !n.contains(without))
            .map(|n| format!("Package: {n}\nVersion: {package}\nFilename: pool/x.deb\n\n"))
            .collect()
    }

    fn bookworm(text: &str) -> Vec<KernelVersion> {
        complete(&parse_stanzas(text), matrix(), &matrix().suites[0])
    }

    #[test]
    fn the_newest_complete_one_by_debian_order() {
        let text = [
            records("6.12.9-1~deb12u1", "6.12.9+deb12", "cloud-amd64", ""),
            records("6.12.9-1~deb12u1", "6.12.9+deb12", "amd64", "unsigned"),
            records("6.12.9-1~deb12u1", "6.12.9+deb12", "rt-amd64", ""),
            records("6.12.115-2~deb12u1", "6.12.115+deb12", "cloud-amd64", ""),
            records("6.12.117-1~deb12u1", "6.12.117+deb12", "cloud-amd64", "-common"),
            records("6.12.117-1", "6.12.117+deb13", "amd64", ""),
            records("6.1.9-1", "6.1.0-9+deb12", "amd64", ""),
        ]
        .concat();
        let offered = bookworm(&text);
        let releases: Vec<String> = offered.iter().map(KernelVersion::release).collect();
        assert_eq!(
            releases,
            [
                "6.12.115+deb12-cloud-amd64",
                "6.12.9+deb12-cloud-amd64",
                "6.12.9+deb12-amd64"
            ]
        );
        assert_eq!(choose(&offered, None).unwrap().package, "6.12.115-2~deb12u1");
        assert_eq!(offered[1].image, "linux-image-6.12.9+deb12-cloud-amd64-unsigned");
        assert_eq!(offered[2].image, "linux-image-6.12.9+deb12-amd64");
        let release = |wanted| choose(&offered, Some(wanted)).map(|v| v.release());
        for name in [
            "6.12.9",
            "6.12.9+deb12",
            "6.12.9-1~deb12u1",
            "6.12.9+deb12-cloud-amd64",
            "6.12.9-cloud-amd64",
        ] {
            assert_eq!(release(name).as_deref(), Some("6.12.9+deb12-cloud-amd64"), "{name}");
        }
        for name in ["amd64", "bookworm-amd64", "6.12.9-amd64", "6.12.9+deb12-amd64"] {
            assert_eq!(release(name).as_deref(), Some("6.12.9+deb12-amd64"), "{name}");
        }
        assert_eq!(release("bookworm").as_deref(), Some("6.12.115+deb12-cloud-amd64"));
        assert_eq!(release("6.12.117"), None);
    }

    #[test]
    fn what_is_installed_but_not_on_offer_does_not_count() {
        let text = records("6.12.9-1", "6.12.9+deb12", "amd64", "")
            .replace("Filename: pool/x.deb\n", "Status: install ok installed\n");
        assert_eq!(bookworm(&text), []);
    }
}

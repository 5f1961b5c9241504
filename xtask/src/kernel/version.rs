// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of Debian's kernels: the newest of which source, headers and image are all on offer.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::apt::Stanza;

/// The kernel series that kernel/patches is for.
pub(crate) const SERIES: &str = "6.12";

/// The configuration whose image is the host under test: Debian's for virtual machines, the smallest.
pub(crate) const FLAVOUR: &str = "cloud-amd64";

/// One of Debian's kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelVersion {
    /// The packages' version, e.g. `6.12.117-1~deb12u1`.
    pub(crate) package: String,
    /// What packages' names carry, e.g. `6.12.117+deb12`.
    pub(crate) abi: String,
}

impl KernelVersion {
    /// `uname -r`.
    pub(crate) fn release(&self) -> String {
        format!("{}-{FLAVOUR}", self.abi)
    }

    pub(crate) fn source_package(&self) -> String {
        format!("linux-source-{SERIES}")
    }

    /// The packages that together are what modules are built against.
    pub(crate) fn header_packages(&self) -> [String; 3] {
        [
            format!("linux-headers-{}-{FLAVOUR}", self.abi),
            format!("linux-headers-{}-common", self.abi),
            format!("linux-kbuild-{}", self.abi),
        ]
    }

    pub(crate) fn image_package(&self) -> String {
        format!("linux-image-{}-{FLAVOUR}-unsigned", self.abi)
    }

    /// Whether a person who wrote `name` means this one: the package's version, its ABI, its release, or the upstream number.
    fn is_called(&self, name: &str) -> bool {
        let upstream = self.package.split('-').next().unwrap_or_default();
        [&self.package, &self.abi, &self.release()]
            .into_iter()
            .any(|n| n == name)
            || upstream == name
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.package)
    }
}

/// Why no kernel could be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoKernel {
    #[error("no {SERIES} kernel with source, headers and {FLAVOUR} image in apt's lists")]
    None,
    #[error("no kernel {wanted} with source, headers and {FLAVOUR} image in apt's lists; there are: {}", offered.join(", "))]
    NotThatOne { wanted: String, offered: Vec<String> },
}

/// All kernels that are complete in apt's records, newest first.
pub(crate) fn complete(records: &[Stanza]) -> Vec<KernelVersion> {
    let on_offer = |package: &str, version: &str| {
        records
            .iter()
            .any(|r| r.package() == package && r.version() == version && r.is_on_offer())
    };
    let prefix = format!("linux-image-{SERIES}.");
    let suffix = format!("-{FLAVOUR}-unsigned");
    let mut found: Vec<KernelVersion> = Vec::new();
    for record in records {
        let abi_tail = record
            .package()
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_suffix(&suffix));
        let Some(abi_tail) = abi_tail else { continue };
        let version = KernelVersion {
            package: record.version().to_owned(),
            abi: format!("{SERIES}.{abi_tail}"),
        };
        let mut parts = version.header_packages().to_vec();
        parts.extend([version.source_package(), version.image_package()]);
        if parts.iter().all(|p| on_offer(p, &version.package)) && !found.contains(&version) {
            found.push(version);
        }
    }
    found.sort_by(|a, b| newer_first(&a.package, &b.package));
    found
}

fn newer_first(a: &str, b: &str) -> Ordering {
    deb_version::compare_versions(b, a)
}

/// The kernel that `wanted` names, or the newest one.
pub(crate) fn choose(records: &[Stanza], wanted: Option<&str>) -> Result<KernelVersion, NoKernel> {
    let all = complete(records);
    let Some(wanted) = wanted else {
        return all.into_iter().next().ok_or(NoKernel::None);
    };
    let offered = all.iter().map(ToString::to_string).collect();
    all.into_iter()
        .find(|v| v.is_called(wanted))
        .ok_or_else(|| NoKernel::NotThatOne {
            wanted: wanted.to_owned(),
            offered,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apt::parse_stanzas;

    /// Records of a kernel, without the packages whose names contain `without`.
    fn records(package: &str, abi: &str, without: &str) -> String {
        let v = KernelVersion {
            package: package.into(),
            abi: abi.into(),
        };
        let mut names = v.header_packages().to_vec();
        names.extend([v.source_package(), v.image_package()]);
        names
            .iter()
            .filter(|n| without.is_empty() || !n.contains(without))
            .map(|n| format!("Package: {n}\nVersion: {package}\nFilename: pool/x.deb\n\n"))
            .collect()
    }

    #[test]
    fn the_newest_complete_one_by_debian_order() {
        let text = [
            records("6.12.9-1~deb12u1", "6.12.9+deb12", ""),
            records("6.12.115-2~deb12u1", "6.12.115+deb12", ""),
            records(
                "6.12.117-1~deb12u1",
                "6.12.117+deb12",
                "linux-headers-6.12.117+deb12-common",
            ),
        ]
        .concat();
        let all = parse_stanzas(&text);
        let best = choose(&all, None).unwrap();
        assert_eq!(
            (best.package.as_str(), best.abi.as_str()),
            ("6.12.115-2~deb12u1", "6.12.115+deb12")
        );
        assert_eq!(best.release(), "6.12.115+deb12-cloud-amd64");
        assert_eq!(complete(&all).len(), 2);
        for name in ["6.12.9", "6.12.9+deb12", "6.12.9-1~deb12u1", "6.12.9+deb12-cloud-amd64"] {
            assert_eq!(choose(&all, Some(name)).unwrap().package, "6.12.9-1~deb12u1");
        }
        let refused = choose(&all, Some("6.12.117")).unwrap_err().to_string();
        assert!(refused.contains("6.12.115-2~deb12u1, 6.12.9-1~deb12u1"), "{refused}");
    }

    #[test]
    fn what_is_installed_but_not_on_offer_does_not_count() {
        let text =
            records("6.12.9-1", "6.12.9+deb12", "").replace("Filename: pool/x.deb\n", "Status: install ok installed\n");
        assert_eq!(choose(&parse_stanzas(&text), None), Err(NoKernel::None));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A KVM source tree of someone's own, which takes the place of the packaged one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_machine::cache::files_below;

use super::matrix::matrix;
use super::tree::copy;

/// The folders that are taken whole.
pub(crate) const FOLDERS: &[&str] = &["arch/x86/kvm", "virt/kvm"];

/// The folders of which headers are taken.
const HEADERS: &[&str] = &["arch/x86/include", "include"];

/// Files by which the folders are known.
const LANDMARKS: &[&str] = &[
    "arch/x86/kvm/Makefile",
    "arch/x86/kvm/x86.c",
    "virt/kvm/Makefile.kvm",
    "virt/kvm/kvm_main.c",
];

/// Parts of headers' names by which they are KVM's own, or name bits that KVM alone may want to know of. All others are as the stock
/// kernel was built with them, or its modules could not be loaded.
const OF_KVM: &[&str] = &["kvm", "svm.h", "vmx", "cpufeatures.h", "msr-index.h"];

/// A tree that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct OwnSource {
    folder: PathBuf,
    /// The version in its Makefile, e.g. `6.12.117`; none where it is no whole tree.
    version: Option<String>,
}

/// Which headers of a tree stand before the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnHeaders {
    /// Path in the tree, of each.
    pub taken: Vec<String>,
    /// Those that differ too, and belong to the kernel as a whole.
    pub left: Vec<String>,
}

impl OwnSource {
    /// Looks whether a folder has what is needed.
    pub(crate) fn at(folder: &Path) -> Result<Self> {
        ensure!(folder.is_dir(), "--kvm-source {}: no such folder", folder.display());
        let folder = fs::canonicalize(folder).with_context(|| format!("find {}", folder.display()))?;
        let missing: Vec<&str> = LANDMARKS
            .iter()
            .copied()
            .filter(|l| !folder.join(l).is_file())
            .collect();
        if !missing.is_empty() {
            bail!(
                "--kvm-source {}: no {} in it; name the top of a kernel source tree, or a folder that has {} of one, each in its place. \
                 To begin with the packaged ones: cargo xtask kvm-source NEW_FOLDER",
                folder.display(),
                missing.join(", "),
                FOLDERS.join(" and "),
            );
        }
        let version = version_in(&fs::read_to_string(folder.join("Makefile")).unwrap_or_default());
        if let Some(version) = &version {
            let series = &matrix().series;
            ensure!(
                version == series || version.starts_with(&format!("{series}.")),
                "--kvm-source {}: its Makefile says {version}; the lab's kernels are of {series}, and modules fit but the kernel that they are built for",
                folder.display()
            );
        }
        Ok(Self { folder, version })
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its version, where it says one.
    pub(crate) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The sources of one of [`FOLDERS`], without what a build left there.
    pub(crate) fn sources(&self, folder: &str) -> Result<Vec<(String, PathBuf)>> {
        let all = files_below(&self.folder.join(folder))?;
        Ok(all.into_iter().filter(|(name, _)| is_source(name)).collect())
    }

    /// The headers in it that are not as in the packaged source.
    pub(crate) fn headers(&self, packaged: &Path) -> Result<OwnHeaders> {
        let mut headers = OwnHeaders::default();
        for folder in HEADERS {
            for (below, path) in files_below(&self.folder.join(folder))? {
                if !below.ends_with(".h") || below.starts_with("generated/") || below.contains("/generated/") {
                    continue;
                }
                let name = format!("{folder}/{below}");
                let own = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                if fs::read(packaged.join(&name)).is_ok_and(|other| other == own) {
                    continue;
                }
                // In a folder that is no whole tree each header was put there on purpose.
                if self.version.is_none() || OF_KVM.iter().any(|part| name.contains(part)) {
                    headers.taken.push(name);
                } else {
                    headers.left.push(name);
                }
            }
        }
        Ok(headers)
    }
}

/// Copies what one may want to change of a packaged source into a new folder.
pub(crate) fn begin(packaged: &Path, folder: &Path) -> Result<()> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        bail!("{} exists and is not empty; name a new folder", folder.display());
    }
    let mut files = Vec::new();
    for part in FOLDERS {
        files.extend(
            files_below(&packaged.join(part))?
                .into_iter()
                .map(|(name, _)| format!("{part}/{name}")),
        );
    }
    for part in HEADERS {
        let headers = files_below(&packaged.join(part))?
            .into_iter()
            .map(|(name, _)| format!("{part}/{name}"));
        files.extend(headers.filter(|name| OF_KVM.iter().any(|of_kvm| name.contains(of_kvm))));
    }
    files
        .iter()
        .try_for_each(|name| copy(&packaged.join(name), &folder.join(name)))
}

/// Whether a file is of those that people write.
pub(crate) fn is_source(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let is_written = [".c", ".h", ".S"].iter().any(|end| file.ends_with(end))
        || ["Makefile", "Kbuild", "Kconfig"]
            .iter()
            .any(|begin| file.starts_with(begin));
    // Made by the build.
    is_written && !file.ends_with(".mod.c") && file != "kvm-asm-offsets.h"
}

/// What a kernel's Makefile says in its first lines.
fn version_in(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        let mut lines = makefile.lines().take(20);
        lines.find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let (version, patch_level) = (value("VERSION")?, value("PATCHLEVEL")?);
    let sub_level = value("SUBLEVEL").filter(|s| !s.is_empty() && s != "0");
    Some(match sub_level {
        Some(sub_level) => format!("{version}.{patch_level}.{sub_level}"),
        None => format!("{version}.{patch_level}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(top: &Path, name: &str, text: &str) {
        let path = top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn tree(top: &Path) {
        for name in LANDMARKS {
            write(top, name, "");
        }
    }

    #[test]
    fn a_folder_without_kvm_is_refused_and_told_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        assert!(OwnSource::at(dir.path()).is_ok());
        fs::remove_dir_all(dir.path().join("virt")).unwrap();
        let refused = OwnSource::at(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains("no virt/kvm/Makefile.kvm, virt/kvm/kvm_main.c in it") && refused.contains("cargo xtask"),
            "{refused}"
        );
        let refused = OwnSource::at(&dir.path().join("gone")).unwrap_err().to_string();
        assert!(refused.ends_with("gone: no such folder"), "{refused}");
    }

    #[test]
    fn a_whole_tree_says_its_version_and_must_be_of_the_series() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let series = &matrix().series;
        let (version, patch_level) = series.split_once('.').unwrap();
        let makefile = |v: &str, p: &str, s: &str| {
            format!("# SPDX\nVERSION = {v}\nPATCHLEVEL = {p}\nSUBLEVEL = {s}\nEXTRAVERSION =\n")
        };
        write(dir.path(), "Makefile", &makefile(version, patch_level, "9"));
        let own = OwnSource::at(dir.path()).unwrap();
        assert_eq!(own.version(), Some(format!("{series}.9").as_str()));
        write(dir.path(), "Makefile", &makefile("5", "10", "0"));
        let refused = OwnSource::at(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("its Makefile says 5.10;"), "{refused}");
    }

    #[test]
    fn headers_that_differ_are_taken_if_they_are_kvms() {
        let dir = tempfile::tempdir().unwrap();
        let (own, packaged) = (dir.path().join("own"), dir.path().join("packaged"));
        tree(&own);
        for (name, text) in [
            ("include/linux/kvm_host.h", "changed"),
            ("include/linux/kvm_types.h", "same"),
            ("include/linux/sched.h", "changed"),
            ("arch/x86/include/asm/svm.h", "new"),
            ("arch/x86/include/generated/asm/kvm.h", "generated"),
        ] {
            write(&own, name, text);
        }
        write(&packaged, "include/linux/kvm_host.h", "packaged");
        write(&packaged, "include/linux/kvm_types.h", "same");
        write(&packaged, "include/linux/sched.h", "packaged");
        let few = OwnSource::at(&own).unwrap().headers(&packaged).unwrap();
        let kvms = ["arch/x86/include/asm/svm.h", "include/linux/kvm_host.h"];
        assert_eq!(few.taken, [kvms[0], kvms[1], "include/linux/sched.h"]);
        write(&own, "Makefile", "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 9\n");
        let whole = OwnSource::at(&own).unwrap().headers(&packaged).unwrap();
        assert_eq!(whole.taken, kvms);
        assert_eq!(whole.left, ["include/linux/sched.h"]);
    }

    #[test]
    fn a_new_folder_has_what_one_changes_and_an_old_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (packaged, new) = (dir.path().join("packaged"), dir.path().join("new"));
        tree(&packaged);
        write(&packaged, "include/linux/kvm_host.h", "");
        write(&packaged, "include/linux/sched.h", "");
        begin(&packaged, &new).unwrap();
        let own = OwnSource::at(&new).unwrap();
        assert_eq!(own.headers(&packaged).unwrap(), OwnHeaders::default());
        assert!(new.join("include/linux/kvm_host.h").is_file() && !new.join("include/linux/sched.h").exists());
        assert!(begin(&packaged, &new).unwrap_err().to_string().contains("not empty"));
    }

    #[test]
    fn what_a_build_left_is_no_source() {
        for name in [
            "x86.c",
            "vmx/vmenter.S",
            "Makefile",
            "Makefile.kvm",
            "Kconfig",
            "mmu/mmu.h",
        ] {
            assert!(is_source(name), "{name}");
        }
        for name in [
            "x86.o",
            ".x86.o.cmd",
            "kvm.mod.c",
            "kvm.ko",
            "kvm-asm-offsets.h",
            "modules.order",
            "x86.c.orig",
        ] {
            assert!(!is_source(name), "{name}");
        }
    }
}

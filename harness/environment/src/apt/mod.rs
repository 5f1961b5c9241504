// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages, by apt's own programs.

mod archive;
mod install;
mod sources;
mod stanza;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use deb_version::compare_versions;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

pub use archive::Archive;
pub use install::{install_for_boot, install_for_checks, install_for_kernel, install_needed};
pub use stanza::{Stanza, parse_stanzas};

/// A package that commands need on the machine, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// Its name.
    pub package: &'static str,
    /// A verb and what follows it: the package is the subject.
    pub purpose: &'static str,
    /// The oldest version that will do.
    at_least: Option<&'static str>,
}

const fn needed(package: &'static str, purpose: &'static str) -> Needed {
    Needed {
        package,
        purpose,
        at_least: None,
    }
}

impl Needed {
    const fn at_least(self, version: &'static str) -> Self {
        Self {
            at_least: Some(version),
            ..self
        }
    }

    /// Whether an installed version will do.
    fn is_met_by(&self, installed: &str) -> bool {
        self.at_least
            .is_none_or(|oldest| compare_versions(installed, oldest).is_ge())
    }
}

/// What has the flags by which Rust follows the kernel's mitigations. Debian 12 itself has an older one beside it.
const RUSTC_WEB: &str = "1.96";

/// What `cargo xtask build` and `e2e` need installed. Everything else is unpacked into the cache.
pub const NEEDED: &[Needed] = &[
    needed("gcc-12", "compiles the kernel modules, as Debian's kernel is"),
    needed("gcc", "links the lab's programs"),
    needed("libc6-dev", "links the lab's programs, L1's init statically"),
    needed("binutils", "links the Rust core of the module"),
    needed("make", "runs the kernel's build system"),
    needed("patch", "applies kernel/patches"),
    needed("xz-utils", "unpacks kernel source and modules"),
    needed("pahole", "writes BTF of the modules"),
    needed("libelf1", "is used by the kernel's objtool"),
    needed("libssl3", "is used by the kernel's build tools"),
    needed("zlib1g", "is used by the kernel's build tools"),
    needed("rustc-web", "compiles Rust for the kernel and the guests").at_least(RUSTC_WEB),
    needed("rust-web-src", "is the library source for that").at_least(RUSTC_WEB),
    needed("xorriso", "writes the CD that Bochs boots"),
    needed("isolinux", "is the boot loader on that CD"),
    needed("syslinux-common", "is the boot loader on that CD"),
];

/// What the kernel's own checks of style need beside them.
const FOR_CHECKS: &[Needed] = &[needed("perl", "runs the kernel's checkpatch.pl")];

/// What compiling a whole kernel needs beside them.
const FOR_KERNEL: &[Needed] = &[
    needed("flex", "makes the kernel's configuration program"),
    needed("bison", "makes the kernel's configuration program"),
    needed("bc", "calculates for the kernel's build system"),
    needed("libelf-dev", "is what objtool is built with"),
];

/// Those of them without which Bochs has nothing to boot from.
const FOR_CD: &[&str] = &["xorriso", "isolinux", "syslinux-common"];

/// Those of `wanted` that are not installed, or too old.
pub fn missing(wanted: &[Needed]) -> Result<Vec<Needed>> {
    let listed = Program::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Abbrev} ${Version}\n"])
        .output()?;
    let listed = String::from_utf8_lossy(&listed);
    let installed: BTreeMap<&str, &str> = listed.lines().filter_map(installed_package).collect();
    let is_there = |one: &Needed| installed.get(one.package).is_some_and(|version| one.is_met_by(version));
    Ok(wanted.iter().copied().filter(|one| !is_there(one)).collect())
}

/// Name and version, if this line of dpkg's is about a package that is installed.
fn installed_package(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let (name, status, version) = (words.next()?, words.next()?, words.next()?);
    status.starts_with("ii").then_some((name, version))
}

/// Their names.
pub fn names(packages: &[Needed]) -> Vec<&'static str> {
    packages.iter().map(|n| n.package).collect()
}

/// The command that installs packages, as a person would type it.
pub fn install_command(packages: &[&str]) -> String {
    format!(
        "{}apt-get install --no-install-recommends {}",
        if is_root() { "" } else { "sudo " },
        packages.join(" ")
    )
}

/// Fetches the package lists.
pub fn update(task: &Task) -> Result<()> {
    as_root("apt-get")
        .arg("update")
        .run(task)
        .context("fetch Debian's package lists")?;
    Ok(())
}

/// Unpacks a package file.
pub fn unpack(deb: &Path, into: &Path, task: &Task) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("make {}", into.display()))?;
    Program::new("dpkg").arg("-x").arg(deb).arg(into).run(task)?;
    Ok(())
}

/// The command that fetches package lists, as a person would type it.
pub fn update_command() -> &'static str {
    if is_root() {
        "apt-get update"
    } else {
        "sudo apt-get update"
    }
}

/// A command that changes the machine. It asks nothing: there may be nobody to answer.
fn as_root(program: &str) -> Program {
    let env = if is_root() {
        Program::new("env")
    } else {
        Program::new("sudo").arg("env")
    };
    env.args(["DEBIAN_FRONTEND=noninteractive", program])
}

fn is_root() -> bool {
    kvmi_lab_machine::process::is_root()
}

/// A program's path, if it is on the search path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    which::which(name).ok()
}

/// Fails, with what to type, unless the machine is one whose packages the lab can use.
pub fn require_debian() -> Result<()> {
    for program in ["apt-get", "apt-cache", "dpkg", "dpkg-query"] {
        if find_program(program).is_none() {
            bail!(
                "no {program} here: the lab takes kernels and emulators from Debian packages; run it on Debian 12, e.g. in a container"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed() {
        assert_eq!(installed_package("make ii  4.3-4.1"), Some(("make", "4.3-4.1")));
        // Removed, its configuration still there; never installed.
        assert_eq!(installed_package("make rc  4.3-4.1"), None);
        assert_eq!(installed_package("make un "), None);
        assert_eq!(installed_package(""), None);
    }

    #[test]
    fn an_old_version_will_not_do() {
        let compiler = needed("rustc-web", "compiles").at_least(RUSTC_WEB);
        assert!(!compiler.is_met_by("1.85.0+dfsg3-1~deb12u3"));
        assert!(compiler.is_met_by("1.96.0+dfsg1-1~deb12u2"));
        assert!(compiler.is_met_by("1.100.0"));
        assert!(needed("make", "builds").is_met_by("0"));
    }
}

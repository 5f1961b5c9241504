// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages, by apt's own programs.

mod sources;
mod stanza;

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_control::Lane;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

use crate::emulators::is_bochs;
use crate::workshop::Workshop;

pub(crate) use sources::mirror;
pub(crate) use stanza::{Stanza, parse_stanzas};

/// A package that commands need on the machine, and what for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needed {
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
}

const fn needed(package: &'static str, purpose: &'static str) -> Needed {
    Needed { package, purpose }
}

/// What `cargo xtask build` and `e2e` need installed. Everything else is unpacked into the cache.
pub(crate) const NEEDED: &[Needed] = &[
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
    needed("rustc-web", "compiles Rust for the kernel and the guests"),
    needed("rust-web-src", "is the library source for that"),
    needed("xorriso", "writes the CD that Bochs boots"),
    needed("isolinux", "is the boot loader on that CD"),
    needed("syslinux-common", "is the boot loader on that CD"),
];

/// Those of them without which Bochs has nothing to boot from.
const FOR_CD: &[&str] = &["xorriso", "isolinux", "syslinux-common"];

/// The packages of `wanted` that are not installed.
pub(crate) fn missing(wanted: &[Needed]) -> Result<Vec<&'static str>> {
    let listed = Program::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Abbrev}\n"])
        .output()?;
    let listed = String::from_utf8_lossy(&listed);
    let installed: Vec<&str> = listed
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, s)| s.starts_with("ii"))
        .map(|(p, _)| p)
        .collect();
    Ok(wanted
        .iter()
        .map(|n| n.package)
        .filter(|p| !installed.contains(p))
        .collect())
}

/// The command that installs packages, as a person would type it.
pub(crate) fn install_command(packages: &[&str]) -> String {
    format!(
        "{}apt-get install --no-install-recommends {}",
        if is_root() { "" } else { "sudo " },
        packages.join(" ")
    )
}

/// Installs what is missing of [`NEEDED`].
pub(crate) fn install_needed(shop: &Workshop) -> Result<()> {
    install(shop, &missing(NEEDED)?)
}

/// Installs what is missing of what booting a lane needs, where nothing is built.
pub(crate) fn install_for_boot(shop: &Workshop, lane: Lane) -> Result<()> {
    if !is_bochs(lane) {
        return Ok(());
    }
    let mut packages = missing(NEEDED)?;
    packages.retain(|package| FOR_CD.contains(package));
    install(shop, &packages)
}

fn install(shop: &Workshop, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let task = shop.progress.task(format!("install {}", packages.join(", ")));
    if packages.iter().any(|p| !is_known(p)) {
        update(&task)?;
    }
    as_root("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages)
        .run(&task)
        .with_context(|| format!("install the packages by hand: {}", install_command(packages)))?;
    task.done();
    Ok(())
}

/// Fetches the package lists.
pub(crate) fn update(task: &Task) -> Result<()> {
    as_root("apt-get")
        .arg("update")
        .run(task)
        .context("fetch Debian's package lists")?;
    Ok(())
}

fn is_known(package: &str) -> bool {
    Program::new("apt-cache")
        .args(["show", package])
        .output()
        .is_ok_and(|out| !out.is_empty())
}

/// The records of all versions of all packages whose name begins in one of these ways.
pub(crate) fn records(prefixes: &[String]) -> Result<Vec<Stanza>> {
    // Two calls whatever is asked: where apt's own cache is off, as in containers, each takes a second.
    let names = String::from_utf8(Program::new("apt-cache").arg("pkgnames").output()?)?;
    let matching: Vec<&str> = names
        .lines()
        .filter(|n| prefixes.iter().any(|p| n.starts_with(p)))
        .collect();
    if matching.is_empty() {
        return Ok(Vec::new());
    }
    let shown = Program::new("apt-cache").arg("show").args(matching).output()?;
    Ok(parse_stanzas(&String::from_utf8_lossy(&shown)))
}

/// Downloads one package in one version into `dir` and returns the file.
pub(crate) fn download(package: &str, version: &str, dir: &Path, task: &Task) -> Result<PathBuf> {
    task.note(format!("download {package} {version}"));
    let before = debs(dir)?;
    Program::new("apt-get")
        // The sandbox user cannot write to the cache; saying so keeps apt from warning about it.
        .args([
            "-o",
            "APT::Sandbox::User=root",
            "download",
            &format!("{package}={version}"),
        ])
        .in_dir(dir)
        .run(task)
        .with_context(|| {
            format!(
                "download {package} {version}; are the lists old? try: {}",
                update_command()
            )
        })?;
    let mut new: Vec<PathBuf> = debs(dir)?.into_iter().filter(|d| !before.contains(d)).collect();
    ensure!(
        new.len() == 1,
        "apt-get download {package} left {} new files, expected one",
        new.len()
    );
    Ok(new.remove(0))
}

/// Unpacks a package file.
pub(crate) fn unpack(deb: &Path, into: &Path, task: &Task) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("make {}", into.display()))?;
    Program::new("dpkg").arg("-x").arg(deb).arg(into).run(task)?;
    Ok(())
}

/// The command that fetches package lists, as a person would type it.
pub(crate) fn update_command() -> &'static str {
    if is_root() {
        "apt-get update"
    } else {
        "sudo apt-get update"
    }
}

/// The `.deb` files in a folder.
pub(crate) fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut debs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            debs.push(path);
        }
    }
    debs.sort();
    Ok(debs)
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
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Fails, with what to type, unless the machine is one whose packages the lab can use.
pub(crate) fn require_debian() -> Result<()> {
    for program in ["apt-get", "apt-cache", "dpkg", "dpkg-query"] {
        if find_program(program).is_none() {
            bail!(
                "no {program} here: the lab takes kernels and emulators from Debian packages; run it on Debian 12, e.g. in a container"
            );
        }
    }
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where packages come from: the machine's own apt, or one of our own that knows nothing but what it is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

use super::{Stanza, install_command, parse_stanzas, sources};

/// What signs every suite, where Debian installs it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How old an archive's lists may be.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// An apt and its lists.
#[derive(Clone, Debug)]
pub enum Archive {
    /// As the machine is configured.
    Machine,
    /// In a folder of ours: own sources, own lists, nothing installed.
    Own(PathBuf),
}

impl Archive {
    /// An apt in a folder that knows these suites alone: each the last part of a mirror's address (`debian`, `debian-security`) and a name.
    pub fn own<'a>(dir: &Path, suites: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("make {}", dir.join(folder).display()))?;
        }
        fs::write(dir.join("status"), "")?;
        ensure!(
            Path::new(KEYRING).is_file(),
            "no {KEYRING}; {}",
            install_command(&["debian-archive-keyring"])
        );
        let mut list = String::new();
        for (folder, suite) in suites {
            let mirror = sources::mirror(folder)?;
            list += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
        fs::write(dir.join("sources.list"), list)?;
        Ok(Self::Own(dir.to_owned()))
    }

    /// Fetches the lists.
    pub fn update(&self, task: &Task) -> Result<()> {
        let Self::Own(dir) = self else {
            return super::update(task);
        };
        self.program("apt-get")
            .arg("update")
            .run(task)
            .context("fetch Debian's package lists")?;
        fs::write(dir.join("updated"), "")?;
        Ok(())
    }

    /// Whether the lists are there and not old. Those of the machine are its owner's affair.
    pub fn is_fresh(&self) -> bool {
        let Self::Own(dir) = self else { return true };
        let updated = fs::metadata(dir.join("updated")).and_then(|m| m.modified());
        updated.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH))
    }

    /// Whether there are lists at all.
    pub fn has_lists(&self) -> bool {
        match self {
            Self::Machine => true,
            Self::Own(dir) => dir.join("updated").is_file(),
        }
    }

    /// The records of all versions of all packages whose name begins in one of these ways.
    pub fn records(&self, prefixes: &[String]) -> Result<Vec<Stanza>> {
        // Two calls whatever is asked: where apt's own cache is off, as in containers, each takes a second.
        let names = String::from_utf8(self.program("apt-cache").arg("pkgnames").output()?)?;
        let matching: Vec<&str> = names
            .lines()
            .filter(|n| prefixes.iter().any(|p| n.starts_with(p)))
            .collect();
        if matching.is_empty() {
            return Ok(Vec::new());
        }
        let shown = self.program("apt-cache").arg("show").args(matching).output()?;
        Ok(parse_stanzas(&String::from_utf8_lossy(&shown)))
    }

    /// Downloads one package in one version into `dir` and returns the file.
    pub fn download(&self, package: &str, version: &str, dir: &Path, task: &Task) -> Result<PathBuf> {
        task.note(format!("download {package} {version}"));
        let before = debs(dir)?;
        self.program("apt-get")
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
                    self.update_command()
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

    /// Downloads packages and all that they depend on, and unpacks them into `into`. Names and versions of each, a line each.
    pub fn unpack_closure(&self, packages: &[&str], into: &Path, task: &Task) -> Result<Vec<Stanza>> {
        let Self::Own(dir) = self else {
            anyhow::bail!("what the machine has installed is no closure");
        };
        let archives = dir.join("cache/archives");
        self.program("apt-get")
            .args(["install", "--download-only", "--yes", "--no-install-recommends"])
            .args(packages)
            .run(task)
            .with_context(|| format!("download {}", packages.join(", ")))?;
        let mut unpacked = Vec::new();
        for deb in debs(&archives)? {
            let fields = Program::new("dpkg-deb")
                .arg("-f")
                .arg(&deb)
                .args(["Package", "Version"])
                .output()?;
            let Some(stanza) = parse_stanzas(&String::from_utf8_lossy(&fields)).into_iter().next() else {
                continue;
            };
            task.note(format!("unpack {} {}", stanza.package(), stanza.version()));
            super::unpack(&deb, into, task)?;
            fs::remove_file(&deb)?;
            unpacked.push(stanza);
        }
        Ok(unpacked)
    }

    /// The command that fetches the lists, as a person would type it.
    pub fn update_command(&self) -> String {
        match self {
            Self::Machine => super::update_command().to_owned(),
            Self::Own(dir) => format!("rm -r {}", dir.display()),
        }
    }

    /// apt-get or apt-cache, with the options that make it this one.
    fn program(&self, name: &str) -> Program {
        let mut program = Program::new(name);
        let Self::Own(dir) = self else { return program };
        let options = [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State", "state"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Cache::archives", "cache/archives"),
        ];
        for (name, path) in options {
            program = program.arg("-o").arg(format!("{name}={}", dir.join(path).display()));
        }
        for fixed in [
            "Dir::Etc::sourceparts=/dev/null",
            "Dir::Etc::preferences=/dev/null",
            "Dir::Etc::preferencesparts=/dev/null",
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "Acquire::Languages=none",
            // Desktop catalogues that some machines fetch with the lists.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Debug::NoLocking=1",
        ] {
            program = program.args(["-o", fixed]);
        }
        program
    }
}

/// The `.deb` files in a folder.
fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
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

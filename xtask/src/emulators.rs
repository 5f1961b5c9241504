// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulators: QEMU and Bochs of Debian 13, unpacked into the cache without being installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_control::Lane;
use kvmi_lab_machine::cache::Key;
use kvmi_lab_machine::emulator::Emulators;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

use crate::apt;
use crate::workshop::Workshop;

/// The release that they come from, whatever the machine runs.
const SUITE: &str = "trixie";

/// What signs that release, where Debian installs it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package with the version that the lab was written for, so far as it matters.
struct Pinned {
    package: &'static str,
    version: &'static str,
}

/// The emulators themselves. A release's own updates change what comes after these digits, not how the emulators behave.
const PINNED: &[Pinned] = &[
    Pinned {
        package: "bochs",
        version: "3.0+",
    },
    Pinned {
        package: "qemu-system-x86",
        version: "1:10.0.",
    },
];

/// What they need beside, where that is not a dependency.
const BESIDE: &[&str] = &["bochs-term", "bochsbios", "vgabios", "seabios"];

/// Emulators that are ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) emulators: Emulators,
    /// Names and versions of everything in there.
    pub(crate) packages: String,
}

impl Fetched {
    /// The package of a lane's emulator, with its version.
    pub(crate) fn emulator(&self, lane: Lane) -> String {
        let package = if is_bochs(lane) { "bochs" } else { "qemu-system-x86" };
        let version = self.emulators.version(package).unwrap_or_default();
        format!("{package} {version}")
    }
}

/// Whether L1 runs in Bochs on this lane, where each run of a scenario is the same to the instruction.
pub(crate) fn is_bochs(lane: Lane) -> bool {
    lane.name().ends_with("-bochs")
}

fn key() -> Key {
    let mut key = Key::of("emulators 1").text("suite", SUITE);
    for pinned in PINNED {
        key = key.text(pinned.package, pinned.version);
    }
    for package in BESIDE {
        key = key.text("beside", package);
    }
    key.finish()
}

/// The emulators, if the cache has them.
pub(crate) fn find(shop: &Workshop) -> Option<PathBuf> {
    shop.cache.find("emulators", &key())
}

/// The emulators, from the cache or from Debian.
pub(crate) fn fetch(shop: &Workshop) -> Result<Fetched> {
    let root = shop.cache.entry("emulators", &key(), |dir| {
        let task = shop.progress.task(format!("fetch the emulators from Debian {SUITE}"));
        download(dir, &task)?;
        task.done();
        anyhow::Ok(())
    })?;
    let packages = fs::read_to_string(root.join(Emulators::PACKAGES)).context("read which emulators were unpacked")?;
    Ok(Fetched {
        emulators: Emulators::at(root),
        packages,
    })
}

fn download(dir: &Path, task: &Task) -> Result<()> {
    let apt_dir = dir.join("apt");
    let archives = apt_dir.join("cache/archives");
    for folder in ["lists/partial", "cache/archives/partial", "state"] {
        fs::create_dir_all(apt_dir.join(folder))?;
    }
    fs::write(apt_dir.join("status"), "")?;
    ensure!(
        Path::new(KEYRING).is_file(),
        "no {KEYRING}; {}",
        apt::install_command(&["debian-archive-keyring"])
    );
    let source = format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", apt::mirror()?);
    fs::write(apt_dir.join("sources.list"), source)?;

    let get = || own_apt(&apt_dir);
    get()
        .arg("update")
        .run(task)
        .with_context(|| format!("fetch the package lists of Debian {SUITE}"))?;
    get()
        .args(["install", "--download-only", "--yes", "--no-install-recommends"])
        .args(PINNED.iter().map(|p| p.package))
        .args(BESIDE)
        .run(task)
        .context("download the emulators")?;
    let mut packages = String::new();
    for deb in apt::debs(&archives)? {
        let fields = Program::new("dpkg-deb")
            .arg("-f")
            .arg(&deb)
            .args(["Package", "Version"])
            .output()?;
        let fields = apt::parse_stanzas(&String::from_utf8_lossy(&fields));
        let Some(stanza) = fields.first() else { continue };
        task.note(format!("unpack {} {}", stanza.package(), stanza.version()));
        packages += &format!("{} {}\n", stanza.package(), stanza.version());
        if let Some(pinned) = PINNED.iter().find(|p| p.package == stanza.package()) {
            ensure!(
                stanza.version().starts_with(pinned.version),
                "Debian {SUITE} has {} {}, the lab is written for {}*; change PINNED in xtask/src/emulators.rs and see whether all scenarios still pass",
                pinned.package,
                stanza.version(),
                pinned.version
            );
        }
        apt::unpack(&deb, dir, task)?;
    }
    fs::remove_dir_all(&apt_dir)?;
    fs::write(dir.join(Emulators::PACKAGES), packages)?;
    Ok(())
}

/// An apt-get that knows of nothing but our sources, and believes that nothing is installed.
fn own_apt(dir: &Path) -> Program {
    let options = [
        ("Dir::Etc::sourcelist", "sources.list"),
        ("Dir::State", "state"),
        ("Dir::State::lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", "cache"),
        ("Dir::Cache::archives", "cache/archives"),
    ];
    let mut program = Program::new("apt-get");
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulators: QEMU and Bochs of Debian 13, unpacked into the cache without being installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt;
use kvmi_lab_machine::cache::Key;
use kvmi_lab_machine::emulator::Emulators;
use kvmi_lab_machine::progress::Task;

/// The release that they come from, whatever the machine runs.
pub const SUITE: &str = "trixie";

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
pub struct Fetched {
    /// Where they are.
    pub emulators: Emulators,
    /// Names and versions of everything in there.
    pub packages: String,
}

impl Fetched {
    /// The package of a lane's emulator, with its version.
    pub fn emulator(&self, lane: Lane) -> String {
        let package = if is_bochs(lane) { "bochs" } else { "qemu-system-x86" };
        let version = self.emulators.version(package).unwrap_or_default();
        format!("{package} {version}")
    }
}

/// Whether L1 runs in Bochs on this lane, where each run of a scenario is the same to the instruction.
pub fn is_bochs(lane: Lane) -> bool {
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
pub fn find(env: &Environment) -> Option<PathBuf> {
    env.cache.find("emulators", &key())
}

/// The emulators, from the cache or from Debian.
pub fn fetch(env: &Environment) -> Result<Fetched> {
    let root = env.cache.entry("emulators", &key(), |dir| {
        let task = env.progress.task(format!("fetch the emulators from Debian {SUITE}"));
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
    let archive = apt::Archive::own(&apt_dir, [("debian", SUITE)])?;
    archive.update(task)?;
    let wanted: Vec<&str> = PINNED.iter().map(|p| p.package).chain(BESIDE.iter().copied()).collect();
    let mut packages = String::new();
    for stanza in archive.unpack_closure(&wanted, dir, task)? {
        packages += &format!("{} {}\n", stanza.package(), stanza.version());
        if let Some(pinned) = PINNED.iter().find(|p| p.package == stanza.package()) {
            ensure!(
                stanza.version().starts_with(pinned.version),
                "Debian {SUITE} has {} {}, the lab is written for {}*; change PINNED in harness/lab/src/emulators.rs and see whether all scenarios still pass",
                pinned.package,
                stanza.version(),
                pinned.version
            );
        }
    }
    fs::remove_dir_all(&apt_dir)?;
    fs::write(dir.join(Emulators::PACKAGES), packages)?;
    Ok(())
}

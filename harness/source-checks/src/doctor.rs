// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine has, lacks and can run, and the command that mends each lack.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use kvmi_lab::{emulators, hardware};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt;
use kvmi_lab_environment::output;
use kvmi_lab_environment::show;
use kvmi_lab_environment::tools::NEXTEST;
use kvmi_lab_kernel::bare_metal;
use kvmi_lab_kernel::{self as kernel, KernelVersion, Lists};
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_machine::process::{Program, is_root};
use rustix::fs::statvfs;
use serde::Serialize;

/// What the cache takes, with room for a second kernel, and what the builds and the logs take in the checkout.
const CACHE_GIB: u64 = 3;
const TARGET_GIB: u64 = 4;

/// What L1 on two lanes, its emulators and a compiler take.
const MEMORY_GIB: u64 = 4;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Has,
    /// To be mended by a person.
    Lacks,
    /// Not there, and not needed before the lab makes it by itself.
    Later,
    /// Not there, and nothing that the lab makes; it does without.
    Without,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// Its name.
    pub what: String,
    /// How it stands.
    pub state: State,
    /// What was seen of it.
    pub detail: String,
    /// The command to type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

fn item(what: &str, state: State, detail: impl Into<String>, mend: Option<String>) -> Item {
    Item {
        what: what.to_owned(),
        state,
        detail: detail.into(),
        mend,
    }
}

/// Looks at everything and tells each thing as it is found. Nothing is changed.
pub fn examine(env: &Environment, mut tell: impl FnMut(&Item) -> Result<()>) -> Result<()> {
    tell(&distribution())?;
    let has_apt = apt::require_debian().is_ok();
    if has_apt {
        tell(&privileges())?;
        tell(&packages()?)?;
    }
    for item in disks(env.cache.root(), &env.path("target"))? {
        tell(&item)?;
    }
    tell(&memory(
        &fs::read_to_string("/proc/meminfo").context("ask for the memory")?,
    )?)?;
    tell(&toolchain(env)?)?;
    tell(&compiler())?;
    tell(&match NEXTEST.find(env) {
        Some(version) => item("test runner", State::Has, format!("nextest {version}"), None),
        None => {
            let detail = "nextest is built into the cache when it is needed (minutes)";
            item("test runner", State::Later, detail, Some(NEXTEST.install_command()))
        }
    })?;
    tell(&match apt::find_program("gdb") {
        Some(path) => item("debugger", State::Has, format!("{}, for --gdb", path.display()), None),
        None => {
            let detail = format!("for --gdb alone: {}", apt::install_command(&["gdb"]));
            item("debugger", State::Without, detail, None)
        }
    })?;
    tell(&in_cache("kernel of L1", kernel_in_cache(env)))?;
    let emulators = emulators::find(env).map(|path| format!("QEMU and Bochs of Debian 13, in {}", path.display()));
    tell(&in_cache("emulators", emulators))?;
    let facts = hardware::probe(env)?;
    for &lane in Lane::ALL {
        let (state, detail) = match hardware::lack(&facts, lane) {
            Some(lack) if lack.is_untried(&facts) => (State::Later, lack.text()),
            Some(lack) => (State::Without, lack.text()),
            None if lane.platform().is_emulated() => (State::Has, "is emulated, so it runs on any machine".to_owned()),
            None => (State::Has, "a guest ran under this machine's KVM".to_owned()),
        };
        tell(&item(&format!("lane {lane}"), state, detail, None))?;
    }
    // Last: apt takes its time.
    if has_apt {
        tell(&kernels(env)?)?;
    }
    Ok(())
}

/// The kernels that can be chosen, as far as lists of packages are at hand.
fn kernels(env: &Environment) -> Result<Item> {
    let mut parts = Vec::new();
    for suite in &kernel::matrix().suites {
        let (_, kernels) = kernel::on_offer(env, suite, Lists::AtHand)?;
        let (newest, oldest) = match (kernels.first(), kernels.last()) {
            (Some(newest), Some(oldest)) => (newest.upstream(), oldest.upstream()),
            _ => {
                parts.push(format!("{}: lists are fetched when they are needed", suite.name));
                continue;
            }
        };
        parts.push(format!("{}: {newest} to {oldest}", suite.name));
    }
    let flavours: Vec<&str> = kernel::matrix().flavours.iter().map(|f| f.name.as_str()).collect();
    let detail = format!(
        "{}; flavours {}; all: cargo xtask list --kernels",
        parts.join("; "),
        flavours.join(", ")
    );
    Ok(item("kernels to choose", State::Has, detail, None))
}

fn distribution() -> Item {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
            .trim_matches('"')
            .to_owned()
    };
    let name = field("PRETTY_NAME");
    if field("ID") == "debian" && field("VERSION_ID") == "12" {
        return item("distribution", State::Has, name, None);
    }
    let mend = "run it in a container: podman run -it -v .:/kvmi -w /kvmi docker.io/library/rust:1.95-bookworm cargo xtask e2e";
    item(
        "distribution",
        State::Lacks,
        format!("{name} is not Debian 12, whose kernels the lab tests"),
        Some(mend.to_owned()),
    )
}

fn privileges() -> Item {
    let what = "installing packages";
    if is_root() {
        item(what, State::Has, "as root", None)
    } else if apt::find_program("sudo").is_some() {
        item(what, State::Has, "by sudo", None)
    } else {
        item(
            what,
            State::Lacks,
            "neither root nor sudo",
            Some("su -c 'apt-get install sudo'".to_owned()),
        )
    }
}

fn packages() -> Result<Item> {
    let missing = apt::missing(apt::NEEDED)?;
    if missing.is_empty() {
        return Ok(item(
            "packages",
            State::Has,
            format!("all {} that are needed", apt::NEEDED.len()),
            None,
        ));
    }
    let why = missing.iter().map(|n| format!("{} {}", n.package, n.purpose));
    let detail = why.collect::<Vec<_>>().join("; ");
    Ok(item(
        "packages",
        State::Lacks,
        detail,
        Some(format!(
            "{} && {}",
            apt::update_command(),
            apt::install_command(&apt::names(&missing))
        )),
    ))
}

/// Room for the cache and for what is built; where both are on one disk, for both together.
fn disks(cache: &Path, target: &Path) -> Result<Vec<Item>> {
    let cache = Place::look("the cache", cache, CACHE_GIB)?;
    let target = Place::look("target", target, TARGET_GIB)?;
    Ok(if cache.device == target.device {
        vec![disk("the cache and target", cache.free, cache.lacks + target.lacks)]
    } else {
        let one = |place: &Place| disk(place.what, place.free, place.lacks);
        vec![one(&cache), one(&target)]
    })
}

/// A folder, which need not be there, on a disk.
struct Place {
    what: &'static str,
    device: u64,
    /// How many bytes it may still take, and how many of those that are wanted it has not taken yet.
    free: u64,
    lacks: u64,
}

impl Place {
    fn look(what: &'static str, folder: &Path, gib: u64) -> Result<Self> {
        let existing = folder.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
        let room = statvfs(existing).with_context(|| format!("ask for the room at {}", existing.display()))?;
        let files = files_below(folder)?;
        let size = |path: &Path| fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
        let taken: u64 = files.iter().map(|(_, path)| size(path)).sum();
        Ok(Self {
            what,
            device: fs::metadata(existing)?.dev(),
            free: room.f_bavail * room.f_frsize,
            lacks: (gib << 30).saturating_sub(taken),
        })
    }
}

fn disk(what: &str, free: u64, wanted: u64) -> Item {
    let still = match wanted {
        0 => "need no more".to_owned(),
        wanted => format!("still take {:.1} at most", gib(wanted)),
    };
    let detail = format!("{:.1} GiB free for {what}, which {still}", gib(free));
    let (state, mend) = if free >= wanted {
        (State::Has, None)
    } else {
        let mend = "export KVMI_CACHE=FOLDER_ON_A_LARGER_DISK CARGO_TARGET_DIR=ANOTHER";
        (State::Lacks, Some(mend.to_owned()))
    };
    item("disk space", state, detail, mend)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// By what the kernel says of its memory.
fn memory(meminfo: &str) -> Result<Item> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        number.with_context(|| format!("/proc/meminfo has no {name}"))
    };
    let (has, free) = (kib("MemTotal")? << 10, kib("MemAvailable")? << 10);
    // A kernel keeps some of it from itself.
    let is_enough = has.div_ceil(1 << 30) >= MEMORY_GIB;
    let detail = format!("{:.1} GiB, {:.1} of them free", gib(has), gib(free));
    Ok(if is_enough {
        item("memory", State::Has, detail, None)
    } else {
        let detail = format!("{detail}; {MEMORY_GIB} are needed, or one lane at a time");
        item(
            "memory",
            State::Lacks,
            detail,
            Some("cargo xtask e2e --lane svm-tcg".to_owned()),
        )
    })
}

/// What runs this very program has been compiled by.
fn toolchain(env: &Environment) -> Result<Item> {
    let version = Program::new("rustc").arg("--version").in_dir(&env.checkout).output()?;
    let detail = format!("{}, for the lab's own programs", version_of(&version));
    Ok(item("Rust", State::Has, detail, None))
}

/// `rustc 1.95.0`, without the rest of what it says of itself.
fn version_of(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn compiler() -> Item {
    let what = "Rust for bare metal";
    let version = Program::new(bare_metal::RUSTC).arg("--version").output();
    let source = Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir();
    match (version, source) {
        (Ok(version), true) => {
            let detail = format!(
                "{} at {}, Debian's rustc-web and not rustup's, for the kernel's part in Rust and the guests: it has its library's source",
                version_of(&version),
                bare_metal::RUSTC
            );
            item(what, State::Has, detail, None)
        }
        _ => {
            let mend = apt::install_command(&["rustc-web", "rust-web-src"]);
            item(
                what,
                State::Lacks,
                format!("no {} with the source of its library", bare_metal::RUSTC),
                Some(mend),
            )
        }
    }
}

fn kernel_in_cache(env: &Environment) -> Option<String> {
    let text = fs::read(env.cache.root().join("kernel.json")).ok()?;
    let version: KernelVersion = serde_json::from_slice(&text).ok()?;
    Some(format!("{} ({})", version.release(), version.package))
}

fn in_cache(what: &str, found: Option<String>) -> Item {
    match found {
        Some(detail) => item(what, State::Has, detail, None),
        None => item(
            what,
            State::Later,
            "is fetched when it is needed",
            Some("cargo xtask e2e".to_owned()),
        ),
    }
}

/// Shows one thing.
pub fn show(item: &Item, json: bool) -> Result<()> {
    if json {
        show!("{}", serde_json::to_string(item)?);
        return Ok(());
    }
    let word = match item.state {
        State::Has => "has",
        State::Lacks => "LACKS",
        State::Later => "later",
        State::Without => "without",
    };
    let line = format!("{word:7}  {}: {}", item.what, item.detail);
    show!("{}", output::wrapped(&line, INDENT));
    if let (State::Lacks, Some(mend)) = (item.state, &item.mend) {
        // Whole, to be copied.
        show!("{:INDENT$}to mend it: {mend}", "");
    }
    Ok(())
}

/// Where the second column begins.
const INDENT: usize = 9;

/// Says for people what follows from all of it.
pub fn close(lacking: usize, json: bool) {
    if json {
        return;
    }
    let later = "What is `later` the lab fetches or builds by itself, `without` stands at what it does without.";
    show!("\n{}", output::wrapped(later, 0));
    match lacking {
        0 => show!("Nothing is lacking. To begin: cargo xtask e2e"),
        1 => show!("One thing is lacking; the command below it mends it."),
        more => show!("{more} things are lacking; the command below each mends it."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_already_need_not_be_free() {
        let dir = tempfile::tempdir().unwrap();
        let empty = Place::look("target", &dir.path().join("none"), 1).unwrap();
        assert_eq!(empty.lacks, 1 << 30);
        fs::write(dir.path().join("some"), [1; 1 << 20]).unwrap();
        let filled = Place::look("target", dir.path(), 1).unwrap();
        assert!(filled.lacks <= (1 << 30) - (1 << 20) && filled.device == empty.device);
        assert_eq!(disks(dir.path(), &dir.path().join("target")).unwrap().len(), 1);
        assert_eq!(disk("target", 1, 2).state, State::Lacks);
        assert_eq!(disk("target", 2, 2).state, State::Has);
    }

    #[test]
    fn a_machine_of_four_gib_shows_a_little_less() {
        let state = |kib: u64| {
            memory(&format!("MemTotal: {kib} kB\nMemAvailable:  1024 kB\n"))
                .unwrap()
                .state
        };
        assert_eq!(state(4_028_000), State::Has);
        assert_eq!(state(2_028_000), State::Lacks);
        assert!(memory("").is_err());
    }
}

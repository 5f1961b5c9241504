// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine has, lacks and can run, and the command that mends each lack.

use std::fs;
use std::path::Path;

use anyhow::Result;
use kvmi_lab_control::Lane;
use kvmi_lab_machine::process::{Program, is_root};
use serde::Serialize;

use crate::kernel::{self, KernelVersion, Lists};
use crate::output::show;
use crate::workshop::Workshop;
use crate::{apt, bare_metal, emulators, hardware, nextest};

/// What the cache, the builds and the logs take together, with room for a second kernel.
const DISK_GIB: u64 = 6;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Has,
    /// To be mended by a person.
    Lacks,
    /// Not there, and not needed before the lab makes it by itself.
    Later,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Item {
    pub(crate) what: String,
    pub(crate) state: State,
    pub(crate) detail: String,
    /// The command to type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

fn item(what: &str, state: State, detail: impl Into<String>, mend: Option<String>) -> Item {
    Item {
        what: what.to_owned(),
        state,
        detail: detail.into(),
        mend,
    }
}

/// Looks at everything. Nothing is changed.
pub(crate) fn examine(shop: &Workshop) -> Result<Vec<Item>> {
    let mut items = vec![distribution()];
    if apt::require_debian().is_ok() {
        items.push(privileges());
        items.push(packages()?);
    }
    items.push(disk(shop.cache.root())?);
    items.push(compiler());
    items.push(if nextest::is_here(shop) {
        item("nextest", State::Has, "at least the pinned version", None)
    } else {
        let mend = format!("cargo install cargo-nextest --locked --version {}", nextest::VERSION);
        item(
            "nextest",
            State::Later,
            "is built into the cache when it is needed (minutes)",
            Some(mend),
        )
    });
    items.push(match apt::find_program("gdb") {
        Some(path) => item("debugger", State::Has, path.display().to_string(), None),
        None => {
            let detail = format!(
                "for `cargo xtask shell --gdb` alone: {}",
                apt::install_command(&["gdb"])
            );
            item("debugger", State::Later, detail, None)
        }
    });
    items.push(in_cache("kernel", kernel_in_cache(shop)));
    items.push(in_cache(
        "emulators",
        emulators::find(shop).map(|path| path.display().to_string()),
    ));
    if apt::require_debian().is_ok() {
        items.push(kernels(shop)?);
    }
    let facts = hardware::probe(shop)?;
    for &lane in Lane::ALL {
        let (state, detail) = match hardware::lack(&facts, lane) {
            Some(lack) => (State::Later, format!("not here: {}", lack.text())),
            None if lane.platform().is_emulated() => (State::Has, "runs on any machine".to_owned()),
            None => (State::Has, "a guest ran under this machine's KVM".to_owned()),
        };
        items.push(item(&format!("lane {lane}"), state, detail, None));
    }
    Ok(items)
}

/// The kernels that can be chosen, as far as lists of packages are at hand.
fn kernels(shop: &Workshop) -> Result<Item> {
    let mut parts = Vec::new();
    for suite in &kernel::matrix().suites {
        let (_, kernels) = kernel::on_offer(shop, suite, Lists::AtHand)?;
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

fn disk(cache: &Path) -> Result<Item> {
    let existing = cache.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    let output = Program::new("df")
        .args(["--output=avail", "--block-size=1"])
        .arg(existing)
        .output()?;
    let text = String::from_utf8_lossy(&output);
    let free = text
        .lines()
        .last()
        .and_then(|l| l.trim().parse::<u64>().ok())
        .unwrap_or(0)
        >> 30;
    let detail = format!("{free} GiB free for {}", cache.display());
    if free >= DISK_GIB {
        return Ok(item("disk space", State::Has, detail, None));
    }
    let mend = "export KVMI_CACHE=FOLDER_ON_A_LARGER_DISK".to_owned();
    Ok(item(
        "disk space",
        State::Lacks,
        format!("{detail}, {DISK_GIB} are needed"),
        Some(mend),
    ))
}

fn compiler() -> Item {
    let what = "compiler for bare metal";
    let version = Program::new(bare_metal::RUSTC).arg("--version").output();
    let source = Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir();
    match (version, source) {
        (Ok(version), true) => item(what, State::Has, String::from_utf8_lossy(&version).trim(), None),
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

fn kernel_in_cache(shop: &Workshop) -> Option<String> {
    let text = fs::read(shop.cache.root().join("kernel.json")).ok()?;
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

/// Shows what was found; true when nothing lacks.
pub(crate) fn show(items: &[Item], json: bool) -> Result<bool> {
    for item in items {
        if json {
            show!("{}", serde_json::to_string(item)?);
            continue;
        }
        let word = match item.state {
            State::Has => "has  ",
            State::Lacks => "LACKS",
            State::Later => "later",
        };
        show!("{word}  {}: {}", item.what, item.detail);
        if let (State::Lacks, Some(mend)) = (item.state, &item.mend) {
            show!("       to mend it: {mend}");
        }
    }
    Ok(!items.iter().any(|i| i.state == State::Lacks))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our modules for one of Debian's stock kernels.

mod fetch;
mod flags;
mod matrix;
mod modules;
mod rust_core;
mod toolchain;
mod tree;
mod version;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_machine::cache::Key;

pub(crate) use fetch::Kernel;
pub(crate) use matrix::{Suite, matrix};
pub(crate) use modules::MODULES;
pub(crate) use version::{KernelVersion, NoKernel};

use crate::apt::{self, Archive};
use crate::lockfile;
use crate::workshop::Workshop;

/// How many builds stay in the cache: enough to go back and forth between a few states of the sources.
const KEPT_MODULES: usize = 6;

/// Our modules and the kernel they are for.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) kernel: Kernel,
    /// The folder with [`MODULES`].
    pub(crate) modules: PathBuf,
}

/// The kernel to build for, and where it comes from: `wanted`, or the newest of what stands first in the table.
pub(crate) fn resolve(shop: &Workshop, wanted: Option<&str>) -> Result<(KernelVersion, Archive)> {
    let matrix = matrix();
    let mut offered = Vec::new();
    for suite in &matrix.suites {
        if wanted.is_some_and(|name| matrix.is_of_another(name, suite)) {
            continue;
        }
        let (archive, kernels) = on_offer(shop, suite, Lists::Fresh)?;
        if let Some(version) = version::choose(&kernels, wanted) {
            record(shop, &version)?;
            return Ok((version, archive));
        }
        offered.extend(kernels.iter().map(ToString::to_string));
    }
    Err(match wanted {
        None => NoKernel::None(matrix.series.clone()),
        Some(wanted) => NoKernel::NotThatOne {
            wanted: wanted.to_owned(),
            offered,
        },
    })
    .with_context(|| {
        format!(
            "choose a kernel (if apt's lists are old, type: {})",
            apt::update_command()
        )
    })
}

/// Whether lists may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lists {
    /// They are fetched when they are old.
    Fresh,
    /// They are taken as they are.
    AtHand,
}

/// The kernels of a suite, newest first, and where they come from: the machine's own apt where that knows the suite, else one of ours.
pub(crate) fn on_offer(shop: &Workshop, suite: &Suite, lists: Lists) -> Result<(Archive, Vec<KernelVersion>)> {
    let kinds = ["linux-source-", "linux-headers-", "linux-kbuild-", "linux-image-"];
    let prefixes = kinds.map(|kind| format!("{kind}{}", matrix().series));
    let kernels = |archive: &Archive| anyhow::Ok(version::complete(&archive.records(&prefixes)?, matrix(), suite));
    let of_machine = kernels(&Archive::Machine)?;
    if !of_machine.is_empty() {
        return Ok((Archive::Machine, of_machine));
    }
    let suites = suite.archives.iter().map(|o| (o.folder.as_str(), o.suite.as_str()));
    let archive = Archive::own(&shop.cache.work(&format!("apt-{}", suite.name))?, suites)?;
    if lists == Lists::Fresh && !archive.is_fresh() {
        let _lock = shop.cache.lock(&format!("apt-{}", suite.name))?;
        let task = shop
            .progress
            .task(format!("fetch the package lists of Debian {}", suite.name));
        match archive.update(&task) {
            Ok(()) => task.done(),
            // Without a network one works with what one has.
            Err(e) if archive.has_lists() => shop.progress.say(format!("old lists of {}: {e:#}", suite.name)),
            Err(e) => return Err(e),
        }
    }
    let kernels = if archive.has_lists() {
        kernels(&archive)?
    } else {
        Vec::new()
    };
    Ok((archive, kernels))
}

/// Keeps which kernel was chosen, for people and for `doctor`.
fn record(shop: &Workshop, version: &KernelVersion) -> Result<()> {
    fs::create_dir_all(shop.cache.root())?;
    let path = shop.cache.root().join("kernel.json");
    fs::write(&path, serde_json::to_vec_pretty(version)?).with_context(|| format!("write {}", path.display()))
}

/// The image of the kernel that was last chosen, if the cache has it.
pub(crate) fn image_at_hand(shop: &Workshop) -> Option<PathBuf> {
    let text = fs::read(shop.cache.root().join("kernel.json")).ok()?;
    let version: KernelVersion = serde_json::from_slice(&text).ok()?;
    fetch::image_at_hand(shop, &version)
}

/// Builds the modules, unless the cache has them.
pub(crate) fn build(shop: &Workshop, wanted: Option<&str>) -> Result<Built> {
    let (version, archive) = resolve(shop, wanted)?;
    let tools = toolchain::of(shop, &version, &archive)?;
    let kernel = fetch::fetch(shop, version, &archive, &tools)?;
    let with_core = uses_rust_core(shop)?;
    let mut key = Key::of("modules 2")
        .text(
            "kernel",
            &format!("{} {}", kernel.version.package, kernel.version.release()),
        )
        .bytes("gcc", &tools.program(&tools.compiler).arg("--version").output()?)
        .tree("kernel", &shop.path("kernel"), |name| !name.ends_with(".md"))?;
    if with_core {
        key = key
            .tree("uapi", &shop.path("uapi"), |name| !name.ends_with(".md"))?
            .text("rustc", &rust_core::compiler()?)
            .text(
                "crates",
                &lockfile::closure(&fs::read_to_string(shop.path("Cargo.lock"))?, "kvmi-module")?,
            );
    }
    let modules = shop.cache.entry("modules", &key.finish(), |into| {
        let task = shop
            .progress
            .task(format!("build the modules for kernel {}", kernel.version));
        let _lock = shop.cache.lock("kernel-tree")?;
        let fresh = tempfile_dir(shop)?;
        tree::make(shop, &kernel, &fresh, &task)?;
        if with_core {
            let [object, command] = rust_core::shipped(&fresh);
            rust_core::build(shop, &flags::Config::parse(&kernel.config()?), &object, &task)?;
            // Kbuild wants to know how an object came to be; this one is made by cargo.
            fs::write(command, "")?;
        }
        let tree = shop.cache.work(&format!("kernel-{}", kernel.version.release()))?;
        tree::sync(&fresh, &tree)?;
        modules::build(shop, &kernel, &tools, &tree, into, &task)?;
        task.done();
        anyhow::Ok(())
    })?;
    shop.cache.prune("modules", KEPT_MODULES)?;
    Ok(Built { kernel, modules })
}

/// An empty folder for the next tree; the lock on trees is held.
fn tempfile_dir(shop: &Workshop) -> Result<PathBuf> {
    let dir = shop.cache.work("kernel-fresh")?;
    fs::remove_dir_all(&dir)?;
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Whether the modules hold the Rust core yet: Kbuild names its object.
fn uses_rust_core(shop: &Workshop) -> Result<bool> {
    let kbuild = shop.path("kernel/Kbuild");
    Ok(kbuild.is_file() && fs::read_to_string(kbuild)?.contains("core.o"))
}

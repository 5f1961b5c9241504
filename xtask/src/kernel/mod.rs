// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our modules for one of Debian's stock kernels.

mod fetch;
mod flags;
mod modules;
mod rust_core;
mod tree;
mod version;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_machine::cache::Key;
use kvmi_lab_machine::process::Program;

pub(crate) use fetch::Kernel;
pub(crate) use modules::MODULES;
pub(crate) use version::{KernelVersion, NoKernel, SERIES};

use crate::apt;
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

/// The kernel to build for: `wanted`, or the newest that Debian has.
pub(crate) fn resolve(shop: &Workshop, wanted: Option<&str>) -> Result<KernelVersion> {
    let choice = version::choose(&kernel_records()?, wanted);
    let version = match choice {
        Err(NoKernel::None) => {
            let task = shop.progress.task("fetch Debian's package lists");
            apt::update(&task)?;
            task.done();
            version::choose(&kernel_records()?, wanted)
        }
        other => other,
    }
    .with_context(|| {
        format!(
            "choose a kernel (if apt's lists are old, type: {})",
            apt::update_command()
        )
    })?;
    record(shop, &version)?;
    Ok(version)
}

fn kernel_records() -> Result<Vec<apt::Stanza>> {
    let kinds = ["linux-source-", "linux-headers-", "linux-kbuild-", "linux-image-"];
    apt::records(&kinds.map(|kind| format!("{kind}{SERIES}")))
}

/// Keeps which kernel was chosen, for people and for `doctor`.
fn record(shop: &Workshop, version: &KernelVersion) -> Result<()> {
    fs::create_dir_all(shop.cache.root())?;
    let path = shop.cache.root().join("kernel.json");
    fs::write(&path, serde_json::to_vec_pretty(version)?).with_context(|| format!("write {}", path.display()))
}

/// Builds the modules, unless the cache has them.
pub(crate) fn build(shop: &Workshop, wanted: Option<&str>) -> Result<Built> {
    let kernel = fetch::fetch(shop, resolve(shop, wanted)?)?;
    let with_core = uses_rust_core(shop)?;
    let mut key = Key::of("modules 1")
        .text("kernel", &kernel.version.package)
        .bytes("gcc", &Program::new("gcc-12").arg("--version").output()?)
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
        let tree = shop.cache.work(&format!("kernel-{}", kernel.version.abi))?;
        tree::sync(&fresh, &tree)?;
        modules::build(shop, &kernel, &tree, into, &task)?;
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

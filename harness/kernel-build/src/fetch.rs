// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel's source, headers and image, unpacked from Debian's packages into the cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::{self, Archive};
use kvmi_lab_machine::cache::Key;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

use super::dependencies::Modules;
use super::matrix::matrix;
use super::toolchain::Toolchain;
use super::version::{KernelVersion, source_package};

/// What of the source is kept: all that KVM's modules and kernel/patches are made of and judged by.
const KEPT_SOURCE: &[&str] = &[
    "arch/x86/kvm",
    "arch/x86/include",
    "virt/kvm",
    "include",
    "LICENSES/preferred/GPL-2.0",
    "scripts/checkpatch.pl",
    "scripts/const_structs.checkpatch",
    "scripts/spelling.txt",
];

/// How an image is unpacked.
const IMAGE: &str = "image 3";

/// The unpacked packages of one kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Which kernel it is.
    pub version: KernelVersion,
    /// Holds `arch/x86/kvm` and so on.
    pub source: PathBuf,
    /// What `make -C` takes.
    pub headers: PathBuf,
    /// Holds `vmlinuz`, `config`, the kernel's own modules of KVM and what they need, decompressed, and [`DEPENDENCIES`](crate::DEPENDENCIES).
    pub image: PathBuf,
    /// How many times longer things may take in it than in a stock kernel.
    pub slowness: u32,
}

impl Kernel {
    /// The text of the kernel's configuration.
    pub fn config(&self) -> Result<String> {
        let path = self.headers.join(".config");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

fn key(recipe: &str, version: &KernelVersion, of: &str) -> Key {
    Key::of(recipe)
        .text("version", &version.package)
        .text("of", of)
        .finish()
}

/// A kernel's image, if the cache has it.
pub(crate) fn image_at_hand(env: &Environment, version: &KernelVersion) -> Option<PathBuf> {
    let entry = env
        .cache
        .find("kernel-image", &key(IMAGE, version, &version.release()))?;
    Some(entry.join("vmlinuz"))
}

/// An entry of the cache with a part of a kernel's packages.
fn entry(
    env: &Environment,
    version: &KernelVersion,
    what: &str,
    key: &Key,
    make: impl Fn(&Path, &Task) -> Result<()>,
) -> Result<PathBuf> {
    env.cache.entry(&format!("kernel-{what}"), key, |dir| {
        let task = env.progress.task(format!("fetch the kernel's {what}, {version}"));
        make(dir, &task)?;
        task.done();
        anyhow::Ok(())
    })
}

/// Unpacks a kernel's source, unless the cache has it. It is the same for all flavours.
pub(crate) fn source(env: &Environment, version: &KernelVersion, archive: &Archive) -> Result<PathBuf> {
    entry(env, version, "source", &key("source 3", version, ""), |dir, task| {
        unpack_source(version, archive, dir, KEPT_SOURCE, task)
    })
}

/// Unpacks what is not in the cache yet.
pub(crate) fn fetch(env: &Environment, version: KernelVersion, archive: &Archive, tools: &Toolchain) -> Result<Kernel> {
    let release = version.release();
    let source = source(env, &version, archive)?;
    let headers_key = key("headers 2", &version, &release);
    let headers = entry(env, &version, "headers", &headers_key, |dir, task| {
        headers(&version, archive, tools, dir, task)
    })?;
    let image = entry(env, &version, "image", &key(IMAGE, &version, &release), |dir, task| {
        image(&version, archive, dir, task)
    })?;
    let headers = headers.join(format!("usr/src/linux-headers-{release}"));
    Ok(Kernel {
        version,
        source,
        headers,
        image,
        slowness: 1,
    })
}

/// Unpacks the source, or what stands in `parts` of it.
pub fn unpack_source(
    version: &KernelVersion,
    archive: &Archive,
    dir: &Path,
    parts: &[&str],
    task: &Task,
) -> Result<()> {
    let package = source_package(&matrix().series);
    let deb = archive.download(&package, &version.package, dir, task)?;
    let unpacked = dir.join("package");
    apt::unpack(&deb, &unpacked, task)?;
    task.note("unpack the source");
    let top = package;
    Program::new("tar")
        .args(["--extract", "--xz", "--strip-components=1", "--file"])
        .arg(unpacked.join(format!("usr/src/{top}.tar.xz")))
        .arg("--directory")
        .arg(dir)
        .args(parts.iter().map(|part| format!("{top}/{part}")))
        .run(task)?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&deb)?;
    Ok(())
}

fn headers(version: &KernelVersion, archive: &Archive, tools: &Toolchain, dir: &Path, task: &Task) -> Result<()> {
    for package in version.header_packages() {
        let deb = archive.download(&package, &version.package, dir, task)?;
        apt::unpack(&deb, dir, task)?;
        fs::remove_file(&deb)?;
    }
    // The packaged Makefile names its common part by an absolute path; in the cache it stands beside.
    let makefile = dir.join(format!("usr/src/linux-headers-{}/Makefile", version.release()));
    let text = fs::read_to_string(&makefile).with_context(|| format!("read {}", makefile.display()))?;
    let here = text.replace("include /usr/src/", "include ../");
    ensure!(
        here != text,
        "{}: no `include /usr/src/` in it, the package changed its form",
        makefile.display()
    );
    fs::write(&makefile, here)?;
    tools.adopt(dir)
}

fn image(version: &KernelVersion, archive: &Archive, dir: &Path, task: &Task) -> Result<()> {
    let deb = archive.download(&version.image, &version.package, dir, task)?;
    let unpacked = dir.join("package");
    apt::unpack(&deb, &unpacked, task)?;
    let release = version.release();
    for name in ["vmlinuz", "config"] {
        let from = unpacked.join(format!("boot/{name}-{release}"));
        fs::rename(&from, dir.join(name)).with_context(|| format!("take {}", from.display()))?;
    }
    // Newer releases have everything below /usr.
    let modules = ["lib/modules", "usr/lib/modules"].map(|top| unpacked.join(top).join(&release).join("kernel"));
    let modules = modules
        .iter()
        .find(|folder| folder.is_dir())
        .context("find the image's modules")?;
    Modules::below(modules)?.keep_kvm(dir)?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&deb)?;
    Ok(())
}

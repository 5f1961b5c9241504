// SPDX-License-Identifier: MIT OR Apache-2.0
//! What L1 and L2 are made of: init, guests and modules in one archive, and the CD and the libraries that emulators need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_environment::Environment;
use kvmi_lab_kernel::bare_metal;
use kvmi_lab_kernel::{self as kernel, Built};
use kvmi_lab_machine::bochs;
use kvmi_lab_machine::boot::Boot;
use kvmi_lab_machine::cache::{Key, files_below};
use kvmi_lab_machine::initrd::Initrd;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

/// How many images of each kind stay in the cache: enough to go back and forth between a few states of the sources, each with
/// the image of scenarios and that of KVM's selftests.
const KEPT_IMAGES: usize = 6;

/// How many saved L1s: as many on each lane that runs by default.
const KEPT_SNAPSHOTS: usize = 2 * KEPT_IMAGES;

/// From what size of further programs on the archive is compressed: Bochs reads it from a CD.
const LARGE_BYTES: usize = 16 << 20;

/// Further programs for L1, each by its path there without the leading slash.
pub type Programs = BTreeMap<String, PathBuf>;

const HOST: &str = "x86_64-unknown-linux-gnu";

/// Builds L1's init and the guests, and puts them and the modules into an archive.
pub fn boot(env: &Environment, built: &Built) -> Result<Boot> {
    boot_with(env, built, &Programs::new())
}

/// The same, with further programs.
pub fn boot_with(env: &Environment, built: &Built, programs: &Programs) -> Result<Boot> {
    let mut initrd = Initrd::new();
    let init = build_init(env)?;
    initrd
        .file("init", 0o755, read(&init)?)
        .character_device("dev/console", 5, 1);
    for folder in ["dev", "proc", "sys", "tmp"] {
        initrd.directory(folder);
    }
    let stock = &built.kernel.image;
    let dependencies = read(&stock.join(kernel::DEPENDENCIES))?;
    for name in String::from_utf8_lossy(&dependencies).split_whitespace() {
        // The lines begin with KVM's own modules, which come from elsewhere.
        if !name.starts_with("kvm-") {
            let file = format!("{name}.ko");
            initrd.file(&format!("modules/{file}"), 0o644, read(&stock.join(&file))?);
        }
    }
    initrd.file("modules/dependencies", 0o644, dependencies);
    let planted = planted_module(env, built)?;
    initrd.file("modules/planted.ko", 0o644, read(&planted)?);
    let ours = if built.introspection { "kvmi" } else { "plain" };
    for module in kernel::MODULES {
        initrd.file(
            &format!("modules/{ours}/{module}"),
            0o644,
            read(&built.modules.join(module))?,
        );
        initrd.file(&format!("modules/stock/{module}"), 0o644, read(&stock.join(module))?);
    }
    for (name, path) in build_guests(env)? {
        initrd.file(&format!("guests/{name}"), 0o755, read(&path)?);
    }
    let mut size = 0;
    for (path, program) in programs {
        let program = read(program)?;
        size += program.len();
        initrd.file(path, 0o755, program);
    }
    let bytes = if size > LARGE_BYTES {
        initrd.write_compressed(Vec::new())?
    } else {
        initrd.write(Vec::new())?
    };
    let key = Key::of("initrd 1").bytes("content", &bytes).finish();
    let entry = env.cache.entry("initrds", &key, |into| {
        fs::write(into.join("initrd"), &bytes).context("write the initrd")
    })?;
    for (kind, keep) in [
        ("initrds", KEPT_IMAGES),
        ("cds", KEPT_IMAGES),
        ("snapshots", KEPT_SNAPSHOTS),
    ] {
        env.cache.prune(kind, keep)?;
    }
    let mut boot = Boot::new(stock.join("vmlinuz"), entry.join("initrd"));
    boot.slowness = built.kernel.slowness;
    Ok(boot)
}

/// The kernel module by which scenarios plant failures, from the cache or built.
fn planted_module(env: &Environment, built: &Built) -> Result<PathBuf> {
    let (kernel, tools) = (&built.kernel, &built.tools);
    let sources = env.path("harness/planted");
    let key = Key::of("planted 2")
        .text("kernel", &kernel.version.package)
        .text("release", &kernel.version.release())
        .text("config", &kernel.config()?)
        .tree("sources", &sources, |_| true)?
        .finish();
    let entry = env.cache.entry("planted", &key, |into| {
        let task = env.progress.task("build the module that plants failures");
        for name in ["Kbuild", "planted.c"] {
            fs::copy(sources.join(name), into.join(name)).with_context(|| format!("copy {name}"))?;
        }
        tools
            .program("make")
            .arg("-C")
            .arg(&kernel.headers)
            .arg(format!("M={}", into.display()))
            .arg("modules")
            .env_remove("MAKEFLAGS")
            .env_remove("MFLAGS")
            .env("LC_ALL", "C")
            .run(&task)
            .context("build harness/planted")?;
        tools
            .program("strip")
            .arg("--strip-debug")
            .arg(into.join("planted.ko"))
            .output()?;
        task.done();
        anyhow::Ok(())
    })?;
    Ok(entry.join("planted.ko"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// L1's init: one static program, so that L1 needs no libraries.
fn build_init(env: &Environment) -> Result<PathBuf> {
    let target = env.path("target/l1");
    let task = env.progress.task("build L1's init");
    Program::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "kvmi-lab-l1",
            "--target",
            HOST,
            "--target-dir",
        ])
        .arg(&target)
        .in_dir(&env.checkout)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=debuginfo")
        .env("CARGO_TERM_COLOR", "never")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .run(&task)?;
    task.done();
    Ok(target.join(HOST).join("release/kvmi-lab-l1"))
}

/// The guests: name and file of each.
pub fn build_guests(env: &Environment) -> Result<Vec<(String, PathBuf)>> {
    let task = env.progress.task("build the guests");
    let guests = build_guests_with(env, &task)?;
    task.done();
    Ok(guests)
}

fn build_guests_with(env: &Environment, task: &Task) -> Result<Vec<(String, PathBuf)>> {
    let target = env.path("target/guests");
    let output = bare_metal::cargo(env, &["build", "--package", "kvmi-guests", "--bins"], &[], &target).run(task)?;
    bare_metal::refuse_warnings(&output).context("build the guests")?;
    let sources = files_below(&env.path("guests/src/bin"))?;
    // A file each, or a folder with its parts.
    let names = sources.iter().filter_map(|(name, _)| match name.split_once('/') {
        Some((folder, file)) => (file == "main.rs").then_some(folder),
        None => name.strip_suffix(".rs"),
    });
    let guests: Vec<(String, PathBuf)> = names
        .map(|name| (name.to_owned(), bare_metal::output(&target, name)))
        .collect();
    ensure!(!guests.is_empty(), "no guests in guests/src/bin");
    Ok(guests)
}

/// The CD from which Bochs boots the same.
pub fn cd(env: &Environment, boot: &Boot) -> Result<PathBuf> {
    let key = Key::of("cd 1")
        .text("arguments", &bochs::kernel_arguments_on_cd(boot))
        .file("kernel", &boot.kernel)?
        .file("initrd", &boot.initrd)?
        .finish();
    let entry = env.cache.entry("cds", &key, |into| {
        bochs::write_cd(boot, &into.join("l1.iso"), &env.progress).context("write the CD for Bochs")
    })?;
    Ok(entry.join("l1.iso"))
}

/// The library that makes Bochs fork.
pub fn fork_server(env: &Environment) -> Result<PathBuf> {
    preload(env, "fork server for Bochs", "kvmi-lab-forkserver")
}

/// The library that makes QEMU record all interrupts.
pub fn recorder(env: &Environment) -> Result<PathBuf> {
    preload(env, "recorder for QEMU", "kvmi-lab-recorder")
}

/// The library that has a CPU of QEMU's that spins let others run.
pub fn yielder(env: &Environment) -> Result<PathBuf> {
    preload(env, "yielder for QEMU", "kvmi-lab-yielder")
}

/// A library to be loaded into an emulator before its own ones.
fn preload(env: &Environment, what: &str, package: &str) -> Result<PathBuf> {
    let task = env.progress.task(format!("build the {what}"));
    Program::new("cargo")
        .args(["build", "--release", "--locked", "--package", package])
        .in_dir(&env.checkout)
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TARGET_DIR", env.path("target"))
        .run(&task)?;
    task.done();
    Ok(env.path(&format!("target/release/lib{}.so", package.replace('-', "_"))))
}

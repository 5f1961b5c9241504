// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel that watches itself, of the source of a stock one: configured by `sanitize.toml`, built once, and from then on a kernel like the
//! others, with headers, an image and modules of KVM.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use kvmi_lab_control::WATCHES_ITSELF;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::{self, Archive};
use kvmi_lab_machine::cache::{Key, files_below};
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;
use serde::Deserialize;

use super::dependencies::Modules;
use super::fetch::{self, Kernel};
use super::toolchain::Toolchain;
use super::tree::copy;
use super::version::KernelVersion;

/// The part of the cache's entry that modules are built against.
const BUILD: &str = "build";

/// What modules are built against: of a kernel's tree, these files and folders.
const KEPT: &[&str] = &[
    "Makefile",
    ".config",
    "Module.symvers",
    "include",
    "scripts",
    "arch/x86/Makefile",
    "arch/x86/Makefile.postlink",
    "arch/x86/include",
    "tools/objtool/objtool",
];

/// The table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    slowness: u32,
    like_stock: Vec<String>,
    #[serde(rename = "part")]
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    what: String,
    on: Vec<String>,
}

/// The text of the table of this checkout.
const RECIPE: &str = include_str!("../sanitize.toml");

fn recipe() -> &'static Recipe {
    static TABLE: LazyLock<Recipe> = LazyLock::new(|| toml::from_str(RECIPE).expect("sanitize.toml is tested"));
    &TABLE
}

impl Recipe {
    /// The lines of a configuration that must be in it, and what each is for.
    fn wanted(&self) -> Vec<(String, &str)> {
        let options = self.parts.iter();
        let options = options.flat_map(|part| part.on.iter().map(|option| (option, part.what.as_str())));
        options
            .map(|(option, what)| match option.split_once('=') {
                Some(_) => (format!("CONFIG_{option}"), what),
                None => (format!("CONFIG_{option}=y"), what),
            })
            .collect()
    }

    /// The lines of a stock configuration that are to be in it as well.
    fn like_stock<'c>(&self, config: &'c str) -> Vec<&'c str> {
        let is_named = |line: &&str| {
            let option = line.strip_prefix("CONFIG_").and_then(|rest| rest.split_once('='));
            option.is_some_and(|(option, _)| {
                self.like_stock.iter().any(|name| match name.strip_suffix('*') {
                    Some(begin) => option.starts_with(begin),
                    None => option == name,
                })
            })
        };
        config.lines().filter(is_named).collect()
    }
}

/// A kernel that watches itself, of the source of `stock`, from the cache or built.
pub(crate) fn kernel(env: &Environment, stock: &Kernel, archive: &Archive, tools: &Toolchain) -> Result<Kernel> {
    let version = KernelVersion {
        flavour: format!("{}{WATCHES_ITSELF}", stock.version.flavour),
        ..stock.version.clone()
    };
    let config = stock.config()?;
    let key = Key::of("sanitized 1")
        .text("version", &version.package)
        .text("release", &version.release())
        .text("recipe", RECIPE)
        .text("stock", &recipe().like_stock(&config).join("\n"))
        .bytes("gcc", &tools.program(&tools.compiler).arg("--version").output()?)
        .finish();
    let entry = env.cache.entry("sanitized", &key, |into| {
        apt::install_for_kernel(env)?;
        let task = env.progress.task(format!("build kernel {version} (many minutes)"));
        let _lock = env.cache.lock("sanitized-tree")?;
        let tree = env.cache.work(&format!("sanitized-{}", version.release()))?;
        // What an interrupted build left is gone on with.
        let unpacked = tree.join("unpacked");
        if !unpacked.is_file() {
            fs::remove_dir_all(&tree)?;
            fs::create_dir_all(&tree)?;
            fetch::unpack_source(&version, archive, &tree, &[], &task)?;
            fs::write(&unpacked, "")?;
        }
        configure(&tree, &wanted(&version, &config), tools, &task)?;
        task.note("compile");
        make(&tree, tools)
            .arg(format!("-j{}", env.jobs()))
            .args(["bzImage", "modules"])
            .log(tree.join("build.log"))
            .run(&task)
            .with_context(|| {
                format!(
                    "build the kernel; the whole output is in {}",
                    tree.join("build.log").display()
                )
            })?;
        keep(&tree, into, &task)?;
        fs::remove_dir_all(&tree)?;
        task.done();
        anyhow::Ok(())
    })?;
    Ok(Kernel {
        version,
        source: stock.source.clone(),
        headers: entry.join(BUILD),
        image: entry,
        slowness: recipe().slowness,
    })
}

/// What the configuration is made of.
fn wanted(version: &KernelVersion, stock_config: &str) -> String {
    let name = version.release();
    let local = name.strip_prefix(version.upstream()).unwrap_or_default();
    let mut lines = vec![format!("CONFIG_LOCALVERSION=\"{local}\"")];
    lines.extend(recipe().like_stock(stock_config).into_iter().map(str::to_owned));
    lines.extend(recipe().wanted().into_iter().map(|(line, _)| line));
    lines.join("\n") + "\n"
}

fn make(tree: &Path, tools: &Toolchain) -> Program {
    tools
        .program("make")
        .arg("-C")
        .arg(tree)
        .arg(format!("CC={}", tools.compiler))
        // Nothing is added to the name for not being a release of git's.
        .arg("LOCALVERSION=")
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env("LC_ALL", "C")
}

/// Makes the configuration, unless it is made, and sees to it that all is in it that must be.
fn configure(tree: &Path, wanted: &str, tools: &Toolchain, task: &Task) -> Result<()> {
    task.note("configure");
    let made_of = tree.join("made-of.config");
    if fs::read_to_string(&made_of).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    let all = tree.join("all.config");
    fs::write(&all, wanted).context("write what the configuration is made of")?;
    make(tree, tools)
        .arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", &all)
        .run(task)
        .context("configure the kernel")?;
    let config = fs::read_to_string(tree.join(".config")).context("read the kernel's configuration")?;
    let missing = missing(&recipe().wanted(), &config);
    ensure!(
        missing.is_empty(),
        "the kernel's configuration does not take {}: what it depends on is not in harness/kernel-build/sanitize.toml",
        missing.join(", ")
    );
    fs::rename(&all, &made_of).context("keep what the configuration was made of")
}

/// Those of the wanted lines that a configuration does not have, for people.
fn missing(wanted: &[(String, &str)], config: &str) -> Vec<String> {
    let has: BTreeSet<&str> = config.lines().collect();
    let missing = wanted.iter().filter(|(line, _)| !has.contains(line.as_str()));
    missing.map(|(line, what)| format!("{line} ({what})")).collect()
}

/// Takes out of a built tree what a kernel is to the lab.
fn keep(tree: &Path, into: &Path, task: &Task) -> Result<()> {
    task.note("keep what is needed");
    copy(&tree.join("arch/x86/boot/bzImage"), &into.join("vmlinuz"))?;
    copy(&tree.join(".config"), &into.join("config"))?;
    Modules::below(tree)?.keep_kvm(into)?;
    for name in KEPT {
        let from = tree.join(name);
        ensure!(
            from.exists(),
            "the kernel's tree has no {name}: the kernel's build system changed"
        );
        if from.is_file() {
            fs::create_dir_all(into.join(BUILD).join(name).with_file_name(""))?;
            fs::copy(&from, into.join(BUILD).join(name)).with_context(|| format!("keep {name}"))?;
            continue;
        }
        for (below, path) in files_below(&from)? {
            // Objects and their notes are of no use to modules, but for those that belong to programs.
            if below.ends_with(".o") || below.ends_with(".cmd") {
                continue;
            }
            let to = into.join(BUILD).join(name).join(&below);
            fs::create_dir_all(to.with_file_name(""))?;
            fs::copy(&path, &to).with_context(|| format!("keep {name}/{below}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let recipe = recipe();
        assert!(recipe.slowness > 1 && recipe.parts.iter().all(|part| !part.what.is_empty()));
        let wanted = recipe.wanted();
        let once: BTreeSet<&String> = wanted.iter().map(|(line, _)| line).collect();
        assert_eq!(once.len(), wanted.len(), "an option stands there twice");
        for line in ["CONFIG_KASAN=y", "CONFIG_PROVE_LOCKING=y", "CONFIG_NR_CPUS=8"] {
            assert!(once.contains(&line.to_owned()), "{line}");
        }
    }

    #[test]
    fn a_stock_configuration_is_followed_where_the_table_says_so() {
        let config = "CONFIG_KVM=m\nCONFIG_KVM_SMM=y\nCONFIG_HZ=250\n# CONFIG_KVM_WERROR is not set\nCONFIG_EXT4_FS=m\nCONFIG_PERF_EVENTS=y\nCONFIG_PERF_EVENTS_AMD_POWER=m\n";
        let like = recipe().like_stock(config);
        assert_eq!(
            like,
            [
                "CONFIG_KVM=m",
                "CONFIG_KVM_SMM=y",
                "CONFIG_HZ=250",
                "CONFIG_PERF_EVENTS=y"
            ]
        );
    }

    #[test]
    fn an_option_that_got_lost_is_named() {
        let wanted = [
            ("CONFIG_KASAN=y".to_owned(), "memory"),
            ("CONFIG_SMP=y".to_owned(), "CPUs"),
        ];
        let config = "CONFIG_SMP=y\n# CONFIG_KASAN is not set\n";
        assert_eq!(missing(&wanted, config), ["CONFIG_KASAN=y (memory)"]);
    }
}

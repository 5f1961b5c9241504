// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our modules for one of Debian's stock kernels: which kernels there are, their packages, the patched source, the build.

#![forbid(unsafe_code)]

pub mod bare_metal;
pub mod checkpatch;
mod dependencies;
mod fetch;
mod flags;
mod lockfile;
mod matrix;
mod modules;
mod own_source;
mod rust_core;
mod sanitized;
mod series;
pub mod sparse;
mod toolchain;
mod tree;
mod variant;
mod version;

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::{self, Archive};
use kvmi_lab_machine::cache::{Key, Lock};
use kvmi_lab_machine::emulator::quoted;

pub use dependencies::DEPENDENCIES;
pub use fetch::{Kernel, unpack_source};
pub use matrix::{Suite, matrix};
pub use modules::MODULES;
pub use variant::Variant;
pub use version::{KernelVersion, NoKernel};

use own_source::{FOLDERS, OwnSource};
use toolchain::Toolchain;
use tree::Sources;

/// How many builds stay in the cache: enough to go back and forth between a few states of the sources.
const KEPT_MODULES: usize = 6;

/// Which modules to build.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Choice {
    /// The kernel, e.g. 6.12.115, trixie or trixie-amd64 (all: cargo xtask list --kernels); the newest one of Debian 12 when not given
    #[arg(long, value_name = "VERSION")]
    pub kernel: Option<String>,
    /// A kernel source tree, or a folder with arch/x86/kvm and virt/kvm of one, in place of the packaged KVM
    #[arg(long, value_name = "DIR")]
    pub kvm_source: Option<PathBuf>,
    /// Leave KVM as it is: no patch of this project, no introspection
    #[arg(long)]
    pub without_introspection: bool,
    /// A kernel of the same source that watches itself, with KASAN, lockdep and the like; compiled on this machine, once
    #[arg(long)]
    pub sanitize: bool,
}

impl fmt::Display for Choice {
    /// As arguments, each with a space in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kernel) = &self.kernel {
            write!(f, " --kernel {}", quoted(kernel))?;
        }
        if let Some(source) = &self.kvm_source {
            write!(f, " --kvm-source {}", quoted(&source.to_string_lossy()))?;
        }
        for (is_set, option) in [
            (self.without_introspection, " --without-introspection"),
            (self.sanitize, " --sanitize"),
        ] {
            f.write_str(if is_set { option } else { "" })?;
        }
        Ok(())
    }
}

/// Our modules and the kernel they are for.
#[derive(Clone, Debug)]
pub struct Built {
    /// The kernel.
    pub kernel: Kernel,
    /// The folder with [`MODULES`].
    pub modules: PathBuf,
    /// Whether introspection is in them.
    pub introspection: bool,
    /// What modules for this kernel are built with.
    pub tools: Toolchain,
}

/// The kernel to build for, and where it comes from: `wanted`, or the newest of what stands first in the table.
pub fn resolve(env: &Environment, wanted: Option<&str>) -> Result<(KernelVersion, Archive)> {
    let matrix = matrix();
    let mut offered = Vec::new();
    for suite in &matrix.suites {
        if wanted.is_some_and(|name| matrix.is_of_another(name, suite)) {
            continue;
        }
        let (archive, kernels) = on_offer(env, suite, Lists::Fresh)?;
        if let Some(version) = version::choose(&kernels, wanted) {
            record(env, &version)?;
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
pub enum Lists {
    /// They are fetched when they are old.
    Fresh,
    /// They are taken as they are.
    AtHand,
}

/// The kernels of a suite, newest first, and where they come from: the machine's own apt where that knows the suite, else one of ours.
pub fn on_offer(env: &Environment, suite: &Suite, lists: Lists) -> Result<(Archive, Vec<KernelVersion>)> {
    let kinds = ["linux-source-", "linux-headers-", "linux-kbuild-", "linux-image-"];
    let prefixes = kinds.map(|kind| format!("{kind}{}", matrix().series));
    let kernels = |archive: &Archive| anyhow::Ok(version::complete(&archive.records(&prefixes)?, matrix(), suite));
    let of_machine = kernels(&Archive::Machine)?;
    if !of_machine.is_empty() {
        return Ok((Archive::Machine, of_machine));
    }
    let suites = suite.archives.iter().map(|o| (o.folder.as_str(), o.suite.as_str()));
    let archive = Archive::own(&env.cache.work(&format!("apt-{}", suite.name))?, suites)?;
    if lists == Lists::Fresh && !archive.is_fresh() {
        let _lock = env.cache.lock(&format!("apt-{}", suite.name))?;
        let task = env
            .progress
            .task(format!("fetch the package lists of Debian {}", suite.name));
        match archive.update(&task) {
            Ok(()) => task.done(),
            // Without a network one works with what one has.
            Err(e) if archive.has_lists() => env.progress.say(format!("old lists of {}: {e:#}", suite.name)),
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
fn record(env: &Environment, version: &KernelVersion) -> Result<()> {
    fs::create_dir_all(env.cache.root())?;
    let path = env.cache.root().join("kernel.json");
    fs::write(&path, serde_json::to_vec_pretty(version)?).with_context(|| format!("write {}", path.display()))
}

/// The image of the kernel that was last chosen, if the cache has it.
pub fn image_at_hand(env: &Environment) -> Option<PathBuf> {
    let text = fs::read(env.cache.root().join("kernel.json")).ok()?;
    let version: KernelVersion = serde_json::from_slice(&text).ok()?;
    fetch::image_at_hand(env, &version)
}

/// Copies the KVM that a kernel is packaged with into a new folder, to be changed; the kernel.
pub fn begin_own_source(env: &Environment, wanted: Option<&str>, folder: &Path) -> Result<KernelVersion> {
    let (version, archive) = resolve(env, wanted)?;
    let tools = toolchain::of(env, &version, &archive)?;
    let kernel = fetch::fetch(env, version, &archive, &tools)?;
    own_source::begin(&kernel.source, folder)?;
    Ok(kernel.version)
}

/// The name of the kernel that a source tree of someone's own is for, if the mirrors have it.
fn named_by(env: &Environment, own: &OwnSource) -> Result<Option<String>> {
    let Some(version) = own.version() else { return Ok(None) };
    for suite in &matrix().suites {
        let (_, kernels) = on_offer(env, suite, Lists::Fresh)?;
        if kernels.iter().any(|k| k.upstream() == version) {
            return Ok(Some(version.to_owned()));
        }
    }
    env.progress.say(format!(
        "{} is of {version}, for which there is no packaged kernel: the newest is taken; cargo xtask list --kernels shows all",
        own.folder().display()
    ));
    Ok(None)
}

/// What the modules are for, what to make them of, and with which compiler.
fn sources(env: &Environment, choice: &Choice) -> Result<(Kernel, Sources, Toolchain)> {
    let own = choice.kvm_source.as_deref().map(OwnSource::at).transpose()?;
    let named = match (&choice.kernel, &own) {
        (None, Some(own)) => named_by(env, own)?,
        (kernel, _) => kernel.clone(),
    };
    let (version, archive) = resolve(env, named.as_deref())?;
    let tools = toolchain::of(env, &version, &archive)?;
    let mut kernel = fetch::fetch(env, version, &archive, &tools)?;
    if choice.sanitize {
        kernel = sanitized::kernel(env, &kernel, &archive, &tools)?;
    }
    let with_headers = |own: OwnSource| {
        let headers = own.headers(&kernel.source)?;
        if !headers.taken.is_empty() {
            env.progress.say(format!("with its own {}", some_of(&headers.taken)));
        }
        if !headers.left.is_empty() {
            env.progress.say(format!(
                "without its own {}: the stock kernel was built with other ones",
                some_of(&headers.left)
            ));
        }
        anyhow::Ok((own, headers))
    };
    let own = own.map(with_headers).transpose()?;
    let introspection = !choice.without_introspection;
    let sources = Sources {
        version: kernel.version.clone(),
        packaged: kernel.source.clone(),
        own,
        introspection,
    };
    Ok((kernel, sources, tools))
}

/// The first few of many names, and how many more there are.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

/// Everything that decides what the modules will be.
fn key(env: &Environment, parts: &Parts) -> Result<Key> {
    let Parts {
        kernel,
        sources,
        variant,
        tools,
        with_core,
    } = parts;
    let version = &kernel.version;
    let mut key = Key::of("modules 4")
        .text("kernel", &format!("{} {}", version.package, version.release()))
        .text("config", &kernel.config()?)
        .bytes("gcc", &tools.program(&tools.compiler).arg("--version").output()?);
    if sources.own.is_some() {
        for folder in FOLDERS {
            for (name, path) in sources.folder(folder)? {
                key = key.file(&format!("own {folder}/{name}"), &path)?;
            }
        }
        for (name, path) in sources.own_headers() {
            key = key.file(&format!("own {name}"), &path)?;
        }
    }
    if *variant != Variant::PLAIN {
        key = key.text("variant", &variant.arguments().join(" "));
    }
    if !sources.introspection {
        return Ok(key.text("introspection", "none").finish());
    }
    key = key.tree("kernel", &env.path("kernel"), |name| !name.ends_with(".md"))?;
    if *with_core {
        key = key
            .tree("uapi", &env.path("uapi"), |name| !name.ends_with(".md"))?
            .text("rustc", &rust_core::compiler()?)
            .text(
                "crates",
                &lockfile::closure(&fs::read_to_string(env.path("Cargo.lock"))?, "kvmi-module")?,
            );
    }
    Ok(key.finish())
}

/// Builds the modules, unless the cache has them.
pub fn build(env: &Environment, choice: &Choice) -> Result<Built> {
    build_variant(env, choice, Variant::PLAIN)
}

/// Builds a variant of the modules, unless the cache has it.
pub fn build_variant(env: &Environment, choice: &Choice, variant: Variant) -> Result<Built> {
    let parts = Parts::of(env, choice, variant)?;
    let key = key(env, &parts)?;
    let modules = env.cache.entry("modules", &key, |into| {
        // The objects of one kind fit no other one.
        let kind = if parts.sources.introspection {
            variant.suffix()
        } else {
            "-plain"
        };
        let Warned { tree, warnings, _lock } = build_into(env, &parts, kind, into)?;
        if !warnings.is_empty() {
            let warnings = warnings.join("\n");
            if parts.sources.own.is_none() {
                // A second run would not compile the same files again, and so not warn again.
                fs::remove_dir_all(&tree)?;
                bail!("the modules build with warnings, which are not accepted:\n{warnings}");
            }
            // Whether they are accepted is for the owner of the tree to say.
            env.progress
                .say(format!("the modules build with warnings:\n{warnings}"));
        }
        anyhow::Ok(())
    })?;
    env.cache.prune("modules", KEPT_MODULES)?;
    Ok(parts.built(modules))
}

/// Builds the modules of a kernel side that is wrong on purpose: into a folder of the caller's and not into the cache, whatever the
/// compiler warns of. `env.checkout` is a copy of the checkout that has the fault.
pub fn build_faulty(env: &Environment, choice: &Choice, into: &Path) -> Result<Built> {
    let parts = Parts::of(env, choice, Variant::PLAIN)?;
    // In a tree that others leave as it is: what a fault does not change has been compiled there.
    build_into(env, &parts, "-faulty", into)?;
    Ok(parts.built(into.to_owned()))
}

/// All that modules are made of and with.
struct Parts {
    kernel: Kernel,
    sources: Sources,
    variant: Variant,
    tools: Toolchain,
    with_core: bool,
}

impl Parts {
    fn of(env: &Environment, choice: &Choice, variant: Variant) -> Result<Self> {
        let (kernel, sources, tools) = sources(env, choice)?;
        let with_core = sources.introspection && uses_rust_core(env)?;
        Ok(Self {
            kernel,
            sources,
            variant,
            tools,
            with_core,
        })
    }

    fn built(self, modules: PathBuf) -> Built {
        Built {
            kernel: self.kernel,
            modules,
            introspection: self.sources.introspection,
            tools: self.tools,
        }
    }
}

/// Where modules were built, and what was warned of. Nobody else builds there as long as this lives.
struct Warned {
    tree: PathBuf,
    warnings: Vec<String>,
    _lock: Lock,
}

/// Builds the modules in the tree of their kind, of which only what has changed is compiled anew.
fn build_into(env: &Environment, parts: &Parts, kind: &str, into: &Path) -> Result<Warned> {
    let Parts {
        kernel,
        sources,
        variant,
        tools,
        with_core,
    } = parts;
    let task = env
        .progress
        .task(format!("build the modules for kernel {}{variant}", kernel.version));
    let lock = env.cache.lock("kernel-tree")?;
    let fresh = tempfile_dir(env)?;
    tree::make(env, sources, &fresh, &task)?;
    if *with_core {
        let [object, command] = rust_core::shipped(&fresh);
        rust_core::build(env, &flags::Config::parse(&kernel.config()?), &object, &task)?;
        // Kbuild wants to know how an object came to be; this one is made by cargo.
        fs::write(command, "")?;
    }
    let tree = env.cache.work(&format!("{}{kind}", tree_name(&kernel.version)))?;
    tree::sync(&fresh, &tree)?;
    let warnings = modules::build(env, kernel, *variant, tools, &tree, into, &task)?;
    task.done();
    Ok(Warned {
        tree,
        warnings,
        _lock: lock,
    })
}

/// Applies the series to the source of a kernel and builds nothing: whether each hook still finds its place.
pub fn take(env: &Environment, version: &KernelVersion, archive: &Archive) -> Result<()> {
    let sources = Sources {
        version: version.clone(),
        packaged: fetch::source(env, version, archive)?,
        own: None,
        introspection: true,
    };
    let task = env
        .progress
        .task(format!("apply the series to the source of {}", version.package));
    let _lock = env.cache.lock("kernel-tree")?;
    tree::make(env, &sources, &tempfile_dir(env)?, &task)?;
    task.done();
    Ok(())
}

/// Every kernel on offer, the newest of each suite first, and where it comes from.
pub fn all(env: &Environment) -> Result<Vec<(KernelVersion, Archive)>> {
    let mut all = Vec::new();
    for suite in &matrix().suites {
        let (archive, kernels) = on_offer(env, suite, Lists::Fresh)?;
        all.extend(kernels.into_iter().map(|version| (version, archive.clone())));
    }
    Ok(all)
}

/// Removes the tree that modules for a kernel were built in; the modules stay.
pub fn forget_tree(env: &Environment, version: &KernelVersion) -> Result<()> {
    let _lock = env.cache.lock("kernel-tree")?;
    let tree = env.cache.work(&tree_name(version))?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
}

/// The folder for work in which modules of one kind are built, but for what it is called beyond that.
fn tree_name(version: &KernelVersion) -> String {
    format!("kernel-{}", version.release())
}

/// An empty folder for the next tree; the lock on trees is held.
fn tempfile_dir(env: &Environment) -> Result<PathBuf> {
    let dir = env.cache.work("kernel-fresh")?;
    fs::remove_dir_all(&dir)?;
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Whether the modules hold the Rust core yet: Kbuild names its object.
fn uses_rust_core(env: &Environment) -> Result<bool> {
    let kbuild = env.path("kernel/Kbuild");
    Ok(kbuild.is_file() && fs::read_to_string(kbuild)?.contains("core.o"))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The work tree: KVM's source in its own relative places, our patches applied, our files added, fit to build out of tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_machine::progress::Task;

use super::matrix::matrix;
use super::own_source::{FOLDERS, OwnHeaders, OwnSource, is_source};
use super::series;
use super::version::KernelVersion;

/// Where our own files stand in the tree.
pub(crate) const OURS: &str = "arch/x86/kvm/introspection";

/// Folders whose headers are found before the kernel's own.
const HEADER_FOLDERS: &[&str] = &[
    "arch/x86/include",
    "arch/x86/include/uapi",
    "include",
    "include/uapi",
    "include/trace",
];

/// What a tree is made of.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// What the modules are for.
    pub version: KernelVersion,
    /// Its packaged source.
    pub packaged: PathBuf,
    /// What takes the place of the packaged one.
    pub own: Option<(OwnSource, OwnHeaders)>,
    /// Whether introspection is added.
    pub introspection: bool,
}

impl Sources {
    /// The sources of one of [`FOLDERS`].
    pub(crate) fn folder(&self, folder: &str) -> Result<Vec<(String, PathBuf)>> {
        match &self.own {
            Some((own, _)) => own.sources(folder),
            None => Ok(files_below(&self.packaged.join(folder))?),
        }
    }

    /// The headers of someone's own.
    pub(crate) fn own_headers(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.own.iter().flat_map(|(own, headers)| {
            let names = headers.taken.iter().map(String::as_str);
            names.map(|name| (name, own.folder().join(name)))
        })
    }

    /// What the tree is, for people.
    fn described(&self) -> String {
        match &self.own {
            Some((own, _)) => format!("the KVM in {}", own.folder().display()),
            None => format!("kernel {}", self.version),
        }
    }

    fn apply_series(&self, env: &Environment, tree: &Path, task: &Task) -> Result<()> {
        let patches = series::patches(env, |file| self.has(file))?;
        // Headers outside KVM's folders that the series touches.
        let touched: BTreeSet<&str> = patches.iter().flat_map(series::Patch::files).collect();
        for header in touched
            .into_iter()
            .filter(|f| HEADER_FOLDERS.iter().any(|d| f.starts_with(d)))
        {
            let (from, to) = (self.packaged.join(header), tree.join(header));
            if from.is_file() && !to.exists() {
                copy(&from, &to)?;
            }
        }
        let mend = if self.own.is_some() {
            "your change and the patch are at the same lines. To see the lab's own scenarios on your KVM as it is, add \
             --without-introspection; to have both, fit the patch to it"
                .to_owned()
        } else {
            format!(
                "mend it in kernel/patches/{}, or choose another kernel with --kernel",
                matrix().series
            )
        };
        for patch in &patches {
            patch.apply(tree, &self.described(), &mend, task)?;
        }
        Ok(())
    }

    fn has(&self, file: &str) -> bool {
        let top = match &self.own {
            Some((own, _)) => own.folder(),
            None => &self.packaged,
        };
        top.join(file).is_file()
    }
}

/// Makes the tree in an empty folder.
pub(crate) fn make(env: &Environment, sources: &Sources, tree: &Path, task: &Task) -> Result<()> {
    for folder in FOLDERS {
        for (name, path) in sources.folder(folder)? {
            copy(&path, &tree.join(folder).join(name))?;
        }
    }
    for folder in HEADER_FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for (name, path) in sources.own_headers() {
        copy(&path, &tree.join(name))?;
    }
    if sources.introspection {
        sources.apply_series(env, tree, task)?;
        add_ours(env, tree)?;
    }
    let makefile = tree.join("arch/x86/kvm/Makefile");
    let text = fs::read_to_string(&makefile)?;
    let text = out_of_tree(&text).with_context(|| format!("the Makefile of {}", sources.described()))?;
    fs::write(&makefile, text)?;
    Ok(())
}

/// Our C files, Kbuild and the contract's header.
fn add_ours(env: &Environment, tree: &Path) -> Result<()> {
    let ours = tree.join(OURS);
    for (name, path) in files_below(&env.path("kernel/glue"))? {
        if name.ends_with(".c") || name.ends_with(".h") {
            copy(&path, &ours.join(name))?;
        }
    }
    for (from, name) in [("kernel/Kbuild", "Kbuild"), ("uapi/include/kvmi.h", "kvmi.h")] {
        let from = env.path(from);
        if from.is_file() {
            copy(&from, &ours.join(name))?;
        }
    }
    Ok(())
}

/// KVM's Makefile as it must be to build outside the kernel's tree.
fn out_of_tree(makefile: &str) -> Result<String> {
    let folders: Vec<String> = HEADER_FOLDERS
        .iter()
        .map(|d| format!("-I$(src)/../../../{d}"))
        .collect();
    let mut text = format!("LINUXINCLUDE := {} $(LINUXINCLUDE)\n", folders.join(" "));
    let mut ours = makefile.to_owned();
    for (from, to) in [
        ("$(srctree)/arch/x86/kvm", "$(src)"),
        ("$(srctree)/virt/kvm", "$(src)/../../../virt/kvm"),
    ] {
        ensure!(
            ours.contains(from),
            "no `{from}` in it, so the rules for building KVM out of tree no longer fit"
        );
        ours = ours.replace(from, to);
    }
    text += &ours;
    Ok(text)
}

/// Makes `tree` hold exactly the files of `fresh` beside what a build made of them, and touches only files that differ,
/// so that a build goes on from where it was.
pub(crate) fn sync(fresh: &Path, tree: &Path) -> Result<()> {
    let wanted = files_below(fresh)?;
    for (name, from) in &wanted {
        let to = tree.join(name);
        if fs::read(&to).ok() != Some(fs::read(from)?) {
            copy(from, &to)?;
        }
    }
    for (name, path) in files_below(tree)? {
        let is_source = is_source(&name) || name.ends_with(".o_shipped");
        if is_source && !wanted.iter().any(|(w, _)| *w == name) {
            fs::remove_file(path)?;
        }
    }
    for folder in HEADER_FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    fs::write(to, content).with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_makefile_leaves_the_kernel_tree() {
        let text =
            out_of_tree("ccflags-y += -I $(srctree)/arch/x86/kvm\ninclude $(srctree)/virt/kvm/Makefile.kvm\n").unwrap();
        assert!(text.ends_with("ccflags-y += -I $(src)\ninclude $(src)/../../../virt/kvm/Makefile.kvm\n"));
        assert!(text.starts_with("LINUXINCLUDE := -I$(src)/../../../arch/x86/include "));
        assert!(out_of_tree("obj-y += kvm.o\n").is_err());
    }

    #[test]
    fn syncing_removes_sources_and_keeps_objects() {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, tree) = (dir.path().join("fresh"), dir.path().join("tree"));
        for (path, text) in [
            ("fresh/a.c", "new"),
            ("tree/a.c", "old"),
            ("tree/gone.c", ""),
            ("tree/a.o", ""),
            ("tree/kvm.mod.c", ""),
        ] {
            copy_text(&dir.path().join(path), text);
        }
        sync(&fresh, &tree).unwrap();
        assert_eq!(fs::read_to_string(tree.join("a.c")).unwrap(), "new");
        assert!(!tree.join("gone.c").exists());
        assert!(tree.join("a.o").exists() && tree.join("kvm.mod.c").exists());
    }

    fn copy_text(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The work tree: KVM's source in its own relative places, our patches applied, our files added, fit to build out of tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_machine::process::{ProcessError, Program};
use kvmi_lab_machine::progress::Task;

use super::fetch::Kernel;
use super::matrix::matrix;
use crate::workshop::Workshop;

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

/// Makes the tree in an empty folder.
pub(crate) fn make(shop: &Workshop, kernel: &Kernel, tree: &Path, task: &Task) -> Result<()> {
    let patches = patches(shop)?;
    for part in ["arch/x86/kvm", "virt/kvm"] {
        copy_tree(&kernel.source.join(part), &tree.join(part))?;
    }
    for folder in HEADER_FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for header in patched_headers(&patches)? {
        let from = kernel.source.join(&header);
        if from.is_file() {
            copy(&from, &tree.join(&header))?;
        }
    }
    for patch in &patches {
        apply(patch, tree, kernel, task)?;
    }
    add_ours(shop, tree)?;
    let makefile = tree.join("arch/x86/kvm/Makefile");
    let text = fs::read_to_string(&makefile)?;
    fs::write(
        &makefile,
        out_of_tree(&text).with_context(|| format!("{} of kernel {}", makefile.display(), kernel.version))?,
    )?;
    Ok(())
}

/// The series, in the order in which it applies.
pub(crate) fn patches(shop: &Workshop) -> Result<Vec<PathBuf>> {
    let all = files_below(&shop.path("kernel/patches").join(&matrix().series))?;
    Ok(all
        .into_iter()
        .filter(|(name, _)| name.ends_with(".patch"))
        .map(|(_, path)| path)
        .collect())
}

/// The headers outside KVM's folders that a series touches.
fn patched_headers(patches: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut headers = BTreeSet::new();
    for patch in patches {
        let text = fs::read_to_string(patch).with_context(|| format!("read {}", patch.display()))?;
        headers.extend(
            touched_files(&text)
                .filter(|f| HEADER_FOLDERS.iter().any(|d| f.starts_with(d)))
                .map(str::to_owned),
        );
    }
    Ok(headers)
}

/// The files that a patch touches, without the `a/` or `b/` before them.
fn touched_files(patch: &str) -> impl Iterator<Item = &str> {
    patch.lines().filter_map(|line| {
        let name = line.strip_prefix("+++ ").or_else(|| line.strip_prefix("--- "))?;
        let name = name.split('\t').next()?.trim_end();
        name.split_once('/')
            .map(|(_, rest)| rest)
            .filter(|_| name != "/dev/null")
    })
}

fn apply(patch: &Path, tree: &Path, kernel: &Kernel, task: &Task) -> Result<()> {
    let name = patch.file_name().unwrap_or_default().to_string_lossy();
    task.note(format!("apply {name}"));
    let file = fs::File::open(patch).with_context(|| format!("open {}", patch.display()))?;
    let run = Program::new("patch")
        // No fuzz: a hook that lands a line off its place is worse than one that does not land.
        .args(["-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch", "--directory"])
        .arg(tree)
        .stdin(file)
        .run(task);
    match run {
        Ok(_) => Ok(()),
        Err(ProcessError::Failed { tail, .. }) => bail!(
            "{name} does not apply to kernel {}:\n{}\nmend kernel/patches/{}/{name}, or choose another kernel with --kernel",
            kernel.version,
            failing_hunks(&tail),
            matrix().series
        ),
        Err(e) => Err(e.into()),
    }
}

/// From what `patch` printed, the files with the hunks that failed.
fn failing_hunks(output: &str) -> String {
    let mut file = "";
    let mut failures = Vec::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("patching file ") {
            file = name;
        } else if line.contains("FAILED") || line.contains("can't find file") || line.contains("malformed") {
            failures.push(format!("  {file}: {line}"));
        }
    }
    if failures.is_empty() {
        output.to_owned()
    } else {
        failures.join("\n")
    }
}

/// Our C files, Kbuild and the contract's header.
fn add_ours(shop: &Workshop, tree: &Path) -> Result<()> {
    let ours = tree.join(OURS);
    for (name, path) in files_below(&shop.path("kernel/glue"))? {
        if name.ends_with(".c") || name.ends_with(".h") {
            copy(&path, &ours.join(name))?;
        }
    }
    for (from, name) in [("kernel/Kbuild", "Kbuild"), ("uapi/include/kvmi.h", "kvmi.h")] {
        let from = shop.path(from);
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
        let is_source = [".c", ".h", ".S", "Makefile", "Kbuild", "Kconfig", ".o_shipped"].iter().any(|s| name.ends_with(s))
            // Made by the build.
            && !name.ends_with(".mod.c")
            && !name.ends_with("kvm-asm-offsets.h");
        if is_source && !wanted.iter().any(|(w, _)| *w == name) {
            fs::remove_file(path)?;
        }
    }
    for folder in HEADER_FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for (name, path) in files_below(from)? {
        copy(&path, &to.join(name))?;
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
    fn a_patch_names_its_files() {
        let patch = "Subject: x\n\n--- a/include/linux/kvm_host.h\n+++ b/include/linux/kvm_host.h\t2026\n@@ -1 +1 @@\n--- a\n--- /dev/null\n+++ b/arch/x86/kvm/n.c\n";
        let files: BTreeSet<&str> = touched_files(patch).collect();
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            ["arch/x86/kvm/n.c", "include/linux/kvm_host.h"]
        );
    }

    #[test]
    fn a_failing_hunk_is_named() {
        let output = "patching file arch/x86/kvm/x86.c\nHunk #2 FAILED at 120.\n1 out of 2 hunks FAILED -- saving\npatching file virt/kvm/kvm_main.c\n";
        let said = failing_hunks(output);
        assert!(
            said.starts_with("  arch/x86/kvm/x86.c: Hunk #2 FAILED at 120.") && !said.contains("kvm_main"),
            "{said}"
        );
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

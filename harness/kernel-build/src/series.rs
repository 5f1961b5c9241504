// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks in KVM: kernel/patches, as they apply to the source of one kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_machine::process::{ProcessError, Program};
use kvmi_lab_machine::progress::Task;

use super::matrix::{MovedFile, matrix};

/// A patch, fit for one kernel's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Its file, relative to the series' folder.
    name: String,
    text: String,
}

/// The series for a source, of which `has` says whether it has a file; in the order in which it applies.
pub(crate) fn patches(env: &Environment, has: impl Fn(&str) -> bool) -> Result<Vec<Patch>> {
    let folder = env.path("kernel/patches").join(&matrix().series);
    let missing: Vec<&MovedFile> = matrix().elsewhere.iter().filter(|e| !has(&e.file)).collect();
    let mut patches = Vec::new();
    for (name, path) in files_below(&folder)? {
        if name.contains('/') || !name.ends_with(".patch") {
            continue;
        }
        let mut text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut instead = Vec::new();
        for elsewhere in &missing {
            let Some(rest) = without_file(&text, &elsewhere.file) else {
                continue;
            };
            text = rest;
            let other = format!("{}/{name}", elsewhere.instead);
            let text = fs::read_to_string(folder.join(&other)).with_context(|| {
                format!(
                    "{name} changes {}, which this kernel does not have; what to do in place of that belongs into {}",
                    elsewhere.file,
                    folder.join(&other).display()
                )
            })?;
            instead.push(Patch { name: other, text });
        }
        if touched_files(&text).next().is_some() {
            patches.push(Patch { name, text });
        }
        patches.extend(instead);
    }
    Ok(patches)
}

/// A patch without its part for one file; nothing if it has none.
fn without_file(patch: &str, file: &str) -> Option<String> {
    let begins = format!("diff --git a/{file} ");
    let mut left_out = false;
    let mut found = false;
    let mut rest = String::new();
    for line in patch.split_inclusive('\n') {
        if line.starts_with("diff --git ") {
            left_out = line.starts_with(&begins);
            found |= left_out;
        }
        if !left_out {
            rest += line;
        }
    }
    found.then_some(rest)
}

impl Patch {
    /// The files that it touches.
    pub(crate) fn files(&self) -> BTreeSet<&str> {
        touched_files(&self.text).collect()
    }

    /// Its text, to be read from the start.
    fn as_file(&self) -> Result<File> {
        let mut file = tempfile::tempfile().context("make a temporary file")?;
        file.write_all(self.text.as_bytes())
            .and_then(|()| file.rewind())
            .context("write a temporary file")?;
        Ok(file)
    }

    /// Applies it to a tree, of which `whose` says what it is, or says which hunks do not apply and what to do.
    pub(crate) fn apply(&self, tree: &Path, whose: &str, mend: &str, task: &Task) -> Result<()> {
        let name = &self.name;
        task.note(format!("apply {name}"));
        // Of a hunk whose header counts too few lines `patch` takes so many, and passes over the rest and every hunk behind it.
        Program::new("git")
            .args(["apply", "--numstat"])
            .stdin(self.as_file()?)
            .run(task)
            .with_context(|| format!("kernel/patches/{}/{name} is not in order", matrix().series))?;
        let run = Program::new("patch")
            // No fuzz: a hook that lands a line off its place is worse than one that does not land.
            .args(["-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch", "--directory"])
            .arg(tree)
            .stdin(self.as_file()?)
            .run(task);
        match run {
            Ok(_) => Ok(()),
            Err(ProcessError::Failed { tail, .. }) => bail!(
                "kernel/patches/{}/{name} does not apply to {whose}:\n{}\n{mend}",
                matrix().series,
                failing_hunks(&tail),
            ),
            Err(e) => Err(e.into()),
        }
    }
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

/// From what `patch` printed, the files with the hunks that failed.
fn failing_hunks(output: &str) -> String {
    let mut file = "";
    let mut failures = Vec::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("patching file ") {
            file = name;
        } else if line.contains("FAILED at") || line.contains("can't find file") || line.contains("malformed") {
            failures.push(format!("  {file}: {line}"));
        }
    }
    if failures.is_empty() {
        output.to_owned()
    } else {
        failures.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Subject: x\n\n\
        diff --git a/include/linux/kvm_host.h b/include/linux/kvm_host.h\n--- a/include/linux/kvm_host.h\n+++ b/include/linux/kvm_host.h\t2026\n@@ -1 +1 @@\n--- a\n\
        diff --git a/arch/x86/kvm/n.c b/arch/x86/kvm/n.c\n--- /dev/null\n+++ b/arch/x86/kvm/n.c\n";

    #[test]
    fn a_patch_names_its_files() {
        let files: BTreeSet<&str> = touched_files(PATCH).collect();
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            ["arch/x86/kvm/n.c", "include/linux/kvm_host.h"]
        );
    }

    #[test]
    fn a_part_for_one_file_can_be_left_out() {
        let rest = without_file(PATCH, "include/linux/kvm_host.h").unwrap();
        assert!(rest.starts_with("Subject: x\n\ndiff --git a/arch/x86/kvm/n.c ") && rest.ends_with("n.c\n"));
        let none = without_file(&rest, "arch/x86/kvm/n.c").unwrap();
        assert_eq!(none, "Subject: x\n\n");
        assert_eq!(without_file(PATCH, "arch/x86/kvm/n"), None);
    }

    #[test]
    fn a_failing_hunk_is_named() {
        let output = "patching file arch/x86/kvm/x86.c\nHunk #2 FAILED at 120.\n1 out of 2 hunks FAILED -- saving\npatching file virt/kvm/kvm_main.c\n";
        assert_eq!(failing_hunks(output), "  arch/x86/kvm/x86.c: Hunk #2 FAILED at 120.");
    }
}

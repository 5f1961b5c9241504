// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own judge of style, `checkpatch.pl` of the packaged source, over our C and our patches.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

use super::{fetch, resolve};

/// The folders with C of ours.
const FOLDERS: &[&str] = &["kernel/glue", "uapi/include", "harness/planted"];

/// Kinds of complaint that are none here, where, and why. The place is the beginning of a file's name.
const IGNORED: &[(&str, &str, &str)] = &[
    ("MISSING_SIGN_OFF", "kernel/patches/", "git says who wrote a patch"),
    (
        "COMMIT_LOG_LONG_LINE",
        "kernel/patches/",
        "descriptions wrap near 80 columns; they are read here and not in mails",
    ),
    (
        "VOLATILE",
        "harness/planted/",
        "the compiler must not leave out an access that is wrong on purpose",
    ),
    (
        "CONSTANT_COMPARISON",
        "kernel/glue/",
        "it takes a macro that is compared with a number for the number",
    ),
    (
        "MACRO_ARG_UNUSED",
        "kernel/glue/events.h",
        "in older kernels the function behind the macro takes one argument less",
    ),
    (
        "SPACING",
        "kernel/patches/6.12/0020-",
        "it does not know that a bit-field may have no name",
    ),
    (
        "LINUX_VERSION_CODE",
        "kernel/glue/",
        "one source is built for all kernels of the series",
    ),
];

/// What it complains of, and exceptions that nothing needs any more.
///
/// # Errors
///
/// When there is no kernel source, or checkpatch does not run.
pub fn findings(env: &Environment, task: &Task) -> Result<Vec<Finding>> {
    let (version, archive) = resolve(env, None)?;
    let checkpatch = fetch::source(env, &version, &archive)?.join("scripts/checkpatch.pl");
    let mut output = String::new();
    for folder in FOLDERS {
        let files = files_below(&env.path(folder))?;
        let is_c = |name: &String| name.ends_with(".c") || name.ends_with(".h");
        let names = files.iter().map(|(name, _)| name).filter(|name| is_c(name));
        let names: Vec<String> = names.map(|name| format!("{folder}/{name}")).collect();
        ensure!(!names.is_empty(), "{folder} has no C");
        output += &run(&checkpatch, &env.checkout, "--file", &names, task)?;
    }
    // A file that git knows would be taken for C, so patches are looked at where no checkout is.
    let elsewhere = tempfile::tempdir().context("make a folder for the patches")?;
    for (name, path) in files_below(&env.path("kernel/patches"))? {
        if name.ends_with(".patch") {
            let name = format!("kernel/patches/{name}");
            let to = elsewhere.path().join(&name);
            fs::create_dir_all(to.parent().context("a patch has a folder")?)?;
            fs::copy(&path, &to).with_context(|| format!("copy {name}"))?;
            output += &run(&checkpatch, elsewhere.path(), "--patch", &[name], task)?;
        }
    }
    Ok(judge(&output))
}

/// What it says of these files, a line each. It ends badly when it has something to say.
fn run(checkpatch: &Path, dir: &Path, mode: &str, names: &[String], task: &Task) -> Result<String> {
    task.note(names.last().cloned().unwrap_or_default());
    let mut output = String::new();
    let ran = Program::new("perl")
        .arg(checkpatch)
        .args([
            "--no-tree",
            "--terse",
            "--no-summary",
            "--show-types",
            "--color=never",
            mode,
        ])
        .args(names)
        .in_dir(dir)
        .each_line(|line| output += &format!("{line}\n"));
    // It says something of each file that it could not read, too.
    ensure!(
        ran.is_ok() || output.lines().any(|line| complaint(line).is_some()),
        "checkpatch did not run:\n{output}"
    );
    Ok(output)
}

/// File, line, kind and text of a line of its output: `a.c:3: WARNING:VOLATILE: Use of volatile …`.
fn complaint(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (file, rest) = line.split_once(':')?;
    let (number, rest) = rest.split_once(": ")?;
    let (severity, rest) = rest.split_once(':')?;
    let (kind, text) = rest.split_once(": ")?;
    ["ERROR", "WARNING", "CHECK"]
        .contains(&severity)
        .then_some((file, number, kind, text))
}

/// All that counts in its output.
fn judge(output: &str) -> Vec<Finding> {
    let mut unused: Vec<_> = IGNORED.to_vec();
    let mut findings = Vec::new();
    for (file, number, kind, text) in output.lines().filter_map(complaint) {
        let is_it = |(of, at, _): &&(&str, &str, &str)| *of == kind && file.starts_with(at);
        if let Some(ignored) = IGNORED.iter().find(is_it) {
            unused.retain(|other| other != ignored);
        } else {
            findings.push(finding(format!("{file}:{number}"), format!("{kind}: {text}")));
        }
    }
    let stale =
        |(kind, at, _): (&str, &str, &str)| finding(at, format!("{kind} is ignored here, and nothing needs that"));
    findings.extend(unused.into_iter().map(stale));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_ignored_there_alone() {
        let needed: String = IGNORED
            .iter()
            .map(|(kind, at, _)| format!("{at}a.c:1: WARNING:{kind}: x\n"))
            .collect();
        assert_eq!(judge(&needed), []);
        let more =
            format!("{needed}kernel/glue/a.c:7: ERROR:SPACING: space: one\nkernel/glue/a.c:9: WARNING:VOLATILE: y\n");
        assert_eq!(
            judge(&more),
            [
                finding("kernel/glue/a.c:7", "SPACING: space: one"),
                finding("kernel/glue/a.c:9", "VOLATILE: y")
            ]
        );
    }

    #[test]
    fn what_nothing_needs_is_told_of() {
        assert_eq!(judge("").len(), IGNORED.len());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own checker of C, sparse, over our part of the modules: address spaces, byte orders, locks that a path leaves held.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use deb_version::compare_versions;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::{self, Archive};
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_machine::cache::{Key, files_below};
use kvmi_lab_machine::emulator::quoted;
use kvmi_lab_machine::progress::Task;

use super::tree::{self, OURS};
use super::{Choice, Variant, sources, tempfile_dir, tree_name};

const PACKAGE: &str = "sparse";

/// With every line of ours in it.
const VARIANT: Variant = Variant {
    explores: true,
    has_race: false,
};

/// What it warns of in our files. KVM's own are not ours to mend.
///
/// # Errors
///
/// When a file cannot be compiled, or sparse cannot be had.
pub fn findings(env: &Environment, task: &Task) -> Result<Vec<Finding>> {
    let sparse = program(env)?;
    let (kernel, sources, tools) = sources(env, &Choice::default())?;
    let _lock = env.cache.lock("kernel-tree")?;
    let fresh = tempfile_dir(env)?;
    tree::make(env, &sources, &fresh, task)?;
    let work = env.cache.work(&format!("{}-sparse", tree_name(&kernel.version)))?;
    tree::sync(&fresh, &work)?;
    let glue = files_below(&env.path("kernel/glue"))?;
    let names = glue.iter().filter_map(|(name, _)| name.strip_suffix(".c"));
    let objects: Vec<String> = names.map(|name| format!("introspection/{name}.o")).collect();
    ensure!(!objects.is_empty(), "kernel/glue has no C");
    // What it says goes to a file: the build system's own output would be among it. What was compiled before is checked all the same.
    let said = work.join("sparse.log");
    fs::write(&said, "")?;
    let checker = work.join("sparse.sh");
    let script = format!(
        "#!/bin/sh\nexec {} \"$@\" 2>>{}\n",
        quoted(&sparse.to_string_lossy()),
        quoted(&said.to_string_lossy())
    );
    fs::write(&checker, script)?;
    fs::set_permissions(&checker, fs::Permissions::from_mode(0o755))?;
    let made = tools
        .program("make")
        .arg("-C")
        .arg(&kernel.headers)
        .arg(format!("M={}", work.join("arch/x86/kvm").display()))
        .arg(format!("-j{}", env.jobs()))
        .args(["C=2".to_owned(), format!("CHECK={}", checker.display())])
        .args(VARIANT.arguments())
        .args(&objects)
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env("LC_ALL", "C")
        .run(task);
    let findings = judge(&fs::read_to_string(&said)?);
    // An error of sparse's ends the build as well.
    if findings.is_empty() {
        made.with_context(|| format!("check with sparse; what it said is in {}", said.display()))?;
    }
    Ok(findings)
}

/// The program alone, unpacked into the cache: its package wants a whole compiler for another one that it brings.
fn program(env: &Environment) -> Result<PathBuf> {
    let offered = Archive::Machine.records(&[PACKAGE.to_owned()])?;
    let versions = offered.iter().filter(|s| s.package() == PACKAGE && s.is_on_offer());
    let version = versions
        .map(|s| s.version())
        .max_by(|a, b| compare_versions(a, b))
        .with_context(|| format!("apt knows no {PACKAGE}; try: {}", apt::update_command()))?;
    let key = Key::of("sparse 1").text("version", version).finish();
    let entry = env.cache.entry("sparse", &key, |dir| {
        let task = env.progress.task(format!("fetch {PACKAGE} {version}"));
        let deb = Archive::Machine.download(PACKAGE, version, dir, &task)?;
        apt::unpack(&deb, dir, &task)?;
        fs::remove_file(&deb)?;
        task.done();
        anyhow::Ok(())
    })?;
    Ok(entry.join("usr/bin").join(PACKAGE))
}

/// Warnings and errors in files of ours, each once: `/tree/arch/x86/kvm/introspection/a.c:1:2: warning: …`.
fn judge(output: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for line in output.lines() {
        let Some((place, text)) = [": warning: ", ": error: "]
            .iter()
            .find_map(|severity| line.split_once(severity))
        else {
            continue;
        };
        if let Some(ours) = ours(place) {
            let one = finding(format!("kernel/glue/{ours}"), text);
            if !findings.contains(&one) {
                findings.push(one);
            }
        }
    }
    findings
}

/// A place in our part of the tree, from there.
fn ours(place: &str) -> Option<&str> {
    let (_, ours) = place.split_once(OURS)?;
    Some(ours.trim_start_matches('/')).filter(|name| Path::new(name).components().next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_our_files_alone() {
        let output = "/t/arch/x86/kvm/introspection/step/svm.c: note: in included file:\n\
                      /t/arch/x86/kvm/vmx/hyperv_evmcs.h:133:30: warning: cast truncates bits from constant value\n\
                      /t/arch/x86/kvm/introspection/event/msr.c:7:9: warning: incorrect type in argument 1\n\
                      /t/arch/x86/kvm/introspection/event/msr.c:7:9: warning: incorrect type in argument 1\n\
                      /t/arch/x86/kvm/introspection/step/svm.c:1:1: error: undefined identifier\n";
        assert_eq!(
            judge(output),
            [
                finding("kernel/glue/event/msr.c:7:9", "incorrect type in argument 1"),
                finding("kernel/glue/step/svm.c:1:1", "undefined identifier")
            ]
        );
    }
}

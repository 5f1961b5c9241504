// SPDX-License-Identifier: MIT OR Apache-2.0
//! What compilers do not check: licences, where unsafe code may be, what must not be in the sources, what the map mentions,
//! what documents are held to.

mod documents;
mod shell;
mod workflows;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kvmi_lab::{parity, scenarios_page};
use kvmi_lab_checks::mutants;
use kvmi_lab_environment::finding::{Finding, finding};
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_selftests::record as selftests;

use crate::{contract, series};

/// Sources by their endings, and what stands before and after the licence in their first line.
const LICENSED: &[(&str, &str, &str)] = &[
    (".rs", "// ", ""),
    (".c", "// ", ""),
    (".h", "/* ", " */"),
    (".S", "/* ", " */"),
    (".ld", "/* ", " */"),
];

/// Licences of the folders that have one of their own; all others have the last one.
const LICENSES: &[(&str, &str)] = &[
    ("kernel/", "GPL-2.0-only"),
    ("uapi/", "(GPL-2.0 WITH Linux-syscall-note) OR MIT"),
    ("", "MIT OR Apache-2.0"),
];

/// Where unsafe code may be. Each has a reason that its own documentation gives.
const UNSAFE_PLACES: &[&str] = &[
    "kernel/module/",
    "guests/",
    "harness/machine/forkserver/",
    "harness/machine/preload/",
    "harness/machine/recorder/",
    "harness/machine/yielder/",
    "harness/machine/src/process.rs",
    "harness/l1/src/vmm/",
    "harness/scenarios/src/unserved_memory.rs",
    "userspace/kvmi/src/ioctls.rs",
];

/// Crates that forbid it even to their own lints.
const SAFE_CRATES: &[&str] = &["uapi/src/lib.rs", "kernel/core/src/lib.rs", "userspace/cli/src/lib.rs"];

/// More lines than one reads in one sitting.
const MAX_LINES: usize = 500;

/// Files that may be longer: tables, texts of others, and documents that are read by section.
const LONG: &[&str] = &[
    "Cargo.lock",
    "LICENSES/",
    "kernel/patches/",
    "docs/",
    "uapi/include/",
    "harness/lab-checks/mutations.toml",
];

/// The only place that crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Why `cargo xtask` with these arguments is no command; nothing if it is one.
pub type Refusal = fn(&[&str]) -> Option<String>;

/// Everything to mend in a checkout.
///
/// # Errors
///
/// When its files cannot be read.
pub fn findings(checkout: &Path, refusal: Refusal) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut folders = BTreeSet::new();
    for (name, path) in sources(checkout)? {
        // What tools look for under fixed names explains itself.
        if let Some((folder, _)) = name.split_once('/')
            && !folder.starts_with('.')
            && folder != "LICENSES"
        {
            folders.insert(folder.to_owned());
        }
        let Ok(text) = String::from_utf8(fs::read(&path).with_context(|| format!("read {name}"))?) else {
            continue;
        };
        findings.extend(of_file(&name, &text));
        if shell::is_script(&text)
            && let Some(what) = shell::complaint(&text)
        {
            findings.push(finding(&name, format!("bash cannot read it: {what}")));
        }
        let read = |file: &str| fs::read_to_string(checkout.join(file)).ok();
        findings.extend(documents::findings(&name, &text, read, |file| {
            checkout.join(file).exists()
        }));
        if name.starts_with(".github/") {
            findings.extend(workflows::findings(&name, &text, refusal, read));
        }
    }
    let map = fs::read_to_string(checkout.join("ARCHITECTURE.md")).unwrap_or_default();
    findings.extend(missing_in_map(&folders, &map));
    findings.extend(contract::findings(checkout)?);
    findings.extend(series::findings(checkout)?);
    findings.extend(parity::findings(checkout)?);
    findings.extend(mutants::findings(checkout)?);
    findings.extend(selftests::findings(checkout)?);
    findings.extend(scenarios_page::findings(checkout));
    Ok(findings)
}

/// All files but what tools made.
fn sources(checkout: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(checkout)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type()?.is_file() {
            all.push((name, entry.path()));
        } else {
            all.extend(
                files_below(&entry.path())?
                    .into_iter()
                    .map(|(below, path)| (format!("{name}/{below}"), path)),
            );
        }
    }
    all.sort();
    Ok(all)
}

fn of_file(name: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(licence(name, text));
    // Rows of a table are as many as there are.
    let is_row = |line: &&str| name.ends_with(".md") && line.starts_with("| ");
    let lines = text.lines().filter(|line| !is_row(line)).count();
    if lines > MAX_LINES && !LONG.iter().any(|l| name.starts_with(l)) {
        findings.push(finding(
            name,
            format!("{lines} lines, more than {MAX_LINES}: split it by subject"),
        ));
    }
    if SAFE_CRATES.contains(&name) && !text.contains("#![forbid(unsafe_code)]") {
        findings.push(finding(name, "must say #![forbid(unsafe_code)]"));
    }
    if name == "Cargo.lock" {
        let others = text
            .lines()
            .filter(|l| l.starts_with("source = ") && !l.contains(REGISTRY));
        findings.extend(others.map(|l| finding(name, format!("a crate from elsewhere than crates.io: {l}"))));
    }
    // What follows would find itself here.
    if name == "harness/source-checks/src/tidy.rs" {
        return findings;
    }
    for (number, line) in (1..).zip(text.lines()) {
        let at = format!("{name}:{number}");
        if name.ends_with(".rs") {
            let lifts = line.contains("allow(unsafe_code") || line.contains("expect(unsafe_code");
            if lifts && !UNSAFE_PLACES.iter().any(|p| name.starts_with(p)) {
                findings.push(finding(
                    &at,
                    "unsafe code outside the places that may have it (UNSAFE_PLACES in harness/source-checks/src/tidy.rs)",
                ));
            }
            if line.trim_start().starts_with("#[ignore") {
                findings.push(finding(&at, "an ignored test proves nothing: mend it or remove it"));
            }
        }
        for home in ["/home/", "/root/", "/Users/", "/work/"] {
            if line.contains(home) {
                findings.push(finding(&at, format!("a path of one machine: {home}")));
            }
        }
        if line.contains("artifactory")
            || (name.starts_with(".cargo/") && (line.contains("[source") || line.contains("registr")))
        {
            findings.push(finding(&at, "a registry of one machine"));
        }
    }
    findings
}

fn licence(name: &str, text: &str) -> Option<Finding> {
    let (_, before, after) = LICENSED.iter().find(|(ending, ..)| name.ends_with(ending))?;
    let (_, licence) = LICENSES.iter().find(|(folder, _)| name.starts_with(folder))?;
    let expected = format!("{before}SPDX-License-Identifier: {licence}{after}");
    // The kernel's own convention, `//` for .c and `/* */` for headers, is not the only one that its tools take.
    let bare = format!("SPDX-License-Identifier: {licence}");
    let first = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches(['/', '*', ' ', '#'])
        .trim_end_matches(['*', '/', ' ']);
    (first != bare).then(|| finding(format!("{name}:1"), format!("the first line must be: {expected}")))
}

fn missing_in_map(folders: &BTreeSet<String>, map: &str) -> Vec<Finding> {
    let unknown = folders.iter().filter(|f| !map.contains(&format!("{f}/")));
    unknown
        .map(|f| finding("ARCHITECTURE.md", format!("does not mention {f}/")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(name: &str, text: &str) -> Vec<String> {
        of_file(name, text)
            .into_iter()
            .map(|f| format!("{}: {}", f.at, f.what))
            .collect()
    }

    #[test]
    fn each_folder_has_its_licence() {
        assert_eq!(
            whats("xtask/src/a.rs", "// SPDX-License-Identifier: MIT OR Apache-2.0\n"),
            [""; 0]
        );
        assert_eq!(
            whats("kernel/glue/a.h", "/* SPDX-License-Identifier: GPL-2.0-only */\n"),
            [""; 0]
        );
        assert_eq!(
            whats("kernel/glue/a.c", "// SPDX-License-Identifier: MIT OR Apache-2.0\n").len(),
            1
        );
        assert_eq!(whats("uapi/src/a.rs", "//! No licence.\n").len(), 1);
        assert_eq!(whats("README.md", "text\n"), [""; 0]);
    }

    #[test]
    fn unsafe_code_only_where_it_belongs() {
        let text = "// SPDX-License-Identifier: MIT OR Apache-2.0\n#![allow(unsafe_code)]\n";
        assert_eq!(whats("guests/src/a.rs", text), [""; 0]);
        assert!(whats("harness/machine/src/qemu.rs", text)[0].starts_with("harness/machine/src/qemu.rs:2: unsafe"));
        let uapi = "// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT\n";
        assert_eq!(
            whats("uapi/src/lib.rs", uapi),
            ["uapi/src/lib.rs: must say #![forbid(unsafe_code)]"]
        );
    }

    #[test]
    fn what_belongs_to_one_machine_or_to_nobody() {
        let with = |line: &str| {
            whats(
                "xtask/src/a.rs",
                &format!("// SPDX-License-Identifier: MIT OR Apache-2.0\n{line}\n"),
            )
            .len()
        };
        assert_eq!(with("let a = \"/home/me/kvmi\";"), 1);
        assert_eq!(with("    #[ignore = \"flaky\"]"), 1);
        assert_eq!(with(&"//\n".repeat(501)), 1);
        assert_eq!(
            whats("Cargo.lock", "source = \"registry+https://mirror.example/index\"\n").len(),
            1
        );
        assert_eq!(whats("Cargo.lock", &format!("source = \"{REGISTRY}\"\n")), [""; 0]);
    }

    #[test]
    fn the_map_knows_every_folder() {
        let folders = ["uapi".to_owned(), "kernel".to_owned()].into();
        assert_eq!(
            missing_in_map(&folders, "`uapi/` is the contract"),
            [finding("ARCHITECTURE.md", "does not mention kernel/")]
        );
    }
}

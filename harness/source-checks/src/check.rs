// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks that boot nothing. Each that fails ends with the command that mends it.

use std::path::Path;

use anyhow::{Result, anyhow};
use kvmi_lab::images;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt;
use kvmi_lab_environment::finding::Finding;
use kvmi_lab_environment::tools::{DENY, NEXTEST};
use kvmi_lab_kernel as kernel;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;

use crate::tidy::{self, Refusal};

/// How many things passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that did.
    pub passed: usize,
    /// Those that did not.
    pub failed: usize,
}

/// What checks are given.
struct Context<'a> {
    env: &'a Environment,
    refusal: Refusal,
}

/// A check of the sources, and the command that mends what it finds.
struct Step {
    what: &'static str,
    check: fn(&Context<'_>, &Task) -> Result<Count>,
    mend: &'static str,
}

/// What any Linux with rustup can check, fastest first.
const ANYWHERE: &[Step] = &[
    Step {
        what: "check the format",
        check: format,
        mend: "cargo fmt --all",
    },
    Step {
        what: "look for what is untidy",
        check: untidy,
        mend: "edit the files named above",
    },
    Step {
        what: "check licences, versions and advisories of crates",
        check: crates,
        mend: "cargo update, or an exception with its reason in deny.toml",
    },
    Step {
        what: "check with clippy",
        check: clippy,
        mend: "cargo clippy --workspace --all-targets --fix --allow-dirty",
    },
    Step {
        what: "run unit and layout tests",
        check: unit_tests,
        mend: "cargo nextest run --workspace --exclude kvmi-lab-tests",
    },
    Step {
        what: "run the examples of the documentation",
        check: doc_tests,
        mend: "cargo test --doc",
    },
    Step {
        what: "build the documentation",
        check: documentation,
        mend: "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items",
    },
];

/// What needs the kernel's packages.
const FOR_KERNEL: &[Step] = &[
    Step {
        what: "build for bare metal",
        check: bare_metal,
        mend: "cargo xtask build",
    },
    Step {
        what: "check the style of C and patches with checkpatch",
        check: checkpatch,
        mend: "edit the files named above, or say in harness/kernel-build/src/checkpatch.rs why they are right",
    },
    Step {
        what: "check the C with sparse",
        check: sparse,
        mend: "edit the files named above",
    },
];

const ONE: Count = Count { passed: 1, failed: 0 };

/// Runs the checks, all of them even if one fails; with `kernel` also those of what runs in the kernel, for which packages are installed.
///
/// # Errors
///
/// When a check cannot be tried, for something is missing.
pub fn run(env: &Environment, refusal: Refusal, kernel: bool) -> Result<Count> {
    if kernel {
        apt::require_debian()?;
        apt::install_for_checks(env)?;
    }
    let steps = ANYWHERE.iter().chain(if kernel { FOR_KERNEL } else { &[] });
    let mut count = Count::default();
    for step in steps {
        let task = env.progress.task(step.what);
        match (step.check)(&Context { env, refusal }, &task) {
            Ok(more) => {
                task.done();
                count.passed += more.passed;
                count.failed += more.failed;
            }
            Err(error) => {
                drop(task);
                count.failed += 1;
                env.progress.say(format!("{error:#}\nto mend it: {}\n", step.mend));
            }
        }
    }
    Ok(count)
}

fn cargo(checkout: &Path, arguments: &[&str]) -> Program {
    Program::new("cargo")
        .args(arguments)
        .in_dir(checkout)
        .env("CARGO_TERM_COLOR", "never")
}

/// Nothing found is one check that passed.
fn none_of(findings: &[Finding], task: &Task) -> Result<Count> {
    if findings.is_empty() {
        return Ok(ONE);
    }
    let lines: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.at, f.what)).collect();
    for line in &lines {
        task.note(line.clone());
    }
    Err(anyhow!("{}", lines.join("\n")))
}

fn format(context: &Context<'_>, task: &Task) -> Result<Count> {
    cargo(&context.env.checkout, &["fmt", "--all", "--check"]).run(task)?;
    Ok(ONE)
}

fn untidy(context: &Context<'_>, task: &Task) -> Result<Count> {
    none_of(&tidy::findings(&context.env.checkout, context.refusal)?, task)
}

/// By deny.toml. Advisories come from a database that is fetched; where it cannot be had, the rest counts.
fn crates(context: &Context<'_>, task: &Task) -> Result<Count> {
    let env = context.env;
    let program = DENY.program(env)?;
    let deny = |what: &[&str]| {
        Program::new(&program)
            .args(["deny", "--color=never", "check", "--hide-inclusion-graph"])
            .args(what)
            .in_dir(&env.checkout)
    };
    deny(&["bans", "licenses", "sources"]).run(task)?;
    match deny(&["advisories"]).run(task) {
        Ok(_) => Ok(Count { passed: 2, failed: 0 }),
        Err(error) if is_without_database(&error.to_string()) => {
            env.progress
                .say("without advisories about crates: their database cannot be fetched");
            Ok(ONE)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether this is cargo-deny's way to say that it has no advisories to look through.
fn is_without_database(output: &str) -> bool {
    output.contains("failed to fetch advisory database") && !output.contains("error[")
}

fn clippy(context: &Context<'_>, task: &Task) -> Result<Count> {
    let arguments = "clippy --workspace --all-targets --locked -- -D warnings";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    cargo(&context.env.checkout, &arguments).run(task)?;
    Ok(ONE)
}

fn unit_tests(context: &Context<'_>, task: &Task) -> Result<Count> {
    let env = context.env;
    let output = Program::new(NEXTEST.program(env)?)
        .args("nextest run --workspace --exclude kvmi-lab-tests --locked".split(' '))
        .in_dir(&env.checkout)
        .env("CARGO_TERM_COLOR", "never")
        .run(task)?;
    for seed in output.lines().filter(|line| line.contains("KVMI_MODEL_SEED=")) {
        env.progress.say(seed.trim());
    }
    Ok(summary(&output))
}

/// What nextest's summary line says: `Summary [   1.5s] 3 tests run: 3 passed, 3 skipped`.
fn summary(output: &str) -> Count {
    let line = output
        .lines()
        .rfind(|l| l.trim_start().starts_with("Summary ["))
        .unwrap_or_default();
    let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let before = |word: &str| {
        words
            .windows(2)
            .find(|w| w[1] == word)
            .and_then(|w| w[0].parse().ok())
            .unwrap_or(0)
    };
    Count {
        passed: before("passed"),
        failed: before("failed"),
    }
}

/// Those of the crates that are built for this machine by default.
fn doc_tests(context: &Context<'_>, task: &Task) -> Result<Count> {
    cargo(&context.env.checkout, &["test", "--doc", "--locked"]).run(task)?;
    Ok(ONE)
}

fn documentation(context: &Context<'_>, task: &Task) -> Result<Count> {
    cargo(
        &context.env.checkout,
        &["doc", "--no-deps", "--document-private-items", "--locked"],
    )
    .env("RUSTDOCFLAGS", "-D warnings")
    .run(task)?;
    Ok(ONE)
}

/// The modules and the guests, neither of which may give a warning.
fn bare_metal(context: &Context<'_>, _: &Task) -> Result<Count> {
    kernel::build(context.env, &kernel::Choice::default())?;
    images::build_guests(context.env)?;
    Ok(ONE)
}

fn checkpatch(context: &Context<'_>, task: &Task) -> Result<Count> {
    none_of(&kernel::checkpatch::findings(context.env, task)?, task)
}

fn sparse(context: &Context<'_>, task: &Task) -> Result<Count> {
    none_of(&kernel::sparse::findings(context.env, task)?, task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advisory_is_no_missing_database() {
        assert!(is_without_database(
            "2026-11-30 21:11:38 [ERROR] failed to fetch advisory database https://example.org: failed to clone"
        ));
        assert!(!is_without_database(
            "error[vulnerability]: a is unsound\nadvisories FAILED"
        ));
    }

    #[test]
    fn the_runners_summary_is_understood() {
        let output = "noise\n     Summary [   1.537s] 44 tests run: 43 passed (1 slow), 1 failed, 3 skipped\n";
        assert_eq!(summary(output), Count { passed: 43, failed: 1 });
        assert_eq!(
            summary("     Summary [   0.1s] 3 tests run: 3 passed, 0 skipped"),
            Count { passed: 3, failed: 0 }
        );
    }
}

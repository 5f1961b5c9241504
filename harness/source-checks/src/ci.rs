// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a push must pass. Each step that fails ends with the command that mends it.

use anyhow::{Result, anyhow};
use kvmi_lab::e2e::{self, Wanted};
use kvmi_lab::{images, nextest};
use kvmi_lab_checks::twice;
use kvmi_lab_environment::apt;
use kvmi_lab_environment::workshop::Workshop;
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
    shop: &'a Workshop,
    refusal: Refusal,
}

/// A check of the sources, and the command that mends what it finds.
struct Step {
    what: &'static str,
    check: fn(&Context<'_>, &Task) -> Result<Count>,
    mend: &'static str,
}

/// All that can be checked without booting anything, fastest first.
const STEPS: &[Step] = &[
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
        what: "build for bare metal",
        check: bare_metal,
        mend: "cargo xtask build",
    },
];

const ONE: Count = Count { passed: 1, failed: 0 };

/// Runs everything; the scenarios only if no check of the sources fails, and one of them twice.
pub fn run(shop: &Workshop, wanted: &Wanted, refusal: Refusal) -> Result<Count> {
    let mut count = check(shop, refusal)?;
    if count.failed == 0 {
        let ran = e2e::run(shop, wanted)?;
        count.passed += ran.passed();
        count.failed += ran.failed();
        match twice::sample_again(shop, wanted, &ran)? {
            Ok(_) => count.passed += 1,
            Err(how) => {
                count.failed += 1;
                let all = "for all scenarios: cargo xtask twice --lane vmx-bochs";
                shop.progress
                    .say(format!("a run in Bochs is not like the one before: {how}\n{all}\n"));
            }
        }
    }
    Ok(count)
}

/// Runs the checks of the sources, all of them even if one fails.
pub fn check(shop: &Workshop, refusal: Refusal) -> Result<Count> {
    apt::require_debian()?;
    apt::install_needed(shop)?;
    let mut count = Count::default();
    for step in STEPS {
        let task = shop.progress.task(step.what);
        match (step.check)(&Context { shop, refusal }, &task) {
            Ok(more) => {
                task.done();
                count.passed += more.passed;
                count.failed += more.failed;
            }
            Err(error) => {
                drop(task);
                count.failed += 1;
                shop.progress.say(format!("{error:#}\nto mend it: {}\n", step.mend));
            }
        }
    }
    Ok(count)
}

fn cargo(shop: &Workshop, arguments: &[&str]) -> Program {
    Program::new("cargo")
        .args(arguments)
        .in_dir(&shop.checkout)
        .env("CARGO_TERM_COLOR", "never")
}

fn format(context: &Context<'_>, task: &Task) -> Result<Count> {
    cargo(context.shop, &["fmt", "--all", "--check"]).run(task)?;
    Ok(ONE)
}

fn clippy(context: &Context<'_>, task: &Task) -> Result<Count> {
    cargo(
        context.shop,
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )
    .run(task)?;
    Ok(ONE)
}

fn untidy(context: &Context<'_>, task: &Task) -> Result<Count> {
    let findings = tidy::findings(&context.shop.checkout, context.refusal)?;
    for finding in &findings {
        task.note(format!("{}: {}", finding.at, finding.what));
    }
    if findings.is_empty() {
        return Ok(ONE);
    }
    let lines: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.at, f.what)).collect();
    Err(anyhow!("{}", lines.join("\n")))
}

fn unit_tests(Context { shop, .. }: &Context<'_>, task: &Task) -> Result<Count> {
    let output = Program::new(nextest::program(shop)?)
        .args([
            "nextest",
            "run",
            "--workspace",
            "--exclude",
            "kvmi-lab-tests",
            "--locked",
        ])
        .in_dir(&shop.checkout)
        .env("CARGO_TERM_COLOR", "never")
        .run(task)?;
    for seed in output.lines().filter(|line| line.contains("KVMI_MODEL_SEED=")) {
        shop.progress.say(seed.trim());
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

/// The modules and the guests, neither of which may give a warning.
fn bare_metal(Context { shop, .. }: &Context<'_>, _: &Task) -> Result<Count> {
    kernel::build(shop, &kernel::Choice::default())?;
    images::build_guests(shop)?;
    Ok(ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

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

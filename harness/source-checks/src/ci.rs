// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a push must pass.

use anyhow::Result;
use kvmi_lab::e2e::{self, Options};
use kvmi_lab_checks::twice;
use kvmi_lab_environment::Environment;
use kvmi_lab_selftests::command as selftests;

use crate::check::{self, Count};
use crate::tidy::Refusal;

/// Runs everything; the scenarios only if no check of the sources fails, one of them twice, and a few of
/// KVM's own selftests.
///
/// # Errors
///
/// When something cannot be tried.
pub fn run(env: &Environment, wanted: &Options, refusal: Refusal) -> Result<Count> {
    let mut count = check::run(env, refusal, true)?;
    if count.failed == 0 {
        let ran = e2e::run(env, wanted)?;
        count.passed += ran.passed();
        count.failed += ran.failed();
        match twice::sample_again(env, wanted, &ran)? {
            Ok(_) => count.passed += 1,
            Err(how) => {
                count.failed += 1;
                let all = "for all scenarios: cargo xtask twice --lane vmx-bochs";
                env.progress
                    .say(format!("a run in Bochs is not like the one before: {how}\n{all}\n"));
            }
        }
        let selftests = selftests::run_counted(env, &selftests::Arguments::of_push(), wanted.json)?;
        count.passed += selftests.passed;
        count.failed += selftests.failed;
    }
    Ok(count)
}

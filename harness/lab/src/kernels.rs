// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every kernel of the table, one after the other: whether it takes the series, whether the modules build, whether the scenarios pass.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::{self, Archive};
use kvmi_lab_environment::exit;
use kvmi_lab_environment::output;
use kvmi_lab_environment::show;
use kvmi_lab_kernel::{self as kernel, Choice, KernelVersion};
use serde_json::json;

use crate::e2e::{self, Options, Slice};

/// How far to go with each kernel.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Step {
    /// Apply the series to its source: seconds for each, after the download
    Take,
    /// Build the modules for it, without warnings: a minute for each
    Build,
    /// Run the scenarios on it
    Run {
        /// A part of scenarios' names, or the whole name of one
        filter: Option<String>,
    },
}

/// What to do with which kernels.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    step: Step,
    /// One part of many of the kernels, e.g. 1/8: a job of CI each
    #[arg(long, value_name = "K/N", global = true)]
    slice: Option<Slice>,
}

/// Goes through the kernels, through all of them even if one fails.
pub fn run(env: &Environment, wanted: &Arguments, seed: u64, json: bool) -> Result<u8> {
    apt::require_debian()?;
    apt::install_needed(env)?;
    let mut kernels = kernel::all(env)?;
    if matches!(wanted.step, Step::Take) {
        // Flavours have one source.
        let mut seen = BTreeSet::new();
        kernels.retain(|(version, _)| seen.insert(version.package.clone()));
    }
    if let Some(slice) = wanted.slice {
        kernels = slice.of(kernels);
    }
    ensure!(
        !kernels.is_empty(),
        "no kernel left: cargo xtask list --kernels shows all"
    );
    let mut failed = 0;
    let count = kernels.len();
    for (version, archive) in kernels {
        let result = one(env, &wanted.step, &version, &archive, seed, json);
        let name = match wanted.step {
            Step::Take => version.package.clone(),
            Step::Build | Step::Run { .. } => version.release(),
        };
        failed += usize::from(result.is_err());
        let why = result.err().map(|e| format!("{e:#}"));
        if json {
            show!("{}", json!({ "event": "kernel", "kernel": name, "failed": why }));
        } else {
            show!("{name}: {}", why.as_deref().unwrap_or("fine"));
        }
    }
    if !json {
        show!("\n{}, {failed} failed", output::count(count, "kernel"));
    }
    Ok(match wanted.step {
        _ if failed == 0 => exit::OK,
        Step::Take | Step::Build => exit::CHECK_FAILED,
        Step::Run { .. } => exit::SCENARIO_FAILED,
    })
}

fn one(
    env: &Environment,
    step: &Step,
    version: &KernelVersion,
    archive: &Archive,
    seed: u64,
    json: bool,
) -> Result<()> {
    let choice = Choice {
        kernel: Some(version.release()),
        ..Choice::default()
    };
    match step {
        Step::Take => kernel::take(env, version, archive),
        Step::Build => kernel::build(env, &choice).and_then(|_| kernel::forget_tree(env, version)),
        Step::Run { filter } => {
            let wanted = Options {
                filter: filter.clone(),
                choice,
                seed,
                json,
                ..Options::default()
            };
            // If the kernel before failed, that is not to pass with this one.
            env.runs.failed();
            let ran = e2e::run(env, &wanted)?;
            kernel::forget_tree(env, version)?;
            let (passed, failed) = (ran.passed(), ran.failed());
            ensure!(failed == 0, "{failed} failed, {passed} passed; see above");
            env.runs.passed()
        }
    }
}

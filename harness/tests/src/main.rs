// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nextest face: one test for each scenario on each of its lanes, `LANE::scenario`. Listing them boots nothing.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use kvmi_lab_control::Lane;
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::Outcome;
use kvmi_lab_machine::process::end_with_parent;
use kvmi_lab_scenarios::transport::Run;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    // The runner ends its tests in groups of their own; a runner that was killed must not leave them either.
    if let Err(e) = end_with_parent() {
        eprintln!("cannot arrange to end with the test runner: {e}");
        return ExitCode::FAILURE;
    }
    let trials = kvmi_lab_scenarios::all().iter().flat_map(|scenario| {
        let trials = move |lane: Lane| {
            scenario.runs(lane).into_iter().map(move |Run { name, by_default }| {
                Trial::test(format!("{lane}::{name}"), move || run(lane, &name))
                    // What is run only when named.
                    .with_ignored_flag(!by_default)
            })
        };
        scenario.needs.lanes().flat_map(trials)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn run(lane: Lane, scenario: &str) -> Result<(), Failed> {
    let lab = LabRun::from_env()?;
    let record = lab.run(lane, scenario)?;
    if let Outcome::Skip { reason } = &record.outcome {
        println!("skip: {reason}");
    }
    if record.outcome.is_fine() {
        return Ok(());
    }
    // The runner takes what it shows as the reason, in JUnit too, from a line of this form on standard error.
    eprintln!("Error: {}", record.outcome);
    let logs = lab.scenario_folder(lane, scenario);
    let reproduce = lab.bundle(&record).map_or_else(
        |e| format!("(no bundle could be made: {e})"),
        |path| format!("cargo xtask repro {}", path.display()),
    );
    Err(format!("{}\nlogs: {}\nreproduce: {reproduce}", record.outcome, logs.display()).into())
}

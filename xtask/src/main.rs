// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every command a person or CI types.
//!
//! Exit codes are listed in `harness/environment/src/exit.rs` and in `cargo xtask --help`.

#![forbid(unsafe_code)]

mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kvmi_lab::e2e::{self, Options, Slice};
use kvmi_lab::filter::Filter;
use kvmi_lab::{hardware, kernels, list, parity, repro, scenarios_page, shell, summary};
use kvmi_lab_checks::{bench, endure, explore, mutants, planted, twice};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::finding::Finding;
use kvmi_lab_environment::{apt, complain, exit, output, show};
use kvmi_lab_kernel::{self as kernel, Choice};
use kvmi_lab_selftests::{command as selftests, record as selftests_record};
use kvmi_source_checks::{check, ci, contract, doctor, series, tidy};

const EXIT_CODES: &str = "Exit codes: 0 all well, 1 could not do it, 2 wrong usage, 10 a scenario, planted failure or selftest did not end as it should (e2e, bench, planted, twice, explore, selftests, kernels run), 11 ci, check, tidy, endure, mutants, kernels take or build found something, 12 doctor found something lacking, 13 repro came to another verdict";

/// Where random numbers start when nobody says otherwise: every run is the same.
const SEED: u64 = 1;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Builds kvmi, runs its lab, checks its sources", after_help = EXIT_CODES)]
struct Arguments {
    /// Write JSON lines for programs to standard output
    #[arg(long, global = true)]
    json: bool,
    /// Where runs have their folders, in place of target/lab: those of endure are not to sweep a person's last ones away
    #[arg(long, global = true, hide = true, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Install the Debian packages that are missing, without a question; so does CI=true in the environment
    #[arg(long, global = true)]
    install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build our kvm.ko, kvm-intel.ko and kvm-amd.ko for a stock Debian kernel
    Build(Choice),
    /// Copy the KVM that a kernel is packaged with into a new folder, to be changed and given to --kvm-source
    KvmSource {
        /// The new folder
        folder: PathBuf,
        /// The kernel, as for build
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
    },
    /// Run the scenarios, on svm-tcg, vmx-bochs and what hardware lanes there are unless a lane is named: set up, build, boot, run, and show how they ended
    E2e(E2eArguments),
    /// Run the scenario of a bundle again, as it ran where the bundle was made, and say whether it ends the same way
    Repro(repro::Arguments),
    /// Prove the lab's verdicts: plant failures, look whether each gets its verdict, and whether its bundle gives the same again
    Planted {
        /// On this lane only
        #[arg(long)]
        lane: Option<Lane>,
        /// Only what contains this
        filter: Option<String>,
        /// On a kernel that watches itself, what only such a one sees
        #[arg(long)]
        sanitize: bool,
    },
    /// A prompt in L1, with busybox: the modules loaded, a guest running
    Shell(shell::Arguments),
    /// Hunt races: run a scenario by many seeds, each of which has something else come first in L1
    Explore(explore::Arguments),
    /// Prove that Bochs is exact: run scenarios twice, each time in a machine restored anew, and compare all that L1 says
    Twice {
        /// On this lane only: vmx-bochs or svm-bochs
        #[arg(long)]
        lane: Option<Lane>,
        /// A part of scenarios' names, or the whole name of one
        filter: Option<String>,
    },
    /// Put faults into the kernel side, one at a time, and look whether the scenario that is named for each does not pass
    Mutants(mutants::Arguments),
    /// Run KVM's own selftests in L1 with our KVM, and compare how each ends with how it ends with stock KVM
    Selftests(selftests::Arguments),
    /// List the scenarios, where they run, or the kernels
    List {
        /// A part of scenarios' names, or the whole name of one, as for e2e
        #[arg(conflicts_with = "kernels")]
        filter: Option<String>,
        /// Say which lanes run here, and which scenarios do not run on which lane, and why not
        #[arg(long)]
        why: bool,
        /// List the kernels that --kernel takes
        #[arg(long, conflicts_with = "why")]
        kernels: bool,
    },
    /// Go through all kernels that --kernel takes
    Kernels(kernels::Arguments),
    /// Everything that a push must pass: format, lints, tests, tidiness, bare-metal builds, scenarios on the lanes of e2e
    Ci,
    /// The part of ci that needs Rust by rustup and nothing else: format, lints, tests, documentation, licences, tidiness
    Check {
        /// Check what runs in the kernel as well: build the modules and the guests, checkpatch, sparse
        #[arg(long)]
        kernel: bool,
    },
    /// Look for what is untidy in the sources; the part of ci that takes no time
    Tidy,
    /// Write those tables of the documents anew that follow from the sources, and from what runs have shown
    Docs {
        /// A run of e2e, target/lab/NUMBER, whose results docs/parity.md is to have; may be given several times
        #[arg(long, value_name = "FOLDER")]
        results: Vec<PathBuf>,
        /// A run of selftests, target/lab/NUMBER, whose results docs/selftests.md is to have; may be given several times
        #[arg(long, value_name = "FOLDER")]
        selftests: Vec<PathBuf>,
    },
    /// Say what this machine has, lacks and can run, and the command that mends each lack
    Doctor,
    /// Kill the lab's processes at random moments and look for what is left
    Endure {
        /// How many moments
        #[arg(long, default_value_t = 50)]
        moments: u32,
        /// The lane
        #[arg(long, default_value_t = Lane::SvmTcg)]
        lane: Lane,
        /// Where random moments start
        #[arg(long, default_value_t = SEED)]
        seed: u64,
    },
    /// Count what introspection costs when it is off or idle, against the stock modules
    Bench(Choice),
}

#[derive(Debug, clap::Args)]
struct E2eArguments {
    /// A part of scenarios' names, or the whole name of one
    filter: Option<String>,
    /// Run on this lane only: svm-tcg, vmx-bochs, svm-bochs, or where the machine has it svm-kvm or vmx-kvm; or, given several times, on these
    #[arg(long)]
    lane: Vec<Lane>,
    /// Run on the hardware lanes that this machine has and on no other; where it has none, say why, and be content
    #[arg(long, conflicts_with = "lane")]
    hardware: bool,
    #[command(flatten)]
    choice: Choice,
    /// Where the scenarios' random numbers start
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// Run one part of many of the scenarios, e.g. 1/2: a job of CI each
    #[arg(long, value_name = "K/N")]
    slice: Option<Slice>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let progress = screen::progress(arguments.json);
    let ran = Environment::open(progress, arguments.logs.as_deref(), arguments.install).and_then(|env| {
        let code = run(&env, &arguments)?;
        if code == exit::OK {
            env.runs.passed()?;
        }
        Ok(code)
    });
    match ran {
        // What was asked for and could not be shown was not done.
        Ok(exit::OK) if !output::is_whole() => exit::ERROR.into(),
        Ok(code) => code.into(),
        Err(error) => {
            complain!("error: {error:#}");
            exit::ERROR.into()
        }
    }
}

fn run(env: &Environment, arguments: &Arguments) -> Result<u8> {
    match &arguments.command {
        Command::Build(choice) => {
            apt::require_debian()?;
            apt::install_needed(env)?;
            let built = kernel::build(env, choice)?;
            let release = built.kernel.version.release();
            if arguments.json {
                show!(
                    "{}",
                    serde_json::json!({ "event": "built", "kernel": release, "modules": built.modules })
                );
            } else {
                show!("modules for {release} are in {}", built.modules.display());
            }
            Ok(exit::OK)
        }
        Command::KvmSource { folder, kernel } => {
            apt::require_debian()?;
            apt::install_needed(env)?;
            let version = kernel::begin_own_source(env, kernel.as_deref(), folder)?;
            if arguments.json {
                show!(
                    "{}",
                    serde_json::json!({ "event": "kvm_source", "version": version.to_string(), "folder": folder })
                );
            } else {
                show!(
                    "the KVM of {version} is in {0}; change it, then: cargo xtask e2e --kvm-source {0}",
                    folder.display()
                );
            }
            Ok(exit::OK)
        }
        Command::E2e(e2e) => {
            let lacks = if e2e.hardware {
                hardware::unavailable_lanes()
            } else {
                Vec::new()
            };
            if !lacks.is_empty() {
                for lack in &lacks {
                    env.progress.say(lack.clone());
                }
                summary::add_lacks(&lacks)?;
                return Ok(exit::OK);
            }
            let wanted = Options {
                filter: e2e.filter.clone(),
                lanes: e2e.lane.clone(),
                hardware: e2e.hardware,
                choice: e2e.choice.clone(),
                seed: e2e.seed,
                slice: e2e.slice,
                json: arguments.json,
            };
            let ran = e2e::run(env, &wanted)?;
            Ok(if ran.failed() == 0 {
                exit::OK
            } else {
                exit::SCENARIO_FAILED
            })
        }
        Command::Shell(wanted) => shell::run(env, wanted),
        Command::Repro(wanted) => repro::run(env, wanted, arguments.json),
        Command::Planted { lane, filter, sanitize } => {
            let all = if *sanitize { planted::SANITIZED } else { planted::GROUP };
            let wanted = Options {
                filter: Some(filter.clone().unwrap_or_else(|| all.to_owned())),
                lanes: lane.iter().copied().collect(),
                choice: Choice {
                    sanitize: *sanitize,
                    ..Choice::default()
                },
                seed: SEED,
                json: arguments.json,
                ..Options::default()
            };
            planted::run(env, &wanted)
        }
        Command::Explore(wanted) => explore::run(env, wanted, arguments.json),
        Command::Twice { lane, filter } => {
            let wanted = Options {
                filter: filter.clone(),
                lanes: lane.iter().copied().collect(),
                seed: SEED,
                json: arguments.json,
                ..Options::default()
            };
            twice::run(env, &wanted)
        }
        Command::Mutants(wanted) => mutants::run(env, wanted, SEED, arguments.json),
        Command::Selftests(wanted) => selftests::run(env, wanted, arguments.json),
        Command::List { filter, why, kernels } => {
            let filter = Filter::of(filter.as_deref())?;
            if *kernels {
                list::kernels(env, arguments.json)?;
            } else if *why {
                list::why(env, &filter, arguments.json)?;
            } else {
                list::scenarios(&filter, arguments.json);
            }
            Ok(exit::OK)
        }
        Command::Kernels(wanted) => kernels::run(env, wanted, SEED, arguments.json),
        Command::Ci => {
            let wanted = Options {
                seed: SEED,
                json: arguments.json,
                ..Options::default()
            };
            Ok(show_count(arguments, ci::run(env, &wanted, refusal)?))
        }
        Command::Check { kernel } => Ok(show_count(arguments, check::run(env, refusal, *kernel)?)),
        Command::Tidy => {
            let findings = tidy::findings(&env.checkout, refusal)?;
            for Finding { at, what } in &findings {
                if arguments.json {
                    show!("{}", serde_json::json!({ "event": "untidy", "at": at, "what": what }));
                } else {
                    show!("{at}: {what}");
                }
            }
            if arguments.json {
                show!("{}", serde_json::json!({ "event": "tidy", "findings": findings.len() }));
            }
            Ok(if findings.is_empty() {
                exit::OK
            } else {
                exit::CHECK_FAILED
            })
        }
        Command::Docs { results, selftests } => {
            let written = [
                contract::write(&env.checkout)?,
                series::write(&env.checkout)?,
                scenarios_page::write(&env.checkout)?,
                parity::write(&env.checkout, results)?,
                selftests_record::write(&env.checkout, selftests)?,
            ];
            let changed = written.contains(&true);
            if arguments.json {
                show!("{}", serde_json::json!({ "event": "docs", "changed": changed }));
            } else {
                show!("{}", if changed { "written anew" } else { "nothing was stale" });
            }
            Ok(exit::OK)
        }
        Command::Doctor => {
            let mut lacking = 0;
            doctor::examine(env, |item| {
                lacking += usize::from(item.state == doctor::State::Lacks);
                doctor::show(item, arguments.json)
            })?;
            doctor::close(lacking, arguments.json);
            Ok(if lacking > 0 { exit::LACKING } else { exit::OK })
        }
        &Command::Endure { moments, lane, seed } => {
            let endured = endure::run(env, endure::Options { moments, lane, seed })?;
            let is_well = endured.left.is_empty();
            if arguments.json {
                show!(
                    "{}",
                    serde_json::json!({ "event": "endured", "killed": endured.killed, "left": endured.left })
                );
            } else {
                for (program, times) in &endured.killed {
                    show!("{times:4} x {program} killed");
                }
                for left in &endured.left {
                    show!("left: {left}");
                }
                show!(
                    "{}",
                    if is_well {
                        "nothing was left"
                    } else {
                        "again: the same command"
                    }
                );
            }
            Ok(if is_well { exit::OK } else { exit::CHECK_FAILED })
        }
        Command::Bench(choice) => {
            // Only Bochs counts exactly.
            let (filter, lanes) = (Some(bench::GROUP.to_owned()), vec![Lane::VmxBochs]);
            let wanted = Options {
                filter,
                lanes,
                choice: choice.clone(),
                seed: SEED,
                json: arguments.json,
                ..Options::default()
            };
            let is_fine = bench::run(env, &wanted)?;
            Ok(if is_fine { exit::OK } else { exit::SCENARIO_FAILED })
        }
    }
}

/// Why these arguments are refused, for those who look through commands that nobody has typed yet.
fn refusal(words: &[&str]) -> Option<String> {
    let error = Arguments::try_parse_from(["cargo xtask"].iter().chain(words)).err()?;
    Some(error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// The closing line of ci, and the exit code.
fn show_count(arguments: &Arguments, count: check::Count) -> u8 {
    if arguments.json {
        show!(
            "{}",
            serde_json::json!({ "event": "ci", "passed": count.passed, "failed": count.failed })
        );
    } else {
        show!("\n{} passed, {} failed", count.passed, count.failed);
    }
    if count.failed == 0 {
        exit::OK
    } else {
        exit::CHECK_FAILED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_there_are_not_are_refused() {
        assert_eq!(refusal(&["check"]), None);
        assert_eq!(refusal(&["e2e", "lab::", "--lane", "svm-tcg"]), None);
        let refused = refusal(&["e2e", "--lane", "no-lane"]).unwrap();
        assert!(
            refused.starts_with("error: ") && refused.contains("no-lane"),
            "{refused}"
        );
        assert!(refusal(&["no-such"]).is_some());
    }

    #[test]
    fn what_holds_for_all_commands_has_a_name_of_its_own() {
        for line in [
            "xtask explore a::b --runs 3 --logs /l",
            "xtask endure --moments 3 --logs /l",
            "xtask e2e --logs /l a::b --seed 3",
        ] {
            let parsed = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(parsed.logs, Some("/l".into()), "{line}");
        }
    }
}

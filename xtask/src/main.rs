// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every command a person or CI types.
//!
//! Exit codes are listed in `exit.rs` and in `cargo xtask --help`.

#![forbid(unsafe_code)]

mod apt;
mod bare_metal;
mod e2e;
mod emulators;
mod exit;
mod kernel;
mod lab;
mod lockfile;
mod nextest;
mod screen;
mod table;
mod workshop;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kvmi_lab_control::Lane;

use crate::workshop::Workshop;

const EXIT_CODES: &str = "Exit codes: 0 all well, 1 could not do it, 2 wrong usage, 10 a scenario did not pass, 11 a check of ci found something, 12 doctor found something lacking";

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Builds kvmi, runs its lab, checks its sources", after_help = EXIT_CODES)]
struct Arguments {
    /// Write JSON lines for programs to standard output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build our kvm.ko, kvm-intel.ko and kvm-amd.ko for a stock Debian kernel
    Build {
        /// The kernel, e.g. 6.12.115; the newest that Debian has when not given
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
    },
    /// Run the scenarios on every lane: set up, build, boot, run, and show how they ended
    E2e(E2eArguments),
    /// List the scenarios; nothing is booted
    List,
}

#[derive(Debug, clap::Args)]
struct E2eArguments {
    /// A part of scenarios' names, or the whole name of one
    filter: Option<String>,
    /// Run on this lane only: svm-tcg or vmx-bochs
    #[arg(long)]
    lane: Option<Lane>,
    /// The kernel, e.g. 6.12.115; the newest that Debian has when not given
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Where the scenarios' random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let progress = screen::progress(arguments.json);
    let ran = Workshop::open(progress).and_then(|shop| run(&shop, &arguments));
    match ran {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            exit::ERROR.into()
        }
    }
}

fn run(shop: &Workshop, arguments: &Arguments) -> Result<u8> {
    match &arguments.command {
        Command::Build { kernel } => {
            apt::require_debian()?;
            apt::install_needed(shop)?;
            let built = kernel::build(shop, kernel.as_deref())?;
            println!(
                "modules for {} are in {}",
                built.kernel.version.release(),
                built.modules.display()
            );
            Ok(exit::OK)
        }
        Command::E2e(e2e) => {
            let wanted = e2e::Wanted {
                filter: e2e.filter.clone(),
                lane: e2e.lane,
                kernel: e2e.kernel.clone(),
                seed: e2e.seed,
                json: arguments.json,
            };
            let ran = e2e::run(shop, &wanted)?;
            Ok(if ran.failed() == 0 {
                exit::OK
            } else {
                exit::SCENARIO_FAILED
            })
        }
        Command::List => {
            e2e::list(shop)?;
            Ok(exit::OK)
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every command a person or CI types.
//!
//! Exit codes are listed in `exit.rs` and in `cargo xtask --help`.

#![forbid(unsafe_code)]

mod apt;
mod bare_metal;
mod exit;
mod kernel;
mod lockfile;
mod screen;
mod workshop;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    }
}

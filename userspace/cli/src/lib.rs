// SPDX-License-Identifier: MIT OR Apache-2.0
//! `kvmi`: look into the VMs of this host.
//!
//! Exit codes: 0, it is done; 1, it failed, and standard error says why; 2, the command line makes no sense.

#![forbid(unsafe_code)]

mod list;
mod memory;
mod number;
mod output;
mod vcpus;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use kvmi::{Session, SessionOptions, host};

use crate::{number::number, output::Output};

/// How long the kernel, or a vCPU, may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Look into the KVM virtual machines of this host. Without a command: list them.
#[derive(Debug, Parser)]
#[command(name = "kvmi", version, max_term_width = 100)]
struct Cli {
    /// Write one JSON object for programs to standard output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which VM.
#[derive(Args, Debug)]
struct Which {
    /// The VMM's process id, the VM's name (QEMU's -name, libvirt's domain name), its UUID, or PID:DESCRIPTOR
    vm: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All VMs that this user can see, and who introspects them
    List,
    /// What one VM is, and what its vCPUs are doing
    Info {
        #[command(flatten)]
        which: Which,
    },
    /// The registers of vCPUs
    Regs {
        #[command(flatten)]
        which: Which,
        /// This vCPU alone
        #[arg(long)]
        vcpu: Option<u16>,
        /// These MSRs too, by number; may be given several times
        #[arg(long, value_parser = number::<u32>)]
        msr: Vec<u32>,
    },
    /// Guest memory
    Read {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        place: Place,
        /// How many bytes; with K, M or G behind it 1024 times as many and so on
        #[arg(value_parser = number::<u64>)]
        bytes: u64,
        /// Write them to this file in place of showing them
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Change guest memory
    Write {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        place: Place,
        /// The bytes, in hexadecimal, e.g. 90cc or "90 cc"
        #[arg(required_unless_present = "from")]
        hex: Option<String>,
        /// Take the bytes from this file
        #[arg(long, conflicts_with = "hex")]
        from: Option<PathBuf>,
    },
    /// Where a vCPU's page tables map a virtual address
    Translate {
        #[command(flatten)]
        which: Which,
        /// The virtual address
        #[arg(value_parser = number::<u64>)]
        address: u64,
        /// By this vCPU's page tables
        #[arg(long, default_value_t = 0)]
        vcpu: u16,
        /// By the page tables at this root, as CR3 holds it
        #[arg(long, value_parser = number::<u64>)]
        root: Option<u64>,
    },
    /// End a session that was left behind, or that is somebody else's
    Free {
        #[command(flatten)]
        which: Which,
    },
}

/// An address in the guest.
#[derive(Args, Clone, Copy, Debug)]
struct Place {
    /// The address: physical, unless --virtual is given
    #[arg(value_parser = number::<u64>)]
    address: u64,
    /// It is virtual
    #[arg(long = "virtual")]
    is_virtual: bool,
    /// With --virtual: by this vCPU's page tables
    #[arg(long, default_value_t = 0, requires = "is_virtual")]
    vcpu: u16,
}

/// The command, with its name and its arguments; its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody could be told that it cannot be told.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let output = Output { json: cli.json };
    match run(cli.command.unwrap_or(Command::List), &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvmi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::List => list::list(output),
        Command::Info { which } => vcpus::info(&host::find(&which.vm)?, output),
        Command::Regs { which, vcpu, msr } => vcpus::registers(&attach(&which)?, vcpu, &msr, output),
        Command::Read {
            which,
            place,
            bytes,
            to,
        } => memory::read(&attach(&which)?, place, bytes, to.as_deref(), output),
        Command::Write {
            which,
            place,
            hex,
            from,
        } => memory::write(&attach(&which)?, place, hex.as_deref(), from.as_deref(), output),
        Command::Translate {
            which,
            address,
            vcpu,
            root,
        } => memory::translate(&attach(&which)?, address, vcpu, root, output),
        Command::Free { which } => list::free(&host::find(&which.vm)?, output),
    }
}

fn attach(which: &Which) -> anyhow::Result<Session> {
    Ok(host::find(&which.vm)?.open(SessionOptions::new().timeout(PATIENCE), 0)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            &["regs"][..],
            &["read", "web", "0x1000"],
            &["read", "web", "0x1000", "many"],
            &["read", "web", "0x1000", "16", "--vcpu", "1"],
            &["write", "web", "0x1000"],
            &["write", "web", "0x1000", "90", "--from", "f"],
            &["translate", "web", "0xg"],
        ] {
            assert!(Cli::try_parse_from([&["kvmi"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}

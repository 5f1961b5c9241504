// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is kept of one scenario: a folder with a file for each kind of evidence.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use kvmi_lab_control::{FromL1, ToL1, encode};

/// The kernel's log of L1, from the snapshot on.
pub const CONSOLE: &str = "console.log";
/// What was said by whom and when, for people.
pub const LOG: &str = "scenario.log";
/// What L2 wrote, and what its VMM says of it.
pub const GUEST: &str = "guest.log";
/// What went over the control channel, both ways, as it was.
pub const CONTROL: &str = "control.log";
/// The KVMI messages, decoded, one a line.
pub const WIRE: &str = "wire.log";
/// What the emulator said.
pub const EMULATOR_LOG: &str = "emulator.log";
/// The emulator's version, command line and configuration.
pub const EMULATOR: &str = "emulator.txt";
/// Registers of all CPUs, when a deadline passed.
pub const REGISTERS: &str = "registers.txt";

/// All of them, in the order in which one looks at them.
pub const FILES: &[&str] = &[LOG, CONSOLE, GUEST, WIRE, CONTROL, REGISTERS, EMULATOR, EMULATOR_LOG];

/// Who writes into the log of L2.
const OF_GUEST: &[&str] = &["guest", "vmm"];

/// The logs that are written while a scenario runs.
#[derive(Debug)]
pub struct RunFolder {
    log: File,
    guest: File,
    control: File,
    wire: File,
    began: Instant,
}

impl RunFolder {
    /// Makes the folder and its logs; times in them count from `began`.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn create(folder: &Path, began: Instant) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let create = |name| File::create(folder.join(name));
        Ok(Self {
            log: create(LOG)?,
            guest: create(GUEST)?,
            control: create(CONTROL)?,
            wire: create(WIRE)?,
            began,
        })
    }

    /// Keeps what L1 was told.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn told(&mut self, message: &ToL1) -> io::Result<()> {
        let time = self.time();
        write!(self.control, "{time} > {}", encode(message))
    }

    /// Keeps what L1 said.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn heard(&mut self, message: &FromL1) -> io::Result<()> {
        let time = self.time();
        write!(self.control, "{time} < {}", encode(message))?;
        match message {
            FromL1::Ready { backend, kernel } => self.line("ready", &format!("{backend}, kernel {kernel}")),
            FromL1::Started { scenario } => self.line("started", scenario),
            FromL1::Stage { name, deadline_ms } => self.line("stage", &format!("{name} (at most {deadline_ms} ms)")),
            FromL1::Log { source, text } => {
                if OF_GUEST.contains(&source.as_str()) {
                    writeln!(self.guest, "{time} {source}: {text}")?;
                }
                self.line(source, text)
            }
            FromL1::Transcript { text } => {
                writeln!(self.wire, "{text}")?;
                self.line("wire", text)
            }
            FromL1::Symbols { text } => self.line("symbols", &format!("{} lines", text.lines().count())),
            FromL1::Prompt { guest, vcpus, .. } => self.line("prompt", &format!("guest {guest}, {vcpus} vCPUs")),
            FromL1::Measure { name, value, unit } => self.line("measure", &format!("{name}: {value} {unit}")),
            FromL1::Done { verdict } => self.line("done", &format!("{verdict:?}")),
        }
    }

    /// A line for people.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn line(&mut self, source: &str, text: &str) -> io::Result<()> {
        let time = self.time();
        writeln!(self.log, "{time} {source}: {text}")
    }

    fn time(&self) -> String {
        format!("[{:9.3}]", self.began.elapsed().as_secs_f64())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting L1: what is booted, and the wait for the snapshot from which scenarios start.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kvmi_lab_control::{Backend, FromL1, Lane, LineReader, PLATFORM, Platform, ReadError};
use serde::{Deserialize, Serialize};

use crate::complaint::complaints;
use crate::process::ProcessError;
use crate::progress::Task;
use crate::qmp::QmpError;

/// What L1 is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// The stock kernel.
    pub kernel: PathBuf,
    /// The archive with `/init`, modules and guests.
    pub initrd: PathBuf,
    /// What the kernel is told on every lane.
    pub arguments: Vec<String>,
    /// How many times longer things may take in it than in a stock kernel.
    pub slowness: u32,
    /// What the machine has.
    pub hardware: Hardware,
}

/// What of L1's machine is not the same for all that runs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Its memory.
    pub memory_mib: u32,
    /// Whether QEMU translates for all CPUs on one thread. What runs on several must not patch the kernel's text: see the lane's
    /// kernel arguments.
    pub one_thread: bool,
}

impl Default for Hardware {
    /// What scenarios run on.
    fn default() -> Self {
        Self {
            memory_mib: MEMORY_MIB,
            one_thread: false,
        }
    }
}

impl Boot {
    /// This kernel and this archive, with the arguments that the lab gives to kernels.
    #[must_use]
    pub fn new(kernel: PathBuf, initrd: PathBuf) -> Self {
        let arguments = KERNEL_ARGUMENTS.iter().map(|&a| a.to_owned()).collect();
        Self {
            kernel,
            initrd,
            arguments,
            slowness: 1,
            hardware: Hardware::default(),
        }
    }

    /// The kernel's command line, with what a lane adds.
    pub(crate) fn command_line(&self, platform: Platform, more: &[&str]) -> String {
        let platform = format!("{PLATFORM}={platform}");
        let own = self.arguments.iter().map(String::as_str);
        let all = own.chain([platform.as_str()]).chain(more.iter().copied());
        all.collect::<Vec<_>>().join(" ")
    }
}

/// Memory of an L1 that runs scenarios.
pub(crate) const MEMORY_MIB: u32 = 512;

/// Kernel arguments on every lane, each with its reason.
const KERNEL_ARGUMENTS: &[&str] = &[
    // L0 keeps what the first serial port says.
    "console=ttyS0",
    // An L1 that broke is of no use any more: end it, the emulators are told not to reboot.
    "panic=-1",
    "oops=panic",
    // By a triple fault, which ends every emulator; Bochs would boot anew on a reset.
    "reboot=t",
    // Addresses in logs match System.map.
    "nokaslr",
    // Emulated CPUs leak nothing to anyone.
    "mitigations=off",
    // There is no other clock worth comparing with.
    "tsc=reliable",
];

/// Why L1 did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file or socket could not be had.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was tried.
        action: String,
        /// The system's answer.
        error: io::Error,
    },
    /// A program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// QEMU did not do as told.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// The emulator ended before the snapshot.
    #[error("{lane}: the emulator ended before L1 was ready ({status}); the end of {}:\n{tail}", log.display())]
    Ended {
        /// The lane.
        lane: Lane,
        /// How the emulator ended.
        status: String,
        /// The log that was looked at.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// A library that is preloaded into the emulator ended it.
    #[error("{lane}: the emulator was ended from within by {why}")]
    GaveUp {
        /// The lane.
        lane: Lane,
        /// What the library said, its name first.
        why: String,
    },
    /// The snapshot did not come in time.
    #[error("{lane}: L1 was not ready after {} s; the end of {}:\n{tail}", after.as_secs(), log.display())]
    Late {
        /// The lane.
        lane: Lane,
        /// How long was waited.
        after: Duration,
        /// L1's console log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// Something else than Ready and the snapshot came on the control channel.
    #[error("{lane}: L1 did not say that it is ready: {message}; its console is in {}", log.display())]
    Unready {
        /// The lane.
        lane: Lane,
        /// What it said instead.
        message: String,
        /// L1's console log.
        log: PathBuf,
    },
    /// QEMU runs otherwise than the lane promises.
    #[error("{lane}: qemu runs with {has}, which is not what this lane is for")]
    Acceleration {
        /// The lane.
        lane: Lane,
        /// What it has.
        has: &'static str,
    },
    /// The lane's emulator has no debug stub.
    #[error("{lane}: its emulator has no stub for gdb; lanes in QEMU have, e.g. svm-tcg")]
    NoDebugStub {
        /// The lane.
        lane: Lane,
    },
    /// L1's kernel complained while it booted.
    #[error("{lane}: L1's kernel complains while booting, see {}:\n{}", log.display(), complaints.join("\n"))]
    Complaints {
        /// The lane.
        lane: Lane,
        /// The lines.
        complaints: Vec<String>,
        /// L1's console log.
        log: PathBuf,
    },
}

pub(crate) fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    move |error| BootError::Io {
        action: action.into(),
        error,
    }
}

/// Reads Ready and the snapshot from the control channel, showing the console's last line meanwhile.
///
/// `on_point` is told how to have the emulator's exit status when the channel ends before.
pub(crate) fn wait_for_point(
    lane: Lane,
    control: impl Read + Send + 'static,
    console: &Path,
    at_most: Duration,
    task: &Task,
    status: impl FnOnce() -> Option<ExitStatus>,
) -> Result<(), BootError> {
    let (send, receive) = mpsc::channel();
    // Ends with the channel, at the latest when the emulator does.
    thread::spawn(move || send.send(read_point(control)));
    let end = Instant::now() + at_most;
    let unready = |message| BootError::Unready {
        lane,
        message,
        log: console.to_owned(),
    };
    let ready = loop {
        match receive.recv_timeout(Duration::from_millis(500)) {
            Ok(result) => break result,
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => task.note(last_line(console)),
            Err(RecvTimeoutError::Timeout) => {
                return Err(BootError::Late {
                    lane,
                    after: at_most,
                    log: console.to_owned(),
                    tail: tail(console),
                });
            }
            Err(RecvTimeoutError::Disconnected) => return Err(unready("the reader of the channel ended".into())),
        }
    };
    match ready {
        Ok(Some(backend)) if backend == lane.backend() => Ok(()),
        Ok(Some(backend)) => Err(unready(format!(
            "it loaded the {backend} back end, expected {}",
            lane.backend()
        ))),
        Ok(None) => {
            let status = status().map_or_else(|| "still running".to_owned(), |s| s.to_string());
            Err(BootError::Ended {
                lane,
                status,
                log: console.to_owned(),
                tail: tail(console),
            })
        }
        Err(e) => Err(unready(e)),
    }?;
    let log = read_lossy(console);
    let said: Vec<String> = complaints(&log).into_iter().map(|c| c.line).collect();
    if said.is_empty() {
        return Ok(());
    }
    Err(BootError::Complaints {
        lane,
        complaints: said,
        log: console.to_owned(),
    })
}

/// The back end that L1 loaded; `None` when the channel ends first.
fn read_point(control: impl Read) -> Result<Option<Backend>, String> {
    let mut lines = LineReader::new(control);
    let ended = |e: &ReadError| matches!(e, ReadError::Io(e) if e.kind() == io::ErrorKind::ConnectionReset);
    loop {
        match lines.message() {
            Ok(Some(FromL1::Ready { backend, .. })) => {
                return match lines.snapshot() {
                    Ok(true) => Ok(Some(backend)),
                    Ok(false) => Ok(None),
                    Err(e) => Err(e.to_string()),
                };
            }
            // Said while it prepares itself; the console has what matters.
            Ok(Some(FromL1::Log { .. } | FromL1::Stage { .. })) => {}
            Ok(Some(FromL1::Done { verdict })) => return Err(format!("{verdict:?}")),
            Ok(Some(other)) => return Err(format!("{other:?}")),
            Ok(None) => return Ok(None),
            Err(e) if ended(&e) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// How what is preloaded into an emulator begins to say why it ends that: by the name of its package.
const LIBRARY_SAYS: &str = "kvmi-lab-";

/// The same error; if the emulator has ended because a library in it gave up, then what that said. `log` has what the emulator says.
pub(crate) fn explain(lane: Lane, error: BootError, log: &Path) -> BootError {
    match read_lossy(log).lines().find(|line| line.starts_with(LIBRARY_SAYS)) {
        Some(why) => BootError::GaveUp {
            lane,
            why: why.to_owned(),
        },
        None => error,
    }
}

/// A log as text; what is not there is empty, what is no text is replaced.
pub(crate) fn read_lossy(log: &Path) -> String {
    fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn last_line(log: &Path) -> String {
    read_lossy(log)
        .lines()
        .rfind(|l| !l.trim().is_empty())
        .unwrap_or_default()
        .to_owned()
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = read_lossy(log);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

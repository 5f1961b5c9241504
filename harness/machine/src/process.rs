// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that the lab runs: their output goes to a log and to the progress, and none outlives the lab.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

use crate::progress::Task;

/// How many lines of a failed program's output its error shows.
const TAIL_LINES: usize = 30;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot run `{command}`: {error}")]
    Start {
        /// The command line.
        command: String,
        /// The system's answer.
        error: io::Error,
    },
    /// Its output could not be read or kept.
    #[error("output of `{command}`: {error}")]
    Output {
        /// The command line.
        command: String,
        /// The system's answer.
        error: io::Error,
    },
    /// It ended badly.
    #[error("`{command}`: {status}\n{tail}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote.
        tail: String,
    },
}

/// Makes the program end (`SIGKILL`) when the *thread* that starts it ends, however that happens.
///
/// So the program must be started by a thread that lives as long as it is needed.
pub fn end_with_us(command: &mut Command) -> &mut Command {
    let parent = getpid();
    let set = move || end_with(parent);
    // SAFETY: between fork and exec `set` only makes the system calls prctl and getppid; it allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(set)
    }
}

/// How long a turn of [`in_short_turns`] is, in nanoseconds: the shortest there is.
const SHORT_TURN_NS: u64 = 100_000;

/// Makes the scheduler give the program's threads short turns, where it can (Linux 6.12): one that wakes then goes before a program that has
/// kept the CPU busy, and does not wait for a tick. An emulator whose CPUs wake each other all the time is several times as fast by it
/// beside others.
pub fn in_short_turns(command: &mut Command) -> &mut Command {
    let set = || {
        // SAFETY: plain numbers; all zeros is a policy of SCHED_OTHER without any wish.
        #[allow(unsafe_code)]
        let mut wish: libc::sched_attr = unsafe { std::mem::zeroed() };
        wish.size = size_of::<libc::sched_attr>() as u32;
        wish.sched_runtime = SHORT_TURN_NS;
        // It is a wish: what cannot be had changes nothing but the time that things take.
        // SAFETY: the structure says how large it is and outlives the call, which concerns this process alone (0).
        #[allow(unsafe_code)]
        unsafe {
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0)
        };
        Ok(())
    };
    // SAFETY: between fork and exec `set` only makes the system call sched_setattr.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(set)
    }
}

/// Makes this process end (`SIGKILL`) when its parent does.
///
/// # Errors
///
/// The system's, or `BrokenPipe` if the parent has ended already.
pub fn end_with_parent() -> io::Result<()> {
    end_with(getppid())
}

fn end_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have ended before the call above.
    if getppid() == parent {
        Ok(())
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// A program that runs no longer than this is kept, nor than the *thread* that started it.
#[derive(Debug)]
pub(crate) struct Owned(Child);

impl Owned {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        end_with_us(command).spawn().map(Self)
    }

    /// Ends it, and waits until it has.
    pub(crate) fn end(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.end();
    }
}

impl Deref for Owned {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// Lets the program inherit a descriptor under its number.
pub fn keep_open<'c>(command: &'c mut Command, descriptor: BorrowedFd<'_>) -> &'c mut Command {
    let number = descriptor.as_raw_fd();
    let keep = move || {
        // SAFETY: `number` is open in the child, which is a copy of the process that holds `descriptor`.
        #[allow(unsafe_code)]
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec `keep` only makes the system call fcntl.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(keep)
    }
}

/// Whether this process may do everything.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A program to run to its end.
#[derive(Debug)]
pub struct Program {
    command: Command,
    log: Option<PathBuf>,
}

impl Program {
    /// A program by name or path. Its standard input is empty.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command, log: None }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes an environment variable away.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the folder that it runs in.
    #[must_use]
    pub fn in_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Keeps its output in a file.
    #[must_use]
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// Takes its standard input from a file.
    #[must_use]
    pub fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// The command line, for people.
    #[must_use]
    pub fn command_line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words
            .map(|w| w.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs it, passes each line of its output and errors on to `task`, and returns all of them.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]
    pub fn run(self, task: &Task) -> Result<String, ProcessError> {
        self.each_line(|line| task.note(line))
    }

    /// Runs it, tells each line of its output and errors that is not empty as it comes, and returns all of them.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]
    pub fn each_line(mut self, mut tell: impl FnMut(&str)) -> Result<String, ProcessError> {
        let command_line = self.command_line();
        let failed = |error| ProcessError::Output {
            command: command_line.clone(),
            error,
        };
        let mut log = self.log.as_deref().map(File::create).transpose().map_err(failed)?;
        let (reader, writer) = io::pipe().map_err(failed)?;
        self.command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
        let mut child = end_with_us(&mut self.command)
            .spawn()
            .map_err(|error| ProcessError::Start {
                command: command_line.clone(),
                error,
            })?;
        // The command holds the pipe's writing end: with it open the reader would never see the end.
        drop(self.command);
        let mut all = String::new();
        let mut tail = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line);
            if let Some(log) = &mut log {
                writeln!(log, "{line}").map_err(failed)?;
            }
            let shown = line.trim_end();
            if !shown.is_empty() {
                tell(shown);
            }
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line.clone().into_owned());
            all.push_str(&line);
            all.push('\n');
        }
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(all);
        }
        let tail = Vec::from(tail).join("\n");
        Err(ProcessError::Failed {
            command: command_line,
            status,
            tail,
        })
    }

    /// Runs it and returns what it wrote to its standard output; errors go into the error.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]
    pub fn output(mut self) -> Result<Vec<u8>, ProcessError> {
        let command = self.command_line();
        let done = end_with_us(&mut self.command)
            .output()
            .map_err(|error| ProcessError::Start {
                command: command.clone(),
                error,
            })?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        let tail = String::from_utf8_lossy(&done.stderr).trim_end().to_owned();
        Err(ProcessError::Failed {
            command,
            status: done.status,
            tail,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    #[test]
    fn both_streams_arrive_and_a_failure_shows_the_last_lines() {
        let task = Progress::unwatched().task("test");
        let all = Program::new("sh")
            .args(["-c", "echo out; echo err >&2"])
            .run(&task)
            .unwrap();
        assert_eq!(all, "out\nerr\n");
        let failed = Program::new("sh")
            .args(["-c", "seq 100; exit 3"])
            .run(&task)
            .unwrap_err()
            .to_string();
        assert!(
            failed.contains("exit status: 3") && failed.ends_with("99\n100") && !failed.contains("\n70\n"),
            "{failed}"
        );
        assert!(matches!(
            Program::new("/no/such").run(&task),
            Err(ProcessError::Start { .. })
        ));
    }
}

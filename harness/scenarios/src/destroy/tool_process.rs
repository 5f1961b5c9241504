// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tool in a process of its own, to be killed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use kvmi::{Descriptor, Session, Stream, event};

use crate::{Failure, check_eq};

/// What the tool says when it has enabled its event everywhere.
const ENABLED: &str = "enabled";
/// What it says when an event is open.
const EVENT: &str = "event";

/// The process. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct ToolProcess {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl ToolProcess {
    /// Starts it with this connection, which nobody else has then.
    pub(super) fn start(connection: OwnedFd, vcpus: usize) -> Result<Self, Failure> {
        let mut process = Command::new("/proc/self/exe")
            .args(["tool", &vcpus.to_string()])
            .stdin(Stdio::from(connection))
            .stdout(Stdio::piped())
            .spawn()?;
        let said = process
            .stdout
            .take()
            .ok_or_else(|| Failure::new("the tool has no standard output"))?;
        Ok(Self {
            process,
            said: BufReader::new(said),
        })
    }

    fn wait_said(&mut self, wanted: &str) -> Result<(), Failure> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        check_eq!(line.trim(), wanted, "what the tool says");
        Ok(())
    }

    /// Waits until its event is on on every vCPU.
    pub(super) fn wait_enabled(&mut self) -> Result<(), Failure> {
        self.wait_said(ENABLED)
    }

    /// Waits until it has got an event, which it will not answer.
    pub(super) fn wait_event(&mut self) -> Result<(), Failure> {
        self.wait_said(EVENT)
    }

    /// Kills it and waits until it is gone, and its connection with it.
    pub(super) fn kill(mut self) -> Result<(), Failure> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for ToolProcess {
    fn drop(&mut self) {
        // One that is gone already cannot be killed and need not be.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process itself: the connection is its standard input.
pub(crate) fn main(vcpus: &str) -> Result<(), Failure> {
    let connection = std::io::stdin().as_fd().try_clone_to_owned()?;
    let is_descriptor = fs::read_link("/proc/self/fd/0")?.as_os_str() == "anon_inode:kvmi-session";
    let session = if is_descriptor {
        Session::from(Stream::from(Descriptor::new(connection)?))
    } else {
        Session::from(UnixStream::from(connection))
    };
    for vcpu in 0..vcpus.parse()? {
        session.vcpu(vcpu).control_event(event::HYPERCALL, true)?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "{ENABLED}")?;
    let open = session.next_event()?.hypercall()?;
    writeln!(out, "{EVENT}")?;
    // Never answered. The process is killed here.
    loop {
        std::thread::park();
        let _still_open = &open;
    }
}

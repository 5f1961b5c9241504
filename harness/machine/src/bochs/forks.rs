// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Bochs that was restored at L1's snapshot, and its forks.

use std::fs;
use std::io::{self, Read as _, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use kvmi_lab_control::SNAPSHOT;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::snapshot::{CONFIGURATION, MEMORY};
use super::{PACKAGE, Parts, Places, Process, bochsrc, serial_port, write};
use crate::boot::{BootError, io_error};
use crate::machine_event::{MachineEvent, channel, listen};
use crate::process::keep_open;
use crate::progress::Progress;
use crate::run_folder;
use crate::scenario::{Machine, Request};

/// How long Bochs may take to be where it was saved. It takes less than a second.
const RESTORE: Duration = Duration::from_secs(60);

/// How long Bochs may take to show registers.
const REGISTERS: Duration = Duration::from_secs(5);

/// A Bochs that forks at L1's snapshot. Dropping it ends it and all its forks.
#[derive(Debug)]
pub struct ForkServer {
    _bochs: Process,
    forks: Forks,
    /// Bochs's own serial line: it would end if that closed.
    _control: TcpStream,
}

/// Restores an L1 that was saved in a folder, and waits until it serves forks. The calling thread must live as long as forks are wanted:
/// Bochs ends with it.
///
/// # Errors
///
/// [`BootError`]
pub fn start(parts: &Parts, saved: &Path, folder: &Path, progress: &Progress) -> Result<ForkServer, BootError> {
    let lane = parts.lane;
    let task = progress.task(format!("restore L1 in Bochs ({lane})"));
    let (serial, port) = serial_port()?;
    let socket = format!("kvmi-lab-{}-{lane}", std::process::id());
    let listener = address(&socket)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(io_error(format!("listen on @{socket}")))?;
    let log = folder.join("bochs.log");
    let places = Places {
        cd: parts.cd,
        // In the folder of each fork.
        console: Path::new(run_folder::CONSOLE),
        log: &log,
        port,
    };
    // Beside the folder of the lane, which has one for each scenario.
    let state = folder.with_extension("state");
    let configuration = bochsrc(lane, parts.memory_mib, parts.emulators, &places);
    lay_out(saved, &state, &configuration)?;
    let command = parts.emulators.bochs(parts.library, folder);
    let mut command = command.map_err(io_error("name the plugins of Bochs"))?;
    command
        .args(["-q", "-r"])
        .arg(&state)
        .env("KVMI_LAB_MEMORY", saved.join(MEMORY))
        .env("KVMI_LAB_FORK_SOCKET", listener.as_raw_fd().to_string())
        .env("KVMI_LAB_FORK_LOG", &log);
    keep_open(&mut command, listener.as_fd());
    let described = parts.emulators.describe(PACKAGE, &command, &configuration);
    let mut bochs = Process::start(lane, command, folder, log, serial)?;
    let control = bochs.accept()?;
    match first_byte(&control).map_err(io_error("hear of Bochs's fork server"))? {
        Some(SNAPSHOT) => {}
        Some(other) => {
            return Err(BootError::Unready {
                lane,
                message: format!("byte {other:#x}"),
                log: bochs.log.clone(),
            });
        }
        None => {
            let status = bochs.child.wait().map_err(io_error("wait for Bochs"))?;
            return Err(bochs.ended(&status.to_string()));
        }
    }
    task.done();
    Ok(ForkServer {
        _bochs: bochs,
        forks: Forks { socket, described },
        _control: control,
    })
}

/// Makes a folder that Bochs restores itself from: all of the saved one, but a configuration that names this run's places.
fn lay_out(saved: &Path, state: &Path, configuration: &str) -> Result<(), BootError> {
    let failed = || io_error(format!("lay out {}", state.display()));
    fs::create_dir(state).map_err(failed())?;
    for entry in fs::read_dir(saved).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_name() != CONFIGURATION {
            symlink(entry.path(), state.join(entry.file_name())).map_err(failed())?;
        }
    }
    write(&state.join(CONFIGURATION), configuration)
}

/// The first byte that comes; none when the connection closes before.
fn first_byte(control: &TcpStream) -> io::Result<Option<u8>> {
    control.set_read_timeout(Some(RESTORE))?;
    let mut byte = [0];
    match (&mut &*control).read(&mut byte) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(byte[0])),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(e) => Err(e),
    }
}

impl ForkServer {
    /// What another process needs to have a fork.
    #[must_use]
    pub fn forks(&self) -> &Forks {
        &self.forks
    }
}

/// An abstract socket's address: it vanishes with the processes that hold it.
fn address(socket: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(socket)
}

/// Where forks can be had.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forks {
    socket: String,
    /// Version, command line and configuration of the Bochs that forks.
    described: String,
}

impl Forks {
    /// Has a fork made for one scenario; it runs on from L1's snapshot.
    ///
    /// # Errors
    ///
    /// [`BootError`]
    pub fn fork(&self, request: &Request) -> Result<Forked, BootError> {
        let control = self.connect(&request.folder)?;
        let (send, events) = channel();
        listen(
            control.try_clone().map_err(io_error("share the control channel"))?,
            send,
        );
        let folder = request.folder.clone();
        Ok(Forked {
            control,
            events,
            folder,
        })
    }

    /// Has a fork made, with its logs in this folder; its control channel.
    pub(crate) fn connect(&self, folder: &Path) -> Result<UnixStream, BootError> {
        let mut control = address(&self.socket)
            .and_then(|address| UnixStream::connect_addr(&address))
            .map_err(io_error(format!("connect to Bochs on @{}", self.socket)))?;
        fs::write(folder.join(run_folder::EMULATOR), &self.described)
            .map_err(io_error("write down how bochs was started"))?;
        control
            .write_all(format!("{}\n", folder.display()).as_bytes())
            .map_err(io_error("ask Bochs for a fork"))?;
        Ok(control)
    }
}

/// What Bochs saved of a CPU, without the thousands of lines of what it had translated.
fn without_tlb(cpu: &str) -> String {
    let end = cpu.find("\n  DTLB = {").map_or(cpu.len(), |at| at + 1);
    cpu[..end].to_owned()
}

/// A fork of L1.
#[derive(Debug)]
pub struct Forked {
    control: UnixStream,
    events: Receiver<MachineEvent>,
    folder: PathBuf,
}

impl Machine for Forked {
    fn control(&mut self) -> &mut dyn Write {
        &mut self.control
    }

    fn events(&mut self) -> &Receiver<MachineEvent> {
        &self.events
    }

    fn registers(&mut self) -> Result<String, String> {
        // A signal has it save itself; after that it ends.
        let pid = fs::read_to_string(self.folder.join("emulator.pid")).map_err(|e| e.to_string())?;
        let pid = pid.trim().parse().map_err(|e| format!("bochs's process number: {e}"))?;
        kill(Pid::from_raw(pid), Signal::SIGINT).map_err(|e| e.to_string())?;
        let end = Instant::now() + REGISTERS;
        while !matches!(
            self.events.recv_timeout(end.saturating_duration_since(Instant::now())),
            Ok(MachineEvent::Closed) | Err(_)
        ) {}
        let state = self.folder.join("emulator.state");
        let cpu = fs::read_to_string(state.join("cpu0")).map_err(|e| format!("bochs did not save its CPU: {e}"))?;
        // The rest is all of L1's memory.
        fs::remove_dir_all(&state).map_err(|e| format!("remove {}: {e}", state.display()))?;
        Ok(without_tlb(&cpu))
    }

    fn end(&mut self) {
        // It ends when its connection is half closed, and the other half closes when it has ended.
        let _ = self.control.shutdown(std::net::Shutdown::Write);
        while !matches!(self.events.recv(), Ok(MachineEvent::Closed) | Err(_)) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_shown_without_what_it_had_translated() {
        let cpu = "cpu0 = {\n  RAX = 0x1\n  DTLB = {\n    entry0 = {\n    }\n  }\n}\n";
        assert_eq!(without_tlb(cpu), "cpu0 = {\n  RAX = 0x1\n");
        assert_eq!(without_tlb("cpu0 = {\n}\n"), "cpu0 = {\n}\n");
    }

    #[test]
    fn a_restored_bochs_finds_all_that_was_saved_and_places_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, state) = (dir.path().join("saved"), dir.path().join("lane.state"));
        fs::create_dir(&saved).unwrap();
        for name in [CONFIGURATION, MEMORY, "cpu0"] {
            fs::write(saved.join(name), "saved").unwrap();
        }
        lay_out(&saved, &state, "own").unwrap();
        let read = |name: &str| fs::read_to_string(state.join(name)).unwrap();
        assert_eq!([CONFIGURATION, MEMORY, "cpu0"].map(read), ["own", "saved", "saved"]);
        assert_eq!(fs::read_to_string(saved.join(CONFIGURATION)).unwrap(), "saved");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! One execution of L1 in QEMU's TCG, from power-on through a scenario to power-off, recorded so that it can be repeated instruction for
//! instruction. L1 has one CPU then, and finds its order on the kernel's command line: nothing comes in from outside.

mod follow;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::thread;

use kvmi_lab_control::{FromL1, LineReader, PLACES, Platform, SCENARIO, SEED};
use serde_json::{Value, json};

use crate::boot::{Boot, BootError, MEMORY_MIB, io_error};
use crate::emulator::Emulators;
use crate::machine_event::{MachineEvent, channel, listen};
use crate::outcome::Record;
use crate::process::{Owned, keep_open};
use crate::progress::Progress;
use crate::qmp::Qmp;
use crate::run_folder;
use crate::scenario::{self, Machine, Request};

pub use follow::Divergence;
use follow::{Followed, follow, reached};

/// The lane's machine, with one CPU.
const MACHINE: &str = "-nodefaults -no-user-config -machine pc-i440fx-10.0,accel=tcg -cpu EPYC,+svm,+npt,+umip -smp 1 -display none -no-reboot";

/// How many nanoseconds of L1's time an instruction takes, as a power of two.
const SHIFT: u32 = 1;

/// What was recorded.
const EXECUTION: &str = "execution.rr";
/// What L1 said on the control channel, byte for byte.
const CONTROL: &str = "control.raw";

/// A folder with a recorded execution.
#[derive(Clone, Debug)]
pub struct Recording {
    folder: PathBuf,
    boot: Boot,
    /// The library without which QEMU's recording lacks interrupts (harness/machine/recorder).
    recorder: PathBuf,
    /// The arguments by which L1 knows what to run.
    order: [String; 2],
}

/// An execution that was repeated to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// How many instructions it has; not known where QEMU was ended and not L1.
    pub instructions: Option<u64>,
    /// Where L1's kernel first complained, if it did.
    pub complained: Option<Divergence>,
    /// How it differs from what was recorded.
    pub differences: Vec<Difference>,
}

/// How a replay differs from what was recorded: the first byte that does, for each stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which stream.
    pub stream: &'static str,
    /// Where they part, in bytes from the beginning.
    pub at: usize,
}

/// Where a module of L1's kernel is in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name, as the kernel has it.
    pub module: String,
    /// Sections and their addresses.
    pub sections: Vec<(String, u64)>,
}

impl Loaded {
    /// From the line in which L1 says it.
    fn parse(line: &str) -> Option<Self> {
        let (module, sections) = line.split_once(' ')?;
        let section = |word: &str| {
            let (section, address) = word.split_once("=0x")?;
            Some((section.to_owned(), u64::from_str_radix(address, 16).ok()?))
        };
        Some(Self {
            module: module.to_owned(),
            sections: sections.split(' ').map(section).collect::<Option<_>>()?,
        })
    }
}

impl Recording {
    /// The execution in a folder, which need not be there yet, of a machine that boots this and runs a scenario.
    pub fn at(folder: impl Into<PathBuf>, boot: &Boot, recorder: PathBuf, scenario: &str, seed: u64) -> Self {
        Self {
            folder: folder.into(),
            boot: boot.clone(),
            recorder,
            order: [format!("{SCENARIO}={scenario}"), format!("{SEED}={seed}")],
        }
    }

    /// Where the logs of the recorded run are, for [`Request::folder`].
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// What L1's kernel said, from power-on.
    fn console(&self) -> PathBuf {
        self.logs().join(run_folder::CONSOLE)
    }

    /// Where L1 said that its modules are.
    ///
    /// # Errors
    ///
    /// When nothing was recorded.
    pub fn loaded(&self) -> io::Result<Vec<Loaded>> {
        let mut lines = LineReader::new(File::open(self.folder.join(CONTROL))?);
        let mut loaded = Vec::new();
        while let Ok(Some(message)) = lines.message() {
            if let FromL1::Log { source, text } = message
                && source == PLACES
            {
                loaded.extend(Loaded::parse(&text));
            }
        }
        Ok(loaded)
    }

    /// Whether there is one.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.folder.join(EXECUTION).is_file()
    }

    /// Boots L1 and runs the scenario of the request, whose folder is [`Recording::logs`], recording all of it.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written; everything else is an outcome.
    pub fn record(&self, emulators: &Emulators, request: &Request, progress: &Progress) -> io::Result<Record> {
        fs::create_dir_all(&self.folder)?;
        let task = progress.task("boot L1 in QEMU and run the scenario, recording");
        let record = scenario::run(request, |_| {
            let qemu = self.start(emulators, "record", &self.console(), &[])?;
            let raw = File::create(self.folder.join(CONTROL)).map_err(io_error("write what L1 says"))?;
            let said = Tee {
                from: share(&qemu.control)?,
                to: raw,
            };
            let (send, events) = channel();
            listen(said, send);
            let nothing = io::sink();
            Ok(Recorded { qemu, events, nothing })
        })?;
        task.done();
        Ok(record)
    }

    /// Repeats the execution and compares what it says with what was said.
    ///
    /// # Errors
    ///
    /// [`BootError`]
    pub fn replay(&self, emulators: &Emulators, progress: &Progress) -> Result<Replayed, BootError> {
        let task = progress.task("replay");
        let console = self.folder.join("replay.console.log");
        // So that it can be asked at the end how far it came.
        let mut qemu = self.start(emulators, "replay", &console, &["-no-shutdown"])?;
        let mut control = share(&qemu.control)?;
        let reader = thread::spawn(move || {
            let mut said = Vec::new();
            control.read_to_end(&mut said).map(|_| said)
        });
        let mut qmp = Qmp::start(share(&qemu.qmp)?)?;
        // At the end of what was recorded L1 is off, or someone ended QEMU.
        let Followed { at, complained } = follow(&mut qmp, &console, &task)?;
        if at.is_some() {
            qmp.command("quit", json!({}))?;
        }
        let status = qemu.child.wait().map_err(io_error("wait for qemu"))?;
        task.note(format!("qemu ended: {status}"));
        let said = reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reader panicked")));
        let said = said.map_err(io_error("read what L1 says in the replay"))?;
        task.done();
        let read = |path: &Path| fs::read(path).map_err(io_error(format!("read {}", path.display())));
        let streams = [
            ("console", read(&self.console())?, read(&console)?),
            ("control", read(&self.folder.join(CONTROL))?, said),
        ];
        let differ = |(stream, was, is): (_, Vec<u8>, Vec<u8>)| {
            Some(Difference {
                stream,
                at: first_difference(&was, &is)?,
            })
        };
        Ok(Replayed {
            instructions: at,
            complained,
            differences: streams.into_iter().filter_map(differ).collect(),
        })
    }

    /// Repeats the execution up to an instruction, counted from power-on, and stops there.
    ///
    /// # Errors
    ///
    /// [`BootError`]; an execution that ends before.
    pub fn replay_to(
        &self,
        emulators: &Emulators,
        instruction: u64,
        gdb: Option<&Path>,
        progress: &Progress,
    ) -> Result<Stopped, BootError> {
        let task = progress.task(format!("replay up to instruction {instruction}"));
        let console = self.folder.join("replay.console.log");
        let socket = gdb.map(|path| format!("unix:{},server=on,wait=off", path.display()));
        let mut more = vec!["-S"];
        more.extend(socket.iter().flat_map(|s| ["-gdb", s.as_str()]));
        let qemu = self.start(emulators, "replay", &console, &more)?;
        let mut qmp = Qmp::start(share(&qemu.qmp)?)?;
        // What L1 says must go somewhere, under a debugger too.
        let mut said = share(&qemu.control)?;
        thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        if instruction > 0 {
            qmp.command("replay-break", json!({ "icount": instruction }))?;
            qmp.command("cont", json!({}))?;
            follow(&mut qmp, &console, &task)?;
        }
        let at = reached(&mut qmp)?;
        let registers = qmp.command("human-monitor-command", json!({ "command-line": "info registers" }))?;
        let registers = registers.as_str().unwrap_or_default().replace("\r\n", "\n");
        task.done();
        Ok(Stopped { qemu, at, registers })
    }

    fn start(&self, emulators: &Emulators, mode: &str, console: &Path, more: &[&str]) -> Result<Process, BootError> {
        let pair = || UnixStream::pair().map_err(io_error("make a socket pair"));
        let ((control, theirs), (qmp, qemu_qmp)) = (pair()?, pair()?);
        let order = self.order.each_ref().map(String::as_str);
        let log = self.folder.join(format!("{mode}.emulator.log"));
        let log = File::create(&log).map_err(io_error(format!("write {}", log.display())))?;
        let mut command = emulators.qemu_with(Some(&self.recorder));
        command
            .args(MACHINE.split_whitespace())
            .args(["-m", &MEMORY_MIB.to_string(), "-chardev"])
            .arg(format!("file,id=console,path={}", console.display()))
            .args(["-serial", "chardev:console", "-serial", "stdio", "-chardev"])
            .arg(format!("socket,id=qmp,fd={}", qemu_qmp.as_raw_fd()))
            .args(["-mon", "chardev=qmp,mode=control", "-icount"])
            .arg(format!(
                "shift={SHIFT},rr={mode},rrfile={}",
                self.folder.join(EXECUTION).display()
            ))
            .arg("-kernel")
            .arg(&self.boot.kernel)
            .arg("-initrd")
            .arg(&self.boot.initrd)
            .arg("-append")
            .arg(self.boot.command_line(Platform::Tcg, &order))
            .args(more)
            .stdin(OwnedFd::from(share(&theirs)?))
            .stdout(OwnedFd::from(theirs))
            .stderr(log);
        keep_open(&mut command, std::os::fd::AsFd::as_fd(&qemu_qmp));
        let child = Owned::start(&mut command).map_err(io_error("run qemu"))?;
        Ok(Process { child, control, qmp })
    }
}

fn share(stream: &UnixStream) -> Result<UnixStream, BootError> {
    stream.try_clone().map_err(io_error("share a channel of qemu's"))
}

/// Where two streams part.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (common < a.len() || common < b.len()).then_some(common)
}

/// A QEMU that records or replays. Dropped, it is ended.
#[derive(Debug)]
struct Process {
    child: Owned,
    control: UnixStream,
    qmp: UnixStream,
}

/// A replay that stands at an instruction.
#[derive(Debug)]
pub struct Stopped {
    qemu: Process,
    /// The instruction's number.
    pub at: u64,
    /// What the CPU's registers hold there.
    pub registers: String,
}

impl Stopped {
    /// Waits until someone with a debugger has ended it.
    ///
    /// # Errors
    ///
    /// wait(2)'s.
    pub fn wait(mut self) -> io::Result<()> {
        self.qemu.child.wait().map(drop)
    }
}

/// An L1 that is recorded.
struct Recorded {
    qemu: Process,
    events: Receiver<MachineEvent>,
    nothing: io::Sink,
}

impl Machine for Recorded {
    fn control(&mut self) -> &mut dyn Write {
        // The order is on the command line.
        &mut self.nothing
    }

    fn events(&mut self) -> &Receiver<MachineEvent> {
        &self.events
    }

    fn registers(&mut self) -> Result<String, String> {
        Err("they can be had at any instruction of the recorded execution".to_owned())
    }

    fn end(&mut self) {
        // Asked to end, it writes the end of the recording; killed, it would not.
        let asked = Qmp::start(match self.qemu.qmp.try_clone() {
            Ok(qmp) => qmp,
            Err(_) => return,
        })
        .and_then(|mut qmp| qmp.command("quit", Value::Object(serde_json::Map::new())));
        // One that has ended already cannot be asked and need not be.
        let _ = asked;
        let _ = self.qemu.child.wait();
    }
}

/// A stream whose bytes are kept as they come.
struct Tee {
    from: UnixStream,
    to: File,
}

impl Read for Tee {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.to.write_all(&into[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_part_at_a_byte_or_at_an_end() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"abd"), Some(2));
        assert_eq!(first_difference(b"abc", b"ab"), Some(2));
        assert_eq!(first_difference(b"", b"a"), Some(0));
    }

    #[test]
    fn modules_have_their_places() {
        let loaded = Loaded::parse("kvm .text=0xffffffffc0201000 .bss=0x10").unwrap();
        assert_eq!(loaded.module, "kvm");
        let sections = [(".text".to_owned(), 0xffff_ffff_c020_1000), (".bss".to_owned(), 16)];
        assert_eq!(loaded.sections, sections);
        assert_eq!(Loaded::parse("kvm .text=here"), None);
        assert_eq!(Loaded::parse("kvm"), None);
    }
}

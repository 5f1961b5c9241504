// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 with a person at it: from its snapshot on a shell, whose terminal is the control channel.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kvmi_lab_control::{FromL1, LineReader, LoadedModule, ReadError, ToL1, encode};

use crate::boot::{BootError, io_error, tail};
use crate::lab_run::{Prepared, Snapshot};
use crate::qemu::Running;
use crate::run_folder;

/// How long L1 may take from its snapshot to the prompt.
const PROMPT: Duration = Duration::from_secs(60);

/// An L1 in which a shell runs. Dropped, it ends.
#[derive(Debug)]
pub struct Prompt {
    /// The shell's terminal; it closes when L1 is off.
    pub line: UnixStream,
    /// What L1 says of itself.
    pub about: PromptInfo,
    /// What must live as long; a fork of Bochs lives as long as the line.
    _qemu: Option<Running>,
}

/// What there is to look at in an L1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptInfo {
    /// The guest that runs, on so many vCPUs, with this process of L1 as its VMM.
    pub guest: String,
    /// See `guest`.
    pub vcpus: usize,
    /// See `guest`.
    pub vmm: u32,
    /// Whether the modules can introspect.
    pub introspection: bool,
    /// KVM's modules, and where they lie.
    pub modules: Vec<LoadedModule>,
    /// The kernel's functions, a line each as in System.map; empty unless asked for.
    pub symbols: String,
}

/// What a debugger needs of an L1.
#[derive(Clone, Copy, Debug)]
pub struct Debugging<'p> {
    /// Where the emulator's stub is to listen.
    pub socket: &'p Path,
    /// Whether L1 is to say the names of its kernel's functions.
    pub symbols: bool,
}

/// The size and kind of the terminal that the person sits at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
    /// As in `TERM`.
    pub terminal: String,
}

impl Prompt {
    /// Has L1 go on from its snapshot to a prompt, with logs in `folder`.
    ///
    /// # Errors
    ///
    /// [`BootError`]; a debug stub where the emulator has none.
    pub fn open(
        prepared: &Prepared,
        folder: &Path,
        screen: &Screen,
        debugging: Option<Debugging<'_>>,
    ) -> Result<Self, BootError> {
        fs::create_dir_all(folder).map_err(io_error(format!("make {}", folder.display())))?;
        let (line, qemu) = match &prepared.snapshot {
            Snapshot::Qemu(saved) => {
                let (running, line) = saved.enter(folder, debugging.map(|d| d.socket))?;
                (line, Some(running))
            }
            Snapshot::Bochs(forks) if debugging.is_none() => (forks.connect(folder)?, None),
            Snapshot::Bochs(_) => return Err(BootError::NoDebugStub { lane: prepared.lane }),
        };
        let about = order(&line, screen, debugging.is_some_and(|d| d.symbols)).map_err(|what| BootError::Unready {
            lane: prepared.lane,
            message: format!(
                "{what}; the end of its console:\n{}",
                tail(&folder.join(run_folder::CONSOLE))
            ),
            log: folder.join(run_folder::CONSOLE),
        })?;
        Ok(Self {
            line,
            about,
            _qemu: qemu,
        })
    }
}

/// Orders a shell and waits until L1 says that what follows is its terminal.
fn order(line: &UnixStream, screen: &Screen, symbols: bool) -> Result<PromptInfo, String> {
    let order = ToL1::Shell {
        rows: screen.rows,
        columns: screen.columns,
        terminal: screen.terminal.clone(),
        symbols,
    };
    let io = |e: io::Error| format!("the control channel fails: {e}");
    (&mut &*line).write_all(encode(&order).as_bytes()).map_err(io)?;
    line.set_read_timeout(Some(PROMPT)).map_err(io)?;
    // What comes behind the message belongs to the terminal, and must not be read here.
    let mut lines = LineReader::new(ByteByByte(line));
    let mut symbols = String::new();
    let about = loop {
        match lines.message() {
            Ok(Some(FromL1::Prompt {
                guest,
                vcpus,
                vmm,
                introspection,
                modules,
            })) => {
                break PromptInfo {
                    guest,
                    vcpus,
                    vmm,
                    introspection,
                    modules,
                    symbols,
                };
            }
            Ok(Some(FromL1::Symbols { text })) => symbols += &text,
            Ok(Some(FromL1::Log { .. } | FromL1::Stage { .. })) => {}
            Ok(Some(other)) => return Err(format!("it says {other:?} in the place of a prompt")),
            Ok(None) => return Err("it ended before there was a prompt".to_owned()),
            Err(e) if e.is_timeout() => return Err(format!("no prompt after {} s", PROMPT.as_secs())),
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err("it ended before there was a prompt".to_owned());
            }
            Err(e) => return Err(e.to_string()),
        }
    };
    line.set_read_timeout(None).map_err(io)?;
    Ok(about)
}

/// Gives what is there a byte at a time, so that its reader takes no more than it needs.
struct ByteByByte<'s>(&'s UnixStream);

impl Read for ByteByByte<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let one = into.len().min(1);
        self.0.read(&mut into[..one])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen() -> Screen {
        Screen {
            rows: 24,
            columns: 80,
            terminal: "xterm".into(),
        }
    }

    #[test]
    fn what_follows_the_message_is_left_for_the_terminal() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let prompt = FromL1::Prompt {
            guest: "counter".into(),
            vcpus: 2,
            vmm: 70,
            introspection: true,
            modules: Vec::new(),
        };
        let symbols = ["ffffffff81000000 T _text\n", "ffffffff81000040 t next\n"];
        for text in symbols.map(str::to_owned) {
            theirs.write_all(encode(&FromL1::Symbols { text }).as_bytes()).unwrap();
        }
        theirs
            .write_all(format!("{}L1 # ", encode(&prompt)).as_bytes())
            .unwrap();
        let about = order(&ours, &screen(), true).unwrap();
        assert_eq!((about.guest.as_str(), about.vcpus, about.vmm), ("counter", 2, 70));
        assert_eq!(about.symbols, symbols.concat());
        let mut rest = [0; 5];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"L1 # ");
        let mut ordered = LineReader::new(&theirs);
        assert!(matches!(
            ordered.message(),
            Ok(Some(ToL1::Shell {
                rows: 24,
                columns: 80,
                ..
            }))
        ));
    }

    #[test]
    fn an_l1_that_cannot_says_why() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let verdict = kvmi_lab_control::Verdict::Fail {
            message: "no busybox".into(),
        };
        theirs.write_all(encode(&FromL1::Done { verdict }).as_bytes()).unwrap();
        assert!(order(&ours, &screen(), true).unwrap_err().contains("no busybox"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(
            order(&ours, &screen(), true).unwrap_err(),
            "it ended before there was a prompt"
        );
    }
}

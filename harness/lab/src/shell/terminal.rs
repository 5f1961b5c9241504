// SPDX-License-Identifier: MIT OR Apache-2.0
//! The terminal that a person sits at, joined to L1's.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::prompt::{Prompt, Screen};
use rustix::event::{PollFd, PollFlags, poll};

/// The key that ends L1 whatever it does: Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What a terminal takes for the end of what is typed: Ctrl-D.
const END_OF_INPUT: u8 = 0x04;

/// Passes keys on as they are typed, until its standard input closes: whatever becomes of the program that holds it, the terminal is
/// afterwards as it was before. It must outlive that program's signals, and may speak to a terminal in whose background it is.
const KEEPER: &str = "trap '' INT QUIT TERM HUP TTOU TTIN TSTP; saved=$(stty -g </dev/tty) || exit 1; \
                      stty raw -echo </dev/tty || exit 1; echo raw; cat >/dev/null; stty \"$saved\" </dev/tty";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// L1 is off.
    Off,
    /// The person did not wait for that.
    Escaped,
}

/// The terminal's size and kind; some that will do where there is none.
pub(super) fn screen() -> Screen {
    let output = Program::new("sh")
        .args(["-c", "stty size </dev/tty"])
        .output()
        .unwrap_or_default();
    let (rows, columns) = size(&String::from_utf8_lossy(&output)).unwrap_or((24, 80));
    let terminal = std::env::var("TERM").unwrap_or_default();
    let is_name = !terminal.is_empty()
        && terminal
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._+".contains(c));
    Screen {
        rows,
        columns,
        terminal: if is_name { terminal } else { "dumb".to_owned() },
    }
}

/// What `stty size` says, if it makes sense.
fn size(said: &str) -> Option<(u16, u16)> {
    let mut numbers = said.split_whitespace().map(|n| n.parse().ok().filter(|&n: &u16| n > 0));
    Some((numbers.next()??, numbers.next()??))
}

/// Joins standard input and output to L1's terminal until L1 is off or the person leaves.
pub(super) fn attach(prompt: Prompt) -> Result<Left> {
    let stdin = io::stdin();
    let is_terminal = stdin.is_terminal();
    let keeper = if is_terminal { Some(Keeper::start()?) } else { None };
    let left = join(
        Keys {
            from: stdin.lock(),
            is_terminal,
        },
        io::stdout().lock(),
        &prompt.line,
    );
    drop(prompt);
    drop(keeper);
    left
}

/// What is typed.
struct Keys<I> {
    from: I,
    /// Whether by a person.
    is_terminal: bool,
}

fn join(mut keys: Keys<impl Read + AsFd>, mut screen: impl Write, line: &UnixStream) -> Result<Left> {
    let mut typed = true;
    let mut bytes = [0; 4096];
    loop {
        let mut ready = vec![PollFd::new(line, PollFlags::IN)];
        if typed {
            ready.push(PollFd::new(&keys.from, PollFlags::IN));
        }
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("wait for L1 or a key")?,
        };
        let any = |n: usize| ready.get(n).is_some_and(|fd| !fd.revents().is_empty());
        let (from_l1, from_keys) = (any(0), any(1));
        drop(ready);
        if from_l1 {
            let count = match (&mut &*line).read(&mut bytes) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => 0,
                other => other.context("read from L1's terminal")?,
            };
            if count == 0 {
                return Ok(Left::Off);
            }
            let shown = screen.write_all(&bytes[..count]).and_then(|()| screen.flush());
            if shown.is_err() {
                // Nobody looks any more.
                return Ok(Left::Escaped);
            }
        }
        if from_keys {
            let count = keys.from.read(&mut bytes).context("read what is typed")?;
            let mut what = &bytes[..count];
            if count == 0 {
                what = &[END_OF_INPUT];
                typed = false;
            } else if keys.is_terminal && what.contains(&ESCAPE) {
                return Ok(Left::Escaped);
            }
            match (&mut &*line).write_all(what) {
                // It is on its way down; what it says last is still to be read.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
                other => other.context("write to L1's terminal")?,
            }
        }
    }
}

/// The process that gives the terminal back.
#[derive(Debug)]
struct Keeper {
    child: Child,
}

impl Keeper {
    fn start() -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", KEEPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Out of the way of signals for the lab as a whole.
            .process_group(0)
            .spawn()
            .context("run sh")?;
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out)
                .read_line(&mut said)
                .context("hear of the terminal's keeper")?;
        }
        let keeper = Self { child };
        ensure!(said.trim() == "raw", "the terminal cannot be put into raw mode");
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::thread;

    #[test]
    fn a_size_that_makes_no_sense_is_none() {
        assert_eq!(size("50 132\n"), Some((50, 132)));
        for wrong in ["", "0 0\n", "24", "a b", "70000 80"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    /// What L1 was sent and what the person saw, when this is typed and L1 says `L1 # ` and powers off after Ctrl-D.
    fn session(typed: &[u8], is_terminal: bool) -> (Left, Vec<u8>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let l1 = thread::spawn(move || {
            // The person may have left already.
            let _ = theirs.write_all(b"L1 # ");
            let mut heard = Vec::new();
            let mut byte = [0];
            while theirs.read(&mut byte).unwrap_or(0) == 1 {
                heard.push(byte[0]);
                if byte == [END_OF_INPUT] {
                    break;
                }
            }
            heard
        });
        let (keys, mut fingers) = io::pipe().unwrap();
        fingers.write_all(typed).unwrap();
        drop(fingers);
        let mut seen = Vec::new();
        let from = File::from(std::os::fd::OwnedFd::from(keys));
        let left = join(Keys { from, is_terminal }, &mut seen, &ours).unwrap();
        drop(ours);
        (left, l1.join().unwrap(), seen)
    }

    #[test]
    fn a_script_is_typed_to_its_end_and_the_shell_with_it() {
        let (left, heard, seen) = session(b"dmesg\n", false);
        assert_eq!((left, heard.as_slice()), (Left::Off, &b"dmesg\n\x04"[..]));
        assert_eq!(seen, b"L1 # ");
    }

    #[test]
    fn the_escape_is_a_persons_alone() {
        assert_eq!(session(b"x\x1d", true).0, Left::Escaped);
        let (left, heard, _) = session(b"x\x1d", false);
        assert_eq!((left, heard.as_slice()), (Left::Off, &b"x\x1d\x04"[..]));
    }
}

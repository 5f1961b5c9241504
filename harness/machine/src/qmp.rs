// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's own control protocol: JSON lines, commands answered in order, events in between.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvmi_lab_control::{LineReader, ReadError};
use serde_json::{Value, json};

/// Why a command to QEMU did not work.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed.
    #[error("qemu's control protocol: {0}")]
    Read(#[from] ReadError),
    /// The command could not be sent.
    #[error("cannot send `{command}` to qemu: {error}")]
    Send {
        /// Which command.
        command: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// QEMU ended.
    #[error("qemu ended while `{0}` was awaited")]
    Ended(String),
    /// QEMU says no.
    #[error("qemu refuses `{command}`: {answer}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's description.
        answer: String,
    },
}

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    lines: LineReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Takes the greeting and makes commands possible.
    ///
    /// # Errors
    ///
    /// [`QmpError`]
    pub fn start(stream: UnixStream) -> Result<Self, QmpError> {
        let writer = stream.try_clone().map_err(ReadError::Io)?;
        let mut qmp = Self {
            lines: LineReader::new(stream),
            writer,
        };
        qmp.next("the greeting")?;
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Sends a command and waits for its answer. Events that come before it are dropped.
    ///
    /// # Errors
    ///
    /// [`QmpError`]
    pub fn command(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.writer.write_all(line.as_bytes()).map_err(|error| QmpError::Send {
            command: command.to_owned(),
            error,
        })?;
        loop {
            let mut message = self.next(command)?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                let answer = error["desc"].as_str().unwrap_or_default().to_owned();
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    answer,
                });
            }
        }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// [`QmpError`], [`QmpError::Ended`] when QEMU has.
    pub fn event(&mut self) -> Result<(String, Value), QmpError> {
        loop {
            let mut message = self.next("an event")?;
            if let Some(name) = message["event"].as_str().map(str::to_owned) {
                return Ok((name, message["data"].take()));
            }
        }
    }

    /// Waits until an event comes that `is_it` accepts.
    ///
    /// # Errors
    ///
    /// [`QmpError`], a timeout of the stream after `at_most`.
    pub fn wait_for(&mut self, at_most: Duration, is_it: impl Fn(&str, &Value) -> bool) -> Result<(), QmpError> {
        let end = Instant::now() + at_most;
        loop {
            let left = end
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.lines
                .stream()
                .set_read_timeout(Some(left))
                .map_err(ReadError::Io)?;
            let event = self.event();
            // Whatever comes next may take its time.
            self.lines.stream().set_read_timeout(None).map_err(ReadError::Io)?;
            let (name, data) = event?;
            if is_it(&name, &data) {
                return Ok(());
            }
        }
    }

    /// Passes events on, from a thread of its own, until QEMU ends or `on_event` returns false; commands can still be sent.
    #[must_use]
    pub fn watch(mut self, mut on_event: impl FnMut(&str, &Value) -> bool + Send + 'static) -> Commands {
        let (send, answers) = channel();
        let writer = self.writer.try_clone();
        thread::spawn(move || {
            while let Ok(message) = self.next("an event") {
                match message["event"].as_str() {
                    Some(name) if !on_event(name, &message["data"]) => return,
                    Some(_) => {}
                    // Nobody may be waiting any more.
                    None => drop(send.send(message)),
                }
            }
        });
        Commands { writer, answers }
    }

    fn next(&mut self, awaited: &str) -> Result<Value, QmpError> {
        match self.lines.message() {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(QmpError::Ended(awaited.to_owned())),
            Err(ReadError::Io(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => {
                Err(QmpError::Ended(awaited.to_owned()))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Commands to a QEMU whose events are watched.
#[derive(Debug)]
pub struct Commands {
    writer: std::io::Result<UnixStream>,
    answers: Receiver<Value>,
}

impl Commands {
    /// What QEMU's monitor for people answers to a line, if it does in time.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub fn ask_monitor(&mut self, line: &str, at_most: Duration) -> Result<String, String> {
        let writer = self.writer.as_mut().map_err(|e| e.to_string())?;
        let command = json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } });
        writer
            .write_all(format!("{command}\n").as_bytes())
            .map_err(|e| e.to_string())?;
        let answer = self
            .answers
            .recv_timeout(at_most)
            .map_err(|_| format!("qemu did not answer `{line}`"))?;
        match answer["return"].as_str() {
            Some(text) => Ok(text.replace("\r\n", "\n")),
            None => Err(format!("qemu refuses `{line}`: {answer}")),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines on a byte stream: one message each.

use std::io::{self, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::SNAPSHOT;

/// The longest line that is accepted, in bytes, its newline not counted.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// How much of a line that makes no sense is quoted, in bytes.
const QUOTED_BYTES: usize = 120;

/// Writes a message as its line, with the newline.
///
/// # Panics
///
/// Never for the messages of this crate; a type of the caller's whose `Serialize` fails is a mistake in the program.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> String {
    let mut line = serde_json::to_string(message).expect("control messages serialize");
    line.push('\n');
    line
}

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream ended within a line.
    #[error("control channel ended within a message, after {bytes} bytes of it: {start:?}")]
    Truncated {
        /// How much of the line had come.
        bytes: usize,
        /// How it starts.
        start: String,
    },
    /// No newline within [`MAX_LINE_BYTES`]. What follows on the stream cannot be trusted.
    #[error("control message longer than {MAX_LINE_BYTES} bytes: {start:?}")]
    Oversized {
        /// How it starts.
        start: String,
    },
    /// The line is no message of the expected type. The next line can still be read.
    #[error("no control message ({reason}): {start:?}")]
    Garbled {
        /// How the line starts.
        start: String,
        /// What the decoder says.
        reason: String,
    },
    /// [`SNAPSHOT`] was expected.
    #[error("expected the byte {SNAPSHOT:#04x} after ready, got {0:#04x}")]
    NotThePoint(u8),
    /// The stream itself failed. After `WouldBlock` or `TimedOut` nothing is lost: call again.
    #[error("control channel: {0}")]
    Io(#[from] io::Error),
}

impl ReadError {
    /// Whether the stream merely had nothing to read in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

/// Reads messages from a byte stream.
#[derive(Debug)]
pub struct LineReader<R> {
    stream: R,
    /// Bytes that came and are not consumed yet.
    pending: Vec<u8>,
    /// How far `pending` is known to hold no newline.
    searched: usize,
}

impl<R: Read> LineReader<R> {
    /// Starts reading at the stream's present position.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            searched: 0,
        }
    }

    /// The stream, e.g. to set its timeout.
    pub fn stream(&self) -> &R {
        &self.stream
    }

    /// The stream; what was read of it and not taken is lost.
    pub fn into_stream(self) -> R {
        self.stream
    }

    /// Reads one message; `None` when the stream ends between messages.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ReadError> {
        let Some(line) = self.line()? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|e| ReadError::Garbled {
            start: quote(&line),
            reason: e.to_string(),
        })
    }

    /// Reads the byte [`SNAPSHOT`], which L1 writes after Ready; false when the stream ends before it.
    ///
    /// # Errors
    ///
    /// [`ReadError::NotThePoint`] or [`ReadError::Io`].
    pub fn snapshot(&mut self) -> Result<bool, ReadError> {
        while self.pending.is_empty() {
            if self.fill()? == 0 {
                return Ok(false);
            }
        }
        let byte = self.pending.remove(0);
        self.searched = 0;
        if byte == SNAPSHOT {
            Ok(true)
        } else {
            Err(ReadError::NotThePoint(byte))
        }
    }

    /// Reads one line, without its newline; `None` when the stream ends between lines.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn line(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            if let Some(at) = self.pending[self.searched..].iter().position(|&b| b == b'\n') {
                let end = self.searched + at;
                self.searched = 0;
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                if line.len() > MAX_LINE_BYTES {
                    return Err(ReadError::Oversized { start: quote(&line) });
                }
                return Ok(Some(line));
            }
            self.searched = self.pending.len();
            if self.pending.len() > MAX_LINE_BYTES {
                return Err(ReadError::Oversized {
                    start: quote(&self.pending),
                });
            }
            if self.fill()? == 0 {
                return match self.pending.len() {
                    0 => Ok(None),
                    bytes => Err(ReadError::Truncated {
                        bytes,
                        start: quote(&self.pending),
                    }),
                };
            }
        }
    }

    fn fill(&mut self) -> Result<usize, ReadError> {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(n) => {
                    self.pending.extend_from_slice(&chunk[..n]);
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn quote(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(QUOTED_BYTES)]).into_owned()
}

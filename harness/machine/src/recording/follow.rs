// SPDX-License-Identifier: MIT OR Apache-2.0
//! A replay as it goes on: how far it is, and between which instructions L1's kernel first complains.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::boot::{BootError, io_error};
use crate::complaint::{Complaint, complaints};
use crate::progress::Task;
use crate::qmp::{Qmp, QmpError};

/// How long a replay may take to an instruction, or to its end.
const AT_MOST: Duration = Duration::from_secs(3600);

/// How often one looks: between two looks are that many instructions as a replay does meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// The first complaint of a replayed execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The line that it begins with.
    pub complaint: Complaint,
    /// An instruction at which it was not there yet.
    pub after: u64,
    /// One at which it was.
    pub before: u64,
}

/// How a replay came to a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Followed {
    /// At which instruction; not known where QEMU was ended.
    pub(super) at: Option<u64>,
    pub(super) complained: Option<Divergence>,
}

/// How many instructions have been replayed.
pub(super) fn reached(qmp: &mut Qmp) -> Result<u64, QmpError> {
    let answer = qmp.command("query-replay", json!({}))?;
    Ok(answer["icount"].as_u64().unwrap_or_default())
}

/// Waits until the replay stops, and says how far it is.
pub(super) fn follow(qmp: &mut Qmp, console: &Path, task: &Task) -> Result<Followed, BootError> {
    let end = Instant::now() + AT_MOST;
    let mut said = Said::default();
    loop {
        let (at, stopped) = match look(qmp) {
            Ok(seen) => seen,
            Err(QmpError::Ended(_)) => {
                let complained = said.complained;
                return Ok(Followed { at: None, complained });
            }
            Err(e) => return Err(e.into()),
        };
        let text = fs::read(console).map_err(io_error(format!("read {}", console.display())))?;
        let text = String::from_utf8_lossy(&text);
        said.look(&text, at, || reached(qmp))?;
        let line = text.lines().next_back().unwrap_or_default();
        task.note(format!("{} million instructions; {line}", at / 1_000_000));
        if stopped {
            let complained = said.complained;
            return Ok(Followed {
                at: Some(at),
                complained,
            });
        }
        if Instant::now() > end {
            return Err(QmpError::Ended("the end of the replay".to_owned()).into());
        }
    }
}

/// How far it is, and whether it stands. Asked for rather than told: what QEMU tells while it answers is lost.
fn look(qmp: &mut Qmp) -> Result<(u64, bool), QmpError> {
    match qmp.wait_for(LOOK, |_, _| true) {
        Err(QmpError::Read(e)) if e.is_timeout() => {}
        other => other?,
    }
    let status = qmp.command("query-status", json!({}))?;
    Ok((reached(qmp)?, status["running"] == false))
}

/// What has been seen of L1's kernel log.
#[derive(Debug, Default)]
struct Said {
    /// How far the replay was before the last look that found nothing.
    after: u64,
    complained: Option<Divergence>,
}

impl Said {
    /// Looks at the log as it was at this instruction or later; `now` says how much later at most.
    fn look(&mut self, log: &str, at: u64, now: impl FnOnce() -> Result<u64, QmpError>) -> Result<(), QmpError> {
        if self.complained.is_some() {
            return Ok(());
        }
        // The last line may not be whole yet, and begin the complaint.
        let whole = log.rfind('\n').map_or("", |end| &log[..=end]);
        match complaints(whole).into_iter().next() {
            None if whole.len() == log.len() => self.after = at,
            None => {}
            Some(complaint) => {
                let (after, before) = (self.after, now()?);
                self.complained = Some(Divergence {
                    complaint,
                    after,
                    before,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_lies_between_two_looks() {
        let mut said = Said::default();
        let mut look = |log, at, now| {
            said.look(log, at, || Ok(now))
                .map(|()| said.complained.clone())
                .unwrap()
        };
        assert_eq!(look("[ 1.0] fine\n", 100, 110), None);
        assert_eq!(look("[ 1.0] fine\n[ 2.0] BUG: kernel NULL poin", 200, 210), None);
        let found = look("[ 1.0] fine\n[ 2.0] BUG: kernel NULL pointer dereference\n", 300, 310).unwrap();
        assert_eq!((found.after, found.before), (100, 310));
        assert!(found.complaint.line.contains("NULL pointer"));
        let later = look("[ 1.0] WARNING: x\n", 400, 410).unwrap();
        assert_eq!(later, found);
    }
}

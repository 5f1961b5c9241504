// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running one scenario in an L1 that stands at its point: the conversation, its deadlines, its logs, its verdict.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use kvmi_lab_control::{FromL1, Lane, LineReader, ReadError, ToL1, encode};

use crate::boot::{BootError, read_lossy};
use crate::complaint::complaints;
use crate::outcome::{Measure, Outcome, Record};

/// How long L1 may take from the point to the scenario's first stage.
const START_MS: u64 = 30_000;

/// How long L1 may take to power off after its verdict.
const POWER_OFF_MS: u64 = 30_000;

/// Something that L0 learns of L1.
#[derive(Debug)]
pub enum News {
    /// L1 speaks.
    Message(FromL1),
    /// L1 speaks, and it makes no sense.
    Garbled(String),
    /// The control channel is closed: L1 is off, or its emulator ended.
    Closed,
    /// The emulator says that L1 does not run on.
    Stopped(String),
}

/// An L1 that stands at its point. Dropping it ends its emulator.
pub trait Machine {
    /// Where requests are written.
    fn control(&mut self) -> &mut dyn Write;
    /// What is learned of it.
    fn news(&mut self) -> &Receiver<News>;
    /// Ends the emulator if it still runs, and waits until it has.
    fn end(&mut self);
}

/// Which scenario, and where its logs go.
#[derive(Clone, Debug)]
pub struct Request {
    /// The scenario's name.
    pub scenario: String,
    /// The lane of the machine.
    pub lane: Lane,
    /// Where its random numbers start.
    pub seed: u64,
    /// An empty folder for logs and the record.
    pub folder: PathBuf,
}

impl Request {
    /// The kernel's log of L1, from the point on.
    pub const CONSOLE: &'static str = "console.log";
    /// What the scenario said.
    pub const LOG: &'static str = "scenario.log";
    /// What the emulator said.
    pub const EMULATOR_LOG: &'static str = "emulator.log";
}

/// Runs one scenario. `start` provides the machine, with its console log in the request's folder.
///
/// # Errors
///
/// When the folder cannot be written; everything else is an outcome.
pub fn run<M: Machine>(request: &Request, start: impl FnOnce(&Request) -> Result<M, BootError>) -> io::Result<Record> {
    let began = Instant::now();
    fs::create_dir_all(&request.folder)?;
    let mut log = Log::create(&request.folder.join(Request::LOG), began)?;
    let mut measures = Vec::new();
    let outcome = match start(request) {
        Ok(mut machine) => {
            let outcome = converse(&mut machine, request, &mut log, &mut measures)?;
            machine.end();
            outcome
        }
        Err(e) => Outcome::Lost { message: e.to_string() },
    };
    let console = read_lossy(&request.folder.join(Request::CONSOLE));
    let outcome = outcome.with_complaints(&complaints(&console));
    log.line("verdict", &outcome.to_string())?;
    let record = Record {
        scenario: request.scenario.clone(),
        lane: request.lane,
        seed: request.seed,
        outcome,
        seconds: began.elapsed().as_secs_f64(),
        measures,
    };
    record.write(&request.folder)?;
    Ok(record)
}

/// A stage that is under way.
struct Stage {
    name: String,
    deadline_ms: u64,
    since: Instant,
}

impl Stage {
    fn begin(name: &str, deadline_ms: u64) -> Self {
        Self {
            name: name.to_owned(),
            deadline_ms,
            since: Instant::now(),
        }
    }

    fn left(&self) -> Duration {
        Duration::from_millis(self.deadline_ms).saturating_sub(self.since.elapsed())
    }
}

fn converse(
    machine: &mut dyn Machine,
    request: &Request,
    log: &mut Log,
    measures: &mut Vec<Measure>,
) -> io::Result<Outcome> {
    let run = ToL1::Run {
        scenario: request.scenario.clone(),
        seed: request.seed,
    };
    let control = machine.control();
    if let Err(e) = control
        .write_all(encode(&run).as_bytes())
        .and_then(|()| control.flush())
    {
        return Ok(Outcome::Lost {
            message: format!("cannot send the scenario's name to L1: {e}"),
        });
    }
    let mut stage = Stage::begin("start", START_MS);
    let mut verdict = None;
    loop {
        let news = match machine.news().recv_timeout(stage.left()) {
            Ok(news) => news,
            Err(RecvTimeoutError::Timeout) => {
                return Ok(Outcome::Timeout {
                    stage: stage.name,
                    deadline_ms: stage.deadline_ms,
                });
            }
            Err(RecvTimeoutError::Disconnected) => News::Closed,
        };
        match news {
            News::Message(message) => {
                log.message(&message)?;
                match message {
                    FromL1::Stage { name, deadline_ms } => stage = Stage::begin(&name, deadline_ms),
                    FromL1::Measure { name, value, unit } => measures.push(Measure { name, value, unit }),
                    FromL1::Done { .. } if verdict.is_some() => {
                        return Ok(Outcome::Lost {
                            message: "a second verdict came".to_owned(),
                        });
                    }
                    FromL1::Done { verdict: said } => {
                        verdict = Some(said);
                        stage = Stage::begin("power off", POWER_OFF_MS);
                    }
                    FromL1::Ready { .. } => {
                        return Ok(Outcome::Lost {
                            message: "L1 said again that it is ready".to_owned(),
                        });
                    }
                    FromL1::Started { .. } | FromL1::Log { .. } | FromL1::Wire { .. } => {}
                }
            }
            News::Garbled(what) => return Ok(Outcome::Lost { message: what }),
            News::Stopped(why) => {
                return Ok(Outcome::Lost {
                    message: format!("{why}, in stage `{}`", stage.name),
                });
            }
            News::Closed => {
                return Ok(verdict.map_or_else(
                    || Outcome::Lost {
                        message: format!("L1 ended without a verdict, in stage `{}`", stage.name),
                    },
                    Outcome::from,
                ));
            }
        }
    }
}

/// Passes on what comes on the control channel, until it closes. Runs on a thread of its own.
pub(crate) fn listen(control: impl Read + Send + 'static, to: Sender<News>) {
    thread::spawn(move || {
        let mut lines = LineReader::new(control);
        loop {
            let news = match lines.message() {
                Ok(Some(message)) => News::Message(message),
                Ok(None) | Err(ReadError::Io(_)) => News::Closed,
                Err(e) => News::Garbled(e.to_string()),
            };
            let is_last = matches!(news, News::Closed);
            if to.send(news).is_err() || is_last {
                return;
            }
        }
    });
}

/// A channel for news of a machine.
pub(crate) fn channel() -> (Sender<News>, Receiver<News>) {
    mpsc::channel()
}

/// The scenario's log: what was said, by whom, and when.
struct Log {
    file: File,
    began: Instant,
}

impl Log {
    fn create(path: &Path, began: Instant) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            began,
        })
    }

    fn message(&mut self, message: &FromL1) -> io::Result<()> {
        match message {
            FromL1::Ready { backend, kernel } => self.line("ready", &format!("{backend}, kernel {kernel}")),
            FromL1::Started { scenario } => self.line("started", scenario),
            FromL1::Stage { name, deadline_ms } => self.line("stage", &format!("{name} (at most {deadline_ms} ms)")),
            FromL1::Log { source, text } => self.line(source, text),
            FromL1::Wire { text } => self.line("wire", text),
            FromL1::Measure { name, value, unit } => self.line("measure", &format!("{name}: {value} {unit}")),
            FromL1::Done { verdict } => self.line("done", &format!("{verdict:?}")),
        }
    }

    fn line(&mut self, source: &str, text: &str) -> io::Result<()> {
        writeln!(
            self.file,
            "[{:9.3}] {source}: {text}",
            self.began.elapsed().as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmi_lab_control::Verdict;

    struct Scripted(Vec<u8>, Receiver<News>);

    impl Machine for Scripted {
        fn control(&mut self) -> &mut dyn Write {
            &mut self.0
        }
        fn news(&mut self) -> &Receiver<News> {
            &self.1
        }
        fn end(&mut self) {}
    }

    fn outcome_of(news: Vec<News>, keep_open: bool, console: &str) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        let request = Request {
            scenario: "a::b".into(),
            lane: Lane::SvmTcg,
            seed: 7,
            folder: dir.path().join("a"),
        };
        let (send, receive) = channel();
        let record = run(&request, |request| {
            fs::write(request.folder.join(Request::CONSOLE), console).unwrap();
            for one in news {
                send.send(one).unwrap();
            }
            Ok(Scripted(Vec::new(), receive))
        });
        drop(keep_open.then_some(send));
        let record = record.unwrap();
        assert_eq!(Record::read(&request.folder).unwrap(), record);
        record.outcome
    }

    fn done(verdict: Verdict) -> News {
        News::Message(FromL1::Done { verdict })
    }

    #[test]
    fn verdicts() {
        assert_eq!(
            outcome_of(vec![done(Verdict::Pass), News::Closed], true, "fine"),
            Outcome::Pass
        );
        let lost = outcome_of(vec![News::Closed], true, "");
        assert_eq!(
            lost,
            Outcome::Lost {
                message: "L1 ended without a verdict, in stage `start`".into()
            }
        );
        let splat = outcome_of(vec![done(Verdict::Pass), News::Closed], true, "[ 1.0] BUG: x\n");
        assert_eq!(splat.to_string(), "splat: [ 1.0] BUG: x (otherwise pass)");
        let stopped = outcome_of(vec![News::Stopped("qemu stopped: internal-error".into())], true, "");
        assert!(matches!(stopped, Outcome::Lost { .. }));
        let twice = outcome_of(vec![done(Verdict::Pass), done(Verdict::Pass), News::Closed], true, "");
        assert!(matches!(twice, Outcome::Lost { .. }));
    }

    #[test]
    fn a_stage_that_takes_too_long_is_named() {
        let stage = News::Message(FromL1::Stage {
            name: "hook".into(),
            deadline_ms: 10,
        });
        assert_eq!(
            outcome_of(vec![stage], true, ""),
            Outcome::Timeout {
                stage: "hook".into(),
                deadline_ms: 10
            }
        );
    }
}

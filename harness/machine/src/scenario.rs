// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running one scenario in an L1 that stands at its snapshot: the conversation, its deadlines, its logs, its verdict.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvmi_lab_control::{FromL1, Lane, ToL1, Verdict, encode};

use crate::boot::{BootError, read_lossy};
use crate::complaint::complaints;
use crate::machine_event::MachineEvent;
use crate::outcome::{Measure, Outcome, Record};
use crate::run_folder::{self, RunFolder};

/// An L1 that stands at its snapshot. Dropping it ends its emulator.
pub trait Machine {
    /// Where requests are written.
    fn control(&mut self) -> &mut dyn Write;
    /// What is learned of it.
    fn events(&mut self) -> &Receiver<MachineEvent>;
    /// What the registers of all CPUs hold, as the emulator shows them. The machine need not run on afterwards.
    ///
    /// # Errors
    ///
    /// Why they cannot be had.
    fn registers(&mut self) -> Result<String, String>;
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
    /// An empty folder for logs and the record; see [`crate::run_folder`].
    pub folder: PathBuf,
    /// Deadlines of what is no stage of the scenario.
    pub limits: Limits,
    /// The stage in which the emulator is ended: a planted failure.
    pub end_emulator_at: Option<&'static str>,
}

/// Deadlines of what is no stage of a scenario, in milliseconds of host time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the snapshot to the scenario's first stage.
    pub start_ms: u64,
    /// From the verdict to power-off.
    pub power_off_ms: u64,
    /// How many times longer than it says a stage may take, on a machine that is slower than the lane's.
    pub slowness: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start_ms: 30_000,
            power_off_ms: 30_000,
            slowness: 1,
        }
    }
}

impl Request {
    /// The kernel's log of L1, from the snapshot on.
    pub const CONSOLE: &'static str = run_folder::CONSOLE;
    /// What the emulator said.
    pub const EMULATOR_LOG: &'static str = run_folder::EMULATOR_LOG;
}

/// Runs one scenario. `start` provides the machine, with its console log in the request's folder.
///
/// # Errors
///
/// When the folder cannot be written; everything else is an outcome.
pub fn run<M: Machine>(request: &Request, start: impl FnOnce(&Request) -> Result<M, BootError>) -> io::Result<Record> {
    let began = Instant::now();
    let mut logs = RunFolder::create(&request.folder, began)?;
    let mut measures = Vec::new();
    let outcome = match start(request) {
        Ok(mut machine) => {
            let outcome = Conversation::new(&mut logs, request, &mut measures).hold(&mut machine)?;
            if matches!(outcome, Outcome::Timeout { .. }) {
                let registers = machine.registers().unwrap_or_else(|e| format!("no registers: {e}\n"));
                fs::write(request.folder.join(run_folder::REGISTERS), registers)?;
            }
            machine.end();
            outcome
        }
        Err(e) => Outcome::Lost { message: e.to_string() },
    };
    let console = read_lossy(&request.folder.join(run_folder::CONSOLE));
    let outcome = outcome.with_complaints(&complaints(&console));
    logs.line("verdict", &outcome.to_string())?;
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

/// What is said from the snapshot to power-off, and in which order it must be.
struct Conversation<'r> {
    logs: &'r mut RunFolder,
    request: &'r Request,
    measures: &'r mut Vec<Measure>,
    stage: Stage,
    started: bool,
    verdict: Option<Verdict>,
}

fn lost(message: impl Into<String>) -> Outcome {
    Outcome::Lost {
        message: message.into(),
    }
}

impl<'r> Conversation<'r> {
    fn new(logs: &'r mut RunFolder, request: &'r Request, measures: &'r mut Vec<Measure>) -> Self {
        Self {
            logs,
            request,
            measures,
            stage: Stage::begin("start", request.limits.start_ms),
            started: false,
            verdict: None,
        }
    }

    fn hold(mut self, machine: &mut dyn Machine) -> io::Result<Outcome> {
        let run = ToL1::Run {
            scenario: self.request.scenario.clone(),
            seed: self.request.seed,
        };
        self.logs.told(&run)?;
        let control = machine.control();
        if let Err(e) = control
            .write_all(encode(&run).as_bytes())
            .and_then(|()| control.flush())
        {
            return Ok(lost(format!("cannot send the scenario's name to L1: {e}")));
        }
        loop {
            let events = match machine.events().recv_timeout(self.stage.left()) {
                Ok(events) => events,
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(Outcome::Timeout {
                        stage: self.stage.name,
                        deadline_ms: self.stage.deadline_ms,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => MachineEvent::Closed,
            };
            match events {
                MachineEvent::Message(message) => {
                    self.logs.heard(&message)?;
                    if let Err(outcome) = self.take(message) {
                        return Ok(outcome);
                    }
                    if self.request.end_emulator_at == Some(self.stage.name.as_str()) {
                        machine.end();
                    }
                }
                MachineEvent::Garbled(what) => {
                    self.logs.line("garbled", &what)?;
                    return Ok(lost(what));
                }
                MachineEvent::Stopped(why) => return Ok(lost(format!("{why}, in stage `{}`", self.stage.name))),
                MachineEvent::Closed => {
                    return Ok(self.verdict.map_or_else(
                        || lost(format!("L1 ended without a verdict, in stage `{}`", self.stage.name)),
                        Outcome::from,
                    ));
                }
            }
        }
    }

    /// Takes a message in, or says what is wrong with it. One start marker comes first, one end marker last.
    fn take(&mut self, message: FromL1) -> Result<(), Outcome> {
        let is_over = self.verdict.is_some();
        match message {
            FromL1::Ready { .. } => Err(lost("L1 said again that it is ready")),
            FromL1::Symbols { .. } | FromL1::Prompt { .. } => {
                Err(lost("L1 has a prompt for someone, and was to run a scenario"))
            }
            // A process that outlives the scenario may still have something to say.
            FromL1::Log { .. } | FromL1::Transcript { .. } => Ok(()),
            other if is_over => Err(lost(format!("after the verdict came {other:?}"))),
            FromL1::Started { scenario } if self.started || scenario != self.request.scenario => Err(lost(format!(
                "L1 started `{scenario}`, and was to start `{}` once",
                self.request.scenario
            ))),
            FromL1::Started { .. } => {
                self.started = true;
                Ok(())
            }
            // What could not even be set up fails; nothing can pass or be skipped that was not begun.
            FromL1::Done { verdict } if !self.started && !matches!(verdict, Verdict::Fail { .. }) => {
                Err(lost(format!("L1 gave the verdict {verdict:?} without having started")))
            }
            FromL1::Done { verdict } => {
                self.verdict = Some(verdict);
                self.stage = Stage::begin("power off", self.request.limits.power_off_ms);
                Ok(())
            }
            FromL1::Stage { name, deadline_ms } => {
                let slowness = u64::from(self.request.limits.slowness);
                self.stage = Stage::begin(&name, deadline_ms.saturating_mul(slowness));
                Ok(())
            }
            FromL1::Measure { name, value, unit } => {
                self.measures.push(Measure { name, value, unit });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_event::channel;

    struct Scripted(Vec<u8>, Receiver<MachineEvent>);

    impl Machine for Scripted {
        fn control(&mut self) -> &mut dyn Write {
            &mut self.0
        }
        fn events(&mut self) -> &Receiver<MachineEvent> {
            &self.1
        }
        fn registers(&mut self) -> Result<String, String> {
            Ok("RIP=1234\n".to_owned())
        }
        fn end(&mut self) {}
    }

    /// How it ends, and what is in the run folder then.
    fn ends(events: Vec<MachineEvent>, keep_open: bool, console: &str) -> (Outcome, Vec<(&'static str, String)>) {
        let dir = tempfile::tempdir().unwrap();
        let request = Request {
            scenario: "a::b".into(),
            lane: Lane::SvmTcg,
            seed: 7,
            folder: dir.path().join("a"),
            limits: Limits {
                start_ms: 60_000,
                power_off_ms: 10,
                slowness: 1,
            },
            end_emulator_at: None,
        };
        let (send, receive) = channel();
        let record = run(&request, |request| {
            fs::write(request.folder.join(Request::CONSOLE), console).unwrap();
            for one in events {
                send.send(one).unwrap();
            }
            Ok(Scripted(Vec::new(), receive))
        });
        drop(keep_open.then_some(send));
        let record = record.unwrap();
        assert_eq!(Record::read(&request.folder).unwrap(), record);
        let files = run_folder::FILES.iter();
        let files = files.filter_map(|&name| Some((name, fs::read_to_string(request.folder.join(name)).ok()?)));
        (record.outcome, files.collect())
    }

    fn outcome_of(events: Vec<MachineEvent>, keep_open: bool, console: &str) -> Outcome {
        ends(events, keep_open, console).0
    }

    fn started() -> MachineEvent {
        let scenario = "a::b".to_owned();
        MachineEvent::Message(FromL1::Started { scenario })
    }

    fn done(verdict: Verdict) -> MachineEvent {
        MachineEvent::Message(FromL1::Done { verdict })
    }

    fn is_lost(events: Vec<MachineEvent>, with: &str) {
        let outcome = outcome_of(events, true, "");
        assert!(
            matches!(&outcome, Outcome::Lost { message } if message.contains(with)),
            "{outcome}"
        );
    }

    #[test]
    fn verdicts() {
        let pass = || vec![started(), done(Verdict::Pass), MachineEvent::Closed];
        assert_eq!(outcome_of(pass(), true, "fine"), Outcome::Pass);
        let splat = outcome_of(pass(), true, "[ 1.0] BUG: x\n");
        assert_eq!(splat.to_string(), "splat (oops): [ 1.0] BUG: x (otherwise pass)");
        is_lost(
            vec![MachineEvent::Closed],
            "L1 ended without a verdict, in stage `start`",
        );
        is_lost(
            vec![MachineEvent::Stopped("qemu stopped: internal-error".into())],
            "internal-error",
        );
        is_lost(
            vec![MachineEvent::Garbled("no control message".into())],
            "no control message",
        );
    }

    #[test]
    fn one_start_marker_and_one_end_marker() {
        is_lost(vec![started(), started()], "`a::b` once");
        is_lost(
            vec![MachineEvent::Message(FromL1::Started {
                scenario: "c::d".into(),
            })],
            "was to start `a::b`",
        );
        is_lost(
            vec![done(Verdict::Pass), MachineEvent::Closed],
            "without having started",
        );
        is_lost(
            vec![started(), done(Verdict::Pass), done(Verdict::Pass)],
            "after the verdict",
        );
        let stage = || {
            MachineEvent::Message(FromL1::Stage {
                name: "late".into(),
                deadline_ms: 1,
            })
        };
        is_lost(vec![started(), done(Verdict::Pass), stage()], "after the verdict");
        let failed = vec![
            done(Verdict::Fail {
                message: "no modules".into(),
            }),
            MachineEvent::Closed,
        ];
        assert_eq!(
            outcome_of(failed, true, ""),
            Outcome::Fail {
                message: "no modules".into()
            }
        );
    }

    #[test]
    fn a_stage_that_takes_too_long_is_named_and_registers_are_kept() {
        let stage = MachineEvent::Message(FromL1::Stage {
            name: "hook".into(),
            deadline_ms: 10,
        });
        let (outcome, files) = ends(vec![started(), stage], true, "");
        let stage = |stage: &str| Outcome::Timeout {
            stage: stage.into(),
            deadline_ms: 10,
        };
        assert_eq!(outcome, stage("hook"));
        assert!(
            files.contains(&(run_folder::REGISTERS, "RIP=1234\n".to_owned())),
            "{files:?}"
        );
        assert_eq!(
            outcome_of(vec![started(), done(Verdict::Pass)], true, ""),
            stage("power off")
        );
    }

    #[test]
    fn each_kind_of_evidence_has_its_file() {
        let say = |message| MachineEvent::Message(message);
        let log = |source: &str, text: &str| {
            say(FromL1::Log {
                source: source.into(),
                text: text.into(),
            })
        };
        let wire = say(FromL1::Transcript {
            text: "> #1 GET_VERSION".into(),
        });
        let events = vec![
            started(),
            log("guest", "hello"),
            log("scenario", "fine"),
            wire,
            done(Verdict::Pass),
            MachineEvent::Closed,
        ];
        let (_, files) = ends(events, true, "kernel");
        let of = |name| files.iter().find(|(n, _)| *n == name).map_or("", |(_, text)| text);
        assert!(of(run_folder::GUEST).ends_with("guest: hello\n") && !of(run_folder::GUEST).contains("fine"));
        assert_eq!(of(run_folder::WIRE), "> #1 GET_VERSION\n");
        assert_eq!(of(run_folder::CONTROL).lines().count(), 6);
        assert!(
            of(run_folder::CONTROL)
                .lines()
                .next()
                .unwrap()
                .contains(r#"> {"type":"run""#)
        );
        assert!(of(run_folder::LOG).ends_with("verdict: pass\n"));
    }

    #[test]
    fn a_full_disk_is_an_error_and_no_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        std::os::unix::fs::symlink("/dev/full", folder.join(run_folder::CONTROL)).unwrap();
        let (scenario, limits) = ("a::b".to_owned(), Limits::default());
        let request = Request {
            scenario,
            lane: Lane::SvmTcg,
            seed: 7,
            folder,
            limits,
            end_emulator_at: None,
        };
        let (send, receive) = channel();
        send.send(MachineEvent::Closed).unwrap();
        let error = run(&request, |_| Ok(Scripted(Vec::new(), receive))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(Record::read(&request.folder).is_err());
    }
}

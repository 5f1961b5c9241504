// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running the scenario of a bundle again, with all that the bundle has: nothing of L1 is built.

mod modules;
mod recorded;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::show;
use kvmi_lab_environment::{apt, exit};
use kvmi_lab_machine::bundle::{self, Bundle, Manifest, Source};
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::lab_run::{LabRun, Prepared};
use kvmi_lab_machine::outcome::{Outcome, Record};
use serde_json::json;

use crate::emulators::{self, Fetched, is_bochs};
use crate::snapshots::{self, ReadyLane};
use crate::table::relative;
use crate::transcript::{self, Transcripts};

/// What to do with a bundle.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The bundle, as the end of a failure names it
    bundle: PathBuf,
    /// Record the execution, from power-on to power-off, on one CPU (svm-tcg only)
    #[arg(long, conflicts_with = "replay")]
    record: bool,
    /// Repeat the recorded execution, instruction for instruction
    #[arg(long)]
    replay: bool,
    /// With --replay: stop at this instruction, counted from power-on, and show the registers
    #[arg(long, requires = "replay", value_name = "INSTRUCTION")]
    at: Option<u64>,
    /// With --replay: let a debugger take over, at --at or at power-on
    #[arg(long, requires = "replay")]
    gdb: bool,
}

/// Runs it and compares.
pub fn run(env: &Environment, wanted: &Arguments, json: bool) -> Result<u8> {
    let path = find(env, &wanted.bundle);
    let with_recording = match (wanted.record, wanted.replay, wanted.gdb, wanted.at) {
        (true, ..) => Some(recorded::Options::Record),
        (_, true, true, at) => Some(recorded::Options::Debug(at.unwrap_or(0))),
        (_, true, false, Some(at)) => Some(recorded::Options::StopAt(at)),
        (_, true, false, None) => Some(recorded::Options::Replay),
        (_, false, ..) => None,
    };
    if let Some(with_recording) = with_recording {
        return recorded::run(env, &path, with_recording);
    }
    let repro = Reproducer::new(env, env.runs.new_folder()?)?.again(&path)?;
    let (bundle, record) = (&repro.bundle.manifest, &repro.record);
    let is_same = repro.is_same();
    if json {
        show!(
            "{}",
            json!({
                "event": "reproduced", "same": is_same, "bundle": bundle.seen, "record": record,
                "circumstances": repro.circumstances, "logs": repro.logs,
            })
        );
    } else {
        show!("\n{} on {}, seed {}", bundle.scenario, bundle.lane, bundle.seed);
        if is_same {
            show!("same verdict: {}", record.outcome);
            if repeats_itself(bundle) {
                match repro.transcripts() {
                    Transcripts::Same(lines) => show!(
                        "  and the same kernel log and control channel, {lines} lines, byte for byte, time stamps included"
                    ),
                    Transcripts::Differ(how) => show!("  but not to the byte: {how}"),
                }
            }
        } else {
            show!(
                "another verdict\n  bundle: {}\n  here:   {}",
                plain(&bundle.seen),
                record.outcome
            );
        }
        for difference in &repro.circumstances {
            show!("  {difference}");
        }
        show!("logs: {}", relative(&repro.logs, &env.checkout));
    }
    Ok(if is_same { exit::OK } else { exit::OTHER_VERDICT })
}

/// A path as a person gives it: from here, or from the checkout's top, as failures print it; of the folder with the logs, too.
fn find(env: &Environment, path: &Path) -> PathBuf {
    let from_top = env.checkout.join(path);
    let found = if path.exists() || !from_top.exists() {
        path.to_owned()
    } else {
        from_top
    };
    if found.is_dir() {
        found.join("bundle.tar.zst")
    } else {
        found
    }
}

/// A scenario that was run again.
#[derive(Debug)]
pub struct Repro {
    /// What it was run from.
    pub bundle: Bundle,
    /// How it ended here.
    pub record: Record,
    /// What is otherwise here than where the bundle was made.
    pub circumstances: Vec<String>,
    /// Where this run's logs are.
    pub logs: PathBuf,
}

impl Repro {
    /// Whether L1 said what it said where the bundle was made. In Bochs it must, unless L0 ended it at some instant of its own.
    pub fn transcripts(&self) -> Transcripts {
        transcript::compare(&self.bundle.logs, &self.logs)
    }

    /// Whether it ended as the bundle says.
    pub fn is_same(&self) -> bool {
        self.bundle.manifest.seen.signature() == self.record.outcome.signature()
    }
}

/// Whether the same scenario is the same execution there each time, so that all that L1 says must be the same.
pub fn repeats_itself(manifest: &Manifest) -> bool {
    is_bochs(manifest.lane) || manifest.clock != Clock::Host
}

/// Runs bundles' scenarios, in L1s that boot once for all bundles that hold the same of them.
pub struct Reproducer<'s> {
    env: &'s Environment,
    fetched: Fetched,
    folder: PathBuf,
    bundles: u32,
    standing: Option<(L1, Vec<ReadyLane>)>,
}

/// All that makes an L1 what it is at its snapshot.
#[derive(Debug, PartialEq, Eq)]
struct L1 {
    lane: Lane,
    clock: Clock,
    arguments: Vec<String>,
    /// Kernel and initrd, by their hashes.
    boots: Vec<String>,
}

impl L1 {
    fn of(manifest: &Manifest) -> Self {
        let booted = manifest.members.iter().filter(|m| !m.name.contains('/'));
        Self {
            lane: manifest.lane,
            clock: manifest.clock,
            arguments: manifest.arguments.clone(),
            boots: booted.map(|m| format!("{} {}", m.name, m.sha256)).collect(),
        }
    }
}

impl<'s> Reproducer<'s> {
    /// One whose logs go into this folder.
    pub fn new(env: &'s Environment, folder: PathBuf) -> Result<Self> {
        apt::require_debian()?;
        Ok(Self {
            env,
            fetched: emulators::fetch(env)?,
            folder,
            bundles: 0,
            standing: None,
        })
    }

    /// Runs the scenario of a bundle.
    pub fn again(&mut self, path: &Path) -> Result<Repro> {
        self.bundles += 1;
        let folder = self.folder.join(self.bundles.to_string());
        let bundle =
            bundle::open(path, &folder.join("bundle")).with_context(|| format!("bundle {}", path.display()))?;
        let manifest = &bundle.manifest;
        let run = LabRun {
            folder,
            seed: manifest.seed,
            source: Source {
                boot: bundle.boot.clone(),
                kernel: manifest.kernel.clone(),
                clock: manifest.clock,
                checkout: manifest.checkout.clone(),
                emulators: vec![(manifest.lane, self.fetched.emulator(manifest.lane))],
            },
            lanes: self.stand(&bundle)?,
        };
        let task = self
            .env
            .progress
            .task(format!("run {} on {}", manifest.scenario, manifest.lane));
        let record = run.run(manifest.lane, &manifest.scenario)?;
        task.done();
        let logs = run.scenario_folder(manifest.lane, &manifest.scenario);
        let circumstances = circumstances(&bundle, &self.fetched);
        Ok(Repro {
            bundle,
            record,
            circumstances,
            logs,
        })
    }

    /// Has the L1 of a bundle stand at its snapshot.
    fn stand(&mut self, bundle: &Bundle) -> Result<Vec<Prepared>> {
        let wanted = L1::of(&bundle.manifest);
        if self.standing.as_ref().is_none_or(|(l1, _)| *l1 != wanted) {
            // One at a time: before the next boots, the last one ends.
            self.standing = None;
            apt::install_for_boot(self.env, wanted.lane)?;
            let lanes = [wanted.lane];
            let standing = snapshots::prepare(
                self.env,
                &lanes,
                wanted.clock,
                &bundle.boot,
                &self.fetched,
                &self.folder,
            )?;
            self.standing = Some((wanted, standing));
        }
        let (_, standing) = self.standing.as_ref().context("no L1 stands")?;
        Ok(standing.iter().map(|s| s.prepared.clone()).collect())
    }
}

/// A verdict of someone else's, without what would move the cursor.
fn plain(outcome: &Outcome) -> String {
    outcome.to_string().replace(|c: char| c.is_control() && c != '\n', "·")
}

fn circumstances(bundle: &Bundle, fetched: &Fetched) -> Vec<String> {
    let here = fetched.emulator(bundle.manifest.lane);
    if here == bundle.manifest.emulator {
        return Vec::new();
    }
    vec![format!(
        "the emulator is another: {here} here, {} there",
        bundle.manifest.emulator
    )]
}

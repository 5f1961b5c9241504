// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running the scenario of a bundle again, with all that the bundle has: nothing of L1 is built.

mod recorded;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_machine::bundle::{self, Bundle, Source};
use kvmi_lab_machine::lab_run::LabRun;
use kvmi_lab_machine::outcome::{Outcome, Record};
use kvmi_lab_machine::run_folder;
use serde_json::json;

use crate::e2e;
use crate::emulators::{self, Fetched, is_bochs};
use crate::output::show;
use crate::points;
use crate::table::relative;
use crate::workshop::Workshop;
use crate::{apt, exit};

/// What to do with a bundle.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
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
pub(crate) fn run(shop: &Workshop, wanted: &Arguments, json: bool) -> Result<u8> {
    let path = find(shop, &wanted.bundle);
    let with_recording = match (wanted.record, wanted.replay, wanted.gdb, wanted.at) {
        (true, ..) => Some(recorded::Wanted::Record),
        (_, true, true, at) => Some(recorded::Wanted::Debug(at.unwrap_or(0))),
        (_, true, false, Some(at)) => Some(recorded::Wanted::StopAt(at)),
        (_, true, false, None) => Some(recorded::Wanted::Replay),
        (_, false, ..) => None,
    };
    if let Some(with_recording) = with_recording {
        return recorded::run(shop, &path, with_recording);
    }
    let repro = again(shop, &path)?;
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
            if is_bochs(bundle.lane) {
                match repro.transcripts() {
                    Transcripts::Same => {
                        show!("  and the same kernel log and control channel, byte for byte, time stamps included")
                    }
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
        show!("logs: {}", relative(&repro.logs, &shop.checkout));
    }
    Ok(if is_same { exit::OK } else { exit::OTHER_VERDICT })
}

/// A path as a person gives it: from here, or from the checkout's top, as failures print it.
fn find(shop: &Workshop, path: &Path) -> PathBuf {
    let from_top = shop.checkout.join(path);
    if path.exists() || !from_top.exists() {
        path.to_owned()
    } else {
        from_top
    }
}

/// A scenario that was run again.
#[derive(Debug)]
pub(crate) struct Repro {
    pub(crate) bundle: Bundle,
    pub(crate) record: Record,
    /// What is otherwise here than where the bundle was made.
    pub(crate) circumstances: Vec<String>,
    /// Where this run's logs are.
    pub(crate) logs: PathBuf,
}

/// Whether two runs said the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transcripts {
    /// Kernel log and control channel are the same to the byte, L1's time stamps included.
    Same,
    /// The first line that differs, in which file.
    Differ(String),
}

impl Repro {
    /// Whether L1 said what it said where the bundle was made. In Bochs it must, unless L0 ended it at some instant of its own.
    pub(crate) fn transcripts(&self) -> Transcripts {
        for name in [run_folder::CONSOLE, run_folder::CONTROL] {
            let read = |folder: &Path| said_by_l1(name, &fs::read(folder.join(name)).unwrap_or_default());
            let (there, here) = (read(&self.bundle.logs), read(&self.logs));
            if there != here {
                let same = there.lines().zip(here.lines()).take_while(|(a, b)| a == b).count();
                let line = |text: &str| text.lines().nth(same).unwrap_or("(end)").to_owned();
                return Transcripts::Differ(format!(
                    "{name}:{}: {} here, {} there",
                    same + 1,
                    line(&here),
                    line(&there)
                ));
            }
        }
        Transcripts::Same
    }

    /// Whether it ended as the bundle says.
    pub(crate) fn is_same(&self) -> bool {
        self.bundle.manifest.seen.gist() == self.record.outcome.gist()
    }
}

/// Runs the scenario of a bundle.
pub(crate) fn again(shop: &Workshop, path: &Path) -> Result<Repro> {
    let folder = e2e::new_folder(shop)?;
    let bundle = bundle::open(path, &folder.join("bundle")).with_context(|| format!("bundle {}", path.display()))?;
    let manifest = &bundle.manifest;
    apt::require_debian()?;
    apt::install_for_boot(shop, manifest.lane)?;
    let fetched = emulators::fetch(shop)?;
    let standing = points::prepare(shop, &[manifest.lane], &bundle.boot, &fetched, &folder)?;
    let run = LabRun {
        folder,
        seed: manifest.seed,
        source: Source {
            boot: bundle.boot.clone(),
            kernel: manifest.kernel.clone(),
            checkout: manifest.checkout.clone(),
            emulators: vec![(manifest.lane, fetched.emulator(manifest.lane))],
        },
        lanes: standing.iter().map(|s| s.prepared.clone()).collect(),
    };
    let task = shop
        .progress
        .task(format!("run {} on {}", manifest.scenario, manifest.lane));
    let record = run.run(manifest.lane, &manifest.scenario)?;
    task.done();
    let logs = run.scenario_folder(manifest.lane, &manifest.scenario);
    let circumstances = circumstances(&bundle, &fetched);
    Ok(Repro {
        bundle,
        record,
        circumstances,
        logs,
    })
}

/// A log without the times of L0, which stand in front of each line of the control channel's.
fn said_by_l1(name: &str, log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    if name != run_folder::CONTROL {
        return text.into_owned();
    }
    let without_time = |line: &str| line.split_once("] ").map_or(line, |(_, said)| said).to_owned() + "\n";
    text.lines().map(without_time).collect()
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

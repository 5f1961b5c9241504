// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bundle's scenario as a recorded execution, which can be repeated instruction for instruction and stopped anywhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::show;
use kvmi_lab_environment::{apt, exit};
use kvmi_lab_machine::bundle::{self, Bundle};
use kvmi_lab_machine::recording::{Divergence, Recording, Replayed};
use kvmi_lab_machine::scenario::{Limits, Request};

use super::{modules, plain};
use crate::emulators::{self, Fetched};
use crate::gdb::{self, Gdb};
use crate::images;
use crate::table::relative;

/// How much slower than the lane's machine one is that records.
const SLOWNESS: u32 = 20;

/// What to do with the execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Options {
    /// Make it.
    Record,
    /// Repeat all of it and compare.
    Replay,
    /// Repeat it up to an instruction, and show the registers there.
    StopAt(u64),
    /// The same, and wait for a debugger there.
    Debug(u64),
}

/// Records, repeats, or stops within the execution that belongs to a bundle.
pub(crate) fn run(env: &Environment, path: &Path, wanted: Options) -> Result<u8> {
    let folder = PathBuf::from(format!("{}.recording", path.display()));
    let bundle = bundle::open(path, &folder.join("bundle")).with_context(|| format!("bundle {}", path.display()))?;
    let manifest = &bundle.manifest;
    ensure!(
        manifest.lane == Lane::SvmTcg,
        "lane {} has nothing to record with; where it runs in Bochs each run is the same already: cargo xtask repro {}",
        manifest.lane,
        path.display()
    );
    apt::require_debian()?;
    let fetched = emulators::fetch(env)?;
    let recorder = images::recorder(env)?;
    let recording = Recording::at(&folder, &bundle.boot, recorder, &manifest.scenario, manifest.seed);
    if wanted != Options::Record && !recording.exists() {
        bail!("nothing is recorded yet: cargo xtask repro {} --record", path.display());
    }
    match wanted {
        Options::Record => record(env, &bundle, &recording, &fetched, path),
        Options::Replay => {
            let Replayed {
                instructions,
                complained,
                differences,
            } = recording.replay(&fetched.emulators, &env.progress)?;
            for d in &differences {
                show!("the {} is another from byte {} on", d.stream, d.at);
            }
            if let Some(Divergence {
                complaint,
                after,
                before,
            }) = &complained
            {
                show!(
                    "L1's kernel first complained between the instructions {after} and {before}: {}",
                    complaint.line
                );
            }
            if differences.is_empty() {
                let instructions = instructions.map_or_else(String::new, |n| format!(" {n} instructions,"));
                show!(
                    "repeated,{instructions} and L1's console and all that it said on the control channel are the same, byte for byte"
                );
                let number = complained.map_or_else(|| "NUMBER".to_owned(), |complained| complained.after.to_string());
                show!(
                    "to stop at an instruction: cargo xtask repro {} --replay --at {number} [--gdb]",
                    relative(path, &env.checkout)
                );
            }
            Ok(if differences.is_empty() {
                exit::OK
            } else {
                exit::OTHER_VERDICT
            })
        }
        Options::StopAt(instruction) => {
            let stopped = recording.replay_to(&fetched.emulators, instruction, None, &env.progress)?;
            show!("at instruction {}:\n{}", stopped.at, stopped.registers);
            Ok(exit::OK)
        }
        Options::Debug(instruction) => {
            gdb::require()?;
            let gdb = Gdb::new()?;
            let stopped = recording.replay_to(&fetched.emulators, instruction, Some(gdb.socket()), &env.progress)?;
            let kernel = gdb::Kernel::of(&bundle.boot.kernel)?.known(&env.cache)?;
            let modules = modules::loaded(env, &bundle, &recording.loaded()?, &folder)?;
            let command = gdb.write(&folder, kernel.as_ref(), &modules)?;
            show!(
                "L1 stands at instruction {}; it ends when the debugger kills it. In another terminal:\n  {command}",
                stopped.at
            );
            if kernel.is_none() {
                show!("for the kernel's own names, let an L1 say them once before: cargo xtask shell --gdb");
            }
            stopped.wait()?;
            Ok(exit::OK)
        }
    }
}

fn record(env: &Environment, bundle: &Bundle, recording: &Recording, fetched: &Fetched, path: &Path) -> Result<u8> {
    let manifest = &bundle.manifest;
    let request = Request {
        scenario: manifest.scenario.clone(),
        lane: manifest.lane,
        seed: manifest.seed,
        folder: recording.logs(),
        limits: Limits {
            // From power-on.
            start_ms: 600_000,
            slowness: SLOWNESS * bundle.boot.slowness,
            ..Limits::default()
        },
        end_emulator_at: None,
    };
    let record = recording.record(&fetched.emulators, &request, &env.progress)?;
    let is_same = manifest.seen.signature() == record.outcome.signature();
    if is_same {
        show!("recorded, with the same verdict: {}", record.outcome);
    } else {
        // One CPU instead of two, and another clock.
        show!(
            "recorded, with another verdict\n  bundle: {}\n  here:   {}",
            plain(&manifest.seen),
            record.outcome
        );
    }
    show!(
        "to repeat it: cargo xtask repro {} --replay",
        relative(path, &env.checkout)
    );
    Ok(if is_same { exit::OK } else { exit::OTHER_VERDICT })
}

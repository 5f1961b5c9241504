// SPDX-License-Identifier: MIT OR Apache-2.0
//! Having each lane's L1 ready at its snapshot: booted and saved unless the cache has that, and where it takes a server of forks, restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Result, bail};
use kvmi_lab_control::{Lane, Platform};
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::boot::Boot;
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::lab_run::{Prepared, Snapshot};
use kvmi_lab_machine::{bochs, qemu};

use crate::emulators::Fetched;
use crate::images;

/// A lane's L1 at its snapshot, for as long as the run lasts.
pub struct ReadyLane {
    /// What a run needs to know of it.
    pub prepared: Prepared,
    _server: Option<bochs::ForkServer>,
}

/// Has L1 stand at its snapshot on each lane. The clock is that of QEMU; in Bochs time counts instructions anyway.
pub fn prepare(
    env: &Environment,
    wanted: &[Lane],
    clock: Clock,
    boot: &Boot,
    fetched: &Fetched,
    folder: &Path,
) -> Result<Vec<ReadyLane>> {
    let yielder = if wanted.iter().any(|&lane| qemu::Parts::want_library(lane, clock)) {
        Some(images::yielder(env)?)
    } else {
        None
    };
    let library = if wanted.iter().any(|lane| lane.platform() == Platform::Bochs) {
        images::fork_server(env)?
    } else {
        PathBuf::new()
    };
    let snapshot_of = |&lane: &Lane| {
        if lane.platform() == Platform::Bochs {
            return snapshot_in_bochs(env, lane, boot, fetched, &library);
        }
        let parts = qemu::Parts {
            lane,
            clock,
            emulators: fetched.emulators.clone(),
            library: yielder.clone().filter(|_| qemu::Parts::want_library(lane, clock)),
        };
        let saved = qemu::prepare(parts, &env.cache, &fetched.packages, boot, &env.progress)?;
        Ok(SavedSnapshot::Qemu(saved))
    };
    // Those whose snapshot is not in the cache boot at the same time.
    let snapshots: Vec<Result<SavedSnapshot>> = thread::scope(|scope| {
        let booting: Vec<_> = wanted
            .iter()
            .map(|lane| scope.spawn(move || snapshot_of(lane)))
            .collect();
        let done = booting.into_iter().map(thread::ScopedJoinHandle::join);
        done.map(|one| one.unwrap_or_else(|_| bail!("booting a lane panicked")))
            .collect()
    });
    let mut lanes = Vec::new();
    for (&lane, snapshot) in wanted.iter().zip(snapshots) {
        let logs = folder.join(lane.name());
        fs::create_dir_all(&logs)?;
        let (snapshot, server) = match snapshot? {
            SavedSnapshot::Qemu(saved) => (Snapshot::Qemu(saved), None),
            SavedSnapshot::Bochs { cd, saved } => {
                let parts = bochs_parts(lane, boot, fetched, &library, &cd);
                // On this thread: Bochs ends with the thread that started it.
                let server = bochs::start(&parts, &saved, &logs, &env.progress)?;
                (Snapshot::Bochs(server.forks().clone()), Some(server))
            }
        };
        lanes.push(ReadyLane {
            prepared: Prepared { lane, snapshot },
            _server: server,
        });
    }
    Ok(lanes)
}

/// A saved L1 of a lane.
enum SavedSnapshot {
    Qemu(qemu::Saved),
    Bochs { cd: PathBuf, saved: PathBuf },
}

fn snapshot_in_bochs(
    env: &Environment,
    lane: Lane,
    boot: &Boot,
    fetched: &Fetched,
    library: &Path,
) -> Result<SavedSnapshot> {
    let cd = images::cd(env, boot)?;
    let parts = bochs_parts(lane, boot, fetched, library, &cd);
    let saved = bochs::prepare(&parts, &env.cache, &fetched.packages, boot, &env.progress)?;
    Ok(SavedSnapshot::Bochs { cd, saved })
}

fn bochs_parts<'a>(lane: Lane, boot: &Boot, fetched: &'a Fetched, library: &'a Path, cd: &'a Path) -> bochs::Parts<'a> {
    bochs::Parts {
        lane,
        emulators: &fetched.emulators,
        library,
        cd,
        memory_mib: boot.hardware.memory_mib,
    }
}

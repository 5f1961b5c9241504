// SPDX-License-Identifier: MIT OR Apache-2.0
//! Having L1 stand at its point on each lane: booted and saved unless the cache has that, and where it takes a server of forks, restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Result, bail};
use kvmi_lab_control::{Lane, Platform};
use kvmi_lab_environment::workshop::Workshop;
use kvmi_lab_machine::boot::Boot;
use kvmi_lab_machine::lab_run::{Point, Prepared};
use kvmi_lab_machine::pace::Pace;
use kvmi_lab_machine::{bochs, qemu};

use crate::emulators::Fetched;
use crate::images;

/// A lane's L1 at its point, for as long as the run lasts.
pub struct Standing {
    /// What a run needs to know of it.
    pub prepared: Prepared,
    _server: Option<bochs::ForkServer>,
}

/// Has L1 stand at its point on each lane. The pace is that of QEMU; in Bochs time counts instructions anyway.
pub fn prepare(
    shop: &Workshop,
    wanted: &[Lane],
    pace: Pace,
    boot: &Boot,
    fetched: &Fetched,
    folder: &Path,
) -> Result<Vec<Standing>> {
    let yielder = if wanted.iter().any(|&lane| qemu::Parts::want_library(lane, pace)) {
        Some(images::yielder(shop)?)
    } else {
        None
    };
    let library = if wanted.iter().any(|lane| lane.platform() == Platform::Bochs) {
        images::fork_server(shop)?
    } else {
        PathBuf::new()
    };
    let at_point = |&lane: &Lane| {
        if lane.platform() == Platform::Bochs {
            return at_point_in_bochs(shop, lane, boot, fetched, &library);
        }
        let parts = qemu::Parts {
            lane,
            pace,
            emulators: fetched.emulators.clone(),
            library: yielder.clone().filter(|_| qemu::Parts::want_library(lane, pace)),
        };
        let saved = qemu::prepare(parts, &shop.cache, &fetched.packages, boot, &shop.progress)?;
        Ok(AtPoint::Qemu(saved))
    };
    // Those whose point is not in the cache boot at the same time.
    let points: Vec<Result<AtPoint>> = thread::scope(|scope| {
        let booting: Vec<_> = wanted.iter().map(|lane| scope.spawn(move || at_point(lane))).collect();
        let done = booting.into_iter().map(thread::ScopedJoinHandle::join);
        done.map(|one| one.unwrap_or_else(|_| bail!("booting a lane panicked")))
            .collect()
    });
    let mut lanes = Vec::new();
    for (&lane, point) in wanted.iter().zip(points) {
        let logs = folder.join(lane.name());
        fs::create_dir_all(&logs)?;
        let (point, server) = match point? {
            AtPoint::Qemu(saved) => (Point::Qemu(saved), None),
            AtPoint::Bochs { cd, saved } => {
                let parts = bochs_parts(lane, boot, fetched, &library, &cd);
                // On this thread: Bochs ends with the thread that started it.
                let server = bochs::start(&parts, &saved, &logs, &shop.progress)?;
                (Point::Bochs(server.forks().clone()), Some(server))
            }
        };
        lanes.push(Standing {
            prepared: Prepared { lane, point },
            _server: server,
        });
    }
    Ok(lanes)
}

/// A saved L1 of a lane.
enum AtPoint {
    Qemu(qemu::Saved),
    Bochs { cd: PathBuf, saved: PathBuf },
}

fn at_point_in_bochs(shop: &Workshop, lane: Lane, boot: &Boot, fetched: &Fetched, library: &Path) -> Result<AtPoint> {
    let cd = images::cd(shop, boot)?;
    let parts = bochs_parts(lane, boot, fetched, library, &cd);
    let saved = bochs::prepare(&parts, &shop.cache, &fetched.packages, boot, &shop.progress)?;
    Ok(AtPoint::Bochs { cd, saved })
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making a bundle from a run folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use kvmi_lab_control::Lane;
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, Member, SCHEMA, sha256};
use super::{FILE, MAX_BYTES, MAX_LOG_BYTES, name};
use crate::boot::Boot;
use crate::clock::Clock;
use crate::complaint::today;
use crate::outcome::{Outcome, Record};
use crate::run_folder;

/// How hard it is compressed: the kernel is compressed already, and bundles are made while scenarios run.
const LEVEL: i32 = 3;

/// What all scenarios of a run have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// What L1 booted.
    pub boot: Boot,
    /// `uname -r` of it.
    pub kernel: String,
    /// How time passes in L1.
    pub clock: Clock,
    /// The commit of the checkout.
    pub checkout: String,
    /// The emulator's package and version, for each lane.
    pub emulators: Vec<(Lane, String)>,
}

/// Writes the bundle of a scenario that ran in `folder` into it; its path.
///
/// # Errors
///
/// What the file system fails with; a bundle that would be larger than [`MAX_BYTES`].
pub fn write(source: &Source, record: &Record, folder: &Path) -> io::Result<PathBuf> {
    let mut members = vec![
        (name::KERNEL.to_owned(), fs::read(&source.boot.kernel)?),
        (name::INITRD.to_owned(), fs::read(&source.boot.initrd)?),
    ];
    for log in run_folder::FILES {
        if let Ok(content) = fs::read(folder.join(log)) {
            members.push((format!("{}{log}", name::LOGS), shortened(content)));
        }
    }
    let emulator = source.emulators.iter().find(|(lane, _)| *lane == record.lane);
    let manifest = Manifest {
        schema: SCHEMA,
        made: today().to_string(),
        checkout: source.checkout.clone(),
        scenario: record.scenario.clone(),
        lane: record.lane,
        seed: record.seed,
        clock: source.clock,
        expected: Outcome::Pass,
        seen: record.outcome.clone(),
        seconds: record.seconds,
        kernel: source.kernel.clone(),
        arguments: source.boot.arguments.clone(),
        slowness: source.boot.slowness,
        emulator: emulator.map(|(_, text)| text.clone()).unwrap_or_default(),
        members: members.iter().map(|(name, content)| member(name, content)).collect(),
    };
    // It appears whole or not at all.
    let (path, unfinished) = (folder.join(FILE), folder.join(format!(".{FILE}")));
    let written = pack(&manifest, &members, &unfinished).and_then(|()| {
        let bytes = fs::metadata(&unfinished)?.len();
        if bytes > MAX_BYTES {
            return Err(io::Error::other(format!(
                "the bundle has {bytes} bytes, more than {MAX_BYTES}"
            )));
        }
        fs::rename(&unfinished, &path)
    });
    if let Err(e) = written {
        let _ = fs::remove_file(&unfinished);
        return Err(e);
    }
    Ok(path)
}

fn member(name: &str, content: &[u8]) -> Member {
    Member {
        name: name.to_owned(),
        bytes: content.len() as u64,
        sha256: sha256(content),
    }
}

/// Writes manifest and members into a file, whatever they say.
pub(super) fn pack(manifest: &Manifest, members: &[(String, Vec<u8>)], to: &Path) -> io::Result<()> {
    let compressed = zstd::Encoder::new(BufWriter::new(File::create(to)?), LEVEL)?;
    let mut archive = tar::Builder::new(compressed);
    let text = serde_json::to_vec_pretty(manifest)?;
    append(&mut archive, name::MANIFEST, &text)?;
    for (name, content) in members {
        append(&mut archive, name, content)?;
    }
    archive.into_inner()?.finish()?.flush()
}

fn append<W: Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

/// A log without its middle, where it is long.
fn shortened(log: Vec<u8>) -> Vec<u8> {
    if log.len() <= MAX_LOG_BYTES {
        return log;
    }
    let half = MAX_LOG_BYTES / 2;
    let left_out = format!("\n({} bytes are left out)\n", log.len() - 2 * half);
    [&log[..half], left_out.as_bytes(), &log[log.len() - half..]].concat()
}

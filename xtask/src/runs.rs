// SPDX-License-Identifier: MIT OR Apache-2.0
//! The folders of runs, of which the last ones stay.

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::workshop::Workshop;

/// How many runs' logs are kept below `target/lab`.
const KEPT: usize = 20;

/// A folder for the logs of this run; the oldest ones go.
pub(crate) fn new_folder(shop: &Workshop) -> Result<PathBuf> {
    let top = &shop.runs;
    fs::create_dir_all(top)?;
    let mut runs: Vec<PathBuf> = fs::read_dir(top)?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    runs.sort();
    let surplus = (runs.len() + 1).saturating_sub(KEPT);
    for old in &runs[..surplus] {
        fs::remove_dir_all(old).with_context(|| format!("remove {}", old.display()))?;
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    let folder = top.join(format!("{}-{}", now.as_millis(), std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

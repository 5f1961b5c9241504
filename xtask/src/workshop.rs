// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every command works with: the checkout, the cache, and where progress goes.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use kvmi_lab_machine::cache::Cache;
use kvmi_lab_machine::progress::Progress;

use crate::runs::Runs;

/// The place where work is done.
#[derive(Clone, Debug)]
pub(crate) struct Workshop {
    /// The checkout's top folder.
    pub(crate) checkout: PathBuf,
    pub(crate) cache: Cache,
    pub(crate) runs: Runs,
    pub(crate) progress: Progress,
}

impl Workshop {
    pub(crate) fn open(progress: Progress, runs: Option<&Path>) -> Result<Self> {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no parent folder")?;
        Ok(Self {
            checkout: checkout.to_owned(),
            cache: Cache::from_env()?,
            runs: Runs::below(runs.map_or_else(|| checkout.join("target/lab"), Path::to_owned)),
            progress,
        })
    }

    /// A folder or file of the checkout.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.checkout.join(relative)
    }

    /// How many jobs a build may run at once.
    pub(crate) fn jobs(&self) -> usize {
        thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every command works with: the checkout, the cache, and where progress goes.

use std::path::{Path, PathBuf};
use std::{env, thread};

use anyhow::{Context, Result};
use kvmi_lab_machine::cache::Cache;
use kvmi_lab_machine::progress::Progress;

use crate::runs::Runs;

/// The place where work is done.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The checkout's top folder.
    pub checkout: PathBuf,
    /// What is kept between runs, of all checkouts.
    pub cache: Cache,
    /// Where runs have their folders.
    pub runs: Runs,
    /// Whether packages may be installed on the machine without a question.
    pub may_install: bool,
    /// Who is told how work goes on.
    pub progress: Progress,
}

impl Environment {
    /// The checkout that this program was built from. `runs` is where runs have their folders, `target/lab` when not given.
    /// `CI=true` in the environment lets packages be installed as well.
    ///
    /// # Errors
    ///
    /// When there is no place for a cache.
    pub fn open(progress: Progress, runs: Option<&Path>, may_install: bool) -> Result<Self> {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("this crate is not two folders below the checkout")?;
        Ok(Self {
            checkout: checkout.to_owned(),
            cache: Cache::from_env()?,
            runs: Runs::below(runs.map_or_else(|| checkout.join("target/lab"), Path::to_owned)),
            may_install: may_install || env::var("CI").is_ok_and(|value| value == "true"),
            progress,
        })
    }

    /// A folder or file of the checkout.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.checkout.join(relative)
    }

    /// How many jobs a build may run at once.
    pub fn jobs(&self) -> usize {
        thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

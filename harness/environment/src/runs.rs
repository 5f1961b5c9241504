// SPDX-License-Identifier: MIT OR Apache-2.0
//! The folders of runs, of which the last ones stay: what did not pass longer than what did, for it is what one comes back to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// How many runs' folders are kept.
const KEPT: usize = 20;

/// The file by which a folder says that all went well in it. One without it failed, was cut off, or is still at work.
const PASSED: &str = "passed";

/// Where runs have their folders.
#[derive(Clone, Debug)]
pub struct Runs {
    top: PathBuf,
    /// Those that this process made and of which nothing is known yet.
    open: Arc<Mutex<Vec<PathBuf>>>,
}

impl Runs {
    /// Those below this folder, which need not be there yet.
    pub fn below(top: impl Into<PathBuf>) -> Self {
        Self {
            top: top.into(),
            open: Arc::default(),
        }
    }

    /// A folder for the logs of a run; old ones go.
    pub fn new_folder(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.top).with_context(|| format!("make {}", self.top.display()))?;
        let folders = fs::read_dir(&self.top)?.filter_map(Result::ok).map(|e| e.path());
        for old in surplus(folders.filter(|p| p.is_dir()).collect(), KEPT - 1) {
            fs::remove_dir_all(&old).with_context(|| format!("remove {}", old.display()))?;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock stands before 1970")?;
        let folder = self.top.join(format!("{}-{}", now.as_millis(), std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        self.open().push(folder.clone());
        Ok(folder)
    }

    /// All went well in the folders that this process made since it last said how it went.
    pub fn passed(&self) -> Result<()> {
        for folder in self.open().drain(..) {
            File::create(folder.join(PASSED)).with_context(|| format!("mark {} as passed", folder.display()))?;
        }
        Ok(())
    }

    /// Something did not.
    pub fn failed(&self) {
        self.open().clear();
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that go, so that so many stay: first what passed, the oldest first.
fn surplus(mut folders: Vec<PathBuf>, stay: usize) -> Vec<PathBuf> {
    let has_passed = |folder: &Path| folder.join(PASSED).is_file();
    // Their names begin with the time.
    folders.sort_by_cached_key(|folder| (!has_passed(folder), folder.clone()));
    folders.truncate(folders.len().saturating_sub(stay));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_outlives_what_passed() {
        let top = tempfile::tempdir().unwrap();
        // As `new_folder` names them: by the time, in milliseconds.
        let run = |at: usize, passes: bool| {
            let runs = Runs::below(top.path());
            let folder = top.path().join(format!("{}-1", 1_795_000_000_000 + at));
            fs::create_dir(&folder).unwrap();
            runs.open().push(folder.clone());
            if passes {
                runs.passed().unwrap();
            } else {
                runs.failed();
            }
            folder
        };
        let (old, failed, new) = (run(1, true), run(2, false), run(3, true));
        let all = || vec![new.clone(), failed.clone(), old.clone()];
        assert_eq!(surplus(all(), 3), [] as [PathBuf; 0]);
        assert_eq!(surplus(all(), 2), std::slice::from_ref(&old));
        assert_eq!(surplus(all(), 1), [old.clone(), new.clone()]);
        assert_eq!(surplus(all(), 0), [old.clone(), new.clone(), failed.clone()]);
        (4..=KEPT).for_each(|at| drop(run(at, true)));
        let newest = Runs::below(top.path()).new_folder().unwrap();
        assert!(newest.is_dir() && failed.is_dir() && new.is_dir() && !old.exists());
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), KEPT);
    }

    #[test]
    fn who_says_nothing_has_not_passed() {
        let top = tempfile::tempdir().unwrap();
        let runs = Runs::below(top.path());
        let (cut_off, other) = (runs.new_folder().unwrap(), top.path().join("0"));
        fs::create_dir(&other).unwrap();
        File::create(other.join(PASSED)).unwrap();
        assert_eq!(surplus(vec![cut_off.clone(), other.clone()], 1), [other]);
        assert_eq!(surplus(vec![cut_off.clone()], 0), [cut_off]);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! One run of the lab: what was prepared, for the processes that run one scenario each.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use kvmi_lab_control::Lane;
use serde::{Deserialize, Serialize};

use crate::bochs::Forks;
use crate::bundle::{self, Source};
use crate::clock::Clock;
use crate::outcome::Record;
use crate::plant;
use crate::qemu::Saved;
use crate::scenario::{self, Limits, Request};

/// Names the environment variable with the path of the run's file.
pub const VARIABLE: &str = "KVMI_LAB_RUN";

/// How much slower than the lane's machine one is whose time counts instructions.
const COUNTED_SLOWNESS: u32 = 10;

/// What was prepared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabRun {
    /// Holds a folder for each lane, which holds a folder for each scenario.
    pub folder: PathBuf,
    /// Where every scenario's random numbers start.
    pub seed: u64,
    /// What all scenarios have in common, for bundles.
    pub source: Source,
    /// Machines.
    pub lanes: Vec<Prepared>,
}

/// A lane whose L1 stands at its snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Which.
    pub lane: Lane,
    /// What machines come from.
    pub snapshot: Snapshot,
}

impl Prepared {
    /// What executes L1's instructions.
    #[must_use]
    pub fn acceleration(&self) -> String {
        match &self.snapshot {
            Snapshot::Qemu(saved) => saved.acceleration(),
            Snapshot::Bochs(_) => "Bochs, emulated".to_owned(),
        }
    }
}

/// What the machines of a lane come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snapshot {
    /// A state that QEMU saved.
    Qemu(Saved),
    /// A Bochs that forks.
    Bochs(Forks),
}

/// Why there is no run to take part in.
#[derive(Debug, thiserror::Error)]
pub enum NoRun {
    /// The environment does not name one.
    #[error("no machine is prepared ({VARIABLE} is not set): run scenarios by `cargo xtask e2e`")]
    Unset,
    /// The file cannot be read.
    #[error("cannot read the run's file {}: {error}", path.display())]
    Unreadable {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Why a scenario could not be tried at all.
#[derive(Debug, thiserror::Error)]
pub enum NotTried {
    /// The lane was not asked for.
    #[error("lane {0} is not prepared in this run: `cargo xtask e2e --lane {0}`")]
    NotPrepared(Lane),
    /// The scenario's folder cannot be written.
    #[error("cannot write {}: {error}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl LabRun {
    /// The run that the environment names.
    ///
    /// # Errors
    ///
    /// [`NoRun`]
    pub fn from_env() -> Result<Self, NoRun> {
        let path = PathBuf::from(env::var_os(VARIABLE).ok_or(NoRun::Unset)?);
        let read = || Ok(serde_json::from_slice(&fs::read(&path)?)?);
        read().map_err(|error| NoRun::Unreadable {
            path: path.clone(),
            error,
        })
    }

    /// Writes the run's file.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?)
    }

    /// The folder of one scenario on one lane.
    #[must_use]
    pub fn scenario_folder(&self, lane: Lane, scenario: &str) -> PathBuf {
        self.folder.join(lane.name()).join(scenario.replace("::", "."))
    }

    /// Makes the bundle of a scenario that has run, in its folder; its path.
    ///
    /// # Errors
    ///
    /// As [`bundle::write`].
    pub fn bundle(&self, record: &Record) -> io::Result<PathBuf> {
        bundle::write(
            &self.source,
            record,
            &self.scenario_folder(record.lane, &record.scenario),
        )
    }

    /// Deadlines of what is no stage, and how much longer stages may take: in a kernel that watches itself, and in a counted machine, all
    /// of whose CPUs run on one processor.
    fn limits(&self, scenario: &str) -> Limits {
        let limits = plant::limits(scenario);
        let kernel = self.source.boot.slowness;
        let machine = match self.source.clock {
            Clock::Host => 1,
            Clock::Counted(_) => COUNTED_SLOWNESS,
        };
        Limits {
            start_ms: limits.start_ms * u64::from(kernel),
            power_off_ms: limits.power_off_ms * u64::from(kernel),
            slowness: limits.slowness * kernel * machine,
        }
    }

    /// Runs one scenario on one lane.
    ///
    /// # Errors
    ///
    /// [`NotTried`]; whatever goes wrong once it is tried is in the record.
    pub fn run(&self, lane: Lane, scenario: &str) -> Result<Record, NotTried> {
        let prepared = self
            .lanes
            .iter()
            .find(|p| p.lane == lane)
            .ok_or(NotTried::NotPrepared(lane))?;
        let folder = self.scenario_folder(lane, scenario);
        let request = Request {
            scenario: scenario.to_owned(),
            lane,
            seed: self.seed,
            folder: folder.clone(),
            limits: self.limits(scenario),
            end_emulator_at: plant::end_emulator_at(scenario),
        };
        match &prepared.snapshot {
            Snapshot::Qemu(saved) => scenario::run(&request, |r| saved.restore(r)),
            Snapshot::Bochs(forks) => scenario::run(&request, |r| forks.fork(r)),
        }
        .map_err(|error| NotTried::Folder { folder, error })
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What xtask's exit codes mean.

/// All was done, and well.
pub const OK: u8 = 0;

/// A command could not do its work: a build failed, a program is missing, a file cannot be read.
pub const ERROR: u8 = 1;

/// The command line makes no sense (clap's own code).
#[allow(dead_code, reason = "documents what clap exits with")]
pub(crate) const USAGE: u8 = 2;

/// `e2e`, `bench`, `planted`, `twice`, `explore`, `selftests`, `kernels run`: everything was set up, and something did not end as it should.
pub const SCENARIO_FAILED: u8 = 10;

/// `ci`: a step found something to mend; `tidy`: something is untidy; `endure`: something was left; `mutants`: a fault was not noticed; `kernels take` and `build`: a kernel does not fit.
pub const CHECK_FAILED: u8 = 11;

/// `repro`: the scenario ran and ended otherwise than the bundle says.
pub const OTHER_VERDICT: u8 = 13;

/// `doctor`: something that the lab needs is lacking.
pub const LACKING: u8 = 12;

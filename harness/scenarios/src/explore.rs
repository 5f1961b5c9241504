// SPDX-License-Identifier: MIT OR Apache-2.0
//! Schedule exploration, as far as L1 has to do with it: modules that hold threads by a seed, and a kernel that takes the CPU from them here or there.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// Our kvm.ko's parameter for the seed, which only a build for exploration has.
const SEED: &str = "/sys/module/kvm/parameters/explore";

/// How often a thread was held.
const HOLDS: &str = "/sys/module/kvm/parameters/explore_holds";

/// When the kernel takes the CPU from a thread that is in the kernel: at no place, at some, at almost every one.
const PREEMPTION: [&str; 3] = ["none", "voluntary", "full"];

/// What a measurement of [`holds`] is called.
pub const MEASURE: &str = "threads held";

/// Begins to explore by a seed, if the modules are such; the kernel's preemption then.
///
/// # Errors
///
/// A kernel without what it takes.
pub fn begin(seed: u64) -> io::Result<Option<&'static str>> {
    if !Path::new(SEED).exists() {
        return Ok(None);
    }
    let debug = Path::new("/sys/kernel/debug");
    mount("debugfs", debug, "debugfs", MountFlags::empty(), None)?;
    // Another number than the one by which L0 chooses the machine.
    let preemption = PREEMPTION[(seed / 3 % 3) as usize];
    fs::write(debug.join("sched/preempt"), preemption)?;
    fs::write(SEED, seed.to_string())?;
    Ok(Some(preemption))
}

/// How often a thread was held so far; nothing where the modules do not explore.
#[must_use]
pub fn holds() -> Option<u32> {
    fs::read_to_string(HOLDS).ok()?.trim().parse().ok()
}

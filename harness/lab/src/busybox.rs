// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs of a shell in L1: Debian's static busybox, unpacked into the cache like the emulators.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::Archive;
use kvmi_lab_machine::cache::Key;

use crate::emulators::SUITE;

const PACKAGE: &str = "busybox-static";

/// Where the package has it.
const PROGRAM: &str = "usr/bin/busybox";

/// The program, from the cache or from Debian.
pub fn fetch(env: &Environment) -> Result<PathBuf> {
    let key = Key::of("busybox 1")
        .text("suite", SUITE)
        .text("package", PACKAGE)
        .finish();
    let entry = env.cache.entry("busybox", &key, |dir| {
        let task = env.progress.task(format!("fetch {PACKAGE} from Debian {SUITE}"));
        let apt_dir = dir.join("apt");
        let archive = Archive::own(&apt_dir, [("debian", SUITE)])?;
        archive.update(&task)?;
        archive.unpack_closure(&[PACKAGE], dir, &task)?;
        fs::remove_dir_all(&apt_dir)?;
        let program = dir.join(PROGRAM);
        fs::metadata(&program).with_context(|| format!("{PACKAGE} has no {PROGRAM}"))?;
        task.done();
        anyhow::Ok(())
    })?;
    Ok(entry.join(PROGRAM))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test runner: the pinned nextest, installed into the cache where the machine has none that fits.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_machine::process::Program;

use crate::workshop::Workshop;

/// The version that is installed; a later one of the same series is taken as it is.
pub(crate) const VERSION: &str = "0.9.143";

/// What nextest exits with when tests ran and some failed.
pub(crate) const TESTS_FAILED: i32 = 100;

/// What it exits with when no test was selected.
pub(crate) const NO_TESTS: i32 = 4;

/// The program, to be run as `cargo-nextest nextest …`.
pub(crate) fn program(shop: &Workshop) -> Result<PathBuf> {
    let on_path = PathBuf::from("cargo-nextest");
    if fits(&on_path) {
        return Ok(on_path);
    }
    let root = shop.cache.root().join("tools").join(format!("nextest-{VERSION}"));
    let program = root.join("bin/cargo-nextest");
    if fits(&program) {
        return Ok(program);
    }
    let task = shop.progress.task(format!("install nextest {VERSION}"));
    Program::new("cargo")
        // It waits for tests most of its time; an unoptimised one is built in a fraction of the time.
        .args([
            "install",
            "cargo-nextest",
            "--debug",
            "--locked",
            "--version",
            VERSION,
            "--root",
        ])
        .arg(&root)
        .in_dir(&shop.checkout)
        .env("CARGO_TERM_COLOR", "never")
        .env_remove("CARGO_TARGET_DIR")
        .run(&task)
        .with_context(|| {
            format!("install nextest by hand: cargo install cargo-nextest --locked --version {VERSION}")
        })?;
    task.done();
    Ok(program)
}

/// Whether a nextest that fits is at hand.
pub(crate) fn is_here(shop: &Workshop) -> bool {
    let cached = shop
        .cache
        .root()
        .join("tools")
        .join(format!("nextest-{VERSION}"))
        .join("bin/cargo-nextest");
    fits(&PathBuf::from("cargo-nextest")) || fits(&cached)
}

fn fits(program: &PathBuf) -> bool {
    let output = Program::new(program).args(["nextest", "--version"]).output();
    output.is_ok_and(|text| is_recent_enough(&String::from_utf8_lossy(&text)))
}

fn is_recent_enough(version_output: &str) -> bool {
    let numbers = |version: &str| -> Option<[u32; 3]> {
        let mut parts = version.split('.').map(|p| p.parse().ok());
        Some([parts.next()??, parts.next()??, parts.next()??])
    };
    let here = version_output.split_whitespace().nth(1).and_then(numbers);
    let (Some(here), Some(pinned)) = (here, numbers(VERSION)) else {
        return false;
    };
    here[..2] == pinned[..2] && here[2] >= pinned[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_series_and_not_older() {
        assert!(is_recent_enough(&format!("cargo-nextest {VERSION} (abc 2026-01-01)\n")));
        assert!(is_recent_enough("cargo-nextest 0.9.999\n"));
        assert!(!is_recent_enough("cargo-nextest 0.9.1\n"));
        assert!(!is_recent_enough("cargo-nextest 0.10.200\n"));
        assert!(!is_recent_enough(""));
    }
}

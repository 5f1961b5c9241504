// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test runner: the pinned nextest, installed into the cache where the machine has none that fits.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_environment::workshop::Workshop;
use kvmi_lab_machine::process::Program;

/// The version that is installed; a later one of the same series is taken as it is.
pub const VERSION: &str = "0.9.143";

/// What nextest exits with when tests ran and some failed.
pub const TESTS_FAILED: i32 = 100;

/// What it exits with when no test was selected.
pub const NO_TESTS: i32 = 4;

/// The program, to be run as `cargo-nextest nextest …`.
pub fn program(shop: &Workshop) -> Result<PathBuf> {
    let on_path = PathBuf::from("cargo-nextest");
    if version(&on_path).is_some() {
        return Ok(on_path);
    }
    let root = installed_into(shop);
    let program = root.join("bin/cargo-nextest");
    if version(&program).is_some() {
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

/// The version of the nextest that fits, if one is at hand.
pub fn find(shop: &Workshop) -> Option<String> {
    version("cargo-nextest").or_else(|| version(installed_into(shop).join("bin/cargo-nextest")))
}

fn installed_into(shop: &Workshop) -> PathBuf {
    shop.cache.root().join("tools").join(format!("nextest-{VERSION}"))
}

/// The version of a nextest, if there is one and it fits.
fn version(program: impl AsRef<OsStr>) -> Option<String> {
    let output = Program::new(program).args(["nextest", "--version"]).output().ok()?;
    let output = String::from_utf8_lossy(&output);
    let version = output.split_whitespace().nth(1).filter(|_| is_recent_enough(&output));
    version.map(str::to_owned)
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

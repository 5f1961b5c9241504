// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of Rust's own that commands call: a pinned version, built into the cache where the machine has none that fits.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvmi_lab_machine::process::Program;

use crate::Environment;

/// A program from crates.io.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// The name of its package, which is that of its program.
    pub package: &'static str,
    /// The version that is built; a later one of the same series is taken as it is.
    pub version: &'static str,
    /// What follows the program's name when cargo calls it.
    pub subcommand: &'static str,
}

/// Runs tests, each in a process of its own.
pub const NEXTEST: Tool = Tool {
    package: "cargo-nextest",
    version: "0.9.143",
    subcommand: "nextest",
};

/// Looks at licences, versions and advisories of crates.
pub const DENY: Tool = Tool {
    package: "cargo-deny",
    version: "0.20.2",
    subcommand: "deny",
};

impl Tool {
    /// The program, to be run as cargo does: with its subcommand first.
    ///
    /// # Errors
    ///
    /// When it cannot be built.
    pub fn program(&self, env: &Environment) -> Result<PathBuf> {
        let on_path = PathBuf::from(self.package);
        if self.version_of(&on_path).is_some() {
            return Ok(on_path);
        }
        let root = self.installed_into(env);
        let program = root.join("bin").join(self.package);
        if self.version_of(&program).is_some() {
            return Ok(program);
        }
        let task = env.progress.task(format!("build {} {}", self.package, self.version));
        Program::new("cargo")
            // It waits for others most of its time; an unoptimised one is built in a fraction of the time.
            .args([
                "install",
                self.package,
                "--debug",
                "--locked",
                "--version",
                self.version,
                "--root",
            ])
            .arg(&root)
            .in_dir(&env.checkout)
            .env("CARGO_TERM_COLOR", "never")
            .env_remove("CARGO_TARGET_DIR")
            .run(&task)
            .with_context(|| format!("install it by hand: {}", self.install_command()))?;
        task.done();
        Ok(program)
    }

    /// The version of the one that fits, if one is at hand.
    pub fn find(&self, env: &Environment) -> Option<String> {
        self.version_of(self.package)
            .or_else(|| self.version_of(self.installed_into(env).join("bin").join(self.package)))
    }

    /// The command that installs it, as a person would type it.
    pub fn install_command(&self) -> String {
        format!("cargo install {} --locked --version {}", self.package, self.version)
    }

    fn installed_into(&self, env: &Environment) -> PathBuf {
        let name = format!("{}-{}", self.subcommand, self.version);
        env.cache.root().join("tools").join(name)
    }

    /// The version of a program, if it is there and fits.
    fn version_of(&self, program: impl AsRef<OsStr>) -> Option<String> {
        let output = Program::new(program)
            .args([self.subcommand, "--version"])
            .output()
            .ok()?;
        let output = String::from_utf8_lossy(&output);
        let version = output.split_whitespace().nth(1).filter(|_| self.fits(&output));
        version.map(str::to_owned)
    }

    fn fits(&self, version_output: &str) -> bool {
        let numbers = |version: &str| -> Option<[u32; 3]> {
            let mut parts = version.split('.').map(|p| p.parse().ok());
            Some([parts.next()??, parts.next()??, parts.next()??])
        };
        let here = version_output.split_whitespace().nth(1).and_then(numbers);
        let (Some(here), Some(pinned)) = (here, numbers(self.version)) else {
            return false;
        };
        here[..2] == pinned[..2] && here[2] >= pinned[2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_series_and_not_older() {
        let fits = |output: &str| NEXTEST.fits(output);
        assert!(fits(&format!("cargo-nextest {} (abc 2026-01-01)\n", NEXTEST.version)));
        assert!(fits("cargo-nextest 0.9.999\n"));
        assert!(!fits("cargo-nextest 0.9.1\n"));
        assert!(!fits("cargo-nextest 0.10.200\n"));
        assert!(!fits(""));
    }
}

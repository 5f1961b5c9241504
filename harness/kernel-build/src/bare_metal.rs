// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cargo for targets without an operating system: Debian's compiler, which brings the source of its library.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::process::Program;

/// Debian's compiler, by its whole path: the search path leads to rustup's.
pub const RUSTC: &str = "/usr/bin/rustc";

/// The only target.
pub(crate) const TARGET: &str = "x86_64-unknown-none";

/// A cargo command (its subcommand and arguments first) that builds for bare metal in release mode into `target`.
pub fn cargo(env: &Environment, command: &[&str], flags: &[String], target: &Path) -> Program {
    let cargo = Program::new("cargo")
        .args(command)
        .args([
            "--release",
            "--locked",
            "-Zbuild-std=core",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target)
        // One unit with everything in it: what is never called goes, and with it ways to a panic that are none.
        .args([
            "--config",
            "profile.release.lto=\"fat\"",
            "--config",
            "profile.release.codegen-units=1",
        ])
        .in_dir(&env.checkout)
        // It is what makes an ordinary compiler take -Z flags.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", RUSTC)
        .env("CARGO_TERM_COLOR", "never")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    // Flags in the environment take the place of those in .cargo/config.toml.
    if flags.is_empty() {
        cargo
    } else {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
    }
}

/// Where [`cargo`] leaves what it made.
pub fn output(target: &Path, name: &str) -> PathBuf {
    target.join(TARGET).join("release").join(name)
}

/// Fails if the compiler warned of anything but the target features that the kernel's flags name.
pub fn refuse_warnings(output: &str) -> Result<()> {
    let is_fine = |line: &str| {
        line.contains("specified for `-Ctarget-feature`")
            || line.contains("warnings emitted")
            || line.contains("generated ")
    };
    let warnings: Vec<&str> = output
        .lines()
        .filter(|l| l.starts_with("warning") && !is_fine(l))
        .collect();
    if warnings.is_empty() {
        return Ok(());
    }
    bail!("warnings are not accepted:\n{output}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_own_flags_may_be_warned_of() {
        let flags = "   Compiling core\nwarning: unstable feature specified for `-Ctarget-feature`: `harden-sls-ijmp`\nwarning: `core` (lib) generated 1 warning\n";
        assert!(refuse_warnings(flags).is_ok());
        assert!(refuse_warnings("warning: unused variable: `x`\n").is_err());
    }
}

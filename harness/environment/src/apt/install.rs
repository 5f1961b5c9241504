// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packages are installed on the machine only when its owner agrees: by `--install`, by `CI=true`, or by an answer at the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use kvmi_lab_control::{Lane, Platform};

use super::{FOR_CD, FOR_CHECKS, FOR_KERNEL, NEEDED, Needed};
use super::{as_root, install_command, missing, names, update, update_command};
use crate::Environment;

/// Installs what is missing of [`NEEDED`], if that is agreed to.
///
/// # Errors
///
/// When nobody agrees, with the command to type; when apt fails.
pub fn install_needed(env: &Environment) -> Result<()> {
    install(env, &missing(NEEDED)?)
}

/// Installs what is missing of what compiling a kernel needs.
///
/// # Errors
///
/// As [`install_needed`].
pub fn install_for_kernel(env: &Environment) -> Result<()> {
    install(env, &missing(FOR_KERNEL)?)
}

/// Installs what is missing of what builds and checks what runs in the kernel.
///
/// # Errors
///
/// As [`install_needed`].
pub fn install_for_checks(env: &Environment) -> Result<()> {
    install(env, &missing(&[NEEDED, FOR_CHECKS].concat())?)
}

/// Installs what is missing of what booting a lane needs, where nothing is built.
///
/// # Errors
///
/// As [`install_needed`].
pub fn install_for_boot(env: &Environment, lane: Lane) -> Result<()> {
    if lane.platform() != Platform::Bochs {
        return Ok(());
    }
    let mut packages = missing(NEEDED)?;
    packages.retain(|needed| FOR_CD.contains(&needed.package));
    install(env, &packages)
}

fn install(env: &Environment, packages: &[Needed]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let is_agreed = env.may_install || (io::stdin().is_terminal() && io::stderr().is_terminal() && ask(packages)?);
    if !is_agreed {
        bail!(refusal(packages));
    }
    let names = names(packages);
    let task = env.progress.task(format!("install {}", names.join(", ")));
    // Old lists name packages that are gone, or too old.
    update(&task)?;
    as_root("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&names)
        .run(&task)
        .with_context(|| format!("install the packages by hand: {}", install_command(&names)))?;
    if let Some(Needed { package, at_least, .. }) = missing(packages)?.first() {
        bail!(
            "apt installed {package}, and what is needed is {} or later, as in Debian 12's security updates; \
             where apt takes it from: apt-cache policy {package}",
            at_least.unwrap_or("any version")
        );
    }
    task.done();
    Ok(())
}

/// What is missing, a line each.
fn list(packages: &[Needed]) -> String {
    let line = |one: &Needed| format!("  {} {}", one.package, one.purpose);
    packages.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Asks the person at the terminal. Only a clear yes is one.
fn ask(packages: &[Needed]) -> Result<bool> {
    let question = format!(
        "these Debian packages are missing:\n{}\ninstall them now? [y/N] ",
        list(packages)
    );
    io::stderr().write_all(question.as_bytes())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str())
}

/// What to say where nobody agreed.
fn refusal(packages: &[Needed]) -> String {
    format!(
        "these Debian packages are missing:\n{}\nthe same command with --install installs them; by hand: {} && {}",
        list(packages),
        update_command(),
        install_command(&names(packages))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_each_package_and_ends_with_the_command() {
        let text = refusal(FOR_KERNEL);
        assert!(
            text.contains("\n  flex makes the kernel's configuration program\n"),
            "{text}"
        );
        assert!(text.contains("--install"), "{text}");
        assert!(
            text.ends_with("install --no-install-recommends flex bison bc libelf-dev"),
            "{text}"
        );
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(is_yes("y\n") && is_yes("Yes\n") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("no\n") && !is_yes("yesterday"));
    }
}

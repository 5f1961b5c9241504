// SPDX-License-Identifier: MIT OR Apache-2.0
//! kvm.ko, kvm-intel.ko and kvm-amd.ko, by the kernel's own build system.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::progress::Task;

use super::fetch::Kernel;
use super::toolchain::Toolchain;
use super::variant::Variant;

/// The modules, by the names of their files.
pub const MODULES: &[&str] = &["kvm.ko", "kvm-intel.ko", "kvm-amd.ko"];

/// Builds the modules of a work tree and puts them into `into`, without debugging information; with it into `into/debug`. What was warned of.
pub(crate) fn build(
    env: &Environment,
    kernel: &Kernel,
    variant: Variant,
    tools: &Toolchain,
    tree: &Path,
    into: &Path,
    task: &Task,
) -> Result<Vec<String>> {
    let kvm = tree.join("arch/x86/kvm");
    let output = tools
        .program("make")
        .arg("-C")
        .arg(&kernel.headers)
        .arg(format!("M={}", kvm.display()))
        .arg(format!("-j{}", env.jobs()))
        .args(variant.arguments())
        .arg("modules")
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env("LC_ALL", "C")
        .log(tree.join("build.log"))
        .run(task)
        .with_context(|| {
            format!(
                "build the modules; the whole output is in {}",
                tree.join("build.log").display()
            )
        })?;
    fs::create_dir_all(into.join("debug"))?;
    for module in MODULES {
        fs::copy(kvm.join(module), into.join("debug").join(module))
            .with_context(|| format!("{module} was not built"))?;
        tools
            .program("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(into.join(module))
            .arg(kvm.join(module))
            .output()?;
    }
    Ok(warnings(&output).into_iter().map(str::to_owned).collect())
}

/// What compiler, objtool, modpost and the rest warned of.
fn warnings(output: &str) -> Vec<&str> {
    let is_warning = |line: &&str| line.contains("warning:") || line.contains("WARNING:") || line.contains("objtool:");
    // Debian rebuilds its compiler within a stable release; the kernel's build system says so and goes on.
    let is_fine = |line: &&str| line.contains("the compiler differs from the one used to build the kernel");
    output
        .lines()
        .filter(is_warning)
        .filter(|line| !is_fine(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_every_tool_are_found() {
        let output = "  CC [M]  x86.o\nx86.c:1:2: warning: unused variable 'a' [-Wunused-variable]\n  MODPOST Module.symvers\n\
                      WARNING: modpost: missing MODULE_LICENSE() in a.o\nvmx.o: warning: objtool: x+0x1: unreachable\n\
                      warning: the compiler differs from the one used to build the kernel\n  LD [M]  kvm.ko\n";
        assert_eq!(warnings(output).len(), 3);
        assert!(warnings("  CC [M]  a.o\n").is_empty());
    }
}

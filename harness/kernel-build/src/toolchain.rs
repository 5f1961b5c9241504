// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compiler that a suite's kernels are built with: installed, or unpacked from that suite's packages and run, like the emulators, by
//! their own loader.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt::Archive;
use kvmi_lab_machine::cache::{Key, files_below};
use kvmi_lab_machine::process::Program;

use super::matrix::matrix;
use super::version::KernelVersion;

/// Where a package has its programs and its libraries.
const PROGRAMS: &str = "usr/bin";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Where the scripts are that stand for the programs.
const SCRIPTS: &str = "bin";

/// A compiler and what belongs to it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Its name, e.g. `gcc-14`.
    pub compiler: String,
    /// Where it is unpacked; none where it is installed.
    root: Option<PathBuf>,
}

/// The toolchain of a kernel, unpacked if it is not installed.
pub(crate) fn of(env: &Environment, version: &KernelVersion, archive: &Archive) -> Result<Toolchain> {
    let suite = matrix().suites.iter().find(|s| s.name == version.suite);
    let suite = suite.with_context(|| format!("no suite {} in the table of kernels", version.suite))?;
    let compiler = suite.compiler.clone();
    if suite.toolchain.is_empty() {
        return Ok(Toolchain { compiler, root: None });
    }
    let mut key = Key::of("toolchain 1").text("suite", &suite.name);
    for package in &suite.toolchain {
        key = key.text("package", package);
    }
    let root = env.cache.entry("toolchains", &key.finish(), |dir| {
        let what = format!("fetch {} from Debian {}", suite.compiler, suite.name);
        let task = env.progress.task(what);
        let packages: Vec<&str> = suite.toolchain.iter().map(String::as_str).collect();
        archive.unpack_closure(&packages, dir, &task)?;
        write_scripts(dir, &suite.compiler)?;
        task.done();
        anyhow::Ok(())
    })?;
    Ok(Toolchain {
        compiler,
        root: Some(root),
    })
}

impl Toolchain {
    /// A program that finds this toolchain's programs before the machine's.
    pub fn program(&self, name: &str) -> Program {
        let Some(root) = &self.root else {
            return Program::new(name);
        };
        let scripts = root.join(SCRIPTS);
        let own = scripts.join(name);
        let program = if own.is_file() {
            Program::new(own)
        } else {
            Program::new(name)
        };
        let mut path = OsString::from(scripts);
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        program.env("PATH", path)
    }

    /// Makes the programs below a folder, which are of the same release, run here: a script takes the place of each.
    pub(crate) fn adopt(&self, dir: &Path) -> Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let programs: Vec<PathBuf> = files_below(dir)?
            .into_iter()
            .map(|(_, path)| path)
            .filter(|path| is_program(path))
            .collect();
        for program in &programs {
            let name = program.to_string_lossy();
            // Debian puts a chooser before programs that differ by target.
            let target = [".real-x86", ".real-lsb-64"].map(|end| PathBuf::from(format!("{name}{end}")));
            let target = match target.into_iter().find(|t| programs.contains(t)) {
                Some(target) => target,
                None if name.contains(".real-") => continue,
                None => {
                    let aside = PathBuf::from(format!("{name}.elf"));
                    fs::rename(program, &aside).with_context(|| format!("move {name} aside"))?;
                    aside
                }
            };
            let target = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            write_script(program, &root.display().to_string(), &format!("${{0%/*}}/{target}"), "")?;
        }
        Ok(())
    }
}

fn write_scripts(root: &Path, compiler: &str) -> Result<()> {
    fs::create_dir_all(root.join(SCRIPTS))?;
    for entry in fs::read_dir(root.join(PROGRAMS)).context("list the toolchain's programs")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_program(&entry.path()) {
            continue;
        }
        // The compiler's own parts need the loader too; the assembler is looked for beside it.
        let more = if name.ends_with(compiler) {
            format!("-wrapper \"$l/ld-linux-x86-64.so.2,--library-path,$l\" -B\"$r/{PROGRAMS}/\"")
        } else {
            String::new()
        };
        write_script(
            &root.join(SCRIPTS).join(&name),
            "${0%/*}/..",
            &format!("$r/{PROGRAMS}/{name}"),
            &more,
        )?;
    }
    Ok(())
}

/// A script that runs `program` by the loader and with the libraries of the toolchain in `root`; both are words of the shell.
fn write_script(at: &Path, root: &str, program: &str, arguments: &str) -> Result<()> {
    let text = format!(
        "#!/bin/sh\nr=\"{root}\"\nl=\"$r/{LIBRARIES}\"\nexec \"$l/ld-linux-x86-64.so.2\" --library-path \"$l\" \"{program}\" {arguments} \"$@\"\n"
    );
    // A link would lead to the program.
    let _ = fs::remove_file(at);
    fs::write(at, text).with_context(|| format!("write {}", at.display()))?;
    fs::set_permissions(at, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Whether a file, or what a link leads to, is machine code to be run.
fn is_program(path: &Path) -> bool {
    let is_executable = fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o100 != 0);
    is_executable && fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choosers_give_way_to_what_they_choose() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tool", "tool.real-x86", "tool.real-powerpc", "plain"] {
            let path = dir.path().join(name);
            fs::write(&path, b"\x7fELF").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(dir.path().join("source.c"), "").unwrap();
        let tools = Toolchain {
            compiler: "gcc-14".into(),
            root: Some("/root-of/it".into()),
        };
        tools.adopt(dir.path()).unwrap();
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text("tool").contains("\"${0%/*}/tool.real-x86\" "), "{}", text("tool"));
        assert!(text("plain").starts_with("#!/bin/sh\nr=\"/root-of/it\"\n") && text("plain").contains("/plain.elf\""));
        assert_eq!(fs::read(dir.path().join("plain.elf")).unwrap(), b"\x7fELF");
        assert_eq!(fs::read(dir.path().join("tool.real-powerpc")).unwrap(), b"\x7fELF");
    }
}

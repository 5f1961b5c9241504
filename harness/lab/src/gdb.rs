// SPDX-License-Identifier: MIT OR Apache-2.0
//! gdb at L1, at a prompt or in a replay: where its stub listens, and what is known of the kernel and of KVM's modules, where they lie.

mod kernel;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvmi_lab_environment::apt;
use kvmi_lab_machine::emulator::quoted;
use tempfile::TempDir;

pub use kernel::{Kernel, Named};

const PROGRAM: &str = "gdb";

/// The file that gdb reads its first commands from.
const SCRIPT: &str = "gdb";

/// How the names of the sections begin, beside `.text`, that a person stops in or looks at.
const OF_USE: &[&str] = &[".text.", ".noinstr", ".exit", ".data", ".bss", ".rodata"];

/// Fails where there is no gdb.
pub fn require() -> Result<()> {
    if apt::find_program(PROGRAM).is_none() {
        bail!("no {PROGRAM} here; {}", apt::install_command(&[PROGRAM]));
    }
    Ok(())
}

/// A module that L1 has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its file, with as much of its symbols as there is.
    pub file: PathBuf,
    /// Its sections and their addresses.
    pub sections: Vec<(String, u64)>,
}

/// A debugger that is to come.
#[derive(Debug)]
pub struct Gdb {
    /// Holds the stub's socket: its path must be short, and nobody else may reach it.
    _place: TempDir,
    socket: PathBuf,
}

impl Gdb {
    /// One with a place for the socket.
    pub fn new() -> Result<Self> {
        let place = tempfile::tempdir().context("make a folder for gdb's socket")?;
        let socket = place.path().join("gdb");
        Ok(Self { _place: place, socket })
    }

    /// Where the emulator's stub is to listen.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Writes what gdb is to know into a folder; what a person types in another terminal.
    pub fn write(&self, folder: &Path, kernel: Option<&Named>, modules: &[Module]) -> Result<String> {
        let script = folder.join(SCRIPT);
        fs::write(&script, commands(&self.socket, kernel, modules))
            .with_context(|| format!("write {}", script.display()))?;
        Ok(format!("{PROGRAM} -x {}", quoted(&script.to_string_lossy())))
    }
}

fn commands(socket: &Path, kernel: Option<&Named>, modules: &[Module]) -> String {
    let mut text = String::from("set confirm off\nset pagination off\nset architecture i386:x86-64\n");
    let mut add = |line: std::fmt::Arguments<'_>| {
        // A string takes all that is written.
        let _ = writeln!(text, "{line}");
    };
    if let Some(Named { object, start }) = kernel {
        add(format_args!("add-symbol-file {} {start}", object.display()));
    }
    for Module { file, sections } in modules {
        let Some((_, text_at)) = sections.iter().find(|(name, _)| name == ".text") else {
            continue;
        };
        let is_of_use = |name: &str| OF_USE.iter().any(|begin| name.starts_with(begin));
        let others = sections.iter().filter(|(name, _)| is_of_use(name));
        let others: String = others.map(|(name, at)| format!(" -s {name} {at:#x}")).collect();
        add(format_args!("add-symbol-file {} {text_at:#x}{others}", file.display()));
    }
    add(format_args!("target remote {}", socket.display()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_and_modules_stand_where_they_were_loaded() {
        let module = Module {
            file: "/m/kvm.ko".into(),
            sections: vec![
                (".data".into(), 0x3000),
                (".init.text".into(), 0x9000),
                (".note.Linux".into(), 0x1000),
                (".text".into(), 0x2000),
            ],
        };
        let without_text = Module {
            file: "/m/irqbypass.ko".into(),
            sections: Vec::new(),
        };
        let kernel = Named {
            object: "/r/k.o".into(),
            start: "0x100".into(),
        };
        let modules = [module, without_text];
        let text = commands(Path::new("/t/gdb"), Some(&kernel), &modules);
        let lines: Vec<&str> = text.lines().skip(3).collect();
        let end = [
            "add-symbol-file /m/kvm.ko 0x2000 -s .data 0x3000",
            "target remote /t/gdb",
        ];
        assert_eq!(lines, [&["add-symbol-file /r/k.o 0x100"][..], &end].concat());
        let text = commands(Path::new("/t/gdb"), None, &modules);
        assert_eq!(text.lines().skip(3).collect::<Vec<_>>(), end);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A debugger at L1's kernel: the names of the stock kernel's functions, and all that is known of KVM's modules, where they lie.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_control::{Lane, LoadedModule, Platform};
use kvmi_lab_machine::cache::Key;
use kvmi_lab_machine::emulator::quoted;
use kvmi_lab_machine::prompt::{About, Debugging};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope, elf,
};
use tempfile::TempDir;

use crate::apt;
use crate::kernel::Built;
use crate::workshop::Workshop;

const PROGRAM: &str = "gdb";

/// What the cache keeps of a kernel: its functions' names, as gdb takes them, and where they start.
const KIND: &str = "kernel-symbols";
const KERNEL: &str = "kernel.o";
const START: &str = "start";
/// The file that gdb reads its first commands from.
const SCRIPT: &str = "gdb";

/// How the names of the sections begin, beside `.text`, that a person stops in or looks at.
const OF_USE: &[&str] = &[".text.", ".noinstr", ".exit", ".data", ".bss", ".rodata"];

/// Fails where no debugger could help.
pub(super) fn require(lane: Lane) -> Result<()> {
    if lane.platform() == Platform::Bochs {
        bail!("lane {lane} has no stub for gdb; lanes in QEMU have: cargo xtask shell --gdb --lane svm-tcg");
    }
    if apt::find_program(PROGRAM).is_none() {
        bail!("no {PROGRAM} here; {}", apt::install_command(&[PROGRAM]));
    }
    Ok(())
}

/// A debugger that is to come.
#[derive(Debug)]
pub(super) struct Gdb {
    /// Holds the stub's socket: its path must be short, and nobody else may reach it.
    _place: TempDir,
    socket: PathBuf,
    /// Names what was learned of this kernel before.
    key: Key,
    symbols: Option<PathBuf>,
}

impl Gdb {
    pub(super) fn new(shop: &Workshop, built: &Built) -> Result<Self> {
        let place = tempfile::tempdir().context("make a folder for gdb's socket")?;
        // Debian packages no System.map worth the name: L1 has to say what its functions are called, once for each kernel.
        let key = Key::of("kernel symbols 1")
            .file("kernel", &built.kernel.image.join("vmlinuz"))?
            .finish();
        let symbols = shop.cache.find(KIND, &key);
        let socket = place.path().join("gdb");
        Ok(Self {
            _place: place,
            socket,
            key,
            symbols,
        })
    }

    /// What L1 and its emulator are to do.
    pub(super) fn wishes(&self) -> Debugging<'_> {
        Debugging {
            socket: &self.socket,
            symbols: self.symbols.is_none(),
        }
    }

    /// Writes what gdb is to know into a folder; the file to give it.
    pub(super) fn write(&self, shop: &Workshop, folder: &Path, built: &Built, about: &About) -> Result<PathBuf> {
        let entry = shop.cache.entry(KIND, &self.key, |into| {
            let (object, start) = kernel_symbols(&about.symbols).context("the kernel's functions as L1 names them")?;
            fs::write(into.join(KERNEL), object)?;
            fs::write(into.join(START), format!("{start:#x}\n"))?;
            anyhow::Ok(())
        })?;
        let start = fs::read_to_string(entry.join(START)).context("read where the kernel starts")?;
        let commands = commands(
            &self.socket,
            (&entry.join(KERNEL), start.trim()),
            &built.modules.join("debug"),
            &about.modules,
        );
        let script = folder.join(SCRIPT);
        fs::write(&script, commands).with_context(|| format!("write {}", script.display()))?;
        Ok(script)
    }
}

/// What a person types in another terminal.
pub(super) fn how_to(script: &Path) -> String {
    format!(
        "\n  the kernel and KVM's modules in gdb, from another terminal:\n    {PROGRAM} -x {}",
        quoted(&script.to_string_lossy())
    )
}

fn commands(socket: &Path, (kernel, start): (&Path, &str), files: &Path, modules: &[LoadedModule]) -> String {
    let mut text = String::from("set confirm off\nset pagination off\nset architecture i386:x86-64\n");
    let mut add = |line: std::fmt::Arguments<'_>| {
        // A string takes all that is written.
        let _ = writeln!(text, "{line}");
    };
    add(format_args!("add-symbol-file {} {start}", kernel.display()));
    for module in modules {
        let Some((_, text_at)) = module.sections.iter().find(|(name, _)| name == ".text") else {
            continue;
        };
        let is_of_use = |name: &str| OF_USE.iter().any(|begin| name.starts_with(begin));
        let others = module.sections.iter().filter(|(name, _)| is_of_use(name));
        let others: String = others.map(|(name, at)| format!(" -s {name} {at:#x}")).collect();
        add(format_args!(
            "add-symbol-file {} {text_at:#x}{others}",
            files.join(&module.file).display()
        ));
    }
    add(format_args!("target remote {}", socket.display()));
    text
}

/// An object with one section of code, in which the kernel's functions have their names; and the section's address.
fn kernel_symbols(map: &str) -> Result<(Vec<u8>, u64)> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        Some((address, kind.to_owned(), words.next()?.to_owned()))
    };
    let all: Vec<(u64, String, String)> = map.lines().filter_map(entry).collect();
    let start = all
        .iter()
        .find(|(_, _, name)| name == "_text")
        .map(|(address, ..)| *address);
    let start = start.context("no _text in it")?;
    let is_function = |(address, kind, _): &&(u64, String, String)| {
        *address >= start && matches!(kind.as_str(), "t" | "T" | "w" | "W")
    };
    let functions: Vec<_> = all.iter().filter(is_function).collect();
    let end = functions.iter().map(|(address, ..)| *address).max().unwrap_or(start) + 1;
    ensure!(end - start < 1 << 30, "its functions lie further apart than a kernel's");
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let section = object.add_section(Vec::new(), b".text".to_vec(), SectionKind::UninitializedData);
    object.append_section_bss(section, end - start, 4096);
    object.section_mut(section).flags = SectionFlags::Elf {
        sh_flags: u64::from(elf::SHF_ALLOC | elf::SHF_EXECINSTR),
    };
    for (address, kind, name) in functions {
        object.add_symbol(Symbol {
            name: name.clone().into_bytes(),
            value: address - start,
            size: 0,
            kind: SymbolKind::Text,
            scope: if kind == "t" {
                SymbolScope::Compilation
            } else {
                SymbolScope::Linkage
            },
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
    }
    Ok((object.write().context("write the kernel's symbols")?, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object as _, ObjectSection, ObjectSymbol};

    #[test]
    fn functions_have_their_names_and_data_has_not() {
        let map = "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\nffffffff81000000 T startup_64\n\
                   ffffffff81000040 t secondary\nffffffff82000000 D jiffies\n";
        let (bytes, start) = kernel_symbols(map).unwrap();
        assert_eq!(start, 0xffff_ffff_8100_0000);
        let file = object::File::parse(&bytes[..]).unwrap();
        let mut names: Vec<(u64, &str)> = file
            .symbols()
            .filter(|s| s.kind() == SymbolKind::Text)
            .map(|s| (s.address(), s.name().unwrap()))
            .collect();
        names.sort_unstable();
        assert_eq!(names, [(0, "_text"), (0, "startup_64"), (0x40, "secondary")]);
        assert_eq!(file.section_by_name(".text").unwrap().size(), 0x41);
        assert!(kernel_symbols("no map\n").is_err());
    }

    #[test]
    fn modules_stand_where_they_were_loaded() {
        let module = LoadedModule {
            file: "kvm.ko".into(),
            sections: vec![
                (".data".into(), 0x3000),
                (".init.text".into(), 0x9000),
                (".note.Linux".into(), 0x1000),
                (".text".into(), 0x2000),
            ],
        };
        let text = commands(
            Path::new("/t/gdb"),
            (Path::new("/r/k.o"), "0x100"),
            Path::new("/m"),
            &[module],
        );
        let lines: Vec<&str> = text.lines().skip(3).collect();
        assert_eq!(
            lines,
            [
                "add-symbol-file /r/k.o 0x100",
                "add-symbol-file /m/kvm.ko 0x2000 -s .data 0x3000",
                "target remote /t/gdb"
            ]
        );
    }

    #[test]
    fn bochs_has_no_stub() {
        let refused = require(Lane::VmxBochs).unwrap_err().to_string();
        assert!(refused.contains("--lane svm-tcg"), "{refused}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names of the stock kernel's functions, as gdb takes them. Debian packages no System.map worth the name: L1 has to say what its functions
//! are called, once for each kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_machine::cache::{Cache, Key};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope, elf,
};

/// What the cache keeps of a kernel: its functions' names, and where they start.
const KIND: &str = "kernel-symbols";
const OBJECT: &str = "kernel.o";
const START: &str = "start";

/// A kernel, by what it is.
#[derive(Debug)]
pub struct Kernel(Key);

/// A kernel whose functions have names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// An object with the names.
    pub(super) object: PathBuf,
    /// Where its code starts in L1's memory.
    pub(super) start: String,
}

impl Named {
    fn read(entry: &Path) -> Result<Self> {
        let start = fs::read_to_string(entry.join(START)).context("read where the kernel starts")?;
        Ok(Self {
            object: entry.join(OBJECT),
            start: start.trim().to_owned(),
        })
    }
}

impl Kernel {
    /// The kernel in this file.
    pub fn of(image: &Path) -> Result<Self> {
        Ok(Self(Key::of("kernel symbols 1").file("kernel", image)?.finish()))
    }

    /// Its names, if an L1 has said them before.
    pub fn known(&self, cache: &Cache) -> Result<Option<Named>> {
        cache.find(KIND, &self.0).map(|entry| Named::read(&entry)).transpose()
    }

    /// Its names, by what L1 said of them, a line each as in System.map.
    pub fn named(&self, cache: &Cache, map: &str) -> Result<Named> {
        let entry = cache.entry(KIND, &self.0, |into| {
            let (object, start) = kernel_symbols(map).context("the kernel's functions as L1 names them")?;
            fs::write(into.join(OBJECT), object)?;
            fs::write(into.join(START), format!("{start:#x}\n"))?;
            anyhow::Ok(())
        })?;
        Named::read(&entry)
    }
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
}

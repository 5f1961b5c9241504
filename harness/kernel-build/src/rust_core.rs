// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Rust side of kvm.ko as one object, and the proof that it cannot panic.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::process::Program;
use kvmi_lab_machine::progress::Task;
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

use super::flags::{Config, rust_flags};
use crate::bare_metal;

/// Functions that C calls begin like this; Rust's own names are mangled.
const SEAM_PREFIX: &str = "kvmi_";

/// Builds the core for a kernel of this configuration and links it to the object `to`.
pub(crate) fn build(env: &Environment, config: &Config, to: &Path, task: &Task) -> Result<()> {
    let flags = rust_flags(config);
    let target = env.path("target/kernel");
    bare_metal::cargo(
        env,
        &[
            "rustc",
            "--package",
            "kvmi-module",
            "--lib",
            "--crate-type",
            "staticlib",
        ],
        &flags,
        &target,
    )
    .run(task)
    .map_err(anyhow::Error::from)
    .and_then(|output| bare_metal::refuse_warnings(&output))
    .context("build the Rust core")?;
    let archive = bare_metal::output(&target, "libkvmi_module.a");
    let entries = entries(&archive)?;
    ensure!(
        !entries.is_empty(),
        "{} defines no function named {SEAM_PREFIX}*: kernel/module exports nothing to C",
        archive.display()
    );
    let archive = without_builtins(&archive, &target.join("core.a"), task)?;
    link(&archive, &entries, to, task)?;
    let object = fs::read(to)?;
    refuse_panics(&object).with_context(|| format!("look for panics in {}", to.display()))
}

/// The functions that the archive gives to C.
fn entries(archive: &Path) -> Result<Vec<String>> {
    let data = fs::read(archive).with_context(|| format!("read {}", archive.display()))?;
    let file = ArchiveFile::parse(&*data)?;
    let mut names = BTreeSet::new();
    for member in file.members() {
        let Ok(object) = object::File::parse(member?.data(&*data)?) else {
            continue;
        };
        for symbol in object
            .symbols()
            .filter(|s| s.is_definition() && s.is_global() && s.kind() == SymbolKind::Text)
        {
            names.extend(
                symbol
                    .name()
                    .ok()
                    .filter(|n| n.starts_with(SEAM_PREFIX))
                    .map(str::to_owned),
            );
        }
    }
    Ok(names.into_iter().collect())
}

/// A copy of the archive without Rust's memcpy and its like. Linked in, they would serve all of kvm.ko in place of the
/// kernel's own, which are faster.
fn without_builtins(archive: &Path, to: &Path, task: &Task) -> Result<PathBuf> {
    let data = fs::read(archive).with_context(|| format!("read {}", archive.display()))?;
    let file = ArchiveFile::parse(&*data)?;
    let mut builtins = Vec::new();
    for member in file.members() {
        let name = String::from_utf8_lossy(member?.name()).into_owned();
        if name.starts_with("compiler_builtins") {
            builtins.push(name);
        }
    }
    ensure!(
        !builtins.is_empty(),
        "{} holds no member of compiler_builtins: has its name changed?",
        archive.display()
    );
    fs::copy(archive, to).with_context(|| format!("copy {} to {}", archive.display(), to.display()))?;
    Program::new("ar")
        .arg("d")
        .arg(to)
        .args(&builtins)
        .run(task)
        .context("take compiler_builtins out of the Rust core")?;
    Ok(to.to_owned())
}

fn link(archive: &Path, entries: &[String], to: &Path, task: &Task) -> Result<()> {
    let mut ld = Program::new("ld").args(["-r", "--gc-sections", "-e", &entries[0]]);
    for entry in entries {
        ld = ld.args(["-u", entry]);
    }
    let output = ld
        .arg("-o")
        .arg(to)
        .arg(archive)
        .run(task)
        .context("link the Rust core")?;
    ensure!(
        output.is_empty(),
        "the linker has something to say of the Rust core:\n{output}"
    );
    Ok(())
}

/// Fails if the panic handler, or anything that leads there, is in the linked object, and says which functions do.
fn refuse_panics(object: &[u8]) -> Result<()> {
    let file = object::File::parse(object)?;
    let is_panic =
        |name: &str| name.contains("rust_begin_unwind") || name.contains("panicking") || name.contains("panic_fmt");
    let demangled = |name: &str| format!("{:#}", rustc_demangle::demangle(name));
    let mut callers = BTreeSet::new();
    for section in file.sections() {
        for (_, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                continue;
            };
            let symbol = file.symbol_by_index(index)?;
            // Sections are named after the one function in them; a relocation may go to the section instead of the function.
            let name = match symbol.section_index() {
                Some(at) if symbol.kind() == SymbolKind::Section => file.section_by_index(at)?.name()?.to_owned(),
                _ => symbol.name()?.to_owned(),
            };
            let from = section.name()?.trim_start_matches(".text.").to_owned();
            if is_panic(&name) && section.kind() == object::SectionKind::Text && !is_panic(&from) {
                callers.insert(format!(
                    "  {} -> {}",
                    demangled(&from),
                    demangled(name.trim_start_matches(".text."))
                ));
            }
        }
    }
    if let Some(symbol) = file.symbols().find(|s| s.name().is_ok_and(is_panic)) {
        let callers = callers.into_iter().collect::<Vec<_>>().join("\n");
        bail!(
            "the linked Rust core can panic: it contains {}; what leads there:\n{callers}",
            demangled(symbol.name()?)
        );
    }
    Ok(())
}

/// The compiler's version, for the key of what it made.
pub(crate) fn compiler() -> Result<String> {
    Ok(String::from_utf8(Program::new(bare_metal::RUSTC).arg("-vV").output()?)?)
}

/// Where Kbuild finds the object, and the file that it wants beside.
pub(crate) fn shipped(tree: &Path) -> [PathBuf; 2] {
    ["core.o_shipped", ".core.o.cmd"].map(|name| tree.join(super::tree::OURS).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles C to an object: a name is all that the check goes by.
    fn object_of(source: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (c, o) = (dir.path().join("a.c"), dir.path().join("a.o"));
        fs::write(&c, source).unwrap();
        Program::new("cc")
            .args(["-c", "-O1", "-ffunction-sections", "-o"])
            .arg(&o)
            .arg(&c)
            .output()
            .unwrap();
        fs::read(o).unwrap()
    }

    #[test]
    fn a_way_to_a_panic_is_found_and_named() {
        refuse_panics(&object_of("int kvmi_fine(void) { return 1; }")).unwrap();
        let source = "void _RNvNtCs1_4core9panicking9panic_fmt(void); int kvmi_bad(int a) { if (a) _RNvNtCs1_4core9panicking9panic_fmt(); return 1; }";
        let refused = refuse_panics(&object_of(source)).unwrap_err().to_string();
        assert!(refused.contains("kvmi_bad -> core::panicking::panic_fmt"), "{refused}");
    }
}

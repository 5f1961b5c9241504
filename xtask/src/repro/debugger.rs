// SPDX-License-Identifier: MIT OR Apache-2.0
//! What gdb is told to debug a replay: where it stands, and where our modules are in L1's memory.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_machine::bundle::Bundle;
use kvmi_lab_machine::initrd;
use kvmi_lab_machine::recording::{Loaded, Recording};

use crate::kernel::MODULES;
use crate::workshop::Workshop;

/// Writes the commands with which gdb comes to a replay that listens on a socket; the file.
pub(super) fn script(
    shop: &Workshop,
    bundle: &Bundle,
    recording: &Recording,
    folder: &Path,
    socket: &Path,
) -> Result<PathBuf> {
    let symbols = symbols(shop, bundle, folder)?;
    let text = commands(&recording.loaded()?, &symbols, socket);
    let script = folder.join("gdb");
    fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
    Ok(script)
}

fn commands(loaded: &[Loaded], symbols: &[(String, PathBuf)], socket: &Path) -> String {
    let mut text = String::from("set architecture i386:x86-64\nset confirm off\n");
    for Loaded { module, sections } in loaded {
        // The kernel knows modules by names with _, their files have -.
        let Some((_, file)) = symbols.iter().find(|(name, _)| name.replace('-', "_") == *module) else {
            continue;
        };
        let _ = write!(text, "add-symbol-file {}", file.display());
        for (section, address) in sections {
            let _ = write!(text, " -s {section} {address:#x}");
        }
        text.push('\n');
    }
    let _ = writeln!(text, "target remote {}", socket.display());
    text
}

/// The modules that L1 loaded, with lines of source where this machine still has the build they are from, else with functions.
fn symbols(shop: &Workshop, bundle: &Bundle, folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let archive = fs::read(&bundle.boot.initrd).context("read the bundle's initrd")?;
    let mut symbols = Vec::new();
    for file in MODULES {
        let Some(content) = initrd::content(&archive, &format!("modules/kvmi/{file}"))? else {
            continue;
        };
        let path = match with_lines(shop, file, &content) {
            Some(path) => path,
            None => {
                let path = folder.join(file);
                fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
                path
            }
        };
        symbols.push((file.trim_end_matches(".ko").to_owned(), path));
    }
    Ok(symbols)
}

/// The same module before it was stripped, if the cache has it.
fn with_lines(shop: &Workshop, file: &str, stripped: &[u8]) -> Option<PathBuf> {
    let builds = fs::read_dir(shop.cache.root().join("modules")).ok()?;
    builds
        .filter_map(Result::ok)
        .map(|build| build.path())
        .find_map(|build| {
            let is_it = fs::read(build.join(file)).is_ok_and(|content| content == stripped);
            is_it
                .then(|| build.join("debug").join(file))
                .filter(|path| path.is_file())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_the_name_that_the_kernel_gives_it() {
        let loaded = [
            Loaded {
                module: "kvm_amd".to_owned(),
                sections: vec![(".text".to_owned(), 0xffff_ffff_c000_0000), (".bss".to_owned(), 16)],
            },
            Loaded {
                module: "irqbypass".to_owned(),
                sections: Vec::new(),
            },
        ];
        let symbols = [("kvm-amd".to_owned(), PathBuf::from("/m/kvm-amd.ko"))];
        let text = commands(&loaded, &symbols, Path::new("/s"));
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "set architecture i386:x86-64",
                "set confirm off",
                "add-symbol-file /m/kvm-amd.ko -s .text 0xffffffffc0000000 -s .bss 0x10",
                "target remote /s",
            ]
        );
    }
}

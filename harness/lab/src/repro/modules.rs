// SPDX-License-Identifier: MIT OR Apache-2.0
//! The modules of a recorded L1, for a debugger: files with symbols, and where they are in its memory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_environment::Environment;
use kvmi_lab_kernel::MODULES;
use kvmi_lab_machine::bundle::Bundle;
use kvmi_lab_machine::initrd;
use kvmi_lab_machine::recording::Loaded;

use crate::gdb::Module;

/// Those of KVM's modules that L1 says it loaded, with lines of source where this machine still has the build they are from, else with
/// functions; these go into the folder.
pub(super) fn loaded(env: &Environment, bundle: &Bundle, loaded: &[Loaded], folder: &Path) -> Result<Vec<Module>> {
    let archive = fs::read(&bundle.boot.initrd).context("read the bundle's initrd")?;
    let mut modules = Vec::new();
    for name in MODULES {
        let Some(sections) = sections(loaded, name) else {
            continue;
        };
        let Some(content) = initrd::content(&archive, &format!("modules/kvmi/{name}"))? else {
            continue;
        };
        let file = match with_lines(env, name, &content) {
            Some(file) => file,
            None => {
                let file = folder.join(name);
                fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
                file
            }
        };
        modules.push(Module { file, sections });
    }
    Ok(modules)
}

/// Where the module of a file is. The kernel knows modules by names with _, their files have -.
fn sections(loaded: &[Loaded], file: &str) -> Option<Vec<(String, u64)>> {
    let name = file.trim_end_matches(".ko").replace('-', "_");
    let found = loaded.iter().find(|l| l.module == name)?;
    Some(found.sections.clone())
}

/// The same module before it was stripped, if the cache has it.
fn with_lines(env: &Environment, file: &str, stripped: &[u8]) -> Option<PathBuf> {
    let builds = fs::read_dir(env.cache.root().join("modules")).ok()?;
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
        let loaded = [Loaded {
            module: "kvm_amd".to_owned(),
            sections: vec![(".text".to_owned(), 0xffff_ffff_c000_0000)],
        }];
        assert_eq!(sections(&loaded, "kvm-amd.ko"), Some(loaded[0].sections.clone()));
        assert_eq!(sections(&loaded, "kvm.ko"), None);
    }
}

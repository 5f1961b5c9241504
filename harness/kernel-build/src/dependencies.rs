// SPDX-License-Identifier: MIT OR Apache-2.0
//! What KVM's modules need of other modules, by what each says of itself: it differs between flavours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvmi_lab_machine::cache::files_below;
use kvmi_lab_machine::process::Program;
use object::{Object, ObjectSection};

/// KVM itself, and its vendor modules.
const KVM: &str = "kvm";
const VENDORS: &[&str] = &["kvm-amd", "kvm-intel"];

/// The file that says, in a line for each vendor module, what must be loaded before it and before KVM, in order.
pub const DEPENDENCIES: &str = "dependencies";

/// How modules' files end: as a build leaves them, and as they are packaged.
const PLAIN: &str = ".ko";
const PACKED: &str = ".ko.xz";

/// The modules of a kernel.
#[derive(Debug)]
pub(super) struct Modules(BTreeMap<String, PathBuf>);

/// A name as the kernel knows it.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

impl Modules {
    /// Those below a folder.
    pub(super) fn below(folder: &Path) -> Result<Self> {
        let files = files_below(folder)?.into_iter();
        let module = |(name, path): (String, PathBuf)| {
            let file = name.rsplit('/').next()?;
            let name = file.strip_suffix(PACKED).or_else(|| file.strip_suffix(PLAIN))?;
            Some((plain(name), path))
        };
        Ok(Self(files.filter_map(module).collect()))
    }

    /// A module, decompressed.
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.0.get(&plain(name));
        let path = path.with_context(|| format!("the kernel has no module {name}"))?;
        if path.extension().is_some_and(|e| e == "ko") {
            return fs::read(path).with_context(|| format!("read {}", path.display()));
        }
        Ok(Program::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(path)
            .output()?)
    }

    /// Writes those of KVM and what they need into a folder, and [`DEPENDENCIES`].
    pub(super) fn keep_kvm(&self, into: &Path) -> Result<()> {
        let mut wanted = BTreeSet::from([KVM.to_owned()]);
        let mut lines = String::new();
        for vendor in VENDORS {
            let mut before = before(vendor, &|name| self.read(name))?;
            before.retain(|name| name != KVM);
            lines += &format!("{vendor} {}\n", before.join(" "));
            wanted.insert((*vendor).to_owned());
            wanted.extend(before);
        }
        for name in wanted {
            fs::write(into.join(format!("{name}.ko")), self.read(&name)?)?;
        }
        fs::write(into.join(DEPENDENCIES), lines)?;
        Ok(())
    }
}

/// Every module that must be loaded before one, in the order in which they can be.
fn before(module: &str, read: &impl Fn(&str) -> Result<Vec<u8>>) -> Result<Vec<String>> {
    /// No kernel has chains of dependencies this long.
    const DEEPEST: usize = 20;

    fn visit(
        module: &str,
        depth: usize,
        read: &impl Fn(&str) -> Result<Vec<u8>>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        ensure!(depth < DEEPEST, "module {module} needs itself");
        for needed in depends(&read(module)?).with_context(|| format!("module {module}"))? {
            if !order.contains(&needed) {
                visit(&needed, depth + 1, read, order)?;
                order.push(needed);
            }
        }
        Ok(())
    }
    let mut order = Vec::new();
    visit(module, 0, read, &mut order)?;
    Ok(order)
}

/// What a module says that it depends on.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("it is no module")?;
    let info = file.section_by_name(".modinfo").context("it says nothing of itself")?;
    let info = String::from_utf8_lossy(info.data()?).into_owned();
    let depends = info.split('\0').find_map(|field| field.strip_prefix("depends="));
    let names = depends.unwrap_or_default().split(',').filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::Object as NewObject;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};

    fn module(depends: &str) -> Vec<u8> {
        let mut object = NewObject::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let section = object.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
        let text = format!("license=GPL\0depends={depends}\0name=x\0");
        object.append_section_data(section, text.as_bytes(), 1);
        object.write().unwrap()
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let read = |name: &str| {
            Ok(module(match name {
                "kvm_amd" => "ccp,kvm",
                "kvm" => "irqbypass",
                "ccp" => "rng-core",
                _ => "",
            }))
        };
        assert_eq!(
            before("kvm_amd", &read).unwrap(),
            ["rng-core", "ccp", "irqbypass", "kvm"]
        );
        assert!(
            before("a", &|_| Ok(module("a")))
                .unwrap_err()
                .to_string()
                .contains("needs itself")
        );
        assert!(before("a", &|_| Ok(b"no module".to_vec())).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A copy of the checkout, in which one may do harm.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvmi_lab_machine::cache::files_below;

/// What of a checkout is not copied, and stays where it is in the copy: it was made by tools.
const MADE: &[&str] = &["target", ".git"];

/// Makes `copy` hold the same sources as `checkout`. Files that are the same already are not touched, so that builds go on from where
/// they were.
pub(super) fn make_same(checkout: &Path, copy: &Path) -> Result<()> {
    let sources = sources(checkout)?;
    for (name, from) in &sources {
        let to = copy.join(name);
        let text = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        if fs::read(&to).ok().as_ref() == Some(&text) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        fs::write(&to, text).with_context(|| format!("write {}", to.display()))?;
    }
    let names: BTreeSet<&String> = sources.iter().map(|(name, _)| name).collect();
    for (name, path) in self::sources(copy)? {
        if !names.contains(&name) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Each source by its name from the top.
fn sources(top: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(top).with_context(|| format!("look into {}", top.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if MADE.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            let below = files_below(&entry.path())?.into_iter();
            all.extend(below.map(|(file, path)| (format!("{name}/{file}"), path)));
        } else {
            all.push((name, entry.path()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(top: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = top.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn a_copy_is_made_the_same_again_and_keeps_what_was_built() {
        let top = tempfile::tempdir().unwrap();
        let (checkout, copy) = (top.path().join("a"), top.path().join("b"));
        write(
            &checkout,
            &[("x.toml", "x"), ("k/y.c", "y"), ("target/z", "z"), (".git/z", "z")],
        );
        write(
            &copy,
            &[
                ("x.toml", "x"),
                ("k/y.c", "harm"),
                ("k/more.c", ""),
                ("target/kernel/o", "o"),
            ],
        );
        let untouched = fs::metadata(copy.join("x.toml")).unwrap().modified().unwrap();
        make_same(&checkout, &copy).unwrap();
        let mut names: Vec<String> = sources(&copy).unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, ["k/y.c", "x.toml"]);
        assert_eq!(fs::read_to_string(copy.join("k/y.c")).unwrap(), "y");
        assert_eq!(
            fs::metadata(copy.join("x.toml")).unwrap().modified().unwrap(),
            untouched
        );
        assert!(copy.join("target/kernel/o").is_file() && !copy.join("target/z").exists());
    }
}

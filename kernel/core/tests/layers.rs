// SPDX-License-Identifier: GPL-2.0-only
//! The folders of `src` are layers: what a file imports lies in its own layer or below.

use std::{fs, path::Path};

/// Layers from the top. Those of one line do not know each other.
const LAYERS: &[&[&str]] = &[
    &["dispatch"],
    &["command", "event"],
    &["state"],
    &["wire"],
    &["effects"],
];

fn depth(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|layers| layers.contains(&layer))
}

/// The first names behind `crate::` in a source: layers, in a crate that is kept so.
fn imports(source: &str) -> Vec<String> {
    let mut imports = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        // Names of one statement: `crate::name…`, or `crate::{name…, name…}`.
        let rest = &source[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => {
                let mut open = 0;
                let mut names = vec![];
                let mut begin = 0;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => open += 1,
                        '}' if open == 0 => {
                            names.push(&list[begin..at]);
                            break;
                        }
                        '}' => open -= 1,
                        ',' if open == 0 => {
                            names.push(&list[begin..at]);
                            begin = at + 1;
                        }
                        _ => {}
                    }
                }
                names
            }
            None => vec![rest],
        };
        let first = |name: &str| -> String {
            let name = name.trim();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            name[..end.unwrap_or(name.len())].to_owned()
        };
        imports.extend(names.into_iter().map(first).filter(|name| !name.is_empty()));
    }
    imports
}

/// What a source of this layer imports that it should not.
fn upward(layer: &str, source: &str) -> Vec<String> {
    // Comments may name anything.
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n");
    let mine = depth(layer).unwrap_or_else(|| panic!("src/{layer} is in no layer"));
    let may = |name: &String| name == layer || depth(name).is_some_and(|other| other > mine);
    imports(&code).into_iter().filter(|name| !may(name)).collect()
}

fn sources(folder: &Path, of: &str, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("they can be listed").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let layer = if of.is_empty() { name } else { of.to_owned() };
        if path.is_dir() {
            sources(&path, &layer, all);
        } else if layer != "lib" {
            let source = fs::read_to_string(&path).expect("they can be read");
            all.push((layer, source));
        }
    }
}

#[test]
fn a_file_imports_nothing_from_above() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    assert!(all.len() > 20, "{} sources", all.len());
    for (layer, source) in all {
        assert_eq!(upward(&layer, &source), [""; 0], "a file of src/{layer} imports it");
    }
}

#[test]
fn an_import_from_above_is_seen() {
    let source = "use crate::{\n    effects::{A, B},\n    state::vcpu::Phase,\n    VmState,\n};\n// crate::dispatch\n";
    assert_eq!(imports(source), ["effects", "state", "VmState", "dispatch"]);
    assert_eq!(upward("event", source), ["VmState"]);
    assert_eq!(upward("state", "use crate::event::reply;"), ["event"]);
    assert_eq!(upward("command", "crate::event::x()"), ["event"]);
}

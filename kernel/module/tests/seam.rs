// SPDX-License-Identifier: GPL-2.0-only
//! Compares the prototypes of `kernel/glue/seam.h` with those of this crate: nothing else would notice a difference.

use std::collections::BTreeMap;

/// Return type and arguments, in Rust's words.
type Prototype = (String, Vec<String>);

const HEADER: &str = include_str!("../../glue/seam.h");
const SOURCES: [&str; 3] = [
    include_str!("../src/effects.rs"),
    include_str!("../src/vm.rs"),
    include_str!("../src/vcpu.rs"),
];

fn rust_name(c: &str) -> String {
    match c {
        "void" => "()",
        "int" | "s32" => "i32",
        "size_t" => "usize",
        "enum kvmi_verdict" | "enum kvmi_site" | "enum kvmi_phase" => "u32",
        "struct kvmi_vm_state" => "VmState",
        "struct kvmi_vcpu_state" => "VcpuState",
        "struct kvm_introspection" => "Session",
        "struct kvm_vcpu_introspection" => "Vcpu",
        "struct kvmi_occurrence" => "COccurrence",
        "struct kvmi_injection" => "CInjection",
        "struct kvmi_control" => "Control",
        "struct kvmi_vcpu_run_state" => "VcpuRunState",
        same @ ("bool" | "u8" | "u16" | "u32" | "u64") => same,
        other => panic!("type {other:?} of seam.h is not known here"),
    }
    .to_owned()
}

/// `const u8 *msg` becomes `*const u8`. The name is absent from a return type.
fn rust_type(c: &str, named: bool) -> String {
    let c = c.split_whitespace().collect::<Vec<_>>().join(" ");
    let (constant, c) = c.strip_prefix("const ").map_or((false, &c[..]), |rest| (true, rest));
    match c.split_once('*') {
        Some((base, _)) => format!("*{} {}", if constant { "const" } else { "mut" }, rust_name(base.trim())),
        None if named => rust_name(c.rsplit_once(' ').expect("a type and a name").0),
        None => rust_name(c),
    }
}

fn without_comments(mut c: &str) -> String {
    let mut code = String::new();
    while let Some((before, after)) = c.split_once("/*") {
        code.push_str(before);
        c = after.split_once("*/").expect("the end of a comment").1;
    }
    code + c
}

fn c_prototypes() -> BTreeMap<String, Prototype> {
    let code = without_comments(HEADER);
    let mut found = BTreeMap::new();
    for statement in code.split([';', '}']) {
        let statement = statement
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n");
        let Some((head, arguments)) = statement.split_once('(') else {
            continue;
        };
        let at = head.rfind("kvmi_").expect("a function of the seam");
        let arguments = arguments
            .trim_end()
            .strip_suffix(')')
            .expect("the end of the arguments");
        let arguments = match arguments.trim() {
            "void" => Vec::new(),
            list => list.split(',').map(|argument| rust_type(argument, true)).collect(),
        };
        found.insert(head[at..].to_owned(), (rust_type(&head[..at], false), arguments));
    }
    found
}

fn rust_prototypes() -> BTreeMap<String, Prototype> {
    let mut found = BTreeMap::new();
    for source in SOURCES {
        for function in source.split("fn kvmi_").skip(1) {
            let (name, rest) = function.split_once('(').expect("arguments");
            let (arguments, rest) = rest.split_once(')').expect("the end of the arguments");
            let result = rest.split(['{', ';']).next().expect("a body or a semicolon").trim();
            let result = result.strip_prefix("->").map_or("()", str::trim);
            let arguments = arguments.split(',').filter_map(|argument| argument.split_once(':'));
            let arguments = arguments.map(|(_, what)| what.trim().to_owned()).collect();
            found.insert(format!("kvmi_{name}"), (result.to_owned(), arguments));
        }
    }
    found
}

#[test]
fn both_sides_agree() {
    let (c, rust) = (c_prototypes(), rust_prototypes());
    assert!(c.len() > 40, "{} prototypes found", c.len());
    for (name, prototype) in &c {
        assert_eq!(
            rust.get(name),
            Some(prototype),
            "{name}: Rust on the left, seam.h on the right"
        );
    }
    for name in rust.keys() {
        assert!(c.contains_key(name), "{name} is not in seam.h");
    }
}

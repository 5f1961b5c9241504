// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Compiles a C program that includes `include/kvmi.h` and asserts every size, offset and constant of the Rust side.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use kvmi_uapi::{error, event, layout, msg};

fn checks() -> String {
    let mut c = String::from("#include <stddef.h>\n#include \"kvmi.h\"\n");
    let mut same = |what: String, value: i128| {
        writeln!(c, "_Static_assert(({what}) == {value}, \"{}\");", what.replace('"', "")).unwrap();
    };
    for s in layout::all_structs() {
        same(format!("sizeof(struct {})", s.c_name), s.size as i128);
        for field in s.fields {
            let what = format!("offsetof(struct {}, {})", s.c_name, field.c_name());
            same(what, field.offset as i128);
        }
    }
    for constant in layout::all_constants() {
        same(constant.c_name.to_owned(), i128::from(constant.value));
    }
    for (id, name) in msg::COMMANDS {
        same(format!("KVMI_{name}"), i128::from(*id));
    }
    for (id, name) in event::ALL {
        let scope = if msg::is_vcpu(*id) { "VCPU" } else { "VM" };
        same(format!("KVMI_{scope}_EVENT_{name}"), i128::from(*id));
    }
    for (value, name) in error::ALL {
        same(format!("KVM_{name}"), i128::from(*value));
    }
    c
}

#[test]
fn header_agrees_with_rust() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("checks.c");
    fs::write(&source, checks()).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let out = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .arg(include)
        .arg(&source)
        .output()
        .expect("cc runs (install gcc)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

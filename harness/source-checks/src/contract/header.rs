// SPDX-License-Identifier: MIT OR Apache-2.0
//! `uapi/include/kvmi.h`.

use kvmi_uapi::error;
use kvmi_uapi::layout::{self, Constant, Field, Section, Struct};
use kvmi_uapi::table::{self, Tail};

use super::words::in_c;

/// A comment stands beside its line up to here, and above it otherwise.
const BESIDE: usize = 100;
/// A comment of several lines is no wider than this.
const ABOVE: usize = 80;
const TAB: usize = 8;

const HEAD: &str = "\
/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The KVMI contract as C sees it.  `cargo xtask docs` writes this file from
 * the Rust types of uapi/src: change those.  docs/protocol.md explains it.
 *
 * Byte order is the host's.  Fields named pad, pad1 and so on are padding:
 * zero in both directions.  (P1) and the like are numbers of that page.
 */
#ifndef _LINUX_KVMI_H
#define _LINUX_KVMI_H

#include <linux/types.h>
#include <linux/ioctl.h>
#include <linux/errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
";

/// The whole header.
pub(super) fn text() -> String {
    let mut c = HEAD.to_owned();
    heading(&mut c, "messages: even ids are about the VM, odd ids about one vCPU");
    let commands = table::COMMANDS.iter().map(|command| {
        let since = match command.since {
            0 => String::new(),
            level => format!(" Since extension level {level}."),
        };
        let name = format!("KVMI_{}", command.name);
        (name, command.id, format!("{}{since}", in_c(command.doc)))
    });
    enumeration(&mut c, &commands.collect::<Vec<_>>());
    let events = table::EVENTS.iter().map(|event| {
        let scope = if event.is_vcpu() { "VCPU" } else { "VM" };
        (format!("KVMI_{scope}_EVENT_{}", event.name), event.id, in_c(event.doc))
    });
    enumeration(&mut c, &events.collect::<Vec<_>>());
    heading(&mut c, "errors, which replies carry negated");
    c += "\n/* As in <linux/kvm_para.h>, which lacks some. */\n";
    for ((value, name), answers) in error::ALL.iter().zip(error::ANSWERS) {
        c += &format!("#ifndef KVM_{name}\n");
        beside(&mut c, &format!("#define KVM_{name}\t{value}"), &in_c(answers));
        c += "#endif\n";
    }
    layout::SECTIONS.iter().for_each(|part| section(&mut c, part));
    c + "\n#endif /* _LINUX_KVMI_H */\n"
}

fn heading(c: &mut String, title: &str) {
    let rest = "-".repeat(71usize.saturating_sub(title.chars().count()).max(1));
    *c += &format!("\n/* ---- {title} {rest} */\n");
}

fn section(c: &mut String, section: &Section) {
    let structs: Vec<_> = section.structs.iter().copied().filter(|s| !is_of_linux(s)).collect();
    if section.groups.is_empty() && structs.is_empty() {
        return;
    }
    heading(c, section.title);
    for s in structs {
        structure(c, s);
    }
    for group in section.groups {
        *c += "\n";
        above(c, "", &in_c(group.doc));
        let name = |constant: &Constant| constant.c_name.len();
        let width = group.constants.iter().map(name).max().unwrap_or(0) + "#define ".len();
        for constant in group.constants {
            let define = format!("#define {}", constant.c_name);
            let gap = tabs(define.len(), width);
            beside(c, &format!("{define}{gap}{}", value(constant)), &in_c(constant.doc));
        }
    }
}

/// Whether <linux/kvm.h> has it.
fn is_of_linux(s: &Struct) -> bool {
    s.c_name.starts_with("kvm_") && !s.c_name.starts_with("kvm_introspection")
}

/// A value as C reads it: as Rust writes it where that is C as well.
fn value(constant: &Constant) -> String {
    let written = constant.rust_value;
    let is_number = written.bytes().all(|b| b.is_ascii_hexdigit() || b == b'x');
    match constant.c_value {
        Some(text) => text.to_owned(),
        None if is_number => written.to_owned(),
        None if written.starts_with("1 << ") => format!("({written})"),
        None => constant.value.to_string(),
    }
}

fn enumeration(c: &mut String, names: &[(String, u16, String)]) {
    let width = names.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    *c += "\nenum {\n";
    for (name, id, doc) in names {
        let gap = tabs(name.len(), width);
        beside(c, &format!("\t{name}{gap}= {id},"), doc);
    }
    *c += "};\n";
}

fn structure(c: &mut String, s: &Struct) {
    *c += "\n";
    above(c, "", &in_c(s.doc));
    *c += &format!("struct {} {{\n", s.c_name);
    let declared = s
        .fields
        .iter()
        .map(|field| (declaration(field), field.doc, field.is_padding()));
    for (declaration, doc, is_padding) in declared {
        let doc = if is_padding { String::new() } else { in_c(doc) };
        beside(c, &format!("\t{declaration};"), &doc);
    }
    if let Some(tail) = tail(s) {
        let what = format!("as many as {} says", tail.count);
        let declared = format!("\t{} {}[];", c_type(tail.unit.name), tail.name);
        beside(c, &declared, &what);
    }
    *c += "};\n";
}

/// What follows this structure in a request.
pub(super) fn tail(s: &Struct) -> Option<&'static Tail> {
    let of_it = |command: &&table::Command| command.request.head.is_some_and(|head| head.c_name == s.c_name);
    table::COMMANDS.iter().find(of_it)?.request.tail.as_ref()
}

fn declaration(field: &Field) -> String {
    match super::page::array(field.rust_type) {
        Some((unit, count)) => format!("{} {}[{count}]", c_type(unit), field.c_name()),
        None => format!("{} {}", c_type(field.rust_type), field.c_name()),
    }
}

fn c_type(rust: &str) -> String {
    if rust == "Char" {
        return "char".to_owned();
    }
    if let Some(s) = layout::all_structs().find(|s| s.name == rust) {
        return format!("struct {}", s.c_name);
    }
    rust.replace('u', "__u").replace('i', "__s")
}

/// A line with its comment beside it, or above it where both are too long.
fn beside(c: &mut String, line: &str, comment: &str) {
    if comment.is_empty() {
        *c += &format!("{line}\n");
        return;
    }
    let with = format!("{line}\t/* {} */", comment.replace('`', ""));
    if columns(&with) <= BESIDE {
        *c += &format!("{with}\n");
    } else {
        let indent: String = line.chars().take_while(|c| *c == '\t').collect();
        above(c, &indent, comment);
        *c += &format!("{line}\n");
    }
}

fn above(c: &mut String, indent: &str, comment: &str) {
    let comment = comment.replace('`', "");
    let one = format!("{indent}/* {comment} */");
    if columns(&one) <= ABOVE {
        *c += &format!("{one}\n");
        return;
    }
    *c += &format!("{indent}/*\n");
    let mut line = format!("{indent} *");
    for word in comment.split(' ') {
        if columns(&line) + 1 + word.chars().count() > ABOVE {
            *c += &format!("{line}\n");
            line = format!("{indent} *");
        }
        line += &format!(" {word}");
    }
    *c += &format!("{line}\n{indent} */\n");
}

fn columns(line: &str) -> usize {
    line.chars()
        .fold(0, |at, c| if c == '\t' { (at / TAB + 1) * TAB } else { at + 1 })
}

/// Tabs from the end of a name to the column behind the longest.
fn tabs(name: usize, longest: usize) -> String {
    let to = longest / TAB + 1;
    "\t".repeat(to - name / TAB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_in_the_kernel() {
        let text = text();
        for line in text.lines() {
            assert!(columns(line) <= BESIDE, "{line}");
            assert!(!line.ends_with([' ', '\t']), "{line:?}");
        }
        assert!(text.contains("\tKVMI_VCPU_GET_REGISTERS\t\t= 7,\t/* Reads"), "{text}");
        assert!(
            text.contains("\tstruct kvmi_page_access_entry entries[];\t/* as many as count says */\n"),
            "{text}"
        );
        assert!(
            text.contains("\t__u8 pad[7];\n") && text.contains("\t__u8 type;\t/*"),
            "{text}"
        );
        assert!(text.contains("#define KVMI_MAX_MSRS\t\t\t481\n"), "{text}");
    }

    #[test]
    fn a_long_comment_stands_above() {
        let mut c = String::new();
        beside(&mut c, "\tint a;", &["word"; 30].join(" "));
        assert!(
            c.starts_with("\t/*\n\t * word") && c.ends_with(" word\n\t */\n\tint a;\n"),
            "{c}"
        );
    }
}

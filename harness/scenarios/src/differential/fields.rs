// SPDX-License-Identifier: MIT OR Apache-2.0
//! State of a vCPU in lines of `group: key=value key=value`, so that a difference has a name.

use std::fmt::Write as _;

use kvmi_uapi::{Dtable, Regs, Segment, Sregs, VcpuEventArch};

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An event's own data, eight bytes a field.
pub(super) fn of_data(data: &[u8]) -> String {
    let words = data.chunks(8).map(hex).zip(0..);
    words
        .map(|(word, number)| format!("data{number}={word}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn line(group: &str, fields: &[(&str, u64)]) -> String {
    fields.iter().fold(format!("{group}:"), |mut text, (key, value)| {
        let _ = write!(text, " {key}={value:#x}");
        text
    })
}

/// RFLAGS.RF.
const RESUME: u64 = 1 << 16;

/// All but those in which the program keeps something of its own that depends on the vendor.
pub(super) fn of_regs(r: &Regs, kept: &[&str]) -> String {
    let all = [
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("rip", r.rip),
        ("rflags", r.rflags & !RESUME),
        ("rf", (r.rflags & RESUME) >> 16),
    ];
    let said: Vec<_> = all.into_iter().filter(|(name, _)| !kept.contains(name)).collect();
    line("regs", &said)
}

fn of_segment(name: &str, s: &Segment) -> String {
    line(
        name,
        &[
            ("base", s.base),
            ("limit", s.limit.into()),
            ("selector", s.selector.into()),
            ("type", s.type_.into()),
            ("present", s.present.into()),
            ("dpl", s.dpl.into()),
            ("db", s.db.into()),
            ("s", s.s.into()),
            ("l", s.l.into()),
            ("g", s.g.into()),
            ("avl", s.avl.into()),
            ("unusable", s.unusable.into()),
        ],
    )
}

fn of_dtable(name: &str, t: &Dtable) -> String {
    line(name, &[("base", t.base), ("limit", t.limit.into())])
}

pub(super) fn of_sregs(s: &Sregs) -> Vec<String> {
    let segments = [
        ("cs", &s.cs),
        ("ds", &s.ds),
        ("es", &s.es),
        ("fs", &s.fs),
        ("gs", &s.gs),
        ("ss", &s.ss),
        ("tr", &s.tr),
        ("ldt", &s.ldt),
    ];
    let mut lines: Vec<String> = segments
        .iter()
        .map(|(name, segment)| of_segment(name, segment))
        .collect();
    lines.push(of_dtable("gdt", &s.gdt));
    lines.push(of_dtable("idt", &s.idt));
    lines.push(line(
        "sregs",
        &[
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("cr8", s.cr8),
            ("efer", s.efer),
            ("apic_base", s.apic_base),
            ("interrupts", s.interrupt_bitmap.iter().fold(0, |all, word| all | word)),
        ],
    ));
    lines
}

pub(super) fn of_state(arch: &VcpuEventArch, kept: &[&str]) -> Vec<String> {
    let mut lines = vec![of_regs(&arch.regs, kept)];
    lines.extend(of_sregs(&arch.sregs));
    lines.push(line(
        "arch",
        &[
            ("mode", arch.mode.into()),
            ("sysenter_cs", arch.sysenter_cs),
            ("sysenter_esp", arch.sysenter_esp),
            ("sysenter_eip", arch.sysenter_eip),
            ("efer", arch.efer),
            ("star", arch.star),
            ("lstar", arch.lstar),
            ("cstar", arch.cstar),
            ("pat", arch.pat),
            ("shadow_gs", arch.shadow_gs),
        ],
    ));
    lines
}

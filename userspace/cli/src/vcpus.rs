// SPDX-License-Identifier: MIT OR Apache-2.0
//! What vCPUs are doing, and their registers.

use anyhow::{Context as _, ensure};
use kvmi::{Registers, Session, SessionOptions, VcpuRunState, event, host::HostVm};
use serde_json::{Value, json};

use crate::{
    PATIENCE, list,
    output::{Output, hex, table},
};

/// Names of general registers, and where they are.
fn general(registers: &Registers) -> [(&'static str, u64); 18] {
    let r = &registers.regs;
    [
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
        ("rflags", r.rflags),
    ]
}

fn control(registers: &Registers) -> [(&'static str, u64); 7] {
    let s = &registers.sregs;
    [
        ("cr0", s.cr0),
        ("cr2", s.cr2),
        ("cr3", s.cr3),
        ("cr4", s.cr4),
        ("cr8", s.cr8),
        ("efer", s.efer),
        ("apic_base", s.apic_base),
    ]
}

fn segments(registers: &Registers) -> [(&'static str, kvmi::Segment); 8] {
    let s = &registers.sregs;
    [
        ("cs", s.cs),
        ("ss", s.ss),
        ("ds", s.ds),
        ("es", s.es),
        ("fs", s.fs),
        ("gs", s.gs),
        ("tr", s.tr),
        ("ldt", s.ldt),
    ]
}

/// What a vCPU is doing, in a word.
fn state(of: &VcpuRunState) -> String {
    match of.state {
        VcpuRunState::RUNS => "runs".to_owned(),
        VcpuRunState::OUT => "out in its VMM".to_owned(),
        VcpuRunState::HALTED => "halted".to_owned(),
        VcpuRunState::STOPPED => "stopped".to_owned(),
        VcpuRunState::UNINITIALISED => "waits for INIT and SIPI".to_owned(),
        VcpuRunState::HELD => format!("held by event {}", event_name(of.event.into())),
        VcpuRunState::CRASHED => "crashed".to_owned(),
        other => format!("state {other}"),
    }
}

fn event_name(id: u16) -> String {
    let known = event::ALL.iter().find(|(known, _)| *known == id);
    known.map_or_else(|| id.to_string(), |(_, name)| (*name).to_owned())
}

pub(crate) fn info(vm: &HostVm, output: &Output) -> anyhow::Result<()> {
    let status = vm.status();
    let session = vm.open(SessionOptions::new().timeout(PATIENCE), 0);
    let states = match &session {
        Ok(session) => session.vcpu_states()?,
        Err(_) => Vec::new(),
    };
    let mut object = list::described(vm, &status);
    object["vcpus"] = states
        .iter()
        .map(|of| json!({ "state": state(of), "in_kvm_run": of.in_run == 1 }))
        .collect();
    output.say("info", object, || {
        let mut said = format!("VM {vm}\nintrospected: {}\n", list::in_words(&status));
        if let Some(uuid) = &vm.uuid {
            said.push_str(&format!("UUID: {uuid}\n"));
        }
        if let Err(error) = &session {
            said.push_str(&format!("no more is to be had: {error}\n"));
            return said;
        }
        let mut table = table(["vCPU", "state"]);
        for (index, of) in states.iter().enumerate() {
            table.add_row([index.to_string(), state(of)]);
        }
        format!("{said}{table}")
    })
}

pub(crate) fn registers(session: &Session, only: Option<u16>, msrs: &[u32], output: &Output) -> anyhow::Result<()> {
    let states = session.vcpu_states()?;
    let wanted: Vec<u16> = match only {
        Some(vcpu) => vec![vcpu],
        None => (0..states.len() as u16).collect(),
    };
    let mut objects = Vec::new();
    let mut texts = Vec::new();
    for vcpu in wanted {
        let of = states.get(usize::from(vcpu));
        let of = of.with_context(|| format!("no vCPU {vcpu}: the VM has {}", states.len()))?;
        if only.is_none() && of.state == VcpuRunState::UNINITIALISED {
            objects.push(json!({ "vcpu": vcpu, "state": state(of) }));
            texts.push(format!("vCPU {vcpu} {}: it has no registers yet\n", state(of)));
            continue;
        }
        let registers = session
            .vcpu(vcpu)
            .registers(msrs)
            .with_context(|| format!("registers of vCPU {vcpu}, which is {}", state(of)))?;
        objects.push(object(vcpu, &registers));
        texts.push(text(vcpu, &registers));
    }
    output.say("regs", json!({ "vcpus": objects }), || texts.join("\n"))
}

fn object(vcpu: u16, registers: &Registers) -> Value {
    let named = |pairs: &[(&str, u64)]| -> Value {
        pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), json!(hex(value))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let segments: serde_json::Map<_, _> = segments(registers)
        .iter()
        .map(|(name, s)| {
            let value = json!({ "selector": s.selector, "base": hex(s.base), "limit": s.limit, "type": s.type_ });
            ((*name).to_owned(), value)
        })
        .collect();
    let msrs: serde_json::Map<_, _> = registers
        .msrs
        .iter()
        .map(|msr| (hex(msr.index.into()), json!(hex(msr.data))))
        .collect();
    json!({
        "vcpu": vcpu,
        "mode_bits": registers.mode * 8,
        "registers": named(&general(registers)),
        "control": named(&control(registers)),
        "segments": segments,
        "gdt": { "base": hex(registers.sregs.gdt.base), "limit": registers.sregs.gdt.limit },
        "idt": { "base": hex(registers.sregs.idt.base), "limit": registers.sregs.idt.limit },
        "msrs": msrs,
    })
}

fn text(vcpu: u16, registers: &Registers) -> String {
    let mut said = format!("vCPU {vcpu}, {}-bit code\n", registers.mode * 8);
    for row in general(registers).chunks(3) {
        let cells: Vec<String> = row
            .iter()
            .map(|(name, value)| format!("{name:>6} {value:016x}"))
            .collect();
        said.push_str(&format!("{}\n", cells.join("  ")));
    }
    for row in control(registers).chunks(3) {
        let cells: Vec<String> = row
            .iter()
            .map(|(name, value)| format!("{:>6} {value:016x}", name.trim_end_matches("_base")))
            .collect();
        said.push_str(&format!("{}\n", cells.join("  ")));
    }
    for (name, s) in segments(registers) {
        said.push_str(&format!(
            "{name:>6} {:04x}  base {:016x}  limit {:08x}\n",
            s.selector, s.base, s.limit
        ));
    }
    for (name, table) in [("gdt", registers.sregs.gdt), ("idt", registers.sregs.idt)] {
        said.push_str(&format!(
            "{name:>6}       base {:016x}  limit {:08x}\n",
            table.base, table.limit
        ));
    }
    for msr in &registers.msrs {
        said.push_str(&format!("   msr {:#010x} {:016x}\n", msr.index, msr.data));
    }
    said
}

/// Fails where there is no such vCPU.
pub(crate) fn check(session: &Session, vcpu: u16) -> anyhow::Result<()> {
    let vcpus = session.vcpu_count()?;
    ensure!(vcpu < vcpus, "no vCPU {vcpu}: the VM has {vcpus}");
    Ok(())
}

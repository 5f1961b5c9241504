// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `kvmi`, as a person calls it on a host.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use kvmi::ioctls;
use kvmi_guests::layout;
use serde_json::Value;

use crate::vmm::{Vm, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "client::command",
        "`kvmi` lists VMs, shows registers and memory, changes memory, translates; each failure says why",
        command,
    ),
    scenario(
        "client::command_frees",
        "`kvmi` says who introspects a VM, and frees it from a session that was left behind",
        frees,
    ),
];

const FILE: &str = "/tmp/memory";

fn run(arguments: &[&str]) -> Result<Output, Failure> {
    Ok(Command::new("/proc/self/exe").arg("kvmi").args(arguments).output()?)
}

/// What it says when it succeeds.
#[track_caller]
fn said(arguments: &[&str]) -> Result<String, Failure> {
    let output = run(arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    check!(
        output.status.success(),
        "kvmi {arguments:?}: {}: {errors}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same for programs.
#[track_caller]
fn object(arguments: &[&str]) -> Result<Value, Failure> {
    let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let said = said(&all)?;
    let object: Value = serde_json::from_str(&said).map_err(|e| Failure::new(format!("{e}: {said}")))?;
    check_eq!(object["command"], arguments[0], "the command in its object");
    Ok(object)
}

/// Fails unless it fails with this code, and says this.
#[track_caller]
fn fails(arguments: &[&str], code: i32, says: &str) -> Result<(), Failure> {
    let output = run(arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    check_eq!(
        output.status.code(),
        Some(code),
        "exit code of kvmi {arguments:?}: {errors}"
    );
    check!(errors.contains(says), "kvmi {arguments:?} says: {errors}");
    Ok(())
}

fn number(value: &Value) -> Result<u64, Failure> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x"));
    let text = text.ok_or_else(|| Failure::new(format!("no number in hexadecimal: {value}")))?;
    Ok(u64::from_str_radix(text, 16)?)
}

/// What `list` says of this VM.
fn listed(vm: &Vm) -> Result<Value, Failure> {
    let all = object(&["list"])?;
    let vms = all["vms"].as_array().cloned().unwrap_or_default();
    let ours = vms.into_iter().find(|listed| listed["pid"] == vm.process_id());
    ours.ok_or_else(|| Failure::new(format!("the VM is not in {all}")))
}

fn command(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    let pid = vm.process_id().to_string();
    context.stage("list and info", Duration::from_secs(20));
    check_eq!(listed(&vm)?["introspected"], false, "whether it is introspected");
    check!(said(&[])?.contains(&pid), "the VM is not in the table");
    let info = object(&["info", &pid])?;
    check_eq!(info["vcpus"].as_array().map(Vec::len), Some(2), "vCPUs in {info}");

    context.stage("registers", Duration::from_secs(20));
    let regs = object(&["regs", &pid, "--msr", "0xc0000080"])?;
    for vcpu in 0..2 {
        let of = &regs["vcpus"][vcpu];
        check_eq!(of["mode_bits"], 64, "mode in {of}");
        check_eq!(
            number(&of["msrs"]["0xc0000080"])?,
            number(&of["control"]["efer"])?,
            "EFER in {of}"
        );
        // Its program has its index there.
        check!(number(&of["registers"]["rip"])? != 0, "RIP in {of}");
    }
    let text = said(&["regs", &pid, "--vcpu", "1"])?;
    check!(
        text.starts_with("vCPU 1, 64-bit code\n") && !text.contains("vCPU 0"),
        "registers of vCPU 1: {text}"
    );
    fails(&["regs", &pid, "--vcpu", "2"], 1, "no vCPU 2: the VM has 2")?;

    context.stage("memory", Duration::from_secs(20));
    let address = format!("{:#x}", layout::SCRATCH + 0xffe);
    said(&["write", &pid, &address, "4b 56 4d 49"])?;
    let mut bytes = [0; 4];
    vm.guest.read(layout::SCRATCH + 0xffe, &mut bytes)?;
    check_eq!(&bytes, b"KVMI", "what was written across two pages");
    let dump = said(&["read", &pid, &address, "4"])?;
    check_eq!(
        dump.trim_end(),
        format!("{:016x}  4b 56 4d 49{:36}  KVMI", layout::SCRATCH + 0xffe, ""),
        "what was read"
    );
    check_eq!(
        object(&["read", &pid, &address, "4", "--virtual", "--vcpu", "1"])?["data"],
        "4b564d49",
        "the same by a virtual address"
    );
    said(&["read", &pid, "0x100000", "0x12345", "--to", FILE])?;
    let mut all = vec![0; 0x12345];
    vm.guest.read(0x10_0000, &mut all)?;
    check!(fs::read(FILE)? == all, "what is in the file is not what the guest has");
    check_eq!(
        number(&object(&["translate", &pid, &address])?["physical"])?,
        layout::SCRATCH + 0xffe,
        "translation"
    );

    context.stage("failures", Duration::from_secs(20));
    fails(
        &["read", &pid, "0x7ffffffff000", "16"],
        1,
        "the guest has no memory at physical address",
    )?;
    fails(&["read", &pid, "0", "1M"], 1, "--to FILE")?;
    fails(&["write", &pid, &address, "9"], 1, "no sequence of bytes")?;
    fails(&["regs", "1"], 1, "no VM is called `1`; there are: ")?;
    fails(&["read", &pid], 2, "Usage")?;
    fails(
        &["read", &pid, "1", "1", "--to", "/nowhere/file"],
        1,
        "write to /nowhere/file",
    )?;
    check_eq!(
        listed(&vm)?["introspected"],
        false,
        "whether it is introspected in the end"
    );
    vm.exit()
}

fn frees(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let pid = vm.process_id().to_string();
    context.stage("another tool has it", Duration::from_secs(20));
    let mut wire = context.hook_on_socket(&vm, 0)?;
    let listed_now = listed(&vm)?;
    check_eq!(listed_now["introspected"], true, "whether it is introspected");
    check_eq!(listed_now["session"]["pid"], vm.process_id(), "by whom");
    fails(&["regs", &pid], 1, &format!("introspected already, by process {pid}"))?;
    wire.expect_version()?;
    context.stage("and is gone", Duration::from_secs(20));
    drop(wire);
    context.wait_for("the loss", || Ok(listed(&vm)?["session"]["tool_lost"] == true))?;
    fails(&["regs", &pid], 1, "which has lost it")?;
    check!(
        said(&["free", &pid])?.contains("is free; it was introspected"),
        "what free says"
    );
    check!(
        said(&["free", &pid])?.contains("was free already"),
        "what free says again"
    );
    said(&["regs", &pid])?;
    check_eq!(ioctls::status(vm.steal_vm_fd()?)?.state, 0, "state");
    let before = vm.guest.field(0, field!(counter))?;
    context.wait_for("the guest to count on", || {
        Ok(vm.guest.field(0, field!(counter))? > before)
    })?;
    vm.exit()
}

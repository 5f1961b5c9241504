// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `introspect`: a tool as small as it can be. It hooks a VM from outside, looks at its vCPUs, and unhooks, whatever
//! happens meanwhile.

mod hook;
mod vms;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kvmi::{Session, SessionOptions, VcpuEventArch};

use self::hook::{Hook, Ioctls};
use super::{Typed, typed};

/// How long a vCPU may take to stop, and the kernel to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of its code is shown.
const CODE_BYTES: usize = 16;

const HELP: &str = "usage: introspect [PID]

Hooks the VM of the VMM with this process id, or of the first that there is, pauses each of its
vCPUs, shows where it stands, and unhooks. The guest runs on and notices nothing.

It unhooks when it fails, and when Ctrl-C or SIGTERM ends it. When SIGKILL does, the VM stays hooked
until somebody calls UNHOOK, or its VMM ends.

It is a complete tool: harness/l1/src/shell/introspect.rs in the sources. For other VMs to hook:
vm --help";

/// `introspect [PID]`: of the VMM with this process id, or of the first that there is.
pub(crate) fn introspect(arguments: &[&str]) -> anyhow::Result<()> {
    let wanted = match typed("introspect", arguments, parse)? {
        Typed::Help => {
            println!("{HELP}");
            return Ok(());
        }
        Typed::This(wanted) => wanted,
    };
    let (pid, vm) = vms::find(wanted)?;
    let vm = Arc::new(Hook::new(vm));
    hook::unhook_on_signals(&vm)?;
    look(&vm, pid, &mut io::stdout())
}

/// All of the tool: when it returns the VM is not hooked, by this tool at least.
fn look(vm: &Hook<impl Ioctls>, pid: i32, out: &mut impl Write) -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let hooked = vm.hook(theirs.as_fd())?;
    drop(theirs);
    vm.ioctls().allow_every_command().context("allow all commands")?;
    vm.ioctls().allow_every_event().context("allow all events")?;
    let session = SessionOptions::new().timeout(PATIENCE).start(ours);
    let (version, vcpus) = (session.version()?.version, session.vcpu_count()?);
    writeln!(out, "VMM {pid}: hooked, protocol version {version}, {vcpus} vCPUs")?;
    for index in 0..vcpus {
        show(&session, index, out).with_context(|| format!("vCPU {index}"))?;
    }
    session.close();
    hooked.unhook()?;
    writeln!(out, "unhooked; the guest runs on")?;
    Ok(())
}

/// Where a vCPU stands. It runs on when this returns: an event that is dropped is answered.
fn show(session: &Session, index: u16, out: &mut impl Write) -> anyhow::Result<()> {
    session.pause_vcpu(index, true)?;
    let pause = match session.next_event_of(index) {
        Err(error) if error.is_timeout() => {
            writeln!(out, "vCPU {index} does not stop: its VMM does not run it")?;
            return Ok(());
        }
        event => event?.pause()?,
    };
    let (regs, sregs) = (pause.arch.regs, pause.arch.sregs);
    writeln!(
        out,
        "vCPU {index} stands at rip {:#x}, rsp {:#x}, cr0 {:#x}, cr3 {:#x}, cr4 {:#x}",
        regs.rip, regs.rsp, sregs.cr0, sregs.cr3, sregs.cr4
    )?;
    let vcpu = session.vcpu(index);
    let start = linear_rip(&pause.arch);
    let code = vcpu.read_linear(start, CODE_BYTES)?;
    if !code.is_empty() {
        let bytes: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "  its code at linear address {start:#x}: {}", bytes.join(" "))?;
    }
    if code.len() < CODE_BYTES {
        let end = start.wrapping_add(code.len() as u64);
        match vcpu.translate(end)? {
            None => writeln!(out, "  the guest's page tables map nothing at linear address {end:#x}")?,
            Some(gpa) => writeln!(
                out,
                "  linear address {end:#x} is at {gpa:#x}, where the guest has no memory"
            )?,
        }
    }
    pause.proceed()?;
    Ok(())
}

/// The linear address of the next instruction: in 64-bit mode the base of CS does not count, elsewhere it wraps at 4 GiB.
fn linear_rip(arch: &VcpuEventArch) -> u64 {
    if arch.mode == 8 {
        arch.regs.rip
    } else {
        arch.sregs.cs.base.wrapping_add(arch.regs.rip) & u64::from(u32::MAX)
    }
}

fn parse(arguments: &[&str]) -> anyhow::Result<Option<i32>> {
    match *arguments {
        [] => Ok(None),
        [option, ..] if option.starts_with('-') => bail!("`{option}` is no option: one process id is all"),
        [pid] => {
            let number = pid.parse().ok().filter(|pid| *pid > 0);
            number.map(Some).with_context(|| format!("`{pid}` is no process id"))
        }
        [_, more, ..] => bail!("`{more}` is too much: one process id is all"),
    }
}

#[cfg(test)]
mod tests;

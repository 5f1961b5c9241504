// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `introspect`: a tool as small as it can be. It opens a session on a VM from outside, and looks at its vCPUs. The
//! session ends with the tool, whatever happens meanwhile.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kvmi::{Session, SessionOptions, VcpuEventArch, host};

use super::{Typed, typed};

/// How long a vCPU may take to stop, and the kernel to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of its code is shown.
const CODE_BYTES: usize = 16;

const HELP: &str = "usage: introspect [PID]

Opens a session on the VM of the VMM with this process id, or of the first that there is, pauses
each of its vCPUs, and shows where it stands. The guest runs on and notices nothing.

The session ends with this program, whatever ends that.

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
    let vm = match wanted {
        Some(pid) => host::find(&pid.to_string())?,
        None => {
            let first = host::list()?.vms.into_iter().next();
            first.context("no process has a VM; to start one: vm GUEST &")?
        }
    };
    let session = vm.open(SessionOptions::new().timeout(PATIENCE), 0)?;
    look(&session, vm.pid, &mut io::stdout())?;
    drop(session);
    println!("the session is over; the guest runs on");
    Ok(())
}

/// All of the tool.
fn look(session: &Session, pid: i32, out: &mut impl Write) -> anyhow::Result<()> {
    let (version, vcpus) = (session.version()?.version, session.vcpu_count()?);
    writeln!(out, "VMM {pid}: hooked, protocol version {version}, {vcpus} vCPUs")?;
    for index in 0..vcpus {
        show(session, index, out).with_context(|| format!("vCPU {index}"))?;
    }
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

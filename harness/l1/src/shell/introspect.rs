// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `introspect`: a tool as small as it can be. It hooks a VM from outside, looks at its vCPUs, and unhooks.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use kvmi::{Event, Session};
use kvmi_lab_scenarios::ioctls;
use kvmi_uapi::ioctl;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{Typed, typed};

/// What a descriptor of a VM is a link to.
const VM_LINK: &str = "anon_inode:kvm-vm";

const HELP: &str = "usage: introspect [PID]

Hooks the VM of the VMM with this process id, or of the first that there is, pauses each of its
vCPUs, shows where it stands, and unhooks. The guest runs on and notices nothing.

It is a complete tool on one page: harness/l1/src/shell/introspect.rs in the sources. For other
VMs to hook: vm --help";

/// `introspect [PID]`: of the VMM with this process id, or of the first that there is.
pub(crate) fn introspect(arguments: &[&str]) -> anyhow::Result<()> {
    let wanted = match typed("introspect", arguments, parse)? {
        Typed::Help => {
            println!("{HELP}");
            return Ok(());
        }
        Typed::This(wanted) => wanted,
    };
    let (pid, vm) = find_vm(wanted)?;
    let (ours, theirs) = UnixStream::pair()?;
    ioctls::hook(vm.as_fd(), theirs.as_raw_fd(), 0, *b"hooked by a hand").context("HOOK")?;
    drop(theirs);
    ioctls::permit_command(vm.as_fd(), 1, ioctl::ALL).context("allow all commands")?;
    ioctls::permit_event(vm.as_fd(), 1, ioctl::ALL).context("allow all events")?;
    let session = Session::from(ours);
    let vcpus = session.vcpu_count()?;
    println!(
        "VMM {pid}: hooked, protocol version {}, {vcpus} vCPUs",
        session.version()?.version
    );
    for index in 0..u16::try_from(vcpus)? {
        session.pause_vcpu(index, true)?;
        match session.next_event()? {
            Event::Pause(pause) => {
                let (regs, sregs) = (pause.arch.regs, pause.arch.sregs);
                println!(
                    "vCPU {index} stands at rip {:#x}, rsp {:#x}, cr0 {:#x}, cr3 {:#x}, cr4 {:#x}",
                    regs.rip, regs.rsp, sregs.cr0, sregs.cr3, sregs.cr4
                );
                let code = session.read_physical(regs.rip, 16)?;
                let code: Vec<String> = code.iter().map(|b| format!("{b:02x}")).collect();
                println!("  where the guest's memory holds {}", code.join(" "));
                pause.proceed()?;
            }
            other => {
                println!("vCPU {index}: {}", other.name());
                other.proceed()?;
            }
        }
    }
    session.close();
    ioctls::unhook(vm.as_fd()).context("UNHOOK")?;
    println!("unhooked; the guest runs on");
    Ok(())
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

/// A VM of another process, taken as a tool takes it: by that process's descriptor.
fn find_vm(wanted: Option<i32>) -> anyhow::Result<(i32, OwnedFd)> {
    let vms = vms()?;
    ensure!(!vms.is_empty(), "no process has a VM; to start one: vm GUEST &");
    let is_wanted = |(pid, _): &&(i32, i32)| wanted.is_none_or(|wanted| wanted == *pid);
    let Some(&(pid, number)) = vms.iter().find(is_wanted) else {
        let pids: Vec<String> = vms.iter().map(|(pid, _)| pid.to_string()).collect();
        bail!(
            "process {} has no VM; those that have one: {}",
            wanted.unwrap_or_default(),
            pids.join(", ")
        );
    };
    let process = Pid::from_raw(pid).context("there is no process 0")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    Ok((pid, pidfd_getfd(process, number, PidfdGetfdFlags::empty())?))
}

/// Each process that has a VM, and the number of the descriptor by which it has it.
fn vms() -> anyhow::Result<Vec<(i32, i32)>> {
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let vm_of = |pid: i32| {
        // It may have ended by now.
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let is_vm = |path: &Path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == VM_LINK);
        let vm = descriptors.filter_map(Result::ok).find(|d| is_vm(&d.path()))?;
        Some((pid, vm.file_name().to_str()?.parse().ok()?))
    };
    let mut vms: Vec<(i32, i32)> = pids.filter_map(vm_of).collect();
    vms.sort_unstable();
    Ok(vms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_typed() {
        let of = |arguments: &[&str]| typed("introspect", arguments, parse);
        assert_eq!(of(&[]).unwrap(), Typed::This(None));
        assert_eq!(of(&["71"]).unwrap(), Typed::This(Some(71)));
        assert_eq!(of(&["-h"]).unwrap(), Typed::Help);
        for wrong in [&["storm"][..], &["0"], &["-1"], &["1", "2"]] {
            let said = of(wrong).unwrap_err().to_string();
            assert!(said.ends_with("; for help: introspect --help"), "{said}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `introspect`: a tool as small as it can be. It hooks a VM from outside, looks at its vCPUs, and unhooks.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, bail};
use kvmi::{Event, Session};
use kvmi_lab_scenarios::ioctls;
use kvmi_uapi::ioctl;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// What a descriptor of a VM is a link to.
const VM_LINK: &str = "anon_inode:kvm-vm";

/// `introspect [VMM]`: of the VMM with this process id, or of the first that there is.
pub(crate) fn introspect(arguments: &[&str]) -> anyhow::Result<()> {
    let wanted = match *arguments {
        [] => None,
        [pid] => Some(
            pid.parse::<i32>()
                .with_context(|| format!("`{pid}` is no process id"))?,
        ),
        _ => bail!("usage: introspect [PROCESS ID OF A VMM]"),
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

/// A VM of another process, taken as a tool takes it: by that process's descriptor.
fn find_vm(wanted: Option<i32>) -> anyhow::Result<(i32, OwnedFd)> {
    let mut pids: Vec<i32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| wanted.is_none_or(|wanted| wanted == *pid))
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for descriptor in descriptors.filter_map(Result::ok) {
            let is_vm = fs::read_link(descriptor.path()).is_ok_and(|link| link.as_os_str() == VM_LINK);
            let number = descriptor.file_name().to_str().and_then(|n| n.parse().ok());
            if let (true, Some(number), Some(process)) = (is_vm, number, Pid::from_raw(pid)) {
                let process = pidfd_open(process, PidfdFlags::empty())?;
                return Ok((pid, pidfd_getfd(process, number, PidfdGetfdFlags::empty())?));
            }
        }
    }
    match wanted {
        Some(pid) => bail!("process {pid} has no VM"),
        None => bail!("no process has a VM; to start one: vm GUEST &"),
    }
}

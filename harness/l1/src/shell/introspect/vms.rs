// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VMs of other processes.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// What a descriptor of a VM is a link to.
const VM_LINK: &str = "anon_inode:kvm-vm";

/// A VM of another process, taken as a tool takes it: by that process's descriptor.
pub(super) fn find(wanted: Option<i32>) -> anyhow::Result<(i32, OwnedFd)> {
    let vms = all()?;
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
fn all() -> anyhow::Result<Vec<(i32, i32)>> {
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

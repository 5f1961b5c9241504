// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VMs of this host, and the way to a session on one of them.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    str::FromStr,
};

use kvmi_uapi::ioctl::Status;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::{
    Session, SessionOptions,
    ioctls::{self, Errno},
};

/// What a descriptor of a VM is a link to.
const VM_LINK: &str = "anon_inode:kvm-vm";
/// The switch of our modules; a kernel without them has no such file.
const SWITCH: &str = "/sys/module/kvm/parameters/introspection";

/// A VM, by the process that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostVm {
    /// The VMM's process.
    pub pid: i32,
    /// The VMM's descriptor of the VM.
    pub descriptor: i32,
    /// The VMM's program, as /proc/PID/comm has it.
    pub program: String,
    /// The VM's name, where the VMM's command line says it: QEMU's `-name`, libvirt's domain name among them.
    pub name: Option<String>,
    /// QEMU's `-uuid`.
    pub uuid: Option<String>,
}

/// The VMs that [`list`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostVms {
    /// Those whose descriptor this process can see.
    pub vms: Vec<HostVm>,
    /// How many processes could not be looked into; they may have VMs, too. Root sees all.
    pub hidden: usize,
}

/// Why there is no session on a VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// /proc cannot be read.
    #[error("cannot list the VMs of this host: {0}")]
    List(io::Error),
    /// No VM is called so.
    #[error("no VM is called `{wanted}`{}{}", there_are(.known), unseen(*.hidden))]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// The VMs that there are.
        known: Vec<HostVm>,
        /// As in [`HostVms`].
        hidden: usize,
    },
    /// Several are.
    #[error("several VMs are called `{wanted}`{}", there_are(.found))]
    Several {
        /// What was asked for.
        wanted: String,
        /// Those.
        found: Vec<HostVm>,
    },
    /// The VMM's descriptor cannot be had.
    #[error("cannot take the descriptor of VM {vm}: {error}; it takes root, or CAP_SYS_PTRACE")]
    Descriptor {
        /// The VM.
        vm: HostVm,
        /// The system call's error.
        error: io::Error,
    },
    /// The kernel's KVM has no introspection.
    #[error("KVM of this host has no introspection: load the modules of this project")]
    NoModules,
    /// It is switched off.
    #[error("introspection is switched off: load kvm with `introspection=1`")]
    SwitchedOff,
    /// This process may not.
    #[error("not permitted: introspection of another process's VM takes CAP_SYS_PTRACE in the initial user namespace")]
    NotPermitted,
    /// Somebody else introspects the VM.
    #[error("the VM is introspected already, by {}{}", owner(*.pid), lost(*.is_lost))]
    Hooked {
        /// The process that began it; `None`: it is gone, or out of sight.
        pid: Option<i32>,
        /// Its tool is gone: `free` ends what is left of the session.
        is_lost: bool,
    },
    /// OPEN failed otherwise.
    #[error("the kernel refuses a session: {0}")]
    Open(io::Error),
}

fn there_are(vms: &[HostVm]) -> String {
    let all: Vec<String> = vms.iter().map(ToString::to_string).collect();
    if all.is_empty() {
        "; this process sees no VM at all".to_owned()
    } else {
        format!("; there are: {}", all.join(", "))
    }
}

fn unseen(processes: usize) -> String {
    if processes == 0 {
        String::new()
    } else {
        format!(" ({processes} processes could not be looked into: try as root)")
    }
}

fn owner(pid: Option<i32>) -> String {
    pid.map_or("a process that is gone or out of sight".to_owned(), |pid| {
        format!("process {pid}")
    })
}

fn lost(is_lost: bool) -> &'static str {
    if is_lost { ", which has lost it" } else { "" }
}

/// All VMs that this process can see, by process id.
///
/// # Errors
/// /proc that cannot be read.
pub fn list() -> io::Result<HostVms> {
    let mut all = HostVms::default();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        match descriptors(pid) {
            Ok(found) => all.vms.extend(found.into_iter().map(|number| HostVm::of(pid, number))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => all.hidden += 1,
            // It has ended by now.
            Err(_) => {}
        }
    }
    all.vms.sort_by_key(|vm| (vm.pid, vm.descriptor));
    Ok(all)
}

/// The numbers by which a process has VMs.
fn descriptors(pid: i32) -> io::Result<Vec<i32>> {
    let is_vm = |path: &Path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == VM_LINK);
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(Result::ok);
    let numbers = entries.filter(|entry| is_vm(&entry.path()));
    Ok(numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// The VM that is meant: by the VMM's process id, `PID:DESCRIPTOR`, the VM's name, or its UUID.
///
/// # Errors
/// [`AttachError::List`], [`AttachError::NotFound`], [`AttachError::Several`].
pub fn find(wanted: &str) -> Result<HostVm, AttachError> {
    let HostVms { vms, hidden } = list().map_err(AttachError::List)?;
    choose(vms, hidden, wanted)
}

fn choose(vms: Vec<HostVm>, hidden: usize, wanted: &str) -> Result<HostVm, AttachError> {
    let mut found: Vec<HostVm> = vms.iter().filter(|vm| vm.is_called(wanted)).cloned().collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(AttachError::NotFound {
            wanted: wanted.to_owned(),
            known: vms,
            hidden,
        }),
        _ => Err(AttachError::Several {
            wanted: wanted.to_owned(),
            found,
        }),
    }
}

impl HostVm {
    fn of(pid: i32, descriptor: i32) -> Self {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let arguments = read("cmdline");
        let arguments: Vec<&str> = arguments
            .split(|byte| *byte == 0)
            .filter_map(|argument| str::from_utf8(argument).ok())
            .collect();
        Self {
            pid,
            descriptor,
            program: String::from_utf8_lossy(&read("comm")).trim_end().to_owned(),
            name: name_of(&arguments),
            uuid: value_of(&arguments, &["-uuid", "--uuid"]).map(str::to_owned),
        }
    }

    fn is_called(&self, wanted: &str) -> bool {
        let number = |text| i32::from_str(text).ok();
        if let Some((pid, descriptor)) = wanted.split_once(':')
            && let (Some(pid), Some(descriptor)) = (number(pid), number(descriptor))
        {
            return (self.pid, self.descriptor) == (pid, descriptor);
        }
        number(wanted) == Some(self.pid)
            || self.name.as_deref() == Some(wanted)
            || self
                .uuid
                .as_deref()
                .is_some_and(|uuid| uuid.eq_ignore_ascii_case(wanted))
    }

    /// The VM's descriptor, as one of this process's own.
    ///
    /// # Errors
    /// [`AttachError::Descriptor`].
    pub fn take_descriptor(&self) -> Result<OwnedFd, AttachError> {
        let take = || -> io::Result<OwnedFd> {
            let process = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
            let process = pidfd_open(process, PidfdFlags::empty())?;
            Ok(pidfd_getfd(process, self.descriptor, PidfdGetfdFlags::empty())?)
        };
        take().map_err(|error| AttachError::Descriptor {
            vm: self.clone(),
            error,
        })
    }

    /// Who introspects it.
    ///
    /// # Errors
    /// [`AttachError::Descriptor`], [`AttachError::NoModules`], [`AttachError::SwitchedOff`],
    /// [`AttachError::NotPermitted`].
    pub fn status(&self) -> Result<Status, AttachError> {
        ioctls::status(self.take_descriptor()?).map_err(explain)
    }

    /// Ends its introspection, whoever began it.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn free(&self) -> Result<(), AttachError> {
        ioctls::free(self.take_descriptor()?).map_err(explain)
    }

    /// A session on it, with these flags of OPEN.
    ///
    /// # Errors
    /// Those of [`AttachError`] but for the first three.
    pub fn open(&self, options: SessionOptions, flags: u32) -> Result<Session, AttachError> {
        let vm = self.take_descriptor()?;
        options.open(&vm, flags).map_err(|error| why_not(&vm, error))
    }
}

/// By what a person can name it.
impl fmt::Display for HostVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({} {})", self.program, self.pid),
            None => write!(f, "{}:{} ({})", self.pid, self.descriptor, self.program),
        }
    }
}

impl Session {
    /// A session on the VM that is meant: by the VMM's process id, the VM's name or its UUID ([`find`]). Every command and
    /// event is allowed. When the last handle is gone, or this process, the VM is as it was.
    ///
    /// # Errors
    /// Those of [`AttachError`].
    pub fn attach(wanted: &str) -> Result<Self, AttachError> {
        find(wanted)?.open(SessionOptions::new(), 0)
    }
}

/// Why OPEN has failed.
fn why_not(vm: impl AsFd, error: io::Error) -> AttachError {
    let errno = Errno::from_io_error(&error);
    if errno == Some(Errno::EXIST) {
        return match ioctls::status(vm) {
            Ok(status) => AttachError::Hooked {
                pid: (status.pid != 0).then_some(status.pid),
                is_lost: status.state & kvmi_uapi::ioctl::STATUS_LOST != 0,
            },
            Err(error) => explain(error),
        };
    }
    match errno.map(explain) {
        Some(AttachError::Open(_)) | None => AttachError::Open(error),
        Some(known) => known,
    }
}

/// What an ioctl's error means on this host.
fn explain(error: Errno) -> AttachError {
    let switch = fs::read_to_string(SWITCH).ok();
    match (error, switch.as_deref().map(str::trim)) {
        // KVM of the distribution's knows nothing of other processes' VMs.
        (Errno::IO | Errno::NOTTY, None) => AttachError::NoModules,
        (Errno::PERM, Some("N" | "0")) => AttachError::SwitchedOff,
        (Errno::PERM, _) => AttachError::NotPermitted,
        (other, _) => AttachError::Open(other.into()),
    }
}

/// The argument behind one of these options.
fn value_of<'a>(arguments: &[&'a str], options: &[&str]) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| options.contains(argument))?;
    arguments.get(at + 1).copied()
}

/// QEMU's `-name NAME,…` and `-name guest=NAME,…`, with commas doubled; other VMMs have `--name NAME` or `--id NAME`.
fn name_of(arguments: &[&str]) -> Option<String> {
    let value = value_of(arguments, &["-name", "--name", "--id"])?;
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        if character != ',' {
            part.push(character);
        } else if characters.next_if_eq(&',').is_some() {
            part.push(',');
        } else {
            parts.push(std::mem::take(&mut part));
        }
    }
    parts.push(part);
    let named = parts.iter().find_map(|part| part.strip_prefix("guest="));
    let first = parts.first().filter(|first| !first.contains('='));
    named
        .or(first.map(String::as_str))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(pid: i32, descriptor: i32, name: Option<&str>) -> HostVm {
        HostVm {
            pid,
            descriptor,
            program: "qemu-system-x86".to_owned(),
            name: name.map(str::to_owned),
            uuid: name.map(|_| "6F1D9E6A-0000-4000-8000-000000000001".to_owned()),
        }
    }

    #[test]
    fn names_are_read_as_qemu_writes_them() {
        for (arguments, name) in [
            (&["qemu", "-name", "web"][..], Some("web")),
            (&["qemu", "-name", "guest=web,debug-threads=on"], Some("web")),
            (&["qemu", "-name", "debug-threads=on,guest=a,,b"], Some("a,b")),
            (&["qemu", "-name", "web,process=x"], Some("web")),
            (&["qemu", "-name", "debug-threads=on"], None),
            (&["qemu", "-name", "guest="], None),
            (&["qemu", "-name"], None),
            (&["qemu", "-m", "512"], None),
            (&["lkvm", "run", "--name", "box"], Some("box")),
        ] {
            assert_eq!(name_of(arguments).as_deref(), name, "{arguments:?}");
        }
    }

    #[test]
    fn a_vm_is_found_by_each_of_its_names() {
        let all = vec![
            vm(7, 11, Some("web")),
            vm(8, 11, None),
            vm(8, 12, None),
            vm(9, 3, Some("db")),
        ];
        let chosen = |wanted: &str| choose(all.clone(), 0, wanted).map(|vm| (vm.pid, vm.descriptor));
        assert_eq!(chosen("7").unwrap(), (7, 11));
        assert_eq!(chosen("8:12").unwrap(), (8, 12));
        assert_eq!(chosen("db").unwrap(), (9, 3));
        assert!(matches!(chosen("8"), Err(AttachError::Several { found, .. }) if found.len() == 2));
        let uuid = chosen("6f1d9e6a-0000-4000-8000-000000000001");
        assert!(matches!(uuid, Err(AttachError::Several { .. })));
        for nothing in ["", "we", "10", "8:", "8:13", "-1"] {
            let error = chosen(nothing).unwrap_err();
            assert!(matches!(error, AttachError::NotFound { .. }), "{nothing}: {error}");
            assert!(error.to_string().contains("web (qemu-system-x86 7), 8:11"), "{error}");
        }
    }

    #[test]
    fn this_process_has_no_vm() {
        let here = std::process::id() as i32;
        assert!(list().unwrap().vms.iter().all(|vm| vm.pid != here));
        assert_eq!(descriptors(here).unwrap(), Vec::<i32>::new());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A probe guest: whether a stock kernel runs under this machine's KVM. That KVM makes VMs proves nothing: there are machines on which it
//! does, and every guest dies with an internal error after a few thousand instructions.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::boot::{BootError, io_error, read_lossy};
use crate::emulator::Emulators;
use crate::process::Owned;
use crate::qmp::{Qmp, QmpError};

/// How long the kernel may take to look for a root file system. It takes about 2 s where KVM works.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a kernel without a root file system says last.
const END: &str = "VFS: Unable to mount root fs";

/// Boots a kernel with nothing else, under QEMU's accelerator of this name (`kvm`), until it has looked for a root file system in vain.
///
/// # Errors
///
/// How it ended instead, in a sentence; [`BootError`] where it could not be tried.
pub fn run(
    emulators: &Emulators,
    kernel: &Path,
    accelerator: &str,
    folder: &Path,
) -> Result<Result<(), String>, BootError> {
    let console = folder.join("console.log");
    let log = folder.join("emulator.log");
    let (qmp, qemu_qmp) = UnixStream::pair().map_err(io_error("make a socket pair"))?;
    let processor = if accelerator == "kvm" { "host" } else { "max" };
    let mut command = emulators.qemu();
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", &format!("pc-i440fx-10.0,accel={accelerator}")])
        .args(["-cpu", processor, "-m", "256", "-smp", "1"])
        .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", console.display()))
        .args([
            "-serial",
            "chardev:console",
            "-append",
            "console=ttyS0 panic=-1",
            "-kernel",
        ])
        .arg(kernel)
        .stdin(OwnedFd::from(qemu_qmp))
        .stdout(Stdio::null())
        .stderr(File::create(&log).map_err(io_error(format!("write {}", log.display())))?);
    let qemu = Owned::start(&mut command).map_err(io_error("run qemu"))?;
    drop(command);
    let stopped = Qmp::start(qmp).and_then(|mut qmp| qmp.wait_for(DEADLINE, |name, _| name == "STOP"));
    drop(qemu);
    let said = read_lossy(&console);
    if said.contains(END) {
        return Ok(Ok(()));
    }
    let last = said.lines().rfind(|l| !l.trim().is_empty()).map(str::trim_end);
    let last = last.map_or_else(
        || "it said nothing".to_owned(),
        |l| format!("the last that it said is `{l}`"),
    );
    let of_qemu = read_lossy(&log);
    let of_qemu = of_qemu
        .lines()
        .find(|l| !l.trim().is_empty())
        .unwrap_or("qemu gives no reason");
    Ok(Err(match stopped {
        Ok(()) => format!("KVM stopped it ({of_qemu}); {last}"),
        Err(QmpError::Ended(_) | QmpError::Send { .. }) => format!("qemu ended early ({of_qemu}); {last}"),
        Err(QmpError::Read(_)) => format!("not through after {} s; {last}", DEADLINE.as_secs()),
        Err(e) => format!("{e}; {last}"),
    }))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The L2 VMM: a process that makes one VM and does with it what the scenario asks.

mod boot;
mod hypercalls;
mod machine;
mod rseq;
mod signals;
mod slice;
mod slots;
mod state;
mod statistics;
mod vcpu;

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, anyhow, bail};
use kvm_ioctls::Kvm;
use kvmi_lab_scenarios::vmm::{Answer, Refusal, Reply, Request, receive, send};

use machine::Machine;

/// Says that it is there, and serves requests from standard input until [`Request::Exit`] or until the scenario is gone.
pub(crate) fn main() -> anyhow::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let here: Reply = Ok(Answer::Done);
    send(socket.as_fd(), &here, &[])?;
    let (first, fds) = receive::<Request>(socket.as_fd())?.context("the scenario ended before its first request")?;
    let Request::Create(config) = first else {
        bail!("the first request is {first:?}, not Create");
    };
    let mut machine = match Machine::new(&config, one(fds)?) {
        Ok(machine) => {
            let vm_fd = machine.vm_fd_number();
            send(socket.as_fd(), &Reply::Ok(Answer::Created { vm_fd }), &[])?;
            machine
        }
        Err(refusal) => {
            send(socket.as_fd(), &Reply::Err(refusal), &[])?;
            return Ok(());
        }
    };
    while let Some((request, fds)) = receive::<Request>(socket.as_fd())? {
        if let Request::Exit = request {
            let reply: Reply = Ok(Answer::Done);
            drop(machine);
            send(socket.as_fd(), &reply, &[])?;
            return Ok(());
        }
        let reply = machine.serve(request, fds);
        send(socket.as_fd(), &reply, &[])?;
    }
    // The scenario is gone. vCPU threads may be in the kernel; the end of the process ends them.
    std::process::exit(0)
}

/// Hooks a VM that has nothing, and unhooks it.
pub(crate) fn hook_and_unhook() -> anyhow::Result<()> {
    let vm = Kvm::new()
        .context("open /dev/kvm")?
        .create_vm()
        .context("KVM_CREATE_VM")?;
    machine::hook_cycles(slots::borrow(&vm), 1).map_err(|refusal| anyhow!("{refusal:?}"))
}

fn one(fds: Vec<OwnedFd>) -> anyhow::Result<OwnedFd> {
    fds.into_iter()
        .next()
        .context("the request needs a descriptor and none came")
}

/// A refusal that no system call made.
fn refuse(what: impl Into<String>) -> Refusal {
    Refusal {
        errno: 0,
        what: what.into(),
    }
}

/// Turns an error of a system call into a refusal.
trait Refused<T> {
    /// Names what was tried.
    fn refused(self, what: &str) -> Result<T, Refusal>;
}

impl<T> Refused<T> for Result<T, kvm_ioctls::Error> {
    fn refused(self, what: &str) -> Result<T, Refusal> {
        self.map_err(|e| Refusal {
            errno: e.errno(),
            what: what.to_owned(),
        })
    }
}

impl<T> Refused<T> for Result<T, rustix::io::Errno> {
    fn refused(self, what: &str) -> Result<T, Refusal> {
        self.map_err(|e| Refusal {
            errno: e.raw_os_error(),
            what: what.to_owned(),
        })
    }
}

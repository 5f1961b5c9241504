// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process that shares the VMM's end of the socket and keeps the socket's own lock: no end of a session waits for it.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;

use super::check_version;
use crate::modules::Origin;
use crate::unserved_memory::LockHolder;
use crate::vmm::Vm;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "unhook::with_socket_lock_held",
        "UNHOOK while another process holds the socket's lock: it returns, and the thread left behind keeps nothing but the module",
        unhook,
    ),
    scenario(
        "destroy::vmm_killed_while_socket_lock_held",
        "the VMM is killed while another process holds the socket's lock: its VM ends",
        vmm_killed,
    ),
    scenario(
        "lifecycle::hook_refused_socket_in_use",
        "HOOK of a second VM on the socket of a session answers EBUSY",
        socket_in_use,
    ),
];

/// Receiving threads of sessions, alive or left behind, whose `/proc/PID/stat` has this text.
pub(crate) fn readers_with(text: &str) -> Result<usize, Failure> {
    let mut found = 0;
    for process in fs::read_dir("/proc")? {
        // One that is gone by now is none.
        let stat = fs::read_to_string(process?.path().join("stat")).unwrap_or_default();
        found += usize::from(stat.contains(text));
    }
    Ok(found)
}

/// All of them.
fn readers() -> Result<usize, Failure> {
    readers_with("(kvmi-recv)")
}

/// Hooks on a socket whose lock is held already, and waits until so many receiving threads wait for such a lock; the tool's end, the
/// VMM's end, and who holds the lock.
fn hook_on_held(context: &Context, vm: &Vm, waiting: usize) -> Result<(UnixStream, UnixStream, LockHolder), Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    let holder = LockHolder::start(theirs.try_clone()?, &ours)?;
    check_eq!(vm.hook(theirs.as_fd(), 0)?, 0, "errno of HOOK");
    // Nothing but that lock has it wait uninterruptibly once it receives.
    context.wait_for("the receiving thread to want the lock", || {
        Ok(readers_with("(kvmi-recv) D")? == waiting)
    })?;
    Ok((ours, theirs, holder))
}

fn unhook(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: usize = 3;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let mut held = Vec::new();
    for round in 0..ROUNDS {
        context.stage(&format!("UNHOOK {round}"), Duration::from_secs(10));
        let (ours, theirs, holder) = hook_on_held(context, &vm, round + 1)?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        Wire::new(ours)?.expect_closed()?;
        check_eq!(readers()?, round + 1, "threads left behind");
        check_eq!(
            vm.hook(theirs.as_fd(), 0)?,
            Errno::BUSY.raw_os_error(),
            "errno of HOOK on the socket of a thread that was left behind"
        );
        check_eq!(readers()?, round + 1, "threads after a HOOK that was refused");
        held.push(holder);
    }
    context.stage("a new session", Duration::from_secs(10));
    check_version(&mut context.bare_hook(&vm, 0)?)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()?;

    context.stage("the module stays", Duration::from_secs(20));
    check_eq!(readers()?, ROUNDS, "threads after the end of the VM");
    context.wait_for("the VM to go", || Ok(modules::vendor_references(context.backend)? == 0))?;
    let Err(refusal) = modules::unload_kvm(context.backend) else {
        return Err(Failure::new("kvm.ko was unloaded under the threads that run in it"));
    };
    check!(
        refusal.to_string().contains("unload kvm:"),
        "another module than kvm stayed: {refusal}"
    );

    context.stage("the lock is let go", Duration::from_secs(20));
    for holder in held {
        holder.release()?;
    }
    context.wait_for("the threads to end", || Ok(readers()? == 0))?;
    modules::unload("kvm")?;
    modules::load_kvm(Origin::Kvmi, context.backend, true)?;
    check_version(&mut context.bare_hook(&context.running_vm("counter", 1)?, 0)?)
}

fn vmm_killed(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.running_vm("counter", 1)?;
    let (ours, _theirs, holder) = hook_on_held(context, &vm, 1)?;
    context.stage("kill", Duration::from_secs(10));
    vm.kill()?;
    Wire::new(ours)?.expect_closed()?;
    context.wait_for("the VM to go", || Ok(modules::vendor_references(context.backend)? == 0))?;
    context.stage("the lock is let go", Duration::from_secs(10));
    holder.release()?;
    context.wait_for("the thread to end", || Ok(readers()? == 0))
}

fn socket_in_use(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let other = context.running_vm("counter", 1)?;
    let (ours, theirs) = UnixStream::pair()?;
    context.stage("refuse", Duration::from_secs(10));
    check_eq!(vm.hook(theirs.as_fd(), 0)?, 0, "errno of HOOK");
    check_eq!(
        other.hook(theirs.as_fd(), 0)?,
        Errno::BUSY.raw_os_error(),
        "errno of HOOK on another VM's socket"
    );
    let mut wire = Wire::new(ours)?;
    check_version(&mut wire)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    wire.expect_closed()?;
    check_version(&mut context.bare_hook(&other, 0)?)?;
    other.exit()?;
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process that shares the VMM's end of the socket and keeps the socket's own lock: no end of a session waits for it.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::check_version;
use crate::modules::Origin;
use crate::unserved_memory::LockHolder;
use crate::vmm::Vm;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, Transport, check, check_eq, modules, scenario};

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
        "destroy::eight_vms_killed_while_socket_locks_held",
        "a VMM with eight VMs is killed while another process holds their sockets' locks: nobody else's VM waits for them",
        eight_vms_killed,
    ),
    scenario(
        "lifecycle::reader_ignores_signals",
        "SIGKILL and SIGTERM for the receiving thread: it goes on, and is no lost tool",
        reader_ignores_signals,
    )
    .over(Transport::Socket),
    scenario(
        "lifecycle::hook_refused_socket_in_use",
        "HOOK of a second VM on the socket of a session answers EBUSY",
        socket_in_use,
    ),
];

/// Receiving threads of sessions, alive or left behind, whose `/proc/PID/stat` has this text.
fn readers_with(text: &str) -> Result<usize, Failure> {
    let mut found = 0;
    for process in fs::read_dir("/proc")? {
        // One that is gone by now is none.
        let stat = fs::read_to_string(process?.path().join("stat")).unwrap_or_default();
        found += usize::from(stat.contains(text));
    }
    Ok(found)
}

/// Those of them that carry out a command which waits: they sleep, and not for a message.
pub(crate) fn readers_in_a_command() -> Result<usize, Failure> {
    let mut found = 0;
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        // One that is gone by now, or runs, is none.
        let read = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        let place = read("wchan");
        let sleeps = read("stat").contains("(kvmi-recv) S") && !["", "0"].contains(&place.trim());
        found += usize::from(sleeps && !place.starts_with("unix_"));
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

fn eight_vms_killed(context: &mut Context) -> Result<(), Failure> {
    const VMS: usize = 8;
    /// What an end of a session that waits for its thread would take.
    const PATIENCE: Duration = Duration::from_secs(1);
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.running_vm("counter", 1)?;
    let other = context.running_vm("counter", 1)?;
    let mut sockets = Vec::new();
    let mut holders = Vec::new();
    for _ in 0..VMS {
        let (ours, theirs) = UnixStream::pair()?;
        holders.push(LockHolder::start(theirs.try_clone()?, &ours)?);
        sockets.push((ours, theirs));
    }
    let theirs: Vec<_> = sockets.iter().map(|(_, theirs)| theirs.as_fd()).collect();
    vm.hook_more(&theirs)?;
    context.wait_for("the receiving threads to want the locks", || {
        Ok(readers_with("(kvmi-recv) D")? == VMS)
    })?;
    context.stage("kill", Duration::from_secs(30));
    let before = Instant::now();
    vm.begin_kill()?;
    other.exit()?;
    let others = before.elapsed();
    vm.kill()?;
    let all = before.elapsed();
    // One after the other they would take VMS times that, at either end of what both ends share.
    check!(
        others < PATIENCE * VMS as u32 / 2,
        "another VM's end took {others:?} while eight VMs ended"
    );
    check!(all < PATIENCE * VMS as u32 / 2, "the end of eight VMs took {all:?}");
    context.stage("the locks are let go", Duration::from_secs(20));
    for (ours, _) in &sockets {
        Wire::new(ours.try_clone()?)?.expect_closed()?;
    }
    context.wait_for(
        "the VMs to go",
        || Ok(modules::vendor_references(context.backend)? == 0),
    )?;
    check_eq!(readers()?, VMS, "threads left behind");
    for holder in holders {
        holder.release()?;
    }
    context.wait_for("the threads to end", || Ok(readers()? == 0))
}

/// Process ids of all receiving threads.
fn reader_ids() -> Result<Vec<i32>, Failure> {
    let mut ids = Vec::new();
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        if stat.contains("(kvmi-recv)")
            && let Some((id, _)) = stat.split_once(' ')
        {
            ids.push(id.parse()?);
        }
    }
    Ok(ids)
}

fn reader_ignores_signals(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    let ids = reader_ids()?;
    check_eq!(ids.len(), 1, "receiving threads");
    for signal in [Signal::KILL, Signal::TERM] {
        context.stage(&format!("{signal:?}"), Duration::from_secs(10));
        let id = Pid::from_raw(ids[0]).ok_or_else(|| Failure::new("a thread without a number"))?;
        kill_process(id, signal)?;
        check_eq!(wire.vcpu_count()?, 1, "vCPUs");
        check_version(&mut wire)?;
        check_eq!(reader_ids()?, ids, "receiving threads");
    }
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    wire.expect_closed()?;
    check_eq!(reader_ids()?.len(), 0, "receiving threads after UNHOOK");
    vm.exit()
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

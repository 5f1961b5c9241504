// SPDX-License-Identifier: MIT OR Apache-2.0
//! PREUNHOOK that waits for room in a socket whose tool does not read: whatever ends the session ends the wait.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvmi::ioctls;
use kvmi_guests::Op;
use kvmi_uapi::event::HYPERCALL;
use kvmi_uapi::ioctl::{HOOK_FAIL_CLOSED, KVM_INTROSPECTION_PREUNHOOK};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::GUEST_REQUEST;
use crate::vmm::{Request, Until, Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

const ENOENT: i32 = Errno::NOENT.raw_os_error();

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "unhook::preunhook_full_vmm_killed",
        "the VMM is killed in a PREUNHOOK that waits for room in the socket: nothing hangs, nothing is left",
        vmm_killed,
    ),
    scenario(
        "unhook::preunhook_full_vmm_exits",
        "the VMM exits while another process's PREUNHOOK waits for room: that answers ENOENT, nothing is left",
        vmm_exits,
    ),
    scenario(
        "unhook::preunhook_full_then_unhook",
        "UNHOOK while another process's PREUNHOOK waits for room: both return, the guest goes on",
        unhook,
    ),
    scenario(
        "unhook::preunhook_full_tool_lost",
        "the tool vanishes while PREUNHOOK waits for room: ENOENT, and the loss is one, as the flags of HOOK say",
        tool_lost,
    ),
];

/// A hooked guest whose tool has UNHOOK on and reads nothing; the socket has no room left. The VMM's end is kept.
fn full(context: &mut Context, flags: u32) -> Result<(Vm, Wire, UnixStream), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 1)?;
    let (ours, theirs) = UnixStream::pair()?;
    vm.hook_and_allow(theirs.as_fd(), flags)?;
    let mut wire = Wire::new(ours)?;
    wire.control_event(0, HYPERCALL, true)?;
    wire.control_unhook_event(true)?;
    Ok((vm, wire, theirs))
}

/// Takes all room in the direction to the tool.
fn fill(vmm_end: &UnixStream) -> Result<(), Failure> {
    loop {
        match rustix::net::send(vmm_end, &[0; 4096], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => {}
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Waits until a thread sleeps in ioctl(2), in PREUNHOOK.
fn wait_in_preunhook(context: &Context, process: u32, thread: u32) -> Result<(), Failure> {
    /// ioctl(2)
    const IOCTL: &str = "16";
    let request = format!("{KVM_INTROSPECTION_PREUNHOOK:#x}");
    context.wait_for("PREUNHOOK to wait for room", || {
        let call = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall"))?;
        let words: Vec<&str> = call.split_whitespace().collect();
        // Without a number while the thread runs.
        Ok(words.first() == Some(&IOCTL) && words.get(2) == Some(&request.as_str()))
    })
}

/// A thread of this process that calls PREUNHOOK on the VMM's VM.
struct Caller {
    thread: JoinHandle<Result<(), Errno>>,
}

impl Caller {
    /// Returns when the thread waits for room.
    fn start(context: &Context, vm: OwnedFd) -> Result<Self, Failure> {
        let (send, receive) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            // The receiver waits below.
            let _ = send.send(rustix::thread::gettid());
            ioctls::preunhook(vm.as_fd())
        });
        let id = receive.recv()?.as_raw_pid().unsigned_abs();
        wait_in_preunhook(context, std::process::id(), id)?;
        Ok(Self { thread })
    }

    /// Its errno, 0 for success.
    fn errno(self) -> Result<i32, Failure> {
        match self.thread.join() {
            Ok(outcome) => Ok(outcome.map_or_else(Errno::raw_os_error, |()| 0)),
            Err(_) => Err(Failure::new("the thread that calls PREUNHOOK panicked")),
        }
    }
}

fn vmm_killed(context: &mut Context) -> Result<(), Failure> {
    let (mut vm, _wire, theirs) = full(context, 0)?;
    fill(&theirs)?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    vm.begin(&Request::PreUnhook, &[])?;
    wait_in_preunhook(context, vm.process_id(), vm.process_id())?;
    context.stage("kill", Duration::from_secs(10));
    vm.kill()
}

fn vmm_exits(context: &mut Context) -> Result<(), Failure> {
    let (vm, _wire, theirs) = full(context, 0)?;
    fill(&theirs)?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    let caller = Caller::start(context, vm.steal_vm_fd()?)?;
    context.stage("exit", Duration::from_secs(10));
    vm.exit()?;
    check_eq!(caller.errno()?, ENOENT, "errno of PREUNHOOK");
    Ok(())
}

fn unhook(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, theirs) = full(context, 0)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wire.expect_event(HYPERCALL, 0)?;
    fill(&theirs)?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    let caller = Caller::start(context, vm.steal_vm_fd()?)?;
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(caller.errno()?, ENOENT, "errno of PREUNHOOK");
    check_eq!(vm.finished(context, 0, number)? as i64, -1000, "RAX");
    context.stage("a new session", Duration::from_secs(10));
    check_eq!(context.hook(&vm)?.vcpu_count()?, 1, "vCPUs in a new session");
    vm.exit()
}

fn tool_lost(context: &mut Context) -> Result<(), Failure> {
    let (vm, mut wire, theirs) = full(context, HOOK_FAIL_CLOSED)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wire.expect_event(HYPERCALL, 0)?;
    fill(&theirs)?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    let caller = Caller::start(context, vm.steal_vm_fd()?)?;
    context.stage("the tool vanishes", Duration::from_secs(10));
    drop(wire);
    check_eq!(caller.errno()?, ENOENT, "errno of PREUNHOOK");
    for times in 1..=10 {
        vm.signal(0)?;
        vm.wait(0, Until::Interrupted(times))?;
    }
    check_eq!(
        vm.guest.field(0, field!(hypercalls))?,
        0,
        "hypercalls that returned though the session fails closed"
    );
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(vm.finished(context, 0, number)? as i64, -1000, "RAX");
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! HOOK that must not succeed, and who may call it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use kvmi::ioctls;
use kvmi_uapi::ioctl::{self, HOOK_CRASH_ON_LOSS, HOOK_FAIL_CLOSED, KVM_CAP_INTROSPECTION};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, socketpair};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{check_version, counts_on};
use crate::modules::{self, Origin};
use crate::vmm::Permission;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

const EINVAL: i32 = Errno::INVAL.raw_os_error();
const EEXIST: i32 = Errno::EXIST.raw_os_error();
const EPERM: i32 = Errno::PERM.raw_os_error();

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "lifecycle::hook_refused_parameter_off",
        "without the module parameter there is no capability and every ioctl answers EPERM",
        parameter_off,
    ),
    scenario(
        "lifecycle::hook_refused_not_a_socket",
        "HOOK refuses what is no socket",
        not_a_socket,
    ),
    scenario(
        "lifecycle::hook_refused_unconnected",
        "HOOK refuses sockets that are not connected streams",
        unconnected,
    ),
    scenario(
        "lifecycle::hook_refused_hooked_already",
        "a second HOOK is refused and harms nothing",
        hooked_already,
    ),
    scenario(
        "lifecycle::hook_refused_unknown_flags",
        "HOOK knows two flags and refuses the others",
        unknown_flags,
    ),
    scenario(
        "lifecycle::hook_by_another_process",
        "a process with CAP_SYS_PTRACE may hook through pidfd_getfd, one without may not",
        another_process,
    ),
];

fn parameter_off(context: &mut Context) -> Result<(), Failure> {
    context.stage("load with introspection=0", Duration::from_secs(30));
    modules::unload_kvm(context.backend)?;
    modules::load_kvm(Origin::Kvmi, context.backend, false)?;
    let vm = context.running_vm("counter", 1)?;
    context.stage("off", Duration::from_secs(10));
    check_eq!(vm.check_extension(KVM_CAP_INTROSPECTION)?, 0, "KVM_CHECK_EXTENSION");
    let (_ours, theirs) = UnixStream::pair()?;
    check_eq!(vm.hook(theirs.as_fd(), 0)?, EPERM, "errno of HOOK");
    check_eq!(vm.hook_number(-1, u32::MAX)?, EPERM, "errno of HOOK with nonsense");
    check_eq!(
        vm.permit(Permission::Command, 1, ioctl::ALL)?,
        EPERM,
        "errno of COMMAND"
    );
    check_eq!(vm.permit(Permission::Event, 1, ioctl::ALL)?, EPERM, "errno of EVENT");
    check_eq!(vm.preunhook()?, EPERM, "errno of PREUNHOOK");
    check_eq!(vm.unhook()?, EPERM, "errno of UNHOOK");
    counts_on(context, &vm)?;
    vm.exit()?;
    context.stage("load with introspection=1", Duration::from_secs(30));
    modules::unload_kvm(context.backend)?;
    modules::load_kvm(Origin::Kvmi, context.backend, true)?;
    let vm = context.running_vm("counter", 1)?;
    check_version(&mut context.bare_hook(&vm, 0)?)?;
    vm.exit()
}

fn not_a_socket(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    context.stage("refuse", Duration::from_secs(10));
    let file = std::fs::File::open("/proc/self/exe")?;
    check_eq!(vm.hook(file.as_fd(), 0)?, EINVAL, "errno of HOOK with a regular file");
    let (pipe, _writer) = std::io::pipe()?;
    check_eq!(vm.hook(pipe.as_fd(), 0)?, EINVAL, "errno of HOOK with a pipe");
    for number in [-1, i32::MIN, 1_000_000] {
        check_eq!(
            vm.hook_number(number, 0)?,
            EINVAL,
            "errno of HOOK with descriptor {number}, which is not open"
        );
    }
    check_version(&mut context.bare_hook(&vm, 0)?)?;
    vm.exit()
}

fn unconnected(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    context.stage("refuse", Duration::from_secs(10));
    let unix = |kind| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    check_eq!(
        vm.hook(unix(SocketType::STREAM)?.as_fd(), 0)?,
        EINVAL,
        "errno of HOOK with an unconnected socket"
    );
    let listener = UnixListener::bind("/tmp/listener")?;
    check_eq!(
        vm.hook(listener.as_fd(), 0)?,
        EINVAL,
        "errno of HOOK with a listening socket"
    );
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let (_ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        check_eq!(
            vm.hook(theirs.as_fd(), 0)?,
            EINVAL,
            "errno of HOOK with a connected {kind:?} socket"
        );
    }
    let internet = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    check_eq!(vm.hook(internet.as_fd(), 0)?, EINVAL, "errno of HOOK with a TCP socket");
    check_version(&mut context.bare_hook(&vm, 0)?)?;
    vm.exit()
}

fn hooked_already(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    context.stage("refuse", Duration::from_secs(10));
    let (ours, theirs) = UnixStream::pair()?;
    check_eq!(vm.hook(theirs.as_fd(), 0)?, EEXIST, "errno of a second HOOK");
    check_eq!(vm.hook_number(-1, 0)?, EEXIST, "errno of a second HOOK with no socket");
    check_eq!(
        vm.hook(theirs.as_fd(), 1 << 31)?,
        EINVAL,
        "errno of a second HOOK with unknown flags"
    );
    check_version(&mut wire)?;
    check_eq!(wire.vcpu_count()?, 1, "vCPUs, over the first socket");
    drop(theirs);
    Wire::new(ours)?.expect_closed()?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_version(&mut context.bare_hook(&vm, 0)?)?;
    vm.exit()
}

fn unknown_flags(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    context.stage("refuse", Duration::from_secs(10));
    let (_ours, theirs) = UnixStream::pair()?;
    for bit in 3..32 {
        check_eq!(
            vm.hook(theirs.as_fd(), 1 << bit)?,
            EINVAL,
            "errno of HOOK with flag bit {bit}"
        );
    }
    check_eq!(
        vm.hook(theirs.as_fd(), u32::MAX)?,
        EINVAL,
        "errno of HOOK with all bits"
    );
    for flags in [HOOK_FAIL_CLOSED, HOOK_CRASH_ON_LOSS] {
        let mut wire = context.bare_hook(&vm, flags)?;
        check_version(&mut wire)?;
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
        counts_on(context, &vm)?;
    }
    vm.exit()
}

/// HOOK from this process on a descriptor that is another's, by a thread that may have lost CAP_SYS_PTRACE.
fn hook_from_here(vm: OwnedFd, socket: &UnixStream, may_trace: bool) -> Result<i32, Failure> {
    let number = socket.as_raw_fd();
    let thread = std::thread::spawn(move || -> Result<i32, Failure> {
        if !may_trace {
            let mut sets = capabilities(None)?;
            sets.effective.remove(CapabilitySet::SYS_PTRACE);
            set_capabilities(None, sets)?;
        }
        let outcome = ioctls::hook(vm.as_fd(), number, 0, [0; 16]);
        Ok(outcome.map_or_else(Errno::raw_os_error, |()| 0))
    });
    thread.join().map_err(|_| Failure::new("the hooking thread panicked"))?
}

fn another_process(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.running_vm("counter", 1)?;
    let (ours, theirs) = UnixStream::pair()?;
    context.stage("without the capability", Duration::from_secs(10));
    let errno = hook_from_here(vm.steal_vm_fd()?, &theirs, false)?;
    check_eq!(errno, EPERM, "errno of HOOK by another process without CAP_SYS_PTRACE");
    context.stage("with it", Duration::from_secs(10));
    check_eq!(
        hook_from_here(vm.steal_vm_fd()?, &theirs, true)?,
        0,
        "errno of HOOK by another process"
    );
    drop(theirs);
    let mut wire = Wire::new(ours)?;
    check_version(&mut wire)?;
    let kept = vm.steal_vm_fd()?;
    ioctls::permit_command(kept.as_fd(), 1, ioctl::ALL)?;
    // The guest's memory is the VMM's, not this process's.
    let mut wanted = [0; 16];
    vm.guest.read(kvmi_guests::layout::PROGRAM, &mut wanted)?;
    let got = wire.read_physical(kvmi_guests::layout::PROGRAM, 16)?;
    check_eq!(got, Ok(wanted.to_vec()), "the program's first bytes");
    context.stage("the VMM dies while the descriptor is kept", Duration::from_secs(10));
    vm.kill()?;
    wire.expect_closed()?;
    drop(kept);
    Ok(())
}

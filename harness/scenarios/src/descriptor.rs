// SPDX-License-Identifier: MIT OR Apache-2.0
//! The session's own descriptor: it is the session, whoever holds it. What it says is in all other scenarios.

mod traffic;

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use kvmi::command::{CheckCommand, ControlEvents, GetInfo, ReadPhysical, SetPageAccess};
use kvmi::ioctls::{self, Open};
use kvmi::{Descriptor, message};
use kvmi_guests::{Access, Op, layout};
use kvmi_uapi::error::EPERM;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, PF};
use kvmi_uapi::ioctl::{
    HOOK_FAIL_CLOSED, HOOK_STOPPED, KVM_INTROSPECTION_OPEN, OPEN_MASKED, OPEN_TAKE_OVER, STATUS_DESCRIPTOR,
    STATUS_HOOKED, STATUS_LOST, STATUS_STOPPED, Status,
};
use kvmi_uapi::{MAX_MESSAGE, PageAccessEntry, msg};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, dup, read, write};
use zerocopy::FromZeros;

use crate::lifecycle::{GUEST_REQUEST, counts_on, wait_for_loss};
use crate::vmm::Vm;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, Transport, check, check_eq, scenario};

const READ_EXEC: u8 = PageAccessEntry::READ | PageAccessEntry::EXEC;
const PLACE: u64 = layout::SCRATCH;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let own = [
        scenario(
            "descriptor::ends_the_session",
            "the last close, of two that share it, ends the session: nothing is watched, nothing is denied, OPEN follows at once",
            ends_the_session,
        ),
        scenario(
            "descriptor::fails_closed",
            "with FAIL_CLOSED the last close is a loss; TAKE_OVER with STOPPED goes on from there, restrictions intact",
            fails_closed,
        ),
        scenario(
            "descriptor::hang_up",
            "HANG_UP ends the session though others hold the descriptor: a read that waits ends, a write is EPIPE",
            hang_up,
        ),
        scenario(
            "descriptor::masked",
            "OPEN with a mask: what is not in it is EPERM, the three query commands always work",
            masked,
        ),
        scenario(
            "descriptor::open_refused",
            "OPEN with unknown flags, padding, a mask without its flag, of a VM that is hooked: EINVAL, EEXIST",
            open_refused,
        ),
        scenario(
            "descriptor::status",
            "STATUS names the process, since when, and the state; UNHOOK by a stranger is EPERM, FREE ends it",
            status,
        ),
        scenario(
            "descriptor::interrupted_by_the_end",
            "a read of guest memory that nobody serves: UNHOOK does not wait for it, the write is EPIPE",
            interrupted_by_the_end,
        ),
        scenario(
            "descriptor::vmm_killed",
            "the VMM is killed while a tool waits in read and a vCPU for the tool: the read ends, nothing is left",
            vmm_killed,
        ),
        scenario(
            "descriptor::endures_1000_times",
            "OPEN and close, 1,000 times in a running guest, which counts on",
            thousand_times,
        ),
    ];
    let all = own.iter().chain(traffic::SCENARIOS);
    all.map(|scenario| scenario.over(Transport::Descriptor)).collect()
}

fn open(vm: &OwnedFd, flags: u32) -> Result<OwnedFd, Errno> {
    ioctls::open(
        vm,
        &Open {
            flags,
            ..Open::new_zeroed()
        },
    )
}

fn state(vm: &OwnedFd) -> Result<u32, Failure> {
    Ok(ioctls::status(vm)?.state)
}

fn ends_the_session(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 2)?;
    let fd = vm.steal_vm_fd()?;
    for round in 1..=3 {
        context.stage(&format!("round {round}"), Duration::from_secs(10));
        let session = open(&fd, 0)?;
        let other = dup(&session)?;
        let mut wire = Wire::new(Descriptor::new(session)?)?;
        wire.control_event(0, PF, true)?;
        wire.restrict(&[(PLACE, READ_EXEC)])?;
        let number = vm.command(0, Op::Access, [Access::Write as u64, PLACE, round, 0])?;
        let event = wire.expect_event(PF, 0)?;
        drop(wire);
        check_eq!(
            state(&fd)?,
            STATUS_HOOKED | STATUS_DESCRIPTOR,
            "state with one of two closed"
        );
        check_eq!(open(&fd, 0).err(), Some(Errno::EXIST), "OPEN with one of two closed");
        let mut wire = Wire::new(Descriptor::new(other)?)?;
        if round == 1 {
            wire.reply(&event, CONTINUE)?;
            vm.finished(context, 0, number)?;
        }
        drop(wire);
        check_eq!(state(&fd)?, 0, "state with both closed");
        vm.finished(context, 0, number)?;
        let mut word = [0; 8];
        vm.guest.read(PLACE, &mut word)?;
        check_eq!(u64::from_ne_bytes(word), round, "what the guest wrote");
    }
    vm.exit()
}

fn fails_closed(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 1)?;
    let fd = vm.steal_vm_fd()?;
    let mut wire = Wire::new(Descriptor::new(open(&fd, HOOK_FAIL_CLOSED)?)?)?;
    wire.control_event(0, PF, true)?;
    wire.restrict(&[(PLACE, READ_EXEC)])?;
    let number = vm.command(0, Op::Access, [Access::Write as u64, PLACE, 77, 0])?;
    wire.expect_event(PF, 0)?;
    context.stage("lost", Duration::from_secs(10));
    drop(wire);
    check_eq!(
        state(&fd)?,
        STATUS_HOOKED | STATUS_DESCRIPTOR | STATUS_LOST,
        "state with its descriptor closed"
    );
    for flags in [0, HOOK_STOPPED, HOOK_FAIL_CLOSED] {
        check_eq!(open(&fd, flags).err(), Some(Errno::EXIST), "OPEN with flags {flags}");
    }
    context.stage("taken over", Duration::from_secs(10));
    let mut wire = Wire::new(Descriptor::new(open(&fd, OPEN_TAKE_OVER | HOOK_STOPPED)?)?)?;
    check_eq!(
        state(&fd)?,
        STATUS_HOOKED | STATUS_DESCRIPTOR | STATUS_STOPPED,
        "state when taken over"
    );
    check_eq!(wire.page_access(&[PLACE])?, [READ_EXEC], "access of the page");
    wire.control_event(0, PF, true)?;
    wire.release()?;
    let event = wire.expect_event(PF, 0)?;
    let mut word = [0; 8];
    vm.guest.read(PLACE, &mut word)?;
    check!(u64::from_ne_bytes(word) != 77, "the guest wrote meanwhile");
    wire.reply(&event, CONTINUE)?;
    vm.finished(context, 0, number)?;
    context.stage("over a session that lives", Duration::from_secs(10));
    check_eq!(
        open(&fd, OPEN_TAKE_OVER).err(),
        Some(Errno::EXIST),
        "OPEN with TAKE_OVER"
    );
    vm.exit()
}

fn hang_up(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    let fd = vm.steal_vm_fd()?;
    let session = open(&fd, 0)?;
    context.stage("hang up", Duration::from_secs(10));
    let reader = thread::spawn({
        let session = dup(&session)?;
        move || read(&session, &mut [0; MAX_MESSAGE])
    });
    let mut wire = Wire::new(Descriptor::new(dup(&session)?)?)?;
    // The thread has its own read; this one's answer goes to whichever comes first, so none is asked for.
    fcntl_setfl(&session, fcntl_getfl(&session)? - OFlags::NONBLOCK)?;
    wire.shutdown(std::net::Shutdown::Both)?;
    let ended = reader.join().map_err(|_| Failure::new("the reader panicked"))?;
    check!(
        matches!(ended, Ok(0) | Err(Errno::AGAIN)),
        "the read that waited ended with {ended:?}"
    );
    check_eq!(read(&session, &mut [0; MAX_MESSAGE]), Ok(0), "a read afterwards");
    let (_, bytes) = wire.encode(&GetInfo);
    check_eq!(write(&session, &bytes), Err(Errno::PIPE), "a write afterwards");
    check_eq!(state(&fd)?, 0, "state");
    check_eq!(ioctls::hang_up(&session), Ok(()), "HANG_UP again");
    check_eq!(ioctls::unhook(&session), Err(Errno::NOTTY), "UNHOOK of a session");
    let session = open(&fd, 0)?;
    drop(session);
    counts_on(context, &vm)?;
    vm.exit()
}

fn bit(of: &mut [u64; 4], id: u16) {
    of[usize::from(id / 64)] |= 1 << (id % 64);
}

fn masked(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 1)?;
    let fd = vm.steal_vm_fd()?;
    let mut how = Open {
        flags: OPEN_MASKED,
        ..Open::new_zeroed()
    };
    bit(&mut how.commands, msg::VM_GET_INFO);
    bit(&mut how.commands, msg::VCPU_CONTROL_EVENTS);
    bit(&mut how.events, HYPERCALL);
    // What this kernel does not have is of no matter.
    bit(&mut how.commands, 250);
    bit(&mut how.events, 251);
    let mut wire = Wire::new(Descriptor::new(ioctls::open(&fd, &how)?)?)?;
    context.stage("ask", Duration::from_secs(10));
    wire.expect_version()?;
    check!(wire.ask(&GetInfo)?.is_ok(), "VM_GET_INFO is in the mask");
    check_eq!(
        wire.ask(&CheckCommand {
            id: msg::VM_READ_PHYSICAL
        })?,
        Err(EPERM),
        "VM_CHECK_COMMAND of one that is not"
    );
    check_eq!(
        wire.ask(&ReadPhysical { gpa: PLACE, size: 8 })?,
        Err(EPERM),
        "VM_READ_PHYSICAL, which is not"
    );
    check_eq!(
        wire.ask(&ControlEvents {
            vcpu: 0,
            event: PF,
            enable: true
        })?,
        Err(EPERM),
        "PF, which is not"
    );
    wire.control_event(0, HYPERCALL, true)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    vm.exit()
}

fn open_refused(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let fd = vm.steal_vm_fd()?;
    context.stage("refused", Duration::from_secs(10));
    let plain = Open::new_zeroed();
    let wrong = [
        ("an unknown flag", Open { flags: 1 << 5, ..plain }),
        ("padding", Open { pad: 1, ..plain }),
        (
            "a mask of commands",
            Open {
                commands: [0, 0, 0, 1],
                ..plain
            },
        ),
        (
            "a mask of events",
            Open {
                events: [1, 0, 0, 0],
                ..plain
            },
        ),
    ];
    for (what, how) in &wrong {
        check_eq!(ioctls::open(&fd, how).err(), Some(Errno::INVAL), "OPEN with {what}");
        check_eq!(state(&fd)?, 0, "state after OPEN with {what}");
    }
    check_eq!(KVM_INTROSPECTION_OPEN, 0x4048_aecd, "the ioctl's number");
    let socket = context.hook_on_socket(&vm, 0)?;
    check_eq!(open(&fd, 0).err(), Some(Errno::EXIST), "OPEN of a VM that is hooked");
    check_eq!(
        open(&fd, OPEN_TAKE_OVER).err(),
        Some(Errno::EXIST),
        "the same with TAKE_OVER"
    );
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    drop(socket);
    let session = open(&fd, OPEN_TAKE_OVER)?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK by the VMM");
    check_eq!(read(&session, &mut [0; 8]), Ok(0), "a read after UNHOOK");
    counts_on(context, &vm)?;
    vm.exit()
}

fn status(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let fd = vm.steal_vm_fd()?;
    check_eq!(
        ioctls::status(&fd)?,
        Status::new_zeroed(),
        "STATUS of a VM that nobody hooks"
    );
    let before = boot_time();
    let session = open(&fd, HOOK_STOPPED)?;
    let said = ioctls::status(&fd)?;
    check_eq!(
        (said.state, said.flags),
        (STATUS_HOOKED | STATUS_DESCRIPTOR | STATUS_STOPPED, HOOK_STOPPED),
        "state and flags"
    );
    check_eq!(said.pid, std::process::id() as i32, "pid");
    check!(
        (before..=boot_time()).contains(&said.since_ns),
        "since {} ns, now it is {}",
        said.since_ns,
        boot_time()
    );
    drop(session);
    context.stage("of another", Duration::from_secs(10));
    let mut wire = context.hook_on_socket(&vm, 0)?;
    let said = ioctls::status(&fd)?;
    check_eq!((said.state, said.flags), (STATUS_HOOKED, 0), "state and flags of HOOK");
    check_eq!(said.pid, vm.process_id() as i32, "pid of HOOK");
    check_eq!(ioctls::unhook(&fd), Err(Errno::PERM), "UNHOOK by somebody else");
    wire.expect_version()?;
    check_eq!(ioctls::free(&fd), Ok(()), "FREE");
    wire.expect_closed()?;
    check_eq!(ioctls::free(&fd), Ok(()), "FREE of what is not hooked");
    context.stage("of one whose tool is lost", Duration::from_secs(10));
    drop(context.hook_on_socket(&vm, 0)?);
    wait_for_loss(context, &vm)?;
    check_eq!(ioctls::unhook(&fd), Ok(()), "UNHOOK by somebody else");
    counts_on(context, &vm)?;
    vm.exit()
}

/// Nanoseconds since boot.
fn boot_time() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A page of the guest's that the VMM withholds.
fn withhold(vm: &Vm) -> Result<u64, Failure> {
    vm.add_slot(layout::ANONYMOUS_SLOT, 4096)?;
    vm.withhold_slot()?;
    Ok(layout::ANONYMOUS_SLOT)
}

fn interrupted_by_the_end(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("accesses", 1)?;
    let page = withhold(&vm)?;
    let session = open(&vm.steal_vm_fd()?, 0)?;
    let bytes = message::encode(msg::VM_READ_PHYSICAL, 1, &read_request(page));
    context.stage("read what is withheld", Duration::from_secs(10));
    let writer = thread::spawn({
        let session = dup(&session)?;
        move || write(&session, &bytes)
    });
    vm.wait_for_fault()?;
    context.stage("UNHOOK", Duration::from_secs(10));
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    let ended = writer.join().map_err(|_| Failure::new("the writer panicked"))?;
    check_eq!(ended, Err(Errno::PIPE), "the write");
    check_eq!(read(&session, &mut [0; 8]), Ok(0), "a read");
    vm.exit()
}

fn read_request(gpa: u64) -> Vec<u8> {
    kvmi::command::Command::payload(&ReadPhysical { gpa, size: 8 })
}

fn vmm_killed(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let mut vm = context.running_vm("hypercall", 2)?;
    let fd = vm.steal_vm_fd()?;
    let session = open(&fd, HOOK_FAIL_CLOSED)?;
    let mut wire = Wire::new(Descriptor::new(session)?)?;
    wire.control_event(0, HYPERCALL, true)?;
    wire.ask(&SetPageAccess {
        entries: &[PageAccessEntry {
            gpa: PLACE,
            access: READ_EXEC,
            ..Default::default()
        }],
    })?
    .map_err(|errno| Failure::new(format!("VM_SET_PAGE_ACCESS: {errno}")))?;
    vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wire.expect_event(HYPERCALL, 0)?;
    context.stage("kill", Duration::from_secs(10));
    vm.kill()?;
    wire.expect_closed()?;
    check_eq!(
        wire.submit(&GetInfo).is_ok(),
        true,
        "a write to a VM that is gone, which the next read tells of"
    );
    check_eq!(open(&fd, 0).err(), Some(Errno::IO), "OPEN of a VM whose VMM is gone");
    check_eq!(state(&fd)?, 0, "state");
    Ok(())
}

fn thousand_times(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    let fd = vm.steal_vm_fd()?;
    context.stage("open and close", Duration::from_secs(60));
    for round in 0..1000 {
        let session = open(&fd, 0)?;
        if round % 10 == 0 {
            let mut wire = Wire::new(Descriptor::new(session)?)?;
            check_eq!(wire.vcpu_count()?, 2, "vCPUs in round {round}");
        }
    }
    counts_on(context, &vm)?;
    vm.exit()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client library as a tool uses it, from the VMM's connection to the guest's goodbye.

mod command;
mod introspect;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvmi::{Event, Listener, Session, Stream, event};
use kvmi_guests::{Op, layout};
use kvmi_uapi::VmmHandshake;
use zerocopy::{FromZeros, IntoBytes};

use crate::lifecycle::GUEST_REQUEST;
use crate::vmm::{Vm, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![
        scenario(
            "client::handshake",
            "a VMM connects, shakes hands and hooks; the tool then speaks with the kernel",
            handshake,
        ),
        scenario(
            "client::whole_session",
            "commands and every event by the client library, to the VMM's PREUNHOOK",
            whole_session,
        ),
    ];
    scenarios.extend_from_slice(introspect::SCENARIOS);
    scenarios.extend_from_slice(command::SCENARIOS);
    scenarios
}

fn handshake(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 2)?;
    let listener = Listener::bind("/tmp/tool.sock")?;
    context.stage("shake hands", Duration::from_secs(10));
    let mut vmm_end = UnixStream::connect("/tmp/tool.sock")?;
    let mut greeting = VmmHandshake::new_zeroed();
    greeting.struct_size = size_of::<VmmHandshake>() as u32;
    greeting.name[..8].copy_from_slice(b"lab's l2");
    vmm_end.write_all(greeting.as_bytes())?;
    let (stream, vmm) = listener.accept(None)?;
    check_eq!(vmm.name, "lab's l2", "the guest's name");
    let mut answer = [0; 24];
    vmm_end.read_exact(&mut answer)?;
    check_eq!(answer[..4], 24u32.to_ne_bytes(), "size in the tool's answer");
    context.stage("hook", Duration::from_secs(10));
    let session = hook(&vm, &vmm_end, stream)?;
    check_eq!(session.version()?.version, 1, "version");
    check_eq!(session.vcpu_count()?, 2, "vCPUs");
    session.close();
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    vm.exit()
}

fn hook(vm: &Vm, vmm_end: &UnixStream, tool_end: impl Into<Stream>) -> Result<Session, Failure> {
    vm.hook_and_allow(vmm_end.as_fd(), 0)?;
    Ok(Session::from(tool_end.into()))
}

fn whole_session(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("storm", 1)?;
    let (vmm_end, tool_end) = UnixStream::pair()?;
    let session = hook(&vm, &vmm_end, tool_end)?;
    drop(vmm_end);
    let vcpu = session.vcpu(0);
    context.stage("commands", Duration::from_secs(10));
    let mut wanted = vec![0; 64];
    vm.guest.read(layout::PROGRAM, &mut wanted)?;
    check_eq!(
        session.read_physical(layout::PROGRAM, 64)?,
        wanted,
        "the program's first bytes"
    );
    check_eq!(vcpu.registers(&[])?.sregs.cr3, layout::ROOT, "CR3");
    for event in [event::HYPERCALL, event::BREAKPOINT, event::CR] {
        vcpu.control_event(event, true)?;
    }
    vcpu.control_cr(3, true)?;
    session.control_unhook(true)?;
    context.stage("one round of every event", Duration::from_secs(20));
    let number = vm.command(0, Op::Storm, [1, 0, 0, 0])?;
    let hypercall = session.next_event()?.hypercall()?;
    check_eq!(hypercall.arch.regs.rax, GUEST_REQUEST[0], "RAX of the hypercall");
    hypercall.proceed()?;
    let breakpoint = session.next_event()?.breakpoint()?;
    check_eq!(breakpoint.data.gpa, breakpoint.arch.regs.rip, "gpa of the breakpoint");
    breakpoint.proceed()?;
    let cr = session.next_event()?.cr()?;
    check_eq!((cr.data.cr, cr.data.new_value), (3, layout::OTHER_ROOT), "the CR write");
    cr.proceed()?;
    check_eq!(vm.finished(context, 0, number)?, 1, "rounds");
    check_eq!(
        vm.guest.field(0, field!(hypercalls_refused))?,
        0,
        "hypercalls that did not return 0"
    );
    context.stage("pause", Duration::from_secs(10));
    session.pause_vcpu(0, true)?;
    session.next_event()?.pause()?.proceed()?;
    context.stage("PREUNHOOK", Duration::from_secs(10));
    check_eq!(vm.preunhook()?, 0, "errno of PREUNHOOK");
    let last = session.next_event()?;
    check!(
        matches!(last, Event::Unhook(_)),
        "{} in the place of UNHOOK",
        last.name()
    );
    session.close();
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    check_eq!(
        vm.carry_out(context, 0, Op::Nothing, [0; 4])?,
        0,
        "the guest's answer after UNHOOK"
    );
    vm.exit()
}

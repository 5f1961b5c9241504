// SPDX-License-Identifier: MIT OR Apache-2.0
//! A socket on which the VMM has set time-outs before HOOK: they are not the session's.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, HYPERCALL, UNHOOK};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{GUEST_REQUEST, wait_at_hypercall};
use crate::requests::{empty_socket, fill_socket};
use crate::vmm::Vm;
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "lifecycle::socket_with_short_timeouts",
        "SO_RCVTIMEO and SO_SNDTIMEO of 1 us on the VMM's socket: an idle session and a full socket outlast them",
        |c| with_timeouts(c, TimeVal::new(0, 1)),
    ),
    scenario(
        "lifecycle::socket_with_no_time_at_all",
        "the same with time-outs that are over before they begin: the receiving thread sleeps all the same",
        |c| with_timeouts(c, TimeVal::new(-1, 0)),
    ),
    scenario(
        "lifecycle::socket_with_long_timeouts",
        "the same with the longest there are",
        |c| with_timeouts(c, TimeVal::new(i64::MAX, 999_999)),
    ),
];

/// How many time-outs the session has to outlast.
const TIMEOUTS: u64 = 50;

/// How often the receiving thread has gone to sleep so far.
fn sleeps_of_receiver() -> Result<u64, Failure> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process may end between being listed and being read.
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == "kvmi-recv") {
            let status = fs::read_to_string(path.join("status"))?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            return Ok(line.unwrap_or_default().trim().parse()?);
        }
    }
    Err(Failure::new("there is no receiving thread"))
}

/// Waits until so many time-outs of the receiving thread's are over: it sleeps twice for each.
fn outlast_timeouts(context: &Context) -> Result<(), Failure> {
    let before = sleeps_of_receiver()?;
    context.wait_for("the receiving thread's time-outs", || {
        Ok(sleeps_of_receiver()? >= before + 2 * TIMEOUTS)
    })
}

fn hook(vm: &Vm, timeout: TimeVal) -> Result<Wire, Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    setsockopt(&theirs, sockopt::ReceiveTimeout, &timeout)?;
    setsockopt(&theirs, sockopt::SendTimeout, &timeout)?;
    vm.hook_and_allow(theirs.as_fd(), 0)?;
    Ok(Wire::new(ours)?)
}

fn with_timeouts(context: &mut Context, timeout: TimeVal) -> Result<(), Failure> {
    let are_short = timeout.tv_sec() <= 0;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 1)?;
    let mut wire = hook(&vm, timeout)?;
    wire.control_event(0, HYPERCALL, true)?;
    wire.control_unhook_event(true)?;
    context.stage("idle", Duration::from_secs(30));
    if are_short {
        outlast_timeouts(context)?;
    }
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    if are_short {
        outlast_timeouts(context)?;
    }
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    context.stage("half a message", Duration::from_secs(30));
    let (seq, bytes) = wire.compose(kvmi_uapi::msg::VM_GET_INFO, &[0; 100]);
    let (first, rest) = bytes.split_at(50);
    wire.write(first)?;
    if are_short {
        outlast_timeouts(context)?;
    }
    wire.write(rest)?;
    check_eq!(
        wire.answer(seq)?.map(|data| data.len()),
        Ok(16),
        "answer to VM_GET_INFO"
    );
    context.stage("a full socket", Duration::from_secs(30));
    let seqs = fill_socket(&mut wire)?;
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    wait_at_hypercall(context, &vm, 0)?;
    if are_short {
        outlast_timeouts(context)?;
    }
    empty_socket(&mut wire, seqs)?;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    context.stage("the end", Duration::from_secs(10));
    check_eq!(vm.preunhook()?, 0, "errno of PREUNHOOK");
    check_eq!(wire.event()?.id, UNHOOK, "event");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    wire.expect_closed()?;
    vm.exit()
}

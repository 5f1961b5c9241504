// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU that stands still in memory whose page fault nobody serves: what waits for it, and what does not.

use std::os::fd::AsFd;
use std::time::Duration;

use kvmi::command::SetPageAccess;
use kvmi::ioctls;
use kvmi_guests::{Access, COUNTED_VECTOR, Op, layout};
use kvmi_uapi::event::{CONTINUE, PF, Pf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PAGE, R, W, Watched, X, entries};
use crate::lifecycle::readers_in_a_command;
use crate::vmm::field;
use crate::{Context, Failure, Scenario, Transport, check, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::waits_for_emulation",
        "VM_SET_PAGE_ACCESS while KVM emulates a read of that page: it answers when the read is over, and the write is told",
        waits_for_emulation,
    )
    .over(Transport::Socket),
    scenario(
        "pages::let_through_while_another_stands_still",
        "a vCPU is let through, told and answered while another one that is let through waits for its page",
        let_through_while_another_stands_still,
    ),
    scenario(
        "pages::no_asynchronous_fault_between",
        "an access that is let through to a page that the host does not have: the guest takes no asynchronous page fault before it",
        no_asynchronous_fault_between,
    ),
    scenario(
        "pages::nothing_denied_by_a_session_that_ends",
        "FREE waits for a vCPU that stands still in the host: another one meets the session's restrictions no more",
        |c| session_that_ends(c, Receiving::Nothing),
    ),
    scenario(
        "pages::nothing_denied_while_a_command_ends",
        "the same while the receiving thread still carries out a command, which waits for that vCPU too",
        |c| session_that_ends(c, Receiving::Command),
    )
    .over(Transport::Socket),
];

const PLACE: u64 = layout::SCRATCH + 0x7_0000;

/// Has the VMM add a page that stops whoever touches it.
fn withhold(watched: &Watched) -> Result<u64, Failure> {
    watched.vm.add_slot(layout::ANONYMOUS_SLOT, PAGE)?;
    watched.vm.withhold_slot()?;
    Ok(layout::ANONYMOUS_SLOT)
}

/// Waits until the receiving thread waits for a vCPU, and has answered nothing.
fn wait_for_reader(context: &Context, watched: &Watched) -> Result<(), Failure> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    context.wait_for("the receiving thread to wait for the vCPU", || {
        let socket = watched.wire.socket();
        let mut answer = [PollFd::new(&socket, PollFlags::IN)];
        check_eq!(
            poll(&mut answer, Some(&now))?,
            0,
            "messages while the vCPU stands still"
        );
        Ok(readers_in_a_command()? == 1)
    })
}

fn waits_for_emulation(context: &mut Context) -> Result<(), Failure> {
    modules::emulate_by_prefix()?;
    let mut watched = Watched::start(context, 1)?;
    let page = withhold(&watched)?;
    context.stage("an emulated read", Duration::from_secs(20));
    let number = watched.begin(Access::AddEmulated, [page, 7, 0])?;
    watched.vm.wait_for_fault()?;
    context.stage("deny it", Duration::from_secs(20));
    let seq = watched.wire.submit(&SetPageAccess {
        entries: &entries(&[(page, 0)]),
    })?;
    wait_for_reader(context, &watched)?;
    watched.vm.serve_slot()?;
    check_eq!(watched.wire.answer(seq)?, Ok(vec![]), "VM_SET_PAGE_ACCESS");
    context.stage("the write", Duration::from_secs(20));
    let (event, data) = watched.pf()?;
    check_eq!((data.access, data.gpa), (W, page), "access and gpa of PF");
    watched.wire.reply(&event, CONTINUE)?;
    // Anew from its beginning, with the read.
    watched.let_through(R, page)?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    watched.wire.restrict(&[(page, super::ALL)])?;
    let sum = watched.silent(context, Access::Read, [page, 0, 0])?;
    check_eq!(sum, 7, "the sum");
    watched.vm.exit()
}

/// Two vCPUs, and the number of the command in which the first one, let through, waits for its page. It and PLACE are restricted.
fn one_stands_still(context: &mut Context) -> Result<(Watched, u64), Failure> {
    let mut watched = Watched::start(context, 2)?;
    let page = withhold(&watched)?;
    let top = page + PAGE / 2;
    watched.wire.restrict(&[(page, R | X), (PLACE, R | X)])?;
    context.stage("one is let through and stands still", Duration::from_secs(20));
    // With interrupts off, so that KVM waits for the page itself.
    let number = watched.begin(Access::Push, [top, 1, 0])?;
    watched.let_through(W, top - 8)?;
    watched.vm.wait_for_fault()?;
    Ok((watched, number))
}

fn let_through_while_another_stands_still(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 20;
    let (mut watched, first) = one_stands_still(context)?;
    for round in 1..=ROUNDS {
        context.stage(&format!("the other, {round}"), Duration::from_secs(20));
        let args = [Access::Add as u64, PLACE, 2, 1];
        let number = watched.vm.command(1, Op::Access, args)?;
        let event = watched.wire.expect_event(PF, 1)?;
        check_eq!(event.data::<Pf>()?.gpa, PLACE, "gpa of PF");
        watched.wire.reply(&event, CONTINUE)?;
        watched.vm.finished(context, 1, number)?;
        check_eq!(watched.word(PLACE)?, 2 * round, "the word");
    }
    watched.wire.expect_no_event()?;
    context.stage("the first goes on", Duration::from_secs(20));
    watched.vm.serve_slot()?;
    watched.vm.finished(context, 0, first)?;
    watched.wire.expect_no_event()?;
    watched.vm.exit()
}

fn no_asynchronous_fault_between(context: &mut Context) -> Result<(), Failure> {
    /// `MSR_KVM_ASYNC_PF_EN`: enabled, in ring 0 as well, ready by interrupt; and the vector of that.
    const ASYNC_PF_EN: u64 = 0x4b56_4d02;
    const ENABLED: u64 = 0b1011;
    const ASYNC_PF_INT: u64 = 0x4b56_4d06;
    const PAGE_FAULT: u64 = 14;
    let mut watched = Watched::start(context, 1)?;
    let page = withhold(&watched)?;
    let reason = layout::SCRATCH + 0x9_0000;
    for (msr, value) in [(ASYNC_PF_INT, COUNTED_VECTOR.into()), (ASYNC_PF_EN, reason | ENABLED)] {
        watched.vm.carry_out(context, 0, Op::WriteMsr, [msr, value, 0, 0])?;
    }
    // Were one to come, the guest would note it and go on.
    watched.vm.guest.set_field(0, field!(tolerated), 1 << PAGE_FAULT)?;
    watched.wire.restrict(&[(page, R | X)])?;
    context.stage("let through to a page that is not there", Duration::from_secs(20));
    let number = watched.begin(Access::Write, [page, 7, 0])?;
    watched.let_through(W, page)?;
    watched.vm.wait_for_fault()?;
    context.stage("the page comes", Duration::from_secs(20));
    watched.vm.serve_slot()?;
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    check_eq!(
        watched.vm.guest.field(0, field!(exceptions))?,
        0,
        "page faults that the guest took"
    );
    watched.wire.restrict(&[(page, super::ALL)])?;
    check_eq!(watched.silent(context, Access::Read, [page, 0, 0])?, 7, "the word");
    watched.vm.exit()
}

/// What the receiving thread does when the session ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Nothing,
    Command,
}

fn session_that_ends(context: &mut Context, receiving: Receiving) -> Result<(), Failure> {
    let (mut watched, first) = one_stands_still(context)?;
    if receiving == Receiving::Command {
        context.stage("a command", Duration::from_secs(20));
        watched.wire.submit(&SetPageAccess {
            entries: &entries(&[(PLACE + PAGE, R)]),
        })?;
        wait_for_reader(context, &watched)?;
    }
    context.stage("FREE", Duration::from_secs(20));
    let fd = watched.vm.steal_vm_fd()?;
    // By this process, and not by the one that called HOOK.
    let unhook = std::thread::spawn(move || ioctls::free(fd.as_fd()));
    watched.wire.expect_closed()?;
    context.stage("the other writes", Duration::from_secs(20));
    let second = watched.vm.command(1, Op::Access, [Access::Write as u64, PLACE, 2, 0])?;
    watched.vm.finished(context, 1, second)?;
    check_eq!(watched.word(PLACE)?, 2, "the word");
    check!(!unhook.is_finished(), "FREE did not wait for the first vCPU");
    context.stage("the end", Duration::from_secs(20));
    watched.vm.serve_slot()?;
    watched.vm.finished(context, 0, first)?;
    let outcome = unhook
        .join()
        .map_err(|_| Failure::new("the thread that calls FREE panicked"))?;
    check_eq!(outcome, Ok(()), "FREE");
    watched.vm.exit()
}

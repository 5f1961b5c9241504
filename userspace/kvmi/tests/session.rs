// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library against the kernel's own core: the protocol from end to end.

mod calls;
mod endings;
mod mock_kernel;
mod open_events;

use std::{
    io::Write,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use kvmi::{
    CloseReason, Decision, Error, Event, KvmError, Listener, PageAccessEntry, ProtocolError, RawConnection, Regs,
    Session, SessionOptions, WriteDecision, command, event, handshake, message, msg,
};
use kvmi_core::{Occurrence, Site};
use mock_kernel::MockKernel;

const SOON: Duration = Duration::from_secs(10);
const BREAKPOINT: Occurrence = Occurrence::Breakpoint {
    gpa: 0x1234,
    insn_len: 1,
};

fn hooked(vcpus: u16) -> (MockKernel, Session) {
    let (tool, kernel) = UnixStream::pair().unwrap();
    (
        MockKernel::hook(kernel, vcpus),
        SessionOptions::new().timeout(SOON).start(tool),
    )
}

fn cr3(new: u64) -> Occurrence {
    Occurrence::Cr {
        cr: 3,
        old: 0x1000,
        new,
    }
}

#[test]
fn control_registers_are_watched_and_replaced() {
    let (kernel, session) = hooked(1);
    assert_eq!(kernel.happen(0, cr3(0x2000)).recv().unwrap().site, Site::Pass);
    session.vcpu(0).control_event(event::CR, true).unwrap();
    session.vcpu(0).control_cr(3, true).unwrap();
    for (answer, value) in [(None, 0x2000), (Some(0x3000), 0x3000)] {
        let done = kernel.happen(0, cr3(0x2000));
        let open = session.next_event().unwrap().cr().unwrap();
        assert_eq!((open.vcpu, open.arch.mode, open.arch.regs.rip), (0, 8, 0x1000));
        assert_eq!(
            (open.data.cr, open.data.old_value, open.data.new_value),
            (3, 0x1000, 0x2000)
        );
        match answer {
            Some(value) => open.reply(WriteDecision::Continue(value)).unwrap(),
            None => open.proceed().unwrap(),
        }
        let done = done.recv().unwrap();
        assert_eq!((done.site, done.value), (Site::Continue, Some(value)));
    }
}

#[test]
fn instructions_are_told_while_stepping_is_on() {
    let (kernel, session) = hooked(1);
    for on in [false, true, false] {
        session.vcpu(0).control_singlestep(on).unwrap();
        let done = kernel.happen(0, Occurrence::Singlestep);
        if on {
            let open = session.next_event().unwrap().singlestep().unwrap();
            assert_eq!((open.vcpu, open.data.failed, open.arch.regs.rip), (0, 0, 0x1000));
            open.proceed().unwrap();
        }
        let site = if on { Site::Continue } else { Site::Pass };
        assert_eq!(done.recv().unwrap().site, site);
    }
}

#[test]
fn commands_work_while_an_event_is_open() {
    let (kernel, session) = hooked(1);
    session.vcpu(0).control_event(event::BREAKPOINT, true).unwrap();
    let done = kernel.happen(0, BREAKPOINT);
    let open = session.next_event().unwrap().breakpoint().unwrap();
    assert_eq!((open.data.gpa, open.data.insn_len), (0x1234, 1));
    let mut regs = session.vcpu(0).registers(&[]).unwrap().regs;
    // The mock has no flags of its own.
    (regs.rip, regs.rflags) = (regs.rip + 1, 2);
    session.vcpu(0).set_registers(&regs).unwrap();
    open.reply(Decision::Retry).unwrap();
    let done = done.recv().unwrap();
    assert_eq!((done.site, done.regs.unwrap().rip), (Site::Retry, 0x1001));
}

#[test]
fn pauses_and_crashes() {
    let (kernel, session) = hooked(1);
    session.pause_vcpu(0, true).unwrap();
    session.next_event().unwrap().pause().unwrap().proceed().unwrap();
    session.vcpu(0).control_event(event::HYPERCALL, true).unwrap();
    let done = kernel.happen(0, Occurrence::Hypercall);
    session.next_event().unwrap().hypercall().unwrap().crash().unwrap();
    assert!(done.recv().unwrap().crashed);
}

#[test]
fn the_vmm_s_wish_to_unhook_is_heard() {
    let (kernel, session) = hooked(1);
    kernel.send_unhook();
    let event = session.next_event().unwrap();
    assert_eq!(
        (event.seq(), event.vcpu(), event.name()),
        (1, None, "UNHOOK".to_owned())
    );
    event.unhook().unwrap();
    kernel.send_unhook();
    let wrong = session.next_event().unwrap().cr().unwrap_err();
    assert_eq!(wrong.to_string(), "expected a CR event, got UNHOOK");
}

#[test]
fn several_vcpus_wait_each_for_its_own_answer() {
    let (kernel, session) = hooked(4);
    for vcpu in 0..4 {
        session.vcpu(vcpu).control_event(event::HYPERCALL, true).unwrap();
    }
    let done: Vec<_> = (0..4).map(|vcpu| kernel.happen(vcpu, Occurrence::Hypercall)).collect();
    for vcpu in [2, 0, 3, 1] {
        let open = session.next_event_of(vcpu).unwrap().hypercall().unwrap();
        assert_eq!(open.vcpu, vcpu);
        open.proceed().unwrap();
        assert_eq!(done[usize::from(vcpu)].recv().unwrap().site, Site::Continue);
    }
    assert_eq!(session.queued_events(), 0);
}

#[test]
fn commands_are_pipelined_while_events_arrive() {
    let (kernel, session) = hooked(2);
    for vcpu in 0..2 {
        session.vcpu(vcpu).control_event(event::HYPERCALL, true).unwrap();
    }
    let events = thread::spawn({
        let session = session.clone();
        move || {
            let seqs = (0..200).map(|_| {
                let event = session.next_event().unwrap();
                let seq = event.seq();
                event.proceed().unwrap();
                seq
            });
            seqs.collect::<Vec<u32>>()
        }
    });
    let done: Vec<_> = (0..200).map(|n| kernel.happen(n % 2, Occurrence::Hypercall)).collect();
    let mut reads = Vec::new();
    let mut infos = Vec::new();
    for n in 0..500u16 {
        reads.push(
            session
                .submit(command::ReadPhysical {
                    gpa: n.into(),
                    size: 1 + n,
                })
                .unwrap(),
        );
        infos.push(session.submit(command::GetVcpuInfo { vcpu: n % 2 }).unwrap());
    }
    for (n, (read, info)) in reads.into_iter().zip(infos).enumerate().rev() {
        assert_eq!(info.wait().unwrap().tsc_speed, 1_000_000 + n as u64 % 2);
        assert_eq!(read.wait().unwrap().len(), n + 1);
    }
    assert!(done.iter().all(|done| done.recv().unwrap().site == Site::Continue));
    assert_eq!(events.join().unwrap(), (1..=200).collect::<Vec<u32>>());
}

#[test]
fn the_other_side_s_end_ends_everything() {
    let (kernel, session) = hooked(1);
    session.vcpu(0).control_event(event::HYPERCALL, true).unwrap();
    let done = kernel.happen(0, Occurrence::Hypercall);
    let event = session.next_event().unwrap();
    kernel.hang_up();
    assert_eq!(session.wait_closed(SOON).unwrap(), CloseReason::Peer);
    assert!(session.version().unwrap_err().is_closed());
    assert!(event.proceed().unwrap_err().is_closed());
    assert!(session.events().next().is_none());
    // The session fails open.
    assert_eq!(done.recv().unwrap().site, Site::Continue);
}

#[test]
fn a_session_ends_with_its_last_handle() {
    let (kernel, session) = hooked(1);
    session.vcpu(0).control_event(event::HYPERCALL, true).unwrap();
    let done = kernel.happen(0, Occurrence::Hypercall);
    let open = session.next_event().unwrap();
    drop(session);
    open.proceed().unwrap();
    assert_eq!(done.recv().unwrap().site, Site::Continue);

    let (kernel, session) = hooked(1);
    let waits = session.submit(command::GetVersion).unwrap();
    session.close();
    assert_eq!(session.closed(), Some(CloseReason::Local));
    // Its answer may have come before.
    assert!(
        waits
            .wait()
            .map_or_else(|error| error.is_closed(), |version| version.version == 1)
    );
    assert!(session.version().unwrap_err().is_closed());
    drop(kernel);
}

#[test]
fn what_does_not_come_is_a_timeout() {
    let (tool, _silent) = UnixStream::pair().unwrap();
    let short = Duration::from_millis(1);
    let session = SessionOptions::new().timeout(short).start(tool);
    assert!(session.version().unwrap_err().is_timeout());
    assert!(session.next_event().unwrap_err().is_timeout());
    assert!(session.wait_closed(short).unwrap_err().is_timeout());
    assert!(session.next_unclaimed(short).unwrap_err().is_timeout());
    let pending = session.submit(command::GetVersion).unwrap();
    assert!(pending.poll().unwrap().is_err());
}

#[test]
fn wrong_replies_cost_the_connection() {
    for (event, action, data) in [(5, 0, &[][..]), (3, 1, &[]), (3, 9, &[]), (3, 0, &[0])] {
        let (kernel, session) = hooked(1);
        session.vcpu(0).control_event(event::HYPERCALL, true).unwrap();
        let done = kernel.happen(0, Occurrence::Hypercall);
        let open = session.next_event().unwrap();
        session
            .send_raw(&message::encode_event_reply(0, open.seq(), event, action, data))
            .unwrap();
        assert_eq!(session.wait_closed(SOON).unwrap(), CloseReason::Peer);
        assert_eq!(done.recv().unwrap().site, Site::Continue);
    }
}

#[test]
fn a_flood_of_replies_to_nothing_closes_the_connection() {
    const MORE_THAN_ARE_KEPT: usize = (1 << 16) + 1;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let session = Session::from(ours);
    let unclaimed = message::encode(msg::VM_GET_INFO, 0xdead_beef, &[]);
    // The other side may be told before all is written.
    let _ = theirs.write_all(&unclaimed.repeat(MORE_THAN_ARE_KEPT));
    let reason = session.wait_closed(SOON).unwrap();
    assert!(
        matches!(reason, CloseReason::Protocol(ProtocolError::TooMany { .. })),
        "{reason}"
    );
}

#[test]
fn replies_that_nobody_waits_for_are_kept() {
    let (_kernel, session) = hooked(1);
    session
        .send_raw(&message::encode(msg::VM_GET_INFO, 0xdead_beef, &[]))
        .unwrap();
    let unclaimed = session.next_unclaimed(SOON).unwrap();
    assert_eq!((unclaimed.hdr.id, unclaimed.hdr.seq), (msg::VM_GET_INFO, 0xdead_beef));
    // The refusal of an event reply has an event's id and is none.
    session.send_raw(&message::encode_event_reply(9, 1, 1, 0, &[])).unwrap();
    let unclaimed = session.next_unclaimed(SOON).unwrap();
    assert_eq!(
        (unclaimed.hdr.id, unclaimed.get::<i32>(0).unwrap()),
        (msg::VCPU_EVENT, -22)
    );
    assert_eq!(session.queued_events(), 0);
}

#[test]
fn raw_connections_are_not_understood() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let _kernel = MockKernel::hook(kernel, 1);
    let mut raw = RawConnection::from(tool);
    raw.set_timeout(Some(SOON)).unwrap();
    raw.send(&message::encode(msg::GET_VERSION, 3, &[])).unwrap();
    assert_eq!(raw.receive().unwrap().hdr.seq, 3);
    raw.send(&[0xff; 8]).unwrap();
    assert_eq!(raw.receive(), Err(CloseReason::Peer));
}

#[test]
fn the_transcript_sees_both_ways() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let _kernel = MockKernel::hook(kernel, 1);
    let lines = Arc::new(Mutex::new(Vec::new()));
    let session = SessionOptions::new()
        .transcript({
            let lines = lines.clone();
            move |entry| lines.lock().unwrap().push(entry.to_string())
        })
        .start(tool);
    session.check_command(9999).unwrap_err();
    session.pause_vcpu(0, false).unwrap();
    session.next_event().unwrap().proceed().unwrap();
    let mut lines = lines.lock().unwrap().clone();
    // The event may overtake the reply.
    lines[2..5].sort();
    let expected = [
        "> #1 VM_CHECK_COMMAND 0f27000000000000",
        "< #1 VM_CHECK_COMMAND ENOENT",
        "< #1 event PAUSE vcpu 0 rip 0x1000",
        "< #2 VM_PAUSE_VCPU ok ",
        "> #2 VM_PAUSE_VCPU 0000000000000000",
        "> #1 answer PAUSE vcpu 0 CONTINUE",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn vmm_and_tool_meet_at_a_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tool.sock");
    let listener = Listener::bind(&path).unwrap();
    let cookie = [5; 20];
    let vmm = thread::spawn({
        let path = path.clone();
        move || {
            let stream = UnixStream::connect(path).unwrap();
            let me = handshake::Vmm {
                name: "guest".into(),
                ..Default::default()
            };
            handshake::vmm(&stream, &me, Some(&cookie)).unwrap();
            MockKernel::hook(stream, 3)
        }
    });
    let (stream, who) = listener.accept(Some(&cookie)).unwrap();
    assert_eq!(who.name, "guest");
    let session = Session::from(stream);
    assert_eq!(session.vcpu_count().unwrap(), 3);
    drop(vmm.join().unwrap());
    // A socket that is left over is no obstacle, another file is.
    drop(listener);
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    assert!(Listener::bind(&path).is_err());
}

#[test]
fn events_of_a_later_kernel_are_unknown_but_answered() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let session = Session::from(tool);
    let mut kernel = RawConnection::from(kernel);
    let mut payload = vec![0; 8 + 560];
    payload[0] = 251;
    payload[8..10].copy_from_slice(&560u16.to_ne_bytes());
    payload[10] = 2;
    kernel.send(&message::encode(msg::VCPU_EVENT, 77, &payload)).unwrap();
    let event = session.next_event().unwrap();
    assert_eq!((event.id(), event.vcpu(), event.seq()), (251, Some(2), 77));
    assert!(matches!(event, Event::Unknown(_)));
    event.proceed().unwrap();
    let answer = kernel.receive().unwrap();
    assert_eq!((answer.hdr.seq, answer.payload[8..10].to_vec()), (77, vec![0, 251]));

    // A vCPU state that has grown: the event's data come after it.
    payload[0] = 7;
    payload.extend_from_slice(&[
        4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 99,
    ]);
    kernel.send(&message::encode(msg::VCPU_EVENT, 78, &payload)).unwrap();
    let cr = session.next_event().unwrap().cr().unwrap();
    assert_eq!((cr.data.cr, cr.data.old_value, cr.data.new_value), (4, 1, 2));
}

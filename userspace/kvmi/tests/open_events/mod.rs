// SPDX-License-Identifier: MIT OR Apache-2.0
//! An event is answered exactly once, whatever the tool does with it.

use std::{os::unix::net::UnixStream, panic, thread, time::Duration};

use kvmi::{Error, Event, OpenEvent, RawConnection, Session, SessionOptions, WriteDecision, event, message, msg};
use kvmi_core::{Occurrence, Site};

use crate::{BREAKPOINT, SOON, cr3, hooked};

/// Each kind that the mock kernel has happen, and the value with which the guest goes on when nobody changes it.
const KINDS: [(u16, Occurrence, Option<u64>); 9] = [
    (event::HYPERCALL, Occurrence::Hypercall, None),
    (event::BREAKPOINT, BREAKPOINT, None),
    (
        event::CR,
        Occurrence::Cr {
            cr: 3,
            old: 0x1000,
            new: 0x2000,
        },
        Some(0x2000),
    ),
    (event::XSETBV, Occurrence::Xsetbv { old: 1, new: 3 }, None),
    (
        event::DESCRIPTOR,
        Occurrence::Descriptor {
            descriptor: 1,
            write: false,
        },
        None,
    ),
    (
        event::MSR,
        Occurrence::Msr {
            msr: 0x174,
            old: 1,
            new: 2,
        },
        Some(2),
    ),
    (
        event::PF,
        Occurrence::Pf {
            gva: 0x5000,
            gpa: 0x1000,
            access: 2,
        },
        None,
    ),
    (event::SINGLESTEP, Occurrence::Singlestep, None),
    (event::CREATE_VCPU, Occurrence::CreateVcpu, None),
];

fn watch(session: &Session, id: u16) {
    let vcpu = session.vcpu(0);
    match id {
        event::SINGLESTEP => return vcpu.control_singlestep(true).unwrap(),
        event::CREATE_VCPU => return session.control_create_vcpu(true).unwrap(),
        event::CR => vcpu.control_cr(3, true).unwrap(),
        event::MSR => vcpu.control_msr(0x174, true).unwrap(),
        _ => {}
    }
    vcpu.control_event(id, true).unwrap();
}

#[test]
fn one_that_is_dropped_lets_the_guest_run_on_as_without_a_tool() {
    for (id, what, value) in KINDS {
        let (kernel, session) = hooked(1);
        watch(&session, id);
        // Twice: the connection is still there after the first.
        for _ in 0..2 {
            let done = kernel.happen(0, what);
            let event = session.next_event().unwrap();
            assert_eq!(event.id(), id);
            drop(event);
            let done = done.recv_timeout(SOON).unwrap();
            assert_eq!(
                (done.site, done.value, done.crashed),
                (Site::Continue, value, false),
                "{id}"
            );
        }
        assert_eq!(session.closed(), None);
    }
    let (_kernel, session) = hooked(1);
    for _ in 0..2 {
        session.pause_vcpu(0, true).unwrap();
        drop(session.next_event().unwrap().pause().unwrap());
    }
}

#[test]
fn one_that_was_answered_is_not_answered_again_when_it_is_dropped() {
    let (kernel, session) = hooked(1);
    watch(&session, event::CR);
    let done = kernel.happen(0, cr3(0x2000));
    let cr = session.next_event().unwrap().cr().unwrap();
    cr.reply(WriteDecision::Continue(0x3000)).unwrap();
    assert_eq!(done.recv_timeout(SOON).unwrap().value, Some(0x3000));
    // A second answer would have cost the connection.
    session.version().unwrap();
}

#[test]
fn one_of_another_kind_than_expected_is_answered() {
    let (kernel, session) = hooked(1);
    watch(&session, event::HYPERCALL);
    let done = kernel.happen(0, Occurrence::Hypercall);
    let error = session.next_event().unwrap().cr().unwrap_err();
    assert!(matches!(error, Error::UnexpectedEvent { .. }), "{error}");
    assert_eq!(done.recv_timeout(SOON).unwrap().site, Site::Continue);
}

#[test]
fn a_panic_answers_too() {
    let (kernel, session) = hooked(1);
    watch(&session, event::HYPERCALL);
    let done = kernel.happen(0, Occurrence::Hypercall);
    let event = session.next_event().unwrap();
    let tool = thread::spawn(move || {
        let _event = event;
        panic::resume_unwind(Box::new(()));
    });
    assert!(tool.join().is_err());
    assert_eq!(done.recv_timeout(SOON).unwrap().site, Site::Continue);
}

#[test]
fn one_that_is_held_waits_until_it_is_released() {
    let (kernel, session) = hooked(2);
    for vcpu in 0..2 {
        session.vcpu(vcpu).control_event(event::CR, true).unwrap();
        session.vcpu(vcpu).control_cr(3, true).unwrap();
    }
    let first = kernel.happen(0, cr3(0x2000));
    let held = session.next_event_of(0).unwrap().cr().unwrap().hold();
    assert_eq!((held.vcpu, held.data.new_value), (0, 0x2000));
    // Commands work, and the other vCPU runs.
    session.vcpu(0).registers(&[]).unwrap();
    let second = kernel.happen(1, cr3(0x2000));
    let other = session.next_event_of(1).unwrap().hold();
    assert_eq!(other.vcpu(), Some(1));
    let cr: OpenEvent<_> = held.into_inner();
    cr.reply(WriteDecision::Continue(0x3000)).unwrap();
    assert_eq!(first.recv_timeout(SOON).unwrap().value, Some(0x3000));
    // Released, it is as it was: dropping it answers.
    drop(other.into_inner());
    assert_eq!(second.recv_timeout(SOON).unwrap().value, Some(0x2000));

    // One that stays held stays so to the end of the session.
    let third = kernel.happen(0, cr3(0x2000));
    drop(session.next_event().unwrap().hold());
    session.vcpu(0).registers(&[]).unwrap();
    assert!(third.try_recv().is_err());
    session.close();
    assert_eq!(third.recv_timeout(SOON).unwrap().value, None);
}

/// A vCPU event of this kind with the sequence number 77, and so many bytes of data.
fn event_of(id: u8, data: usize) -> Vec<u8> {
    let mut payload = vec![0; 8 + 544 + data];
    payload[0] = id;
    payload[8..10].copy_from_slice(&544u16.to_ne_bytes());
    message::encode(msg::VCPU_EVENT, 77, &payload)
}

#[test]
fn one_of_an_unknown_kind_is_answered_when_it_is_dropped() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let session = Session::from(tool);
    let mut kernel = RawConnection::from(kernel);
    kernel.set_timeout(Some(SOON)).unwrap();
    kernel.send(&event_of(251, 0)).unwrap();
    let event = session.next_event().unwrap();
    assert!(matches!(event, Event::Unknown(_)));
    drop(event);
    let answer = kernel.receive().unwrap();
    assert_eq!((answer.hdr.seq, answer.payload[8..10].to_vec()), (77, vec![0, 251]));
}

#[test]
fn one_that_cannot_be_read_closes_the_connection() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let session = Session::from(tool);
    let mut kernel = RawConnection::from(kernel);
    kernel.set_timeout(Some(SOON)).unwrap();
    // CR has 24 bytes of data.
    kernel.send(&event_of(7, 23)).unwrap();
    let error = session.next_event().unwrap_err();
    let wanted = "connection is closed: message 1 has 575 bytes of payload, at least 576 are needed";
    assert_eq!(error.to_string(), wanted);
    // Nobody could answer it, so the vCPU is let go by the end of the connection.
    assert!(kernel.receive().is_err());
    assert_eq!(session.version().unwrap_err().to_string(), wanted);
}

#[test]
fn an_answer_that_cannot_be_sent_closes_the_connection() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let session = SessionOptions::new().send_timeout(Duration::from_millis(1)).start(tool);
    RawConnection::from(kernel.try_clone().unwrap())
        .send(&event_of(event::PAUSE as u8, 0))
        .unwrap();
    let pause = session.next_event().unwrap().pause().unwrap();
    while session.send_raw(&[0; 512]).is_ok() {}
    assert_eq!(session.closed(), None);
    let error = pause.proceed().unwrap_err();
    assert!(matches!(error, Error::SendTimeout { sent: 0, .. }), "{error}");
    let said = session.version().unwrap_err().to_string();
    let wanted = "connection is closed: failed: the answer to event 77 was not sent: ";
    assert!(said.starts_with(wanted), "{said}");
    drop(kernel);
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting, and how a connection comes to its end: nobody waits longer than asked for, and the reason is known.

use std::{io::Write, net::Shutdown, os::unix::net::UnixStream, sync::mpsc, thread, time::Duration};

use kvmi::{CloseReason, Error, Event, RawConnection, Session, SessionOptions, event, message, msg};
use kvmi_core::Occurrence;

use crate::{MockKernel, SOON};

const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn the_iterator_waits_for_as_long_as_the_connection_is_there() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let kernel = MockKernel::hook(kernel, 1);
    let session = SessionOptions::new().timeout(SOON).start(tool);
    session.vcpu(0).control_event(event::HYPERCALL, true).unwrap();
    let (say, said) = mpsc::channel();
    // With a time that is over many times before anything happens.
    let impatient = SessionOptions::new().timeout(MOMENT);
    let (tool, silent) = UnixStream::pair().unwrap();
    let watched = impatient.start(tool);
    let waits = thread::spawn({
        let watched = watched.clone();
        move || {
            say.send(()).unwrap();
            watched
                .events()
                .map(|event| event.map(|event| event.id()))
                .collect::<Vec<_>>()
        }
    });
    said.recv().unwrap();
    // So many time-outs of another waiter pass meanwhile.
    for _ in 0..50 {
        assert!(watched.next_unclaimed(MOMENT).unwrap_err().is_timeout());
    }
    (&silent)
        .write_all(&message::encode(msg::VM_EVENT, 1, &[0; 8]))
        .unwrap();
    while watched.queued_events() > 0 {
        thread::yield_now();
    }
    drop(silent);
    let came: Vec<_> = waits.join().unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!((came, watched.closed()), (vec![event::UNHOOK], Some(CloseReason::Peer)));

    // Events that came before the end are not lost, and the end comes after them.
    let done = kernel.happen(0, Occurrence::Hypercall);
    let mut events = session.events();
    let Some(Ok(Event::Hypercall(open))) = events.next() else {
        panic!("no hypercall");
    };
    open.proceed().unwrap();
    done.recv_timeout(SOON).unwrap();
    session.close();
    assert!(events.next().is_none());
    assert_eq!(session.closed(), Some(CloseReason::Local));
}

#[test]
fn a_connection_that_breaks_is_the_iterator_s_last_item() {
    let (tool, mut kernel) = UnixStream::pair().unwrap();
    let session = Session::from(tool);
    // A message that is too large.
    kernel.write_all(&[2, 0, 0xff, 0xff, 1, 0, 0, 0]).unwrap();
    let mut events = session.events();
    let last = events.next().unwrap().unwrap_err();
    let wanted = "connection is closed: message 2 announces 65535 bytes, more than 8184";
    assert_eq!(last.to_string(), wanted);
    assert!(events.next().is_none());
    // Each error that follows says the same, that of an answer or of raw bytes too.
    for error in [
        session.version().unwrap_err(),
        session.next_event().unwrap_err(),
        session.next_unclaimed(MOMENT).unwrap_err(),
        session.send_raw(&[0; 8]).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), wanted);
    }
    // The other side learns that nobody reads any more.
    let mut kernel = RawConnection::from(kernel);
    kernel.set_timeout(Some(SOON)).unwrap();
    assert_eq!(kernel.receive(), Err(CloseReason::Peer));
}

#[test]
fn a_writer_that_finds_the_end_first_says_the_reader_s_reason() {
    let (tool, mut kernel) = UnixStream::pair().unwrap();
    let (let_go, wait) = mpsc::channel::<()>();
    // A reader that is slow: it is still busy with the first message when the connection breaks.
    let session = SessionOptions::new()
        .transcript(move |entry| {
            if matches!(entry.direction, kvmi::Direction::Received) {
                wait.recv().unwrap();
            }
        })
        .start(tool);
    kernel.write_all(&message::encode(msg::VM_EVENT, 1, &[0; 8])).unwrap();
    kernel.write_all(&[2, 0, 8]).unwrap();
    kernel.shutdown(Shutdown::Both).unwrap();
    drop(kernel);
    let sender = thread::spawn({
        let session = session.clone();
        move || session.send_raw(&[0; 8]).unwrap_err()
    });
    let_go.send(()).unwrap();
    let error = sender.join().unwrap();
    assert_eq!(
        error.to_string(),
        "connection is closed: closed by the other side after 3 bytes of a header"
    );
}

#[test]
fn a_reader_that_panics_closes_the_connection() {
    let (tool, kernel) = UnixStream::pair().unwrap();
    let _kernel = MockKernel::hook(kernel, 1);
    let session = SessionOptions::new()
        .timeout(SOON)
        .transcript(|entry| {
            if matches!(entry.direction, kvmi::Direction::Received) {
                std::panic::resume_unwind(Box::new(()));
            }
        })
        .start(tool);
    let error = session.version().unwrap_err();
    assert_eq!(
        error.to_string(),
        "connection is closed: failed: the thread that reads it has panicked"
    );
}

#[test]
fn sending_to_who_does_not_read_ends_in_time() {
    let (tool, _silent) = UnixStream::pair().unwrap();
    let session = SessionOptions::new().send_timeout(MOMENT).start(tool);
    let error = loop {
        if let Err(error) = session.send_raw(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(
        error.to_string(),
        "the other side took 0 of 4096 bytes within 1ms: it does not read"
    );
    assert!(error.is_timeout());
    // Nothing of it was sent, so the connection is as good as before.
    assert_eq!(session.closed(), None);
}

#[test]
fn a_message_that_is_cut_costs_the_connection() {
    let (tool, _silent) = UnixStream::pair().unwrap();
    let session = SessionOptions::new().send_timeout(MOMENT).start(tool);
    // More than the socket holds.
    let error = session.send_raw(&vec![0; 4 << 20]).unwrap_err();
    assert!(matches!(error, Error::SendTimeout { sent: 1.., .. }), "{error}");
    let said = session.send_raw(&[0]).unwrap_err().to_string();
    assert!(
        said.starts_with("connection is closed: failed: a message of 4194304 bytes was cut after "),
        "{said}"
    );
}

#[test]
fn whoever_waits_for_its_turn_to_send_waits_no_longer_than_asked_for() {
    let (tool, _silent) = UnixStream::pair().unwrap();
    let (at_turn, has_turn) = mpsc::channel();
    let (let_go, wait) = mpsc::channel::<()>();
    let session = SessionOptions::new()
        .send_timeout(MOMENT)
        .transcript(move |_| {
            at_turn.send(()).unwrap();
            wait.recv().unwrap();
        })
        .start(tool);
    let first = thread::spawn({
        let session = session.clone();
        move || session.send_raw(&[0; 8])
    });
    has_turn.recv().unwrap();
    let error = session.send_raw(&[0; 8]).unwrap_err();
    assert!(matches!(error, Error::SendTimeout { sent: 0, .. }), "{error}");
    let_go.send(()).unwrap();
    first.join().unwrap().unwrap();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads and writes of a session's descriptor: each error, and as much as there may be.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use kvmi::command::{GetInfo, ReadPhysical};
use kvmi::{Descriptor, message};
use kvmi_guests::Op;
use kvmi_uapi::event::{CONTINUE, HYPERCALL};
use kvmi_uapi::ioctl::{STATUS_DESCRIPTOR, STATUS_HOOKED, STATUS_LOST};
use kvmi_uapi::{MAX_MESSAGE, MAX_PAYLOAD, MsgHdr, msg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, dup, read, write};
use zerocopy::IntoBytes;

use super::{PLACE, open, state};
use crate::lifecycle::{GUEST_REQUEST, counts_on};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "descriptor::errors",
        "each error of read and write, with nothing lost and the session as it was",
        errors,
    ),
    scenario(
        "descriptor::full",
        "nobody reads: write waits or is EAGAIN, vCPUs wait, and every message arrives whole and once",
        full,
    ),
    scenario(
        "descriptor::many_threads",
        "four threads write 5,000 commands each and four read: each is answered once",
        many_threads,
    ),
];

/// What waits to be read, at most (docs/protocol.md 2.4).
const RING_BYTES: usize = 256 << 10;

fn errors(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let fd = vm.steal_vm_fd()?;
    let session = open(&fd, 0)?;
    let info = message::encode(msg::VM_GET_INFO, 5, &[]);
    let cut = message::encode(msg::VM_GET_INFO, 6, &[0; 100]);

    context.stage("writes", Duration::from_secs(10));
    check_eq!(write(&session, &[]), Err(Errno::INVAL), "a write of nothing");
    for bytes in 1..info.len() {
        check_eq!(
            write(&session, &info[..bytes]),
            Err(Errno::INVAL),
            "{bytes} bytes of a header"
        );
    }
    check_eq!(write(&session, &cut[..107]), Err(Errno::INVAL), "a message that is cut");
    let both = [&info[..], &cut[..50]].concat();
    check_eq!(write(&session, &both), Ok(info.len()), "a message and a cut one");

    context.stage("reads", Duration::from_secs(10));
    let mut buffer = [0; MAX_MESSAGE];
    for bytes in [0, 1, 7, 8, 31] {
        check_eq!(
            read(&session, &mut buffer[..bytes]),
            Err(Errno::MSGSIZE),
            "a read into {bytes} bytes"
        );
    }
    check_eq!(read(&session, &mut buffer[..32]), Ok(32), "a read of the answer");
    check_eq!(
        buffer[..8],
        *message::encode(msg::VM_GET_INFO, 5, &[0; 24])[..8].as_ref(),
        "its header"
    );
    fcntl_setfl(&session, fcntl_getfl(&session)? | OFlags::NONBLOCK)?;
    check_eq!(read(&session, &mut buffer), Err(Errno::AGAIN), "a read of nothing");
    check_eq!(is_ready(&session)?, PollFlags::OUT, "what poll says");
    for _ in 0..3 {
        check_eq!(write(&session, &info), Ok(info.len()), "a command");
    }
    check_eq!(
        is_ready(&session)?,
        PollFlags::IN | PollFlags::OUT,
        "what poll says of answers"
    );
    check_eq!(read(&session, &mut buffer[..64 + 31]), Ok(64), "two of three answers");
    check_eq!(read(&session, &mut buffer), Ok(32), "the third");

    context.stage("too large", Duration::from_secs(10));
    let header = MsgHdr {
        id: msg::GET_VERSION,
        size: MAX_PAYLOAD as u16 + 1,
        seq: 1,
    };
    check_eq!(
        write(&session, header.as_bytes()),
        Err(Errno::PIPE),
        "a size beyond the limit"
    );
    check_eq!(write(&session, &info), Err(Errno::PIPE), "a command after it");
    check_eq!(read(&session, &mut buffer), Ok(0), "a read after it");
    check!(
        is_ready(&session)?.contains(PollFlags::IN | PollFlags::HUP),
        "what poll says after it"
    );
    check_eq!(
        state(&fd)?,
        STATUS_HOOKED | STATUS_DESCRIPTOR | STATUS_LOST,
        "state after it"
    );
    drop(session);
    check_eq!(state(&fd)?, 0, "state in the end");
    counts_on(context, &vm)?;
    vm.exit()
}

fn is_ready(session: &OwnedFd) -> Result<PollFlags, Failure> {
    let mut asked = [PollFd::new(session, PollFlags::IN | PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default()))?;
    Ok(asked[0].revents())
}

fn full(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("hypercall", 1)?;
    let fd = vm.steal_vm_fd()?;
    let session = open(&fd, 0)?;
    let mut wire = Wire::new(Descriptor::new(dup(&session)?)?)?;
    wire.control_event(0, HYPERCALL, true)?;
    context.stage("fill", Duration::from_secs(20));
    let mut sent = Vec::new();
    loop {
        let (seq, bytes) = wire.encode(&ReadPhysical { gpa: PLACE, size: 4096 });
        match write(&session, &bytes) {
            Ok(_) => sent.push(seq),
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    check!(
        sent.len() * 4112 + MAX_MESSAGE >= RING_BYTES - 4112 && sent.len() * 4112 <= RING_BYTES,
        "{} answers found room",
        sent.len()
    );
    check_eq!(is_ready(&session)?, PollFlags::IN, "what poll says");
    // What is left has room for some events, not for all.
    let number = vm.command(0, Op::Hypercall, GUEST_REQUEST)?;
    context.stage("a write that waits", Duration::from_secs(20));
    let (seq, bytes) = wire.encode(&GetInfo);
    sent.push(seq);
    let writer = thread::spawn({
        let stream = kvmi::Stream::from(Descriptor::new(dup(&session)?)?);
        move || std::io::Write::write_all(&mut &stream, &bytes)
    });
    for seq in sent {
        check!(wire.answer(seq)?.is_ok(), "answer {seq}");
    }
    writer.join().map_err(|_| Failure::new("the writer panicked"))??;
    let event = wire.expect_event(HYPERCALL, 0)?;
    wire.reply(&event, CONTINUE)?;
    check_eq!(vm.finished(context, 0, number)?, 0, "RAX");
    wire.expect_no_event()?;
    vm.exit()
}

fn many_threads(context: &mut Context) -> Result<(), Failure> {
    const THREADS: u32 = 4;
    const COMMANDS: u32 = 5000;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    let session = open(&vm.steal_vm_fd()?, 0)?;
    context.stage("all at once", Duration::from_secs(60));
    let answered = thread::scope(|scope| -> Result<Vec<u32>, Failure> {
        for thread in 0..THREADS {
            let session = &session;
            scope.spawn(move || {
                for n in 0..COMMANDS {
                    let bytes = message::encode(msg::VM_GET_INFO, thread * COMMANDS + n, &[]);
                    assert_eq!(write(session, &bytes), Ok(bytes.len()), "a command");
                }
            });
        }
        let readers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| read_answers(&session, COMMANDS)))
            .collect();
        let mut answered = Vec::new();
        for reader in readers {
            answered.extend(reader.join().map_err(|_| Failure::new("a reader panicked"))??);
        }
        Ok(answered)
    });
    let mut answered = answered?;
    answered.sort_unstable();
    check!(
        answered.iter().copied().eq(0..THREADS * COMMANDS),
        "not each command was answered once"
    );
    vm.exit()
}

/// Takes so many answers one by one; the sequence numbers.
fn read_answers(session: &OwnedFd, answers: u32) -> Result<Vec<u32>, Failure> {
    let mut seqs = Vec::new();
    for _ in 0..answers {
        let mut answer = [0; 32];
        check_eq!(read(session, &mut answer), Ok(32), "bytes of an answer");
        seqs.push(u32::from_ne_bytes([answer[4], answer[5], answer[6], answer[7]]));
    }
    Ok(seqs)
}

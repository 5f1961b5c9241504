// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages as such: unknown ids, sizes, pieces.

use std::time::Duration;

use kvmi_uapi::error::{EINVAL, ENOSYS};
use kvmi_uapi::{MAX_PAYLOAD, MsgHdr, VcpuEventReply, VmCheckCommand, event, msg};
use zerocopy::IntoBytes;

use crate::wire::Wire;
use crate::{Context, Failure, Scenario, Transport, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::unknown",
        "messages that are no commands answer ENOSYS",
        unknown,
    ),
    scenario(
        "commands::sizes",
        "short requests read as zero, long ones are cut, the largest message passes",
        sizes,
    ),
    scenario(
        "commands::pieces",
        "a message may come in any pieces, and many may come at once",
        pieces,
    )
    .over(Transport::Socket),
    scenario(
        "commands::closing",
        "what must close the connection closes it: oversized, cut off, replies to nothing",
        closing,
    )
    .over_both(),
];

fn unknown(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("ask", Duration::from_secs(10));
    for id in [0, 22, 24, 31, 127, 131, 1000, 0x7fff, 0xfffe, 0xffff] {
        check_eq!(wire.vm(id, &[0u8; 16])?, Err(ENOSYS), "message id {id}");
    }
    vm.exit()
}

fn sizes(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("ask", Duration::from_secs(10));
    let request = VmCheckCommand {
        id: msg::VM_GET_INFO,
        ..Default::default()
    };
    for size in 2..=8 {
        let answer = wire.vm(msg::VM_CHECK_COMMAND, &request.as_bytes()[..size])?;
        check_eq!(answer, Ok(vec![]), "VM_CHECK_COMMAND of {size} bytes");
    }
    // The tail of one message must not be read as part of the next, shorter one.
    check_eq!(
        wire.vm(msg::GET_VERSION, &[0xffu8; MAX_PAYLOAD])?.map(|d| d.len()),
        Ok(16),
        "the largest message"
    );
    check_eq!(
        wire.vm(msg::VM_CHECK_COMMAND, &request.as_bytes()[..2])?,
        Ok(vec![]),
        "a short one after it"
    );
    let long = [request.as_bytes(), &[0xff; 100]].concat();
    check_eq!(
        wire.vm(msg::VM_CHECK_COMMAND, &long[..])?,
        Ok(vec![]),
        "VM_CHECK_COMMAND with a tail"
    );
    vm.exit()
}

fn pieces(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("byte by byte", Duration::from_secs(10));
    let request = VmCheckCommand {
        id: msg::VM_GET_INFO,
        ..Default::default()
    };
    let (seq, bytes) = wire.compose(msg::VM_CHECK_COMMAND, request.as_bytes());
    for byte in bytes {
        wire.write(&[byte])?;
    }
    check_eq!(wire.answer(seq)?, Ok(vec![]), "VM_CHECK_COMMAND byte by byte");
    context.stage("a hundred at once", Duration::from_secs(10));
    let mut all = Vec::new();
    let mut seqs = Vec::new();
    for _ in 0..100 {
        let (seq, bytes) = wire.compose(msg::VM_GET_INFO, &[]);
        seqs.push(seq);
        all.extend(bytes);
    }
    wire.write(&all)?;
    for wanted in seqs {
        let (seq, id, answer) = wire.next_answer()?;
        check_eq!((seq, id), (wanted, msg::VM_GET_INFO), "answers in order");
        check!(answer.is_ok(), "VM_GET_INFO was refused: {answer:?}");
    }
    vm.exit()
}

/// A way to make the kernel close the connection.
type Offence = fn(&mut Wire) -> Result<(), Failure>;

fn header(id: u16, size: u16) -> MsgHdr {
    MsgHdr { id, size, seq: 7 }
}

fn continue_hypercall() -> VcpuEventReply {
    VcpuEventReply {
        action: event::CONTINUE,
        event: event::HYPERCALL as u8,
        ..Default::default()
    }
}

fn closing(context: &mut Context) -> Result<(), Failure> {
    const OFFENCES: &[(&str, Offence)] = &[
        ("a payload of 8185 bytes", |wire| {
            Ok(wire.write_broken(header(msg::GET_VERSION, 8185).as_bytes())?)
        }),
        ("a payload of 65535 bytes", |wire| {
            Ok(wire.write_broken(header(0xffff, 0xffff).as_bytes())?)
        }),
        ("half a header", |wire| {
            wire.write_broken(&header(msg::GET_VERSION, 0).as_bytes()[..5])?;
            Ok(wire.shutdown(std::net::Shutdown::Write)?)
        }),
        ("half a payload", |wire| {
            wire.write_broken(header(msg::VM_CHECK_COMMAND, 8).as_bytes())?;
            wire.write_broken(&[0; 3])?;
            Ok(wire.shutdown(std::net::Shutdown::Write)?)
        }),
        ("a reply when no event is open", |wire| {
            wire.reply_raw(1, 0, &continue_hypercall(), &[])
        }),
    ];
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("halt", 1)?;
    for (what, offence) in OFFENCES {
        context.stage(what, Duration::from_secs(10));
        let mut wire = context.hook(&vm)?;
        check!(wire.vcpu_count()? == 1, "vCPUs");
        offence(&mut wire)?;
        wire.expect_closed()?;
        check_eq!(wire.untaken_answers(), 0, "answers to {what}");
        check_eq!(vm.unhook()?, 0, "errno of UNHOOK after {what}");
    }
    context.stage(
        "a reply with a vCPU that does not exist is only refused",
        Duration::from_secs(10),
    );
    let mut wire = context.hook(&vm)?;
    wire.reply_raw(1, 9, &continue_hypercall(), &[])?;
    let (_, id, answer) = wire.next_answer()?;
    check_eq!((id, answer), (msg::VCPU_EVENT, Err(EINVAL)), "answer");
    check!(wire.vcpu_count()? == 1, "vCPUs");
    vm.exit()
}

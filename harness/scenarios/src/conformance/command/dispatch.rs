// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every command is asked before its own checks (docs/protocol.md, 3.5 and 3.6), and that it works at all.

use std::net::Shutdown;

use kvmi_uapi::error::{EAGAIN, EBUSY, EINVAL, ENOENT, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM};
use kvmi_uapi::{MAX_PAYLOAD, MsgHdr, msg};
use zerocopy::IntoBytes;

use super::{Fixture, UNINITIALISED, VCPUS};
use crate::commands::charged;
use crate::conformance::{Aspect, Case, here, never};
use crate::vmm::Permission;
use crate::wire::vcpu_payload;
use crate::{Context, Failure, check, check_eq};

pub(super) const WORKS: &[Case<Fixture>] = &[here(Aspect::Works, "a good request", works)];

pub(super) const PERMISSION: &[Case<Fixture>] = &[here(
    Aspect::Error(EPERM),
    "the VMM does not allow it; nothing else is looked at before",
    not_allowed,
)];

pub(super) const QUERY: &[Case<Fixture>] = &[never(
    Aspect::Error(EPERM),
    "the VMM cannot forbid a query command (2.2)",
)];

pub(super) const PADDING: &[Case<Fixture>] = &[here(Aspect::Error(EINVAL), "padding, each byte of it", padding)];

pub(super) const VM: &[Case<Fixture>] = &[];

/// Why a VM command has none of these errors, where it has none.
pub(super) const NO_VM_HAS: &[Case<Fixture>] = &[
    never(Aspect::Error(EINVAL), NO_REQUEST),
    never(Aspect::Error(EAGAIN), NO_VCPU),
    never(Aspect::Error(ENOENT), NOTHING_MISSING),
    never(Aspect::Error(EBUSY), NO_VCPU),
    never(Aspect::Error(ENOMEM), "it needs no memory that the session has not got"),
    never(Aspect::Error(EOPNOTSUPP), EVERYWHERE),
    never(Aspect::Error(ENOSYS), CARRIED_OUT),
];

/// Why a vCPU command has none of these errors, where it has none.
pub(super) const NO_VCPU_HAS: &[Case<Fixture>] = &[
    never(Aspect::Error(ENOENT), NOTHING_MISSING),
    never(Aspect::Error(EOPNOTSUPP), EVERYWHERE),
    never(Aspect::Error(ENOSYS), CARRIED_OUT),
];

const NO_REQUEST: &str = "it has no request that could be wrong";
const NO_VCPU: &str = "it waits for no vCPU";
const NOTHING_MISSING: &str = "it looks for nothing that could be missing";
const EVERYWHERE: &str = "every CPU can do it, in every VM, at any time";
const CARRIED_OUT: &str = "this kernel carries it out";

pub(super) const VCPU: &[Case<Fixture>] = &[
    here(
        Aspect::Error(EINVAL),
        "padding of the vCPU header, each byte of it",
        header_padding,
    ),
    here(Aspect::Error(EINVAL), "no such vCPU", no_such_vcpu),
    here(Aspect::Error(EAGAIN), "a vCPU before its INIT", uninitialised),
    here(
        Aspect::Error(EBUSY),
        "1 MiB of commands waits for the vCPU",
        queue_is_full,
    ),
    here(
        Aspect::Error(ENOMEM),
        "the memory cgroup of the VMM has none left",
        no_memory,
    ),
];

/// No answer is the end of the connection alone.
pub(super) const CLOSING: &[Case<Fixture>] = &[
    here(Aspect::Closes, "a size of 8185 bytes in its header", too_large),
    here(Aspect::Closes, "the stream ends within it", cut_off),
];

fn works(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    // What a newer tool has beyond the structure is ignored.
    let longer = [stand.good(), vec![0xff; 64]].concat();
    for (request, what) in [(stand.good(), "a good request"), (longer, "a request with a tail")] {
        let data = stand.works(&request, what)?;
        check_eq!(data.len(), stand.command.reply_bytes(), "bytes of the answer to {what}");
        stand.settle(context)?;
    }
    Ok(())
}

fn not_allowed(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    let id = stand.command.id;
    stand.refused_without(Permission::Command, id, &stand.good())?;
    stand.permit(Permission::Command, id, false)?;
    stand.payload_refused(&[0xff; 16], "ones by a tool without it")?;
    stand.permit(Permission::Command, id, true)
}

fn padding(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    for at in stand.command.padding() {
        for value in [1, 0x80] {
            let request = stand.good_but(at, &[value]);
            stand.refused(&request, &format!("byte {at} at {value}"))?;
        }
    }
    Ok(())
}

fn header_padding(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    for at in 2..8 {
        let mut payload = vcpu_payload(0, &stand.good());
        payload[at] = 0x80;
        stand.payload_refused(&payload, &format!("byte {at} of the vCPU header at 0x80"))?;
    }
    Ok(())
}

fn no_such_vcpu(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    for vcpu in [VCPUS, 0x7fff, 0xffff] {
        let payload = vcpu_payload(vcpu, &stand.good());
        stand.payload_refused(&payload, &format!("vCPU {vcpu}"))?;
    }
    Ok(())
}

fn uninitialised(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    let payload = vcpu_payload(UNINITIALISED, &stand.good());
    stand.payload_refused(&payload, "a vCPU before its INIT")
}

fn queue_is_full(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    stand.while_kept_out(|stand| {
        for _ in 0..charged::FIT {
            stand.wire.send(msg::VCPU_GET_INFO, &charged::largest(&[]))?;
        }
        stand.refused(&stand.good(), "1 MiB that waits")
    })?;
    for _ in 0..charged::FIT {
        let (_, id, answer) = stand.wire.next_answer()?;
        check!(
            id == msg::VCPU_GET_INFO && answer.is_ok(),
            "command {id}, which waited, was answered {answer:?}"
        );
    }
    Ok(())
}

fn no_memory(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    let id = stand.command.id;
    let payload = charged::largest(&stand.harmless());
    let (mut waiting, mut refused) = (0, 0);
    stand.while_kept_out(|stand| {
        charged::limit(charged::SLACK)?;
        (waiting, refused) = charged::fill(&mut stand.wire, id, &payload)?;
        charged::unlimit()
    })?;
    check!(
        waiting > 0 && refused > 0,
        "{waiting} commands wait and {refused} were refused"
    );
    stand.seen += refused;
    for _ in 0..waiting {
        // Those that found memory wait and are carried out.
        check_eq!(stand.wire.next_answer()?.1, id, "command that was answered");
    }
    Ok(())
}

fn too_large(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    let header = MsgHdr {
        id: stand.command.id,
        size: MAX_PAYLOAD as u16 + 1,
        seq: 7,
    };
    stand.wire.write_broken(header.as_bytes())?;
    stand.closes(context)
}

fn cut_off(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    let payload = stand.payload(&stand.good());
    let (_, bytes) = stand.wire.compose(stand.command.id, &payload);
    stand.wire.write_broken(&bytes[..bytes.len() - 1])?;
    stand.wire.shutdown(Shutdown::Write)?;
    stand.closes(context)
}

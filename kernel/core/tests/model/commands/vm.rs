// SPDX-License-Identifier: GPL-2.0-only
//! 4.1: VM commands.

use kvmi_uapi::{
    error::{EBUSY, EINVAL, ENOENT, EOPNOTSUPP, EPERM},
    event, msg,
};
use proptest::prelude::*;

use super::{Command, DONE, Refusal, Request, Run, command_id, event_id, nothing, refuse_if, switch, switch_on};
use crate::{
    events::Event,
    fake::MEMORY,
    spec::{MAX_PAUSES, OF_VM, Spec},
};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        id: msg::GET_VERSION,
        name: "GET_VERSION",
        weight: 1,
        bytes: 0,
        request: nothing,
        pads: &[],
        errors: &[],
        // version 1, 8184 bytes; singlestep, extension level, access: the latter as the fake VM has them.
        run: Run::Vm(|_, _| Ok(vec![1, 0, 0, 0, 0xf8, 0x1f, 0, 0, 1, 2, 7, 0, 0, 0, 0, 0])),
    },
    Command {
        id: msg::VM_CHECK_COMMAND,
        name: "VM_CHECK_COMMAND",
        weight: 2,
        bytes: 8,
        request: || command_id().prop_map(|id| id.to_le_bytes().to_vec()).boxed(),
        pads: &[2, 3, 4, 5, 6, 7],
        errors: &[EINVAL, ENOENT, EPERM],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            let id = request.u16(0);
            refuse_if(Command::by_id(id).is_none(), ENOENT)?;
            refuse_if(!spec.hooked().commands.contains(&id), EPERM)?;
            DONE
        }),
    },
    Command {
        id: msg::VM_CHECK_EVENT,
        name: "VM_CHECK_EVENT",
        weight: 2,
        bytes: 8,
        request: || event_id().prop_map(|id| id.to_le_bytes().to_vec()).boxed(),
        pads: &[2, 3, 4, 5, 6, 7],
        errors: &[EINVAL, ENOENT, EPERM],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            let id = request.u16(0);
            refuse_if(id != event::UNHOOK && Event::by_id(id).is_none(), ENOENT)?;
            refuse_if(!spec.hooked().events.contains(&id), EPERM)?;
            DONE
        }),
    },
    Command {
        id: msg::VM_GET_INFO,
        name: "VM_GET_INFO",
        weight: 1,
        bytes: 0,
        request: nothing,
        pads: &[],
        errors: &[],
        run: Run::Vm(|spec, _| Ok(vec![spec.cpus.len() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
    },
    Command {
        id: msg::VM_CONTROL_EVENTS,
        name: "VM_CONTROL_EVENTS",
        weight: 3,
        bytes: 8,
        request: || {
            let id = prop_oneof![3 => Just(event::UNHOOK), 3 => Just(event::CREATE_VCPU), 1 => event_id()];
            (id, switch())
                .prop_map(|(id, enable)| [&id.to_le_bytes()[..], &[enable]].concat())
                .boxed()
        },
        pads: &[3, 4, 5, 6, 7],
        errors: &[EINVAL, EPERM],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            let id = request.u16(0);
            refuse_if(request.u8(2) > 1 || !OF_VM.contains(&id), EINVAL)?;
            let session = spec.hooked();
            refuse_if(!session.events.contains(&id), EPERM)?;
            switch_on(&mut session.of_vm, id, request.u8(2) == 1);
            DONE
        }),
    },
    Command {
        id: msg::VM_READ_PHYSICAL,
        name: "VM_READ_PHYSICAL",
        weight: 3,
        bytes: 16,
        request: || range().prop_map(|(gpa, size)| physical(gpa, size)).boxed(),
        pads: &[10, 11, 12, 13, 14, 15],
        errors: &[EINVAL, ENOENT],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            let (gpa, size) = in_one_page(request)?;
            refuse_if(gpa >= MEMORY, ENOENT)?;
            Ok(spec.memory[gpa as usize..][..size].to_vec())
        }),
    },
    Command {
        id: msg::VM_WRITE_PHYSICAL,
        name: "VM_WRITE_PHYSICAL",
        weight: 3,
        bytes: 16,
        request: || {
            (range(), any::<u8>(), 0usize..3)
                .prop_map(|((gpa, size), byte, more)| {
                    let data = vec![byte; usize::from(size.min(4097)) + more];
                    [physical(gpa, size), data].concat()
                })
                .boxed()
        },
        pads: &[10, 11, 12, 13, 14, 15],
        errors: &[EINVAL, ENOENT, EPERM],
        run: Run::Vm(|spec, request| {
            let data = request.bytes.get(16..).unwrap_or_default();
            let Some(data) = data.get(..request.u16(8).into()) else {
                return Err(Refusal::Close);
            };
            request.padding()?;
            let (gpa, size) = in_one_page(request)?;
            refuse_if(gpa >= MEMORY, ENOENT)?;
            // The fake VM's second page is read-only.
            refuse_if(gpa >= 4096, EPERM)?;
            spec.memory[gpa as usize..][..size].copy_from_slice(data);
            DONE
        }),
    },
    Command {
        id: msg::VM_PAUSE_VCPU,
        name: "VM_PAUSE_VCPU",
        weight: 6,
        bytes: 8,
        request: || (0u8..5, switch()).prop_map(|(vcpu, wait)| vec![vcpu, 0, wait]).boxed(),
        pads: &[3, 4, 5, 6, 7],
        errors: &[EINVAL, EPERM, EBUSY],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            let vcpu = usize::from(request.u16(0));
            refuse_if(request.u8(2) > 1 || vcpu >= spec.cpus.len(), EINVAL)?;
            let session = spec.hooked();
            refuse_if(!session.events.contains(&event::PAUSE), EPERM)?;
            refuse_if(session.vcpus[vcpu].pauses >= MAX_PAUSES, EBUSY)?;
            session.vcpus[vcpu].pauses += 1;
            DONE
        }),
    },
    Command {
        id: msg::VM_CONTROL_CLEANUP,
        name: "VM_CONTROL_CLEANUP",
        weight: 2,
        bytes: 8,
        request: || switch().prop_map(|enable| vec![enable]).boxed(),
        pads: &[1, 2, 3, 4, 5, 6, 7],
        errors: &[EINVAL],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            refuse_if(request.u8(0) > 1, EINVAL)?;
            spec.hooked().cleanup = request.u8(0) == 1;
            DONE
        }),
    },
    Command {
        id: msg::VM_SET_PAGE_ACCESS,
        name: "VM_SET_PAGE_ACCESS",
        weight: 3,
        bytes: 8,
        request: entries,
        pads: &[2, 3, 4, 5, 6, 7],
        errors: &[EINVAL, EOPNOTSUPP],
        run: Run::Vm(|spec, request| {
            let entries = whole_entries(request)?;
            request.padding()?;
            let mut first = DONE;
            for entry in entries.chunks(ENTRY) {
                let outcome = set_access(spec, entry);
                if first.is_ok() {
                    first = outcome;
                }
            }
            first
        }),
    },
    Command {
        id: msg::VM_GET_PAGE_ACCESS,
        name: "VM_GET_PAGE_ACCESS",
        weight: 3,
        bytes: 8,
        request: entries,
        pads: &[2, 3, 4, 5, 6, 7],
        errors: &[EINVAL],
        run: Run::Vm(|spec, request| {
            let entries = whole_entries(request)?;
            request.padding()?;
            let mut reply = Vec::new();
            for entry in entries.chunks(ENTRY) {
                refuse_if(entry[9..].iter().any(|pad| *pad != 0), EINVAL)?;
                let access = spec.access[page(entry)?];
                reply.extend([&entry[..8], &[access], &[0; 7]].concat());
            }
            Ok(reply)
        }),
    },
    Command {
        id: msg::VM_GET_VCPU_STATES,
        name: "VM_GET_VCPU_STATES",
        weight: 3,
        bytes: 8,
        request: || {
            let first = prop_oneof![8 => 0u16..5, 1 => any::<u16>()];
            let count = prop_oneof![8 => 0u16..5, 1 => any::<u16>()];
            (first, count)
                .prop_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()].concat())
                .boxed()
        },
        pads: &[4, 5, 6, 7],
        errors: &[EINVAL],
        run: Run::Vm(|spec, request| {
            request.padding()?;
            let (first, count) = (request.u16(0), request.u16(2));
            // More than 1022 do not fit into a reply.
            let end = usize::from(first) + usize::from(count);
            refuse_if(count > 1022 || end > spec.cpus.len(), EINVAL)?;
            // As the fake VM has them: held by event 5, in KVM_RUN.
            let state = |vcpu: usize| [5, 5, 1, 0, vcpu as u8, 1, 0, 0];
            Ok((first.into()..end).flat_map(state).collect())
        }),
    },
    Command {
        id: msg::VM_RELEASE,
        name: "VM_RELEASE",
        weight: 1,
        bytes: 0,
        request: nothing,
        pads: &[],
        errors: &[],
        // HOOK never keeps the played kernel's vCPUs stopped: the glue's waits are the lab's.
        run: Run::Vm(|_, _| DONE),
    },
];

/// Bytes of an entry: gpa, access, padding.
const ENTRY: usize = 16;

/// Up to three entries, most of them good, and now and then fewer than the head says.
fn entries() -> BoxedStrategy<Vec<u8>> {
    let gpa = prop_oneof![8 => 0..MEMORY, 1 => any::<u64>()];
    let access = prop_oneof![8 => 0u8..8, 1 => any::<u8>()];
    let pad = prop_oneof![15 => Just(0u8), 1 => any::<u8>()];
    let entry = (gpa, access, pad)
        .prop_map(|(gpa, access, pad)| [&gpa.to_le_bytes()[..], &[access, 0, 0, 0, 0, 0, 0, pad]].concat());
    let missing = prop_oneof![30 => Just(0u16), 1 => 1u16..600];
    (proptest::collection::vec(entry, 0..4), missing)
        .prop_map(|(entries, missing)| {
            let count = entries.len() as u16 + missing;
            [&count.to_le_bytes()[..], &[0; 6], &entries.concat()].concat()
        })
        .boxed()
}

/// As many as the head says.
fn whole_entries<'a>(request: &Request<'a>) -> Result<&'a [u8], Refusal> {
    let bytes = ENTRY * usize::from(request.u16(0));
    request
        .bytes
        .get(8..)
        .unwrap_or_default()
        .get(..bytes)
        .ok_or(Refusal::Close)
}

/// The page of an entry, where there is memory.
fn page(entry: &[u8]) -> Result<usize, Refusal> {
    let gpa = Request {
        bytes: entry,
        pads: &[],
    }
    .u64(0);
    refuse_if(gpa >= MEMORY, EINVAL)?;
    Ok((gpa / 4096) as usize)
}

/// The fake VM can deny everything but reads alone where execution is allowed.
fn set_access(spec: &mut Spec, entry: &[u8]) -> Result<Vec<u8>, Refusal> {
    let access = entry[8];
    refuse_if(access > 7 || entry[9..].iter().any(|pad| *pad != 0), EINVAL)?;
    refuse_if(![0, 1, 3, 5, 7].contains(&access), EOPNOTSUPP)?;
    spec.access[page(entry)?] = access;
    DONE
}

/// Guest memory: within the two pages that there are, at their borders, beyond.
fn range() -> impl Strategy<Value = (u64, u16)> {
    let gpa = prop_oneof![4 => 0..MEMORY, 2 => 4090u64..4100, 1 => MEMORY - 4..MEMORY + 4, 1 => any::<u64>()];
    let size = prop_oneof![6 => 1u16..9, 1 => 4090u16..4098, 1 => Just(0)];
    (gpa, size)
}

fn physical(gpa: u64, size: u16) -> Vec<u8> {
    [&gpa.to_le_bytes()[..], &size.to_le_bytes(), &[0; 6]].concat()
}

/// 1 to 4096 bytes that do not leave their page.
fn in_one_page(request: &Request<'_>) -> Result<(u64, usize), Refusal> {
    let (gpa, size) = (request.u64(0), u64::from(request.u16(8)));
    refuse_if(size == 0 || gpa % 4096 + size > 4096, EINVAL)?;
    Ok((gpa, size as usize))
}

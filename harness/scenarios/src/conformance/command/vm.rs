// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM commands (docs/protocol.md, 4.1).

use kvmi_guests::layout;
use kvmi_uapi::error::{EAGAIN, EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EPERM};
use kvmi_uapi::{
    MAX_PAGE_ACCESS_ENTRIES, PageAccessEntry, VcpuRunState, VmCheckCommand, VmCheckEvent, VmControlCleanup,
    VmControlEvents, VmGetVcpuStates, VmPauseVcpu, VmReadPhysical, VmWritePhysical, event, msg,
};
use zerocopy::IntoBytes;

use super::{Command, Fixture, VCPUS};
use crate::commands::charged;
use crate::conformance::{Aspect, Case, Shown, here, never, there};
use crate::pages::request as page_access;
use crate::vmm::{Permission, VmConfig};
use crate::{Context, Failure, check_eq};

pub(super) const COMMANDS: &[Command] = &[
    GET_VERSION,
    VM_CHECK_COMMAND,
    VM_CHECK_EVENT,
    VM_GET_INFO,
    VM_CONTROL_EVENTS,
    VM_READ_PHYSICAL,
    VM_WRITE_PHYSICAL,
    VM_PAUSE_VCPU,
    VM_CONTROL_CLEANUP,
    VM_SET_PAGE_ACCESS,
    VM_GET_PAGE_ACCESS,
    VM_GET_VCPU_STATES,
    VM_RELEASE,
];

const PLACE: u64 = layout::SCRATCH;
const PAGE: u64 = 4096;
const R: u8 = PageAccessEntry::READ;
const W: u8 = PageAccessEntry::WRITE;
const X: u8 = PageAccessEntry::EXEC;

/// Pages in no memory slot: behind RAM, behind what the CPU can address, the last of all.
const NOWHERE: [u64; 4] = [layout::RAM_BYTES, 1 << 40, 1 << 52, !0xfff];

const GET_VERSION: Command = Command::new::<{ msg::GET_VERSION }>(
    "conformance::get_version",
    Vec::new,
    &[there(Aspect::Works, "commands::get_version")],
);

const VM_CHECK_COMMAND: Command = Command::new::<{ msg::VM_CHECK_COMMAND }>(
    "conformance::vm_check_command",
    || {
        VmCheckCommand {
            id: msg::VM_GET_INFO,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(
            Aspect::Error(ENOENT),
            "a command that this kernel does not carry out",
            |stand, _| {
                [0, 1, 22, 24, 26, 31, 127, 131, 134, 0x7fff, 0xffff]
                    .iter()
                    .try_for_each(|id: &u16| stand.refused(&stand.good_but(0, id.as_bytes()), &format!("id {id}")))
            },
        ),
        here(
            Aspect::Error(EPERM),
            "a command that the VMM does not allow",
            |stand, _| stand.refused_without(Permission::Command, msg::VM_GET_INFO, &stand.good()),
        ),
        there(Aspect::Works, "commands::check"),
    ],
);

const VM_CHECK_EVENT: Command = Command::new::<{ msg::VM_CHECK_EVENT }>(
    "conformance::vm_check_event",
    || {
        VmCheckEvent {
            id: event::PAUSE,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(
            Aspect::Error(ENOENT),
            "an event that this kernel does not send",
            |stand, _| {
                [2, 4, 6, 21, 127, 128, 131, 0xffff]
                    .iter()
                    .try_for_each(|id: &u16| stand.refused(&stand.good_but(0, id.as_bytes()), &format!("id {id}")))
            },
        ),
        here(
            Aspect::Error(EPERM),
            "an event that the VMM does not allow",
            |stand, _| stand.refused_without(Permission::Event, event::PAUSE, &stand.good()),
        ),
        there(Aspect::Works, "commands::check"),
    ],
);

const VM_GET_INFO: Command = Command::new::<{ msg::VM_GET_INFO }>(
    "conformance::vm_get_info",
    Vec::new,
    &[there(Aspect::Works, "commands::vm_get_info")],
);

const VM_CONTROL_EVENTS: Command = Command::new::<{ msg::VM_CONTROL_EVENTS }>(
    "conformance::vm_control_events",
    || {
        VmControlEvents {
            event_id: event::UNHOOK,
            enable: 1,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(Aspect::Error(EINVAL), "`enable` above 1", |stand, _| {
            stand.refused(&stand.good_but(2, &[2]), "enable 2")
        }),
        here(Aspect::Works, "on, on, off, off, and on", |stand, _| {
            for enable in [1, 1, 0, 0, 1] {
                stand.works(&stand.good_but(2, &[enable]), &format!("{enable}"))?;
            }
            Ok(())
        }),
        here(
            Aspect::Error(EINVAL),
            "an event that is neither UNHOOK nor CREATE_VCPU",
            |stand, _| {
                [event::PAUSE, event::CR, 2, 4, 128, 0xffff]
                    .iter()
                    .try_for_each(|id| stand.refused(&stand.good_but(0, id.as_bytes()), &format!("event {id}")))
            },
        ),
        here(Aspect::Error(EPERM), "the VMM does not allow the event", |stand, _| {
            [event::UNHOOK, event::CREATE_VCPU].iter().try_for_each(|event| {
                let request = stand.good_but(0, event.as_bytes());
                stand.refused_without(Permission::Event, *event, &request)
            })
        }),
    ],
);

fn range(gpa: u64, size: u16) -> Vec<u8> {
    VmReadPhysical {
        gpa,
        size,
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

/// What VM_READ_PHYSICAL and VM_WRITE_PHYSICAL ask for: the latter brings data.
fn physical(stand: &Fixture, gpa: u64, size: u16) -> Vec<u8> {
    let data = if stand.command.id == msg::VM_WRITE_PHYSICAL {
        size
    } else {
        0
    };
    [range(gpa, size), vec![0x5a; data.into()]].concat()
}

fn not_in_a_page(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    for (offset, size) in [(0, 4097), (4095, 2), (1, 4096), (4000, 97)] {
        let request = physical(stand, PLACE + offset, size);
        stand.refused(&request, &format!("{size} bytes at {offset:#x}"))?;
    }
    Ok(())
}

fn no_bytes(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    stand.refused(&physical(stand, PLACE, 0), "no bytes")
}

fn no_slot(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    for gpa in NOWHERE {
        stand.refused(&physical(stand, gpa, 8), &format!("8 bytes at {gpa:#x}"))?;
    }
    Ok(())
}

/// A slot whose memory is no longer the VMM's own.
fn hidden(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    stand.vm.add_slot(layout::ANONYMOUS_SLOT, PAGE)?;
    stand.works(&physical(stand, layout::ANONYMOUS_SLOT, 8), "8 bytes of a slot")?;
    stand.vm.hide_slot()?;
    stand.refused(
        &physical(stand, layout::ANONYMOUS_SLOT, 8),
        "8 bytes of a slot without memory",
    )
}

const VM_READ_PHYSICAL: Command = Command::new::<{ msg::VM_READ_PHYSICAL }>(
    "conformance::vm_read_physical",
    || range(PLACE, 8),
    &[
        here(Aspect::Error(EINVAL), "a size of 0", no_bytes),
        here(Aspect::Error(EINVAL), "a range that leaves its page", not_in_a_page),
        here(Aspect::Error(ENOENT), "no memory slot", no_slot),
        here(
            Aspect::Error(ENOENT),
            "the memory behind the slot cannot be read",
            hidden,
        ),
        there(Aspect::Works, "commands::vm_read_physical"),
    ],
);

const VM_WRITE_PHYSICAL: Command = Command::new::<{ msg::VM_WRITE_PHYSICAL }>(
    "conformance::vm_write_physical",
    || {
        let request = VmWritePhysical {
            gpa: PLACE,
            size: 8,
            ..Default::default()
        };
        [request.as_bytes(), &[0; 8]].concat()
    },
    &[
        here(Aspect::Error(EINVAL), "a size of 0", no_bytes),
        here(Aspect::Error(EINVAL), "a range that leaves its page", not_in_a_page),
        here(Aspect::Error(ENOENT), "no memory slot", no_slot),
        here(
            Aspect::Error(ENOENT),
            "the memory behind the slot cannot be written",
            hidden,
        ),
        here(Aspect::Error(EPERM), "a read-only slot", |stand, _| {
            stand.vm.add_read_only_slot(PAGE)?;
            stand.refused(
                &physical(stand, layout::READ_ONLY_SLOT, 8),
                "8 bytes of a read-only slot",
            )
        }),
        here(
            Aspect::Error(EOPNOTSUPP),
            "a dirty ring alone records what is dirty",
            dirty_ring,
        ),
        here(Aspect::Closes, "fewer bytes than it says", |stand, context| {
            let request = stand.good();
            stand.wire.send(stand.command.id, &request[..request.len() - 1])?;
            stand.closes(context)
        }),
        there(Aspect::Works, "commands::vm_write_physical"),
        there(Aspect::Works, "commands::vm_write_physical_marks_dirty"),
        there(Aspect::Error(EPERM), "commands::vm_write_physical_read_only_slot"),
    ],
);

/// The stand's VM has no ring, so another takes its place for a while.
fn dirty_ring(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    let vm = context.vm_with(&VmConfig {
        dirty_ring: true,
        ..VmConfig::new(stand.command.guest, 1)
    })?;
    vm.run()?;
    vm.wait_ready(context)?;
    let wire = context.hook(&vm)?;
    let (vm, wire) = (
        std::mem::replace(&mut stand.vm, vm),
        std::mem::replace(&mut stand.wire, wire),
    );
    let good = stand.good();
    stand.works(&good, "8 bytes while nothing records what is dirty")?;
    stand.vm.log_dirty(true)?;
    stand.refused(&good, "8 bytes while the ring does")?;
    stand.vm.log_dirty(false)?;
    stand.works(&good, "8 bytes while nothing does again")?;
    stand.wire = wire;
    std::mem::replace(&mut stand.vm, vm).exit()
}

const VM_PAUSE_VCPU: Command = Command::new::<{ msg::VM_PAUSE_VCPU }>(
    "conformance::vm_pause_vcpu",
    || VmPauseVcpu::default().as_bytes().to_vec(),
    &[
        here(Aspect::Error(EINVAL), "`wait` above 1", |stand, _| {
            stand.refused(&stand.good_but(2, &[2]), "wait 2")
        }),
        here(Aspect::Error(EINVAL), "no such vCPU", |stand, _| {
            [VCPUS, 0x7fff, 0xffff]
                .iter()
                .try_for_each(|vcpu| stand.refused(&stand.good_but(0, vcpu.as_bytes()), &format!("vCPU {vcpu}")))
        }),
        here(Aspect::Error(EPERM), "the VMM does not allow PAUSE", |stand, _| {
            stand.refused_without(Permission::Event, event::PAUSE, &stand.good())
        }),
        never(Aspect::Error(EAGAIN), "it is accepted for a vCPU before its INIT too"),
        there(Aspect::Error(EBUSY), "pause::request_limit"),
        there(Aspect::Works, "pause::with_wait"),
    ],
);

const VM_CONTROL_CLEANUP: Command = Command::new::<{ msg::VM_CONTROL_CLEANUP }>(
    "conformance::vm_control_cleanup",
    || {
        VmControlCleanup {
            enable: 1,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    },
    &[
        here(Aspect::Error(EINVAL), "`enable` above 1", |stand, _| {
            stand.refused(&stand.good_but(0, &[2]), "enable 2")
        }),
        here(Aspect::Works, "off, off, and on", |stand, _| {
            for enable in [0, 0, 1] {
                stand.works(&stand.good_but(0, &[enable]), &format!("{enable}"))?;
            }
            Ok(())
        }),
        there(Aspect::Works, "unhook::cleanup_of_msr"),
        there(Aspect::Works, "unhook::cleanup_of_descriptor"),
        there(Aspect::Works, "unhook::cleanup_of_cr3"),
        there(Aspect::Works, "unhook::cleanup_of_breakpoint"),
    ],
);

fn of_nowhere(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    for gpa in NOWHERE {
        stand.refused(&page_access(&[(gpa, R)]), &format!("a page at {gpa:#x}"))?;
    }
    Ok(())
}

fn fewer_entries(stand: &mut Fixture, context: &mut Context) -> Result<(), Failure> {
    let whole = page_access(&[(PLACE, R), (PLACE + PAGE, R)]);
    stand.wire.send(stand.command.id, &whole[..whole.len() - 1])?;
    stand.closes(context)
}

fn cannot_be(stand: &mut Fixture, access: &[u8]) -> Result<(), Failure> {
    for &access in access {
        stand.refused(&page_access(&[(PLACE, access)]), &format!("access {access}"))?;
    }
    Ok(())
}

/// Nodes of the map need memory, and are scattered as far as they can be.
fn no_nodes(stand: &mut Fixture, _: &mut Context) -> Result<(), Failure> {
    const BYTES: u64 = 4 << 30;
    const OF_A_NODE: u64 = 4 << 20;
    stand.vm.add_slot(layout::SPARSE_SLOT, BYTES)?;
    let pages: Vec<_> = (0..BYTES / OF_A_NODE)
        .map(|i| layout::SPARSE_SLOT + i * OF_A_NODE)
        .collect();
    let restrict = |stand: &mut Fixture, pages: &[u64], access| {
        stand.ask(&page_access(
            &pages.iter().map(|&gpa| (gpa, access)).collect::<Vec<_>>(),
        ))
    };
    charged::limit(charged::SLACK / 4)?;
    // A few at a time, for the kernel looks for memory long before it refuses a node.
    let mut limited = Ok(vec![]);
    for some in pages.chunks(32) {
        limited = restrict(stand, some, R)?;
        if limited.is_err() {
            break;
        }
    }
    charged::unlimit()?;
    stand.is_refused(&limited, "pages in as many nodes")?;
    for access in [R, R | W | X] {
        for some in pages.chunks(MAX_PAGE_ACCESS_ENTRIES) {
            let answer = restrict(stand, some, access)?;
            check_eq!(answer, Ok(vec![]), "the same with memory, and lifted");
        }
    }
    Ok(())
}

const VM_SET_PAGE_ACCESS: Command = Command::new::<{ msg::VM_SET_PAGE_ACCESS }>(
    "conformance::vm_set_page_access",
    || page_access(&[(PLACE, R | W | X)]),
    &[
        here(
            Aspect::Error(EINVAL),
            "bits of `access` that have no meaning",
            |stand, _| cannot_be(stand, &[8, 0x10, 0x80, 0xff]),
        ),
        here(Aspect::Error(EINVAL), "a page in no memory slot", of_nowhere),
        here(Aspect::Error(EOPNOTSUPP), "`-w-` and `-wx`", |stand, _| {
            cannot_be(stand, &[W, W | X])
        }),
        Case {
            about: Aspect::Error(EOPNOTSUPP),
            what: "`--x`",
            vmx: Shown::Never("EPT of each lane's CPU has it"),
            svm: Shown::Here(|stand, _| cannot_be(stand, &[X])),
        },
        there(Aspect::Error(EOPNOTSUPP), "pages::shadow_paging"),
        here(
            Aspect::Error(ENOMEM),
            "the memory cgroup of the VMM has none left for the map",
            no_nodes,
        ),
        here(Aspect::Closes, "fewer entries than it says", fewer_entries),
        there(Aspect::Works, "pages::set"),
        there(Aspect::Works, "pages::kinds"),
        there(Aspect::Works, "pages::full_message"),
    ],
);

const VM_GET_PAGE_ACCESS: Command = Command::new::<{ msg::VM_GET_PAGE_ACCESS }>(
    "conformance::vm_get_page_access",
    || page_access(&[(PLACE, 0)]),
    &[
        here(Aspect::Error(EINVAL), "a page in no memory slot", of_nowhere),
        here(Aspect::Closes, "fewer entries than it says", fewer_entries),
        there(Aspect::Works, "pages::get"),
    ],
);

fn states(first: u16, count: u16) -> Vec<u8> {
    VmGetVcpuStates { first, count, pad: 0 }.as_bytes().to_vec()
}

const VM_GET_VCPU_STATES: Command = Command::new::<{ msg::VM_GET_VCPU_STATES }>(
    "conformance::vm_get_vcpu_states",
    || states(0, 1),
    &[
        here(Aspect::Works, "of each vCPU, of one, of none", |stand, _| {
            for (first, count) in [(0, VCPUS), (VCPUS - 1, 1), (0, 0), (VCPUS, 0)] {
                let what = format!("{count} vCPUs from {first}");
                let data = stand.works(&states(first, count), &what)?;
                check_eq!(
                    data.len(),
                    usize::from(count) * size_of::<VcpuRunState>(),
                    "bytes for {what}"
                );
            }
            Ok(())
        }),
        here(Aspect::Error(EINVAL), "no such vCPU", |stand, _| {
            for (first, count) in [(0, VCPUS + 1), (VCPUS, 1), (0xffff, 0), (0xffff, 0xffff)] {
                stand.refused(&states(first, count), &format!("{count} vCPUs from {first}"))?;
            }
            Ok(())
        }),
        there(Aspect::Works, "lifecycle::vcpu_states"),
    ],
);

const VM_RELEASE: Command = Command::new::<{ msg::VM_RELEASE }>(
    "conformance::vm_release",
    Vec::new,
    &[
        here(Aspect::Works, "again and again, with nothing to let go", |stand, _| {
            for _ in 0..3 {
                stand.works(&[], "a session that stops nothing")?;
            }
            Ok(())
        }),
        there(Aspect::Works, "lifecycle::hook_stopped"),
        there(Aspect::Works, "destroy::taken_over_stopped"),
    ],
);

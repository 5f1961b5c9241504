// SPDX-License-Identifier: GPL-2.0-only
//! VM commands: answers, errors and their order.

mod fake;

use fake::{Guest, MEMORY, message, vcpu_bytes};
use kvmi_core::{KvmError, VmState, VmVerdict, check_command, check_event};
use kvmi_uapi::{
    GetVersionReply, VcpuHdr, VmCheckCommand, VmControlCleanup, VmControlEvents, VmGetInfoReply, VmPauseVcpu,
    VmReadPhysical, VmWritePhysical,
    error::{EAGAIN, EBUSY, EINVAL, ENOENT, ENOSYS, EPERM},
    event, msg,
};
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn version_and_features() {
    let (err, data) = Guest::default().vm_call(msg::GET_VERSION, &[0u8; 0]);
    assert_eq!(err, 0);
    let version = GetVersionReply::read_from_bytes(&data).unwrap();
    assert_eq!((version.version, version.max_msg_size), (1, 8184));
    assert_eq!(version.features.as_bytes(), [1, 2, 7, 0, 0, 0, 0, 0]);
}

#[test]
fn vcpu_count() {
    let (err, data) = Guest::default().vm_call(msg::VM_GET_INFO, &[0u8; 0]);
    assert_eq!(
        (err, VmGetInfoReply::read_from_bytes(&data).unwrap().vcpu_count),
        (0, 2)
    );
}

#[test]
fn check_command_tells_unknown_from_forbidden() {
    let mut guest = Guest::default();
    let mut check = |id, pad1| {
        guest
            .vm_call(msg::VM_CHECK_COMMAND, &VmCheckCommand { id, pad1, pad2: 0 })
            .0
    };
    assert_eq!(check(msg::VCPU_CONTROL_CR, 0), 0);
    assert_eq!(check(msg::VCPU_CONTROL_CR, 1), -EINVAL);
    assert_eq!(check(9999, 1), -EINVAL);
    for id in [msg::VM_EVENT, msg::VCPU_EVENT, 22, 31, 9999] {
        assert_eq!(check(id, 0), -ENOENT, "{id}");
    }
    guest.vm.allow_command(0, msg::VCPU_CONTROL_CR.into()).unwrap();
    assert_eq!(
        guest.vm_call(msg::VM_CHECK_COMMAND, &[msg::VCPU_CONTROL_CR, 0, 0, 0]).0,
        -EPERM
    );
}

#[test]
fn check_event_tells_unknown_from_forbidden() {
    let mut guest = Guest::default();
    let mut check = |id: u16, pad: u16| guest.vm_call(msg::VM_CHECK_EVENT, &[id, pad, 0, 0]).0;
    assert_eq!(check(event::UNHOOK, 0), 0);
    assert_eq!(check(event::CR, 0), 0);
    assert_eq!(check(event::CR, 1), -EINVAL);
    assert_eq!(check(event::PF, 0), 0);
    for id in [2, 21, 128, 9999] {
        assert_eq!(check(id, 0), -ENOENT, "{id}");
    }
    guest.vm.allow_event(0, -1).unwrap();
    assert_eq!(guest.vm_call(msg::VM_CHECK_EVENT, &[event::CR, 0, 0, 0]).0, -EPERM);
}

#[test]
fn only_the_query_commands_are_allowed_at_first() {
    let mut guest = Guest {
        vm: VmState::new(),
        ..Guest::default()
    };
    guest.vm.allow_event(1, -1).unwrap();
    for (id, _) in msg::COMMANDS {
        let always = [msg::GET_VERSION, msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT].contains(id);
        let bytes = if msg::is_vcpu(*id) {
            vcpu_bytes(*id, 7, 9, &[0xffu8; 16])
        } else {
            message(*id, 7, &[])
        };
        let VmVerdict::Answered(_) = guest.vm_message(&bytes) else {
            panic!("{id}")
        };
        let err = i32::from_ne_bytes(guest.out[8..12].try_into().unwrap());
        assert_eq!(err == -EPERM, !always, "{id}");
    }
}

#[test]
fn permissions_are_granted_and_revoked() {
    let mut guest = Guest {
        vm: VmState::new(),
        ..Guest::default()
    };
    let vm = |guest: &mut Guest| guest.vm_call(msg::VM_GET_INFO, &[0u8; 0]).0;
    guest.vm.allow_command(1, msg::VM_GET_INFO.into()).unwrap();
    assert_eq!(vm(&mut guest), 0);
    guest.vm.allow_command(0, msg::VM_GET_INFO.into()).unwrap();
    assert_eq!(vm(&mut guest), -EPERM);
    guest.vm.allow_command(1, -1).unwrap();
    assert_eq!(vm(&mut guest), 0);
    guest.vm.allow_command(0, -1).unwrap();
    assert_eq!(vm(&mut guest), -EPERM);
    assert_eq!(guest.vm_call(msg::GET_VERSION, &[0u8; 0]).0, 0);
    for id in [msg::GET_VERSION, msg::VM_CHECK_COMMAND, msg::VM_CHECK_EVENT] {
        assert_eq!(guest.vm.allow_command(0, id.into()), Err(KvmError(EPERM)));
        assert_eq!(guest.vm.allow_command(1, id.into()), Ok(()));
    }
}

#[test]
fn permissions_of_what_does_not_exist_are_refused() {
    for id in [
        -2,
        0,
        1,
        22,
        30,
        31,
        127,
        129,
        131,
        134,
        65536,
        65538,
        i32::MAX,
        i32::MIN,
    ] {
        assert_eq!(check_command(1, id), Err(KvmError(EINVAL)), "command {id}");
    }
    for id in [-2, 2, 4, 20, 21, 128, 65536, 65537, i32::MAX, i32::MIN] {
        assert_eq!(check_event(0, id), Err(KvmError(EINVAL)), "event {id}");
    }
    for (allow, id) in [(2, -1), (u32::MAX, 2)] {
        assert_eq!(check_command(allow, id), Err(KvmError(EINVAL)));
        assert_eq!(check_event(allow, 1), Err(KvmError(EINVAL)));
    }
    for (id, _) in msg::COMMANDS {
        assert_eq!(check_command(1, (*id).into()), Ok(()));
    }
    for (id, _) in event::ALL {
        assert_eq!(check_event(1, (*id).into()), Ok(()));
    }
}

#[test]
fn unknown_messages_are_answered_so() {
    let mut guest = Guest::default();
    for id in [msg::VM_EVENT, 22, 9998] {
        assert_eq!(guest.vm_call(id, &[0u8; 0]).0, -ENOSYS, "{id}");
    }
    for id in [31, 129, 9999] {
        assert_eq!(guest.vcpu_call(id, &[0u8; 0]).0, -ENOSYS, "{id}");
    }
}

#[test]
fn unhook_event_is_enabled_by_tool_and_vmm() {
    let mut guest = Guest::default();
    let control = |event_id, enable| VmControlEvents {
        event_id,
        enable,
        ..Default::default()
    };
    assert!(!guest.vm.unhook_event_enabled());
    for bad in [
        control(event::PAUSE, 1),
        control(2, 1),
        control(event::UNHOOK, 2),
        VmControlEvents {
            pad1: 1,
            ..control(event::UNHOOK, 1)
        },
        VmControlEvents {
            pad2: 1,
            ..control(event::UNHOOK, 1)
        },
    ] {
        assert_eq!(guest.vm_call(msg::VM_CONTROL_EVENTS, &bad).0, -EINVAL);
    }
    guest.vm.allow_event(0, 0).unwrap();
    assert_eq!(guest.vm_call(msg::VM_CONTROL_EVENTS, &control(0, 2)).0, -EINVAL);
    assert_eq!(guest.vm_call(msg::VM_CONTROL_EVENTS, &control(0, 1)).0, -EPERM);
    guest.vm.allow_event(1, 0).unwrap();
    assert_eq!(guest.vm_call(msg::VM_CONTROL_EVENTS, &control(0, 1)).0, 0);
    assert!(guest.vm.unhook_event_enabled());
    guest.vm.allow_event(0, 0).unwrap();
    assert!(!guest.vm.unhook_event_enabled());
    guest.vm.allow_event(1, 0).unwrap();
    assert_eq!(guest.vm_call(msg::VM_CONTROL_EVENTS, &control(0, 0)).0, 0);
    assert!(!guest.vm.unhook_event_enabled());

    let length = kvmi_core::build_unhook_event(5, &mut guest.out);
    assert_eq!(&guest.out[..length], [0, 0, 8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn physical_memory_is_read() {
    let mut guest = Guest::default();
    let read = |gpa, size| VmReadPhysical {
        gpa,
        size,
        ..Default::default()
    };
    let (err, data) = guest.vm_call(msg::VM_READ_PHYSICAL, &read(4096, 4096));
    assert_eq!((err, &data[..]), (0, &guest.fake_vm.memory[4096..]));
    assert_eq!(guest.vm_call(msg::VM_READ_PHYSICAL, &read(300, 1)), (0, vec![44]));
    assert_eq!(guest.vm_call(msg::VM_READ_PHYSICAL, &read(MEMORY, 1)).0, -ENOENT);
    for bad in [
        read(0, 0),
        read(0, 4097),
        read(1, 4096),
        read(4095, 2),
        read(u64::MAX, 2),
        read(0, u16::MAX),
        VmReadPhysical { pad1: 1, ..read(0, 1) },
        VmReadPhysical { pad2: 1, ..read(0, 1) },
    ] {
        assert_eq!(guest.vm_call(msg::VM_READ_PHYSICAL, &bad).0, -EINVAL, "{bad:?}");
    }
}

#[test]
fn physical_memory_is_written() {
    let mut guest = Guest::default();
    let write = |gpa, size, data: &[u8]| {
        let mut request = VmWritePhysical {
            gpa,
            size,
            ..Default::default()
        }
        .as_bytes()
        .to_vec();
        request.extend_from_slice(data);
        request
    };
    assert_eq!(
        guest.vm_call(msg::VM_WRITE_PHYSICAL, &write(10, 3, &[1, 2, 3])[..]),
        (0, vec![])
    );
    assert_eq!(guest.fake_vm.memory[9..14], [9, 1, 2, 3, 13]);
    // A newer tool may send more.
    assert_eq!(guest.vm_call(msg::VM_WRITE_PHYSICAL, &write(10, 1, &[7, 8])[..]).0, 0);
    assert_eq!(guest.fake_vm.memory[10..12], [7, 2]);
    assert_eq!(
        guest.vm_call(msg::VM_WRITE_PHYSICAL, &write(4096, 1, &[0])[..]).0,
        -EPERM
    );
    assert_eq!(
        guest.vm_call(msg::VM_WRITE_PHYSICAL, &write(MEMORY, 1, &[0])[..]).0,
        -ENOENT
    );
    for bad in [write(0, 0, &[]), write(4095, 2, &[0; 2]), write(0, 4097, &[0; 4097])] {
        assert_eq!(guest.vm_call(msg::VM_WRITE_PHYSICAL, &bad[..]).0, -EINVAL);
    }
    for short in [write(0, 2, &[0]), write(0, u16::MAX, &[]), write(0, 4096, &[0; 4095])] {
        assert_eq!(
            guest.vm_message(&message(msg::VM_WRITE_PHYSICAL, 7, &short)),
            VmVerdict::Close
        );
    }
    // What is not allowed is not looked into.
    guest.vm.allow_command(0, -1).unwrap();
    assert_eq!(guest.vm_call(msg::VM_WRITE_PHYSICAL, &write(0, 2, &[0])[..]).0, -EPERM);
}

#[test]
fn pauses_are_asked_for() {
    let mut guest = Guest::default();
    let pause = |vcpu, wait| VmPauseVcpu {
        vcpu,
        wait,
        ..Default::default()
    };
    assert_eq!(guest.vm_call(msg::VM_PAUSE_VCPU, &pause(1, 1)).0, 0);
    assert_eq!(guest.vm_call(msg::VM_PAUSE_VCPU, &pause(0, 0)).0, 0);
    assert_eq!(guest.fake_vm.pauses, [(1, true), (0, false)]);
    guest.fake_vm.too_many_pauses = vec![0];
    assert_eq!(guest.vm_call(msg::VM_PAUSE_VCPU, &pause(0, 0)).0, -EBUSY);
    guest.vm.allow_event(0, event::PAUSE.into()).unwrap();
    assert_eq!(guest.vm_call(msg::VM_PAUSE_VCPU, &pause(0, 0)).0, -EPERM);
    for bad in [
        pause(2, 0),
        pause(0, 2),
        VmPauseVcpu { pad1: 1, ..pause(0, 0) },
        VmPauseVcpu { pad2: 1, ..pause(0, 0) },
    ] {
        assert_eq!(guest.vm_call(msg::VM_PAUSE_VCPU, &bad).0, -EINVAL, "{bad:?}");
    }
    assert_eq!(guest.fake_vm.pauses.len(), 2);
}

#[test]
fn cleanup_is_switched() {
    let mut guest = Guest::default();
    assert!(guest.vm.cleanup_enabled());
    for (enable, err, after) in [(0, 0, false), (2, -EINVAL, false), (1, 0, true), (255, -EINVAL, true)] {
        let request = VmControlCleanup { enable, pad: [0; 7] };
        assert_eq!(guest.vm_call(msg::VM_CONTROL_CLEANUP, &request).0, err);
        assert_eq!(guest.vm.cleanup_enabled(), after);
    }
    for at in 0..7 {
        let mut request = VmControlCleanup::default();
        request.pad[at] = 1;
        assert_eq!(guest.vm_call(msg::VM_CONTROL_CLEANUP, &request).0, -EINVAL);
    }
}

#[test]
fn short_requests_read_as_zero_and_long_ones_are_cut() {
    let mut guest = Guest::default();
    assert_eq!(guest.vm_call(msg::VM_CONTROL_CLEANUP, &[1u8; 1]).0, 0);
    assert_eq!(guest.vm_call(msg::VM_CONTROL_CLEANUP, &[0u8; 0]).0, 0);
    assert!(!guest.vm.cleanup_enabled());
    let mut long = [0xffu8; 100];
    long[..8].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.vm_call(msg::VM_CONTROL_CLEANUP, &long).0, 0);
    assert!(guest.vm.cleanup_enabled());
}

#[test]
fn vcpu_messages_are_checked_in_order() {
    let mut guest = Guest::default();
    guest.fake_vm.asleep = vec![1];
    for id in [msg::VCPU_GET_INFO, msg::VCPU_EVENT] {
        let err = |guest: &mut Guest, hdr: VcpuHdr| match guest.vm_message(&message(id, 7, hdr.as_bytes())) {
            VmVerdict::Answered(16) => {
                assert_eq!(guest.out[..2], id.to_ne_bytes());
                Err(i32::from_ne_bytes(guest.out[8..12].try_into().unwrap()))
            }
            VmVerdict::Queue(vcpu) => Ok(vcpu),
            other => panic!("{other:?}"),
        };
        let hdr = |vcpu| VcpuHdr { vcpu, pad1: 0, pad2: 0 };
        assert_eq!(err(&mut guest, hdr(0)), Ok(0));
        assert_eq!(err(&mut guest, hdr(1)), Err(-EAGAIN));
        assert_eq!(err(&mut guest, hdr(2)), Err(-EINVAL));
        assert_eq!(err(&mut guest, hdr(u16::MAX)), Err(-EINVAL));
        assert_eq!(err(&mut guest, VcpuHdr { pad1: 1, ..hdr(1) }), Err(-EINVAL));
        assert_eq!(err(&mut guest, VcpuHdr { pad2: 1, ..hdr(1) }), Err(-EINVAL));
        // A message without a vCPU header is about vCPU 0.
        assert_eq!(guest.vm_message(&message(id, 7, &[])), VmVerdict::Queue(0));
    }
    guest.vm.allow_command(0, -1).unwrap();
    assert_eq!(
        guest.vm_message(&vcpu_bytes(msg::VCPU_EVENT, 1, 0, &[0u8; 8])),
        VmVerdict::Queue(0)
    );
    assert_eq!(guest.vcpu_call(msg::VCPU_GET_INFO, &[0u8; 0]).0, -EPERM);
}

#[test]
fn what_is_no_message_closes() {
    let mut guest = Guest::default();
    for bytes in [
        &[][..],
        &[2, 0, 0, 0, 0, 0, 0],
        &[2, 0, 1, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0, 0, 0, 0, 0, 9],
    ] {
        assert_eq!(guest.vm_message(bytes), VmVerdict::Close);
    }
    assert_eq!(kvmi_core::header_ok(&[2, 0, 0xf8, 0x1f, 0, 0, 0, 0]), Some(8184));
    assert_eq!(kvmi_core::header_ok(&[2, 0, 0xf9, 0x1f, 0, 0, 0, 0]), None);
    assert_eq!(kvmi_core::header_ok(&[2, 0, 0, 0, 0, 0, 0]), None);
}

#[test]
fn queues_are_bounded() {
    use kvmi_core::queue_admits;
    assert!(queue_admits(1023, 0, 8192));
    assert!(!queue_admits(1024, 0, 8));
    assert!(queue_admits(0, (1 << 20) - 8, 8));
    assert!(!queue_admits(0, (1 << 20) - 8, 9));
    assert!(!queue_admits(0, usize::MAX, 9));
    use kvmi_core::reply_admits;
    assert!(reply_admits(0, 0), "one that nobody asked for is refused by the vCPU");
    assert!(!reply_admits(1, 0));
    assert!(reply_admits(100, 100));
    assert!(!reply_admits(101, 100));
    let mut out = [0; 16];
    assert_eq!(
        kvmi_core::build_error_reply(&vcpu_bytes(3, 9, 0, &[0u8; 0]), KvmError(EBUSY), &mut out),
        16
    );
    assert_eq!(out, [3, 0, 8, 0, 9, 0, 0, 0, 0xf0, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert!(!kvmi_core::is_event_reply(&out));
    assert!(kvmi_core::is_event_reply(&[1, 0, 0, 0, 0, 0, 0, 0]));
}

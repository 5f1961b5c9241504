// SPDX-License-Identifier: GPL-2.0-only
//! vCPU commands: answers and errors.

mod fake;

use fake::{Guest, NO_MSR, message, vcpu_bytes};
use kvmi_core::{KvmError, Occurrence, VcpuVerdict};
use kvmi_uapi::{
    MAX_MSRS, MAX_OTHER_MSRS, MsrEntry, Regs, VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuControlSinglestep,
    VcpuGetRegisters, VcpuGetRegistersReply,
    error::{EBUSY, EINVAL, EOPNOTSUPP, EPERM},
    event, msg,
};
use zerocopy::{FromBytes, IntoBytes};

fn control(event_id: u16, enable: u8) -> VcpuControlEvents {
    VcpuControlEvents {
        event_id,
        enable,
        ..Default::default()
    }
}

#[test]
fn tsc_speed() {
    let (err, data) = Guest::default().vcpu_call(msg::VCPU_GET_INFO, &[0u8; 0]);
    assert_eq!((err, &data[..]), (0, &2_000_000_000u64.to_ne_bytes()[..]));
}

#[test]
fn events_are_switched() {
    let mut guest = Guest::default();
    for id in [event::PAUSE, event::HYPERCALL, event::CR] {
        for enable in [1, 1, 0, 0] {
            assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &control(id, enable)).0, 0);
            assert_eq!(
                guest.state.wanted(&guest.vm, event::HYPERCALL, 0),
                id == event::HYPERCALL && enable == 1
            );
        }
    }
    for bad in [
        control(event::UNHOOK, 1),
        control(2, 0),
        control(33, 1),
        control(event::HYPERCALL, 2),
        VcpuControlEvents {
            pad1: 1,
            ..control(event::HYPERCALL, 1)
        },
        VcpuControlEvents {
            pad2: 1,
            ..control(event::HYPERCALL, 1)
        },
    ] {
        assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &bad).0, -EINVAL, "{bad:?}");
    }
    guest.vm.allow_event(0, event::HYPERCALL.into()).unwrap();
    assert_eq!(
        guest
            .vcpu_call(msg::VCPU_CONTROL_EVENTS, &control(event::HYPERCALL, 1))
            .0,
        -EPERM
    );
    assert_eq!(
        guest
            .vcpu_call(msg::VCPU_CONTROL_EVENTS, &control(event::HYPERCALL, 2))
            .0,
        -EINVAL
    );
}

#[test]
fn breakpoints_have_one_owner() {
    let mut guest = Guest::default();
    let switch = |guest: &mut Guest, enable| {
        let outcome = guest.vcpu_message(&vcpu_bytes(
            msg::VCPU_CONTROL_EVENTS,
            7,
            0,
            &control(event::BREAKPOINT, enable),
        ));
        assert_eq!(outcome.verdict, VcpuVerdict::Answered(16));
        let err = i32::from_ne_bytes(guest.out[8..12].try_into().unwrap());
        (err, outcome.intercepts_changed, guest.state.wants_breakpoint())
    };
    assert_eq!(switch(&mut guest, 0), (-EBUSY, false, false));
    guest.fake_vcpu.breakpoint_answer = Err(KvmError(EBUSY));
    assert_eq!(switch(&mut guest, 1), (-EBUSY, false, false));
    guest.fake_vcpu.breakpoint_answer = Ok(());
    assert_eq!(switch(&mut guest, 1), (0, true, true));
    // It is ours already, so nobody is asked.
    guest.fake_vcpu.breakpoint_answer = Err(KvmError(EBUSY));
    assert_eq!(switch(&mut guest, 1), (0, false, true));
    assert_eq!(switch(&mut guest, 0), (0, true, false));
    assert_eq!(switch(&mut guest, 0), (-EBUSY, false, false));
}

#[test]
fn stepping_is_switched() {
    let mut guest = Guest::default();
    let step = |enable| VcpuControlSinglestep {
        enable,
        ..Default::default()
    };
    let padded = |at: usize| {
        let mut request = step(2);
        request.pad[at] = 1;
        request
    };
    let switch = |guest: &mut Guest, request: VcpuControlSinglestep| {
        let outcome = guest.vcpu_message(&vcpu_bytes(msg::VCPU_CONTROL_SINGLESTEP, 7, 0, &request));
        assert_eq!(outcome.verdict, VcpuVerdict::Answered(16));
        let err = i32::from_ne_bytes(guest.out[8..12].try_into().unwrap());
        let wanted = guest.state.wanted(&guest.vm, event::SINGLESTEP, 0);
        assert_eq!(guest.state.wants_singlestep(), wanted, "the event is allowed");
        (err, outcome.intercepts_changed, wanted)
    };
    // Each check with what all later ones would refuse.
    guest.fake_vcpu.can_singlestep = false;
    guest.fake_vcpu.singlestep_answer = Err(KvmError(EBUSY));
    guest.vm.allow_event(0, event::SINGLESTEP.into()).unwrap();
    assert_eq!(switch(&mut guest, padded(0)), (-EPERM, false, false));
    guest.vm.allow_event(1, event::SINGLESTEP.into()).unwrap();
    assert_eq!(switch(&mut guest, step(2)), (-EINVAL, false, false));
    let with_interrupts = |enable, interrupts| VcpuControlSinglestep {
        interrupts,
        ..step(enable)
    };
    assert_eq!(switch(&mut guest, with_interrupts(1, 2)), (-EINVAL, false, false));
    for at in 0..6 {
        assert_eq!(switch(&mut guest, padded(at)), (-EINVAL, false, false));
    }
    for enable in [0, 1] {
        assert_eq!(switch(&mut guest, step(enable)), (-EOPNOTSUPP, false, false));
    }
    guest.fake_vcpu.can_singlestep = true;
    assert_eq!(switch(&mut guest, step(1)), (-EBUSY, false, false));
    assert_eq!(switch(&mut guest, step(0)), (0, false, false));
    guest.fake_vcpu.singlestep_answer = Ok(());
    assert_eq!(switch(&mut guest, step(1)), (0, true, true));
    // It is ours already, so nobody is asked.
    guest.fake_vcpu.singlestep_answer = Err(KvmError(EBUSY));
    assert_eq!(switch(&mut guest, step(1)), (0, false, true));
    assert!(!guest.state.steps_with_interrupts());
    // What the CPU is told changes with the kind of steps.
    assert_eq!(switch(&mut guest, with_interrupts(1, 1)), (0, true, true));
    assert!(guest.state.steps_with_interrupts());
    assert_eq!(switch(&mut guest, with_interrupts(0, 1)), (0, true, false));
    assert!(!guest.state.steps_with_interrupts());
}

#[test]
fn control_registers_are_switched() {
    let mut guest = Guest::default();
    let cr = |cr, enable| VcpuControlCr {
        cr,
        enable,
        ..Default::default()
    };
    for bad in [
        cr(1, 1),
        cr(2, 1),
        cr(8, 1),
        cr(255, 0),
        cr(3, 2),
        VcpuControlCr { pad1: 1, ..cr(3, 1) },
        VcpuControlCr { pad2: 1, ..cr(3, 1) },
    ] {
        assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_CR, &bad).0, -EINVAL, "{bad:?}");
    }
    let wanted = |guest: &Guest| [0, 3, 4].map(|cr| guest.state.wanted(&guest.vm, event::CR, cr));
    assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_CR, &cr(3, 1)).0, 0);
    // The event must be on too.
    assert_eq!((wanted(&guest), guest.state.wants_cr_write(3)), ([false; 3], false));
    let outcome = guest.vcpu_message(&vcpu_bytes(msg::VCPU_CONTROL_EVENTS, 7, 0, &control(event::CR, 1)));
    assert!(outcome.intercepts_changed);
    assert_eq!(
        (wanted(&guest), guest.state.wants_cr_write(3)),
        ([false, true, false], true)
    );
    for changed in [true, false] {
        let outcome = guest.vcpu_message(&vcpu_bytes(msg::VCPU_CONTROL_CR, 7, 0, &cr(4, 1)));
        assert_eq!(outcome.intercepts_changed, changed);
    }
    let outcome = guest.vcpu_message(&vcpu_bytes(msg::VCPU_CONTROL_CR, 7, 0, &cr(3, 0)));
    assert!(outcome.intercepts_changed);
    assert_eq!(
        (wanted(&guest), guest.state.wants_cr_write(3)),
        ([false, false, true], false)
    );
}

#[test]
fn msrs_are_switched() {
    let mut guest = Guest::default();
    let msr = |msr, enable| VcpuControlMsr {
        msr,
        enable,
        ..Default::default()
    };
    for bad in [
        msr(0x174, 2),
        msr(0x4000_0000, 2),
        VcpuControlMsr {
            pad1: 1,
            ..msr(0x174, 1)
        },
        VcpuControlMsr {
            pad2: 1,
            ..msr(0x174, 1)
        },
    ] {
        assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_MSR, &bad).0, -EINVAL, "{bad:?}");
    }
    let switch = |guest: &mut Guest, index, enable| {
        let outcome = guest.vcpu_message(&vcpu_bytes(msg::VCPU_CONTROL_MSR, 7, 0, &msr(index, enable)));
        assert_eq!(outcome.verdict, VcpuVerdict::Answered(16));
        let err = i32::from_ne_bytes(guest.out[8..12].try_into().unwrap());
        (err, outcome.intercepts_changed)
    };
    assert_eq!(switch(&mut guest, 0x174, 1), (0, true));
    // The event must be on too.
    assert!(!guest.state.wants_msr_write(0x174) && !guest.state.wants_any_msr());
    assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &control(event::MSR, 1)).0, 0);
    assert!(guest.state.wants_msr_write(0x174) && guest.state.wants_any_msr());
    assert_eq!(switch(&mut guest, 0x174, 1), (0, false));
    // Of those that the hardware cannot be told of one by one there is room for so many.
    for other in 0..MAX_OTHER_MSRS as u32 {
        assert_eq!(switch(&mut guest, 0x4000_0000 + other, 1), (0, true));
    }
    assert_eq!(switch(&mut guest, 0x4b56_4d00, 1), (-EBUSY, false));
    assert!(guest.state.wants_msr_write(0x4000_0000) && !guest.state.wants_msr_write(0x4b56_4d00));
    for other in 0..MAX_OTHER_MSRS as u32 {
        assert_eq!(switch(&mut guest, 0x4000_0000 + other, 0), (0, true));
    }
    assert_eq!(switch(&mut guest, 0x4b56_4d00, 0), (0, false));
    // What the VMM denies is not watched, and can be let go.
    guest.fake_vcpu.msr_answer = Err(KvmError(EPERM));
    assert_eq!(switch(&mut guest, 0xc000_0080, 1), (-EPERM, false));
    assert!(!guest.state.wants_msr_write(0xc000_0080));
    assert_eq!(switch(&mut guest, 0x174, 0), (0, true));
    assert!(!guest.state.wants_any_msr());
}

#[test]
fn descriptor_tables_are_watched_where_the_cpu_can() {
    let mut guest = Guest::default();
    guest.fake_vcpu.descriptor_answer = Err(KvmError(EOPNOTSUPP));
    let on = control(event::DESCRIPTOR, 1);
    assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &on).0, -EOPNOTSUPP);
    assert!(!guest.state.wants_descriptor());
    guest.fake_vcpu.descriptor_answer = Ok(());
    assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &on).0, 0);
    assert!(guest.state.wants_descriptor());
}

fn get_registers(nmsrs: u16, msrs: &[u32]) -> Vec<u8> {
    let mut request = VcpuGetRegisters {
        nmsrs,
        ..Default::default()
    }
    .as_bytes()
    .to_vec();
    request.extend_from_slice(msrs.as_bytes());
    request
}

#[test]
fn registers_are_read() {
    let mut guest = Guest::default();
    let (err, data) = guest.vcpu_call(msg::VCPU_GET_REGISTERS, &get_registers(2, &[5, 0x174])[..]);
    assert_eq!((err, data.len()), (0, 472 + 32));
    let (head, msrs) = VcpuGetRegistersReply::read_from_prefix(&data).unwrap();
    assert_eq!((head.mode, head.pad), (8, 0));
    assert_eq!(head.regs.as_bytes(), [0xbb; 144]);
    assert_eq!(head.sregs.as_bytes(), [0xcc; 312]);
    assert_eq!((head.msrs.nmsrs, head.msrs.pad), (2, 0));
    assert_eq!(
        MsrEntry::read_from_bytes(&msrs[16..]),
        Ok(MsrEntry {
            index: 0x174,
            reserved: 0,
            data: 0x17400
        })
    );

    let most: Vec<u32> = (0..MAX_MSRS as u32).collect();
    let (err, data) = guest.vcpu_call(msg::VCPU_GET_REGISTERS, &get_registers(MAX_MSRS as u16, &most)[..]);
    assert_eq!((err, data.len()), (0, 472 + 481 * 16));
}

#[test]
fn registers_that_cannot_be_read_are_refused() {
    let mut guest = Guest::default();
    let mut padded = get_registers(0, &[]);
    padded[3] = 1;
    for bad in [
        get_registers(2, &[5]),
        get_registers(1, &[NO_MSR]),
        get_registers(482, &[0; 482]),
        get_registers(u16::MAX, &[0; 100]),
        padded,
    ] {
        assert_eq!(guest.vcpu_call(msg::VCPU_GET_REGISTERS, &bad[..]).0, -EINVAL);
    }
    // Nothing at all asks for no MSR; more than announced is a newer tool's.
    assert_eq!(guest.vcpu_call(msg::VCPU_GET_REGISTERS, &[0u8; 0]).0, 0);
    assert_eq!(
        guest
            .vcpu_call(msg::VCPU_GET_REGISTERS, &get_registers(1, &[1, NO_MSR])[..])
            .0,
        0
    );
}

const ZERO: Regs = zerocopy::transmute!([0u8; size_of::<Regs>()]);
/// Registers that a vCPU can have.
const POSSIBLE: Regs = Regs { rflags: 2, ..ZERO };

#[test]
fn registers_that_a_cpu_cannot_have_are_refused_before_the_moment_is_looked_at() {
    let mut guest = Guest::default();
    let bad = [
        Regs {
            rip: 1 << 47,
            ..POSSIBLE
        },
        Regs { rflags: 0, ..POSSIBLE },
        Regs {
            rflags: 2 | 1 << 17,
            ..POSSIBLE
        },
        Regs {
            rflags: 2 | 1 << 22,
            ..POSSIBLE
        },
    ];
    for regs in bad {
        assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &regs).0, -EINVAL, "{regs:x?}");
    }
    guest.send_event(Occurrence::Pause, 1);
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &POSSIBLE).0, 0);
    for regs in bad {
        assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &regs).0, -EINVAL, "{regs:x?}");
    }
    // What was kept before stays.
    assert_eq!(guest.reply(1, event::PAUSE, event::CONTINUE, &[]), VcpuVerdict::Replied);
    assert_eq!(guest.state.take_registers(), Some(POSSIBLE));
}

#[test]
fn registers_are_set_during_an_event() {
    let mut guest = Guest::default();
    let set = |rip| Regs {
        rip,
        rflags: 2,
        ..Default::default()
    };
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &set(1)).0, -EOPNOTSUPP);
    guest.send_event(Occurrence::Pause, 1);
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &[0u8; 143]).0, -EINVAL);
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &set(1)).0, 0);
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &set(2)).0, 0);
    assert_eq!(guest.state.take_registers(), None);
    assert_eq!(guest.reply(1, event::PAUSE, event::CONTINUE, &[]), VcpuVerdict::Replied);
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &set(3)).0, -EOPNOTSUPP);
    assert_eq!(guest.state.take_registers(), Some(set(2)));
    assert_eq!(guest.state.take_registers(), None);
}

#[test]
fn registers_do_not_outlive_their_event() {
    let end: [fn(&mut Guest); 3] = [
        |guest| guest.state.event_void(),
        |guest| guest.state.event_fail_open(),
        |guest| assert_eq!(guest.reply(1, event::PAUSE, event::CRASH, &[]), VcpuVerdict::Replied),
    ];
    for end in end {
        let mut guest = Guest::default();
        guest.send_event(Occurrence::Pause, 1);
        assert_eq!(guest.vcpu_call(msg::VCPU_SET_REGISTERS, &POSSIBLE).0, 0);
        end(&mut guest);
        assert_eq!(guest.state.take_registers(), None);
    }
}

#[test]
fn what_is_no_message_closes() {
    let mut guest = Guest::default();
    assert_eq!(guest.vcpu_message(&[]).verdict, VcpuVerdict::Close);
    assert_eq!(
        guest.vcpu_message(&message(msg::VM_GET_INFO, 7, &[0; 8])).verdict,
        VcpuVerdict::Close
    );
}

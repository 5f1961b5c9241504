// SPDX-License-Identifier: GPL-2.0-only
//! VCPU_INJECT_EXCEPTION and the TRAP that follows it.

mod fake;

use fake::Guest;
use kvmi_core::{Injection, KvmError, Occurrence, Site, VcpuVerdict};
use kvmi_uapi::{
    VcpuControlSinglestep, VcpuInjectException,
    error::{EBUSY, EINVAL, EPERM},
    event, msg,
};

fn exception(nr: u8) -> VcpuInjectException {
    VcpuInjectException {
        nr,
        error_code: 0x11,
        address: 0x5000,
        ..Default::default()
    }
}

fn inject(guest: &mut Guest, request: &VcpuInjectException) -> i32 {
    guest.vcpu_call(msg::VCPU_INJECT_EXCEPTION, request).0
}

fn trap(nr: u8) -> Occurrence {
    Occurrence::Trap {
        nr,
        error_code: 0,
        address: 0,
    }
}

#[test]
fn each_exception_has_what_belongs_to_it() {
    for nr in 0..=255 {
        let mut guest = Guest::default();
        let legal = matches!(nr, 0 | 1 | 5..=8 | 10..=14 | 16..=19);
        assert_eq!(
            inject(&mut guest, &exception(nr)),
            if legal { 0 } else { -EINVAL },
            "{nr}"
        );
        let injection = Injection {
            nr,
            error_code: matches!(nr, 8 | 10..=14 | 17).then_some(0x11),
            address: if nr == 14 { 0x5000 } else { 0 },
        };
        assert_eq!(guest.state.has_injection(), legal);
        assert_eq!(guest.state.take_injection(), legal.then_some(injection));
        assert_eq!(guest.state.take_injection(), None);
    }
}

#[test]
fn nothing_is_injected_into_a_vcpu_that_is_stepped() {
    let mut guest = Guest::default();
    for (on, answer) in [(1, -EBUSY), (0, 0)] {
        let step = VcpuControlSinglestep {
            enable: on,
            ..Default::default()
        };
        assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_SINGLESTEP, &step).0, 0);
        assert_eq!(inject(&mut guest, &exception(6)), answer);
        assert_eq!(guest.state.has_injection(), answer == 0);
    }
}

#[test]
fn errors_come_in_order() {
    let mut guest = Guest::default();
    for bad in [
        VcpuInjectException {
            pad1: 1,
            ..exception(6)
        },
        VcpuInjectException {
            pad2: 1,
            ..exception(6)
        },
        VcpuInjectException {
            error_code: 0x1_0000,
            ..exception(13)
        },
    ] {
        assert_eq!(inject(&mut guest, &bad), -EINVAL, "{bad:?}");
    }
    // An error code that is not used may be anything.
    let unused = VcpuInjectException {
        error_code: u32::MAX,
        ..exception(6)
    };
    guest.fake_vcpu.injection_answer = Err(KvmError(EBUSY));
    assert_eq!(inject(&mut guest, &unused), -EBUSY);
    assert_eq!(inject(&mut guest, &exception(3)), -EINVAL);
    guest.vm.allow_event(0, event::TRAP.into()).unwrap();
    assert_eq!(inject(&mut guest, &exception(3)), -EPERM);
    assert!(!guest.state.has_injection());
}

#[test]
fn one_at_a_time_until_its_trap_is_sent() {
    let mut guest = Guest::default();
    assert_eq!(inject(&mut guest, &exception(6)), 0);
    assert_eq!(inject(&mut guest, &exception(6)), -EBUSY);
    assert!(guest.state.take_injection().is_some());
    assert_eq!(guest.state.record(&guest.vm, &trap(6)), Site::Defer);
    assert_eq!(inject(&mut guest, &exception(6)), -EBUSY);
    guest.state.event_sent(1);
    // From here on KVM knows: the exception is pending there.
    assert_eq!(inject(&mut guest, &exception(13)), 0);
    assert_eq!(guest.state.take_injection(), None, "a TRAP is open");
    assert_eq!(guest.reply(1, event::TRAP, event::CONTINUE, &[]), VcpuVerdict::Replied);
    guest.state.event_done();
    assert_eq!(guest.state.take_injection().map(|what| what.nr), Some(13));
}

#[test]
fn an_open_event_comes_first() {
    let mut guest = Guest::default();
    guest.send_event(Occurrence::Pause, 1);
    assert_eq!(inject(&mut guest, &exception(6)), 0);
    assert!(!guest.state.has_injection());
    assert_eq!(guest.state.take_injection(), None);
    assert_eq!(guest.reply(1, event::PAUSE, event::CONTINUE, &[]), VcpuVerdict::Replied);
    assert!(!guest.state.has_injection());
    guest.state.event_done();
    assert!(guest.state.has_injection());
}

#[test]
fn what_makes_the_vcpu_another_drops_it() {
    let end: [fn(&mut Guest); 3] = [
        |guest| guest.state.event_void(),
        |guest| guest.state.event_fail_open(),
        |guest| guest.state.crash(),
    ];
    for end in end {
        let mut guest = Guest::default();
        guest.send_event(Occurrence::Pause, 1);
        assert_eq!(inject(&mut guest, &exception(6)), 0);
        end(&mut guest);
        guest.state.event_done();
        assert_eq!(
            (guest.state.has_injection(), guest.state.take_injection()),
            (false, None)
        );
    }
}

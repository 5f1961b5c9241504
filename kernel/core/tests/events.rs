// SPDX-License-Identifier: GPL-2.0-only
//! Events: when they are sent, how they look, what their replies do.

mod fake;

use fake::{Guest, reply_bytes, vcpu_bytes};
use kvmi_core::{Occurrence, Phase, Site, VcpuVerdict, build_event};
use kvmi_uapi::{
    VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuEvent,
    event::{self, CONTINUE, CRASH, RETRY},
    msg,
};
use zerocopy::{FromBytes, IntoBytes};

const BREAKPOINT: Occurrence = Occurrence::Breakpoint {
    gpa: 0x1234,
    insn_len: 1,
};
const CR3: Occurrence = Occurrence::Cr {
    cr: 3,
    old: 0x1000,
    new: 0x2000,
};
const TRAP: Occurrence = Occurrence::Trap {
    nr: 14,
    error_code: 2,
    address: 0x5000,
};
const XSETBV: Occurrence = Occurrence::Xsetbv { old: 1, new: 3 };
const DESCRIPTOR: Occurrence = Occurrence::Descriptor {
    descriptor: event::DESCRIPTOR_LDTR,
    write: true,
};
/// An MSR whose number is also that of a control register.
const MSR3: Occurrence = Occurrence::Msr {
    msr: 3,
    old: 0x11,
    new: 0x22,
};
/// The first two need no enabling.
const ALL: [Occurrence; 8] = [
    Occurrence::Pause,
    TRAP,
    Occurrence::Hypercall,
    BREAKPOINT,
    CR3,
    XSETBV,
    DESCRIPTOR,
    MSR3,
];

/// A guest whose tool wants everything.
fn watched() -> Guest {
    let mut guest = Guest::default();
    for event_id in [
        event::HYPERCALL,
        event::BREAKPOINT,
        event::CR,
        event::XSETBV,
        event::DESCRIPTOR,
        event::MSR,
    ] {
        let request = VcpuControlEvents {
            event_id,
            enable: 1,
            ..Default::default()
        };
        assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &request).0, 0);
    }
    for cr in [0, 3, 4] {
        let request = VcpuControlCr {
            cr,
            enable: 1,
            ..Default::default()
        };
        assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_CR, &request).0, 0);
    }
    let request = VcpuControlMsr {
        enable: 1,
        msr: 3,
        ..Default::default()
    };
    assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_MSR, &request).0, 0);
    guest
}

#[test]
fn nothing_is_wanted_of_a_new_vcpu_but_pauses_and_traps() {
    let mut guest = Guest::default();
    for what in &ALL[2..] {
        assert_eq!(guest.state.record(&guest.vm, what), Site::Pass);
        assert!(!guest.state.wanted(&guest.vm, what.event(), 3));
    }
    assert_eq!(guest.state.phase(), Phase::Idle);
    for what in &ALL[..2] {
        let mut guest = Guest::default();
        assert_eq!(guest.state.record(&guest.vm, what), Site::Defer);
    }
}

#[test]
fn what_the_vmm_revokes_is_not_wanted() {
    for what in ALL {
        let mut guest = watched();
        assert!(guest.state.wanted(&guest.vm, what.event(), 3));
        guest.vm.allow_event(0, what.event().into()).unwrap();
        assert!(!guest.state.wanted(&guest.vm, what.event(), 3));
        assert_eq!(guest.state.record(&guest.vm, &what), Site::Pass);
    }
}

#[test]
fn what_the_tool_switches_off_is_not_sent_after_the_answer() {
    let off = |guest: &mut Guest, id| guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &[id, 0u16, 0, 0]).0;
    for what in &ALL[2..] {
        let mut guest = watched();
        assert_eq!(guest.state.record(&guest.vm, what), Site::Defer);
        let other = if what.event() == event::CR {
            event::HYPERCALL
        } else {
            event::CR
        };
        assert_eq!(off(&mut guest, other), 0);
        assert_eq!(guest.state.phase(), Phase::Recorded, "{what:?}: another event");
        assert_eq!(off(&mut guest, what.event()), 0);
        assert_eq!(guest.state.phase(), Phase::Idle, "{what:?}");
        assert_eq!(build_event(&guest.state, &mut guest.fake_vcpu, 1, &mut guest.out), 0);
        assert_eq!(guest.state.record(&guest.vm, what), Site::Pass);
    }

    let cr = |guest: &mut Guest, cr, enable| guest.vcpu_call(msg::VCPU_CONTROL_CR, &[cr, enable, 0u8, 0]).0;
    let mut guest = watched();
    assert_eq!(guest.state.record(&guest.vm, &CR3), Site::Defer);
    assert_eq!(cr(&mut guest, 4, 0), 0);
    assert_eq!(guest.state.phase(), Phase::Recorded);
    assert_eq!(cr(&mut guest, 3, 0), 0);
    assert_eq!(guest.state.phase(), Phase::Idle);

    // An event that is open stays so, and so does a PAUSE, which needs no switch.
    for what in ALL {
        let mut guest = watched();
        guest.send_event(what, 1);
        assert_eq!(off(&mut guest, what.event()), 0);
        assert_eq!(
            guest.reply(1, what.event(), CONTINUE, &[]),
            VcpuVerdict::Replied,
            "{what:?}"
        );
    }
    let mut guest = watched();
    assert_eq!(off(&mut guest, event::PAUSE), 0);
    assert_eq!(guest.state.record(&guest.vm, &Occurrence::Pause), Site::Defer);
    assert_eq!(off(&mut guest, event::CR), 0);
    assert_eq!(guest.state.phase(), Phase::Recorded);
}

#[test]
fn events_are_laid_out_as_the_protocol_says() {
    let data: [&[u8]; 8] = [
        &[],
        &[14, 0, 0, 0, 2, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0],
        &[],
        &[0x34, 0x12, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[
            3, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
        ],
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[3, 1, 0, 0, 0, 0, 0, 0],
        &[
            3, 0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0,
        ],
    ];
    for (what, data) in ALL.into_iter().zip(data) {
        let mut guest = watched();
        guest.fake_vcpu.index = 3;
        guest.out.fill(0xee);
        assert_eq!(build_event(&guest.state, &mut guest.fake_vcpu, 9, &mut guest.out), 0);
        assert_eq!(guest.state.record(&guest.vm, &what), Site::Defer);
        let length = build_event(&guest.state, &mut guest.fake_vcpu, 9, &mut guest.out);
        assert_eq!(length, 560 + data.len());
        assert_eq!(
            (guest.state.phase(), guest.state.phase_event()),
            (Phase::Recorded, what.event())
        );
        let out = &guest.out[..length];
        assert_eq!(out[..2], msg::VCPU_EVENT.to_ne_bytes());
        assert_eq!(
            usize::from(u16::from_ne_bytes(out[2..4].try_into().unwrap())),
            length - 8
        );
        assert_eq!(out[4..8], 9u32.to_ne_bytes());
        assert_eq!(out[8..10], what.event().to_ne_bytes());
        assert_eq!(out[10..16], [0; 6]);
        let event = VcpuEvent::read_from_bytes(&out[16..560]).unwrap();
        assert_eq!((event.size, event.vcpu, event.pad), (544, 3, 0));
        assert_eq!(event.arch.as_bytes(), [0xaa; 536]);
        assert_eq!(&out[560..], data);
        assert!(guest.out[length..].iter().all(|byte| *byte == 0xee));
        // No room, no event.
        assert_eq!(
            build_event(&guest.state, &mut guest.fake_vcpu, 9, &mut guest.out[..length - 1]),
            0
        );
    }
}

#[test]
fn the_same_site_gets_the_answer_once() {
    for (action, site) in [(CONTINUE, Site::Continue), (RETRY, Site::Retry)] {
        let mut guest = watched();
        guest.send_event(BREAKPOINT, 1);
        assert_eq!(guest.state.phase(), Phase::Sent);
        assert_eq!(guest.state.record(&guest.vm, &BREAKPOINT), Site::Defer);
        assert_eq!(guest.reply(1, event::BREAKPOINT, action, &[]), VcpuVerdict::Replied);
        assert_eq!(guest.state.phase(), Phase::ReplyHere);
        // Not even a revocation in between loses it.
        guest.vm.allow_event(0, -1).unwrap();
        assert!(guest.state.wanted(&guest.vm, event::BREAKPOINT, 0));
        assert_eq!(guest.state.record(&guest.vm, &BREAKPOINT), site);
        guest.state.event_done();
        assert_eq!((guest.state.phase(), guest.state.phase_event()), (Phase::Idle, 0));
        assert_eq!(guest.state.record(&guest.vm, &BREAKPOINT), Site::Pass);
    }
}

#[test]
fn another_occurrence_than_the_answered_one_is_a_new_event() {
    let mut guest = watched();
    guest.send_event(CR3, 1);
    assert_eq!(guest.reply(1, event::CR, CONTINUE, &[1; 8]), VcpuVerdict::Replied);
    let other = Occurrence::Cr { cr: 0, old: 1, new: 2 };
    assert_eq!(guest.state.reply_value(event::CR, 0), None);
    assert_eq!(guest.state.record(&guest.vm, &other), Site::Defer);
    // The handler is through; the new event is not lost by that.
    guest.state.event_done();
    assert_eq!(guest.state.phase(), Phase::Recorded);
    assert_eq!(guest.state.reply_value(event::CR, 3), None);
}

#[test]
fn an_unused_answer_goes_with_the_handler() {
    let mut guest = watched();
    guest.send_event(Occurrence::Hypercall, 1);
    guest.reply(1, event::HYPERCALL, CONTINUE, &[]);
    guest.state.event_done();
    assert_eq!(guest.state.record(&guest.vm, &Occurrence::Hypercall), Site::Defer);
}

#[test]
fn control_registers_get_the_reply_s_value() {
    for (data, value) in [(&0x3000u64.to_ne_bytes()[..], 0x3000), (&[0x44], 0x44), (&[], 0)] {
        let mut guest = watched();
        guest.send_event(CR3, 1);
        assert_eq!(guest.state.reply_value(event::CR, 3), None);
        assert_eq!(guest.reply(1, event::CR, CONTINUE, data), VcpuVerdict::Replied);
        assert_eq!(guest.state.reply_value(event::CR, 3), Some(value));
        assert_eq!(guest.state.reply_value(event::CR, 0), None);
        // The value may be another than the guest's; it is still the same event.
        assert_eq!(guest.state.record(&guest.vm, &CR3), Site::Continue);
        assert_eq!(guest.state.reply_value(event::CR, 3), Some(value));
        guest.state.event_done();
        assert_eq!(guest.state.reply_value(event::CR, 3), None);
    }
}

#[test]
fn the_old_value_in_a_reply_is_a_veto() {
    let old = 7;
    for (reply, vetoes) in [(old, true), (8, false), (9, false)] {
        let mut guest = watched();
        guest.send_event(Occurrence::Cr { cr: 3, old, new: 8 }, 1);
        assert!(!guest.state.reply_vetoes(event::CR, 3));
        assert_eq!(
            guest.reply(1, event::CR, CONTINUE, &u64::to_ne_bytes(reply)),
            VcpuVerdict::Replied
        );
        assert_eq!(guest.state.reply_vetoes(event::CR, 3), vetoes);
        assert!(!guest.state.reply_vetoes(event::CR, 0));
        guest.state.event_done();
        assert!(!guest.state.reply_vetoes(event::CR, 3));
    }
}

#[test]
fn failing_open_leaves_the_guest_s_value() {
    for sent in [false, true] {
        let mut guest = watched();
        assert_eq!(guest.state.record(&guest.vm, &CR3), Site::Defer);
        if sent {
            guest.state.event_sent(1);
        }
        guest.state.event_fail_open();
        assert_eq!(
            (guest.state.phase(), guest.state.reply_value(event::CR, 3)),
            (Phase::ReplyHere, None)
        );
        assert_eq!(guest.state.record(&guest.vm, &CR3), Site::Continue);
    }
    let mut guest = watched();
    guest.state.event_fail_open();
    assert_eq!(guest.state.phase(), Phase::Idle);
    // An answer that came stays.
    guest.send_event(CR3, 1);
    guest.reply(1, event::CR, CONTINUE, &[1]);
    guest.state.event_fail_open();
    assert_eq!(guest.state.reply_value(event::CR, 3), Some(1));
}

#[test]
fn a_crash_is_for_good() {
    for what in ALL {
        let mut guest = watched();
        guest.send_event(what, 1);
        assert_eq!(guest.reply(1, what.event(), CRASH, &[]), VcpuVerdict::Replied);
        for step in [
            |_: &mut Guest| {},
            |g: &mut Guest| g.state.event_done(),
            |g: &mut Guest| g.state.event_void(),
            |g: &mut Guest| {
                g.state.event_fail_open();
            },
        ] {
            step(&mut guest);
            assert_eq!(guest.state.phase(), Phase::Crashed);
            assert_eq!(guest.state.record(&guest.vm, &what), Site::Defer);
        }
    }
}

#[test]
fn only_legal_replies_are_taken() {
    for what in ALL {
        let id = what.event() as u8;
        let data = if [CR3, MSR3].contains(&what) { 8 } else { 0 };
        let retry = [BREAKPOINT, DESCRIPTOR].contains(&what);
        let mut bad = vec![
            reply_bytes(2, id, CONTINUE, &[]),
            reply_bytes(1, id ^ 4, CONTINUE, &[]),
            reply_bytes(1, 0, CONTINUE, &[]),
            reply_bytes(1, id, CRASH + 1, &[]),
            reply_bytes(1, id, 255, &[]),
            reply_bytes(1, id, CONTINUE, &vec![0; data + 1]),
            vcpu_bytes(msg::VCPU_EVENT, 1, 0, &[CONTINUE, id, 1, 0, 0, 0, 0, 0]),
            vcpu_bytes(msg::VCPU_EVENT, 1, 0, &[CONTINUE, id, 0, 0, 0, 0, 0, 1]),
            vcpu_bytes(msg::VCPU_EVENT, 1, 0, &[CONTINUE, id, 0, 0, 0, 0, 0]),
        ];
        if !retry {
            bad.push(reply_bytes(1, id, RETRY, &[]));
        }
        for bytes in bad {
            let mut guest = watched();
            guest.send_event(what, 1);
            assert_eq!(guest.vcpu_message(&bytes).verdict, VcpuVerdict::Close, "{bytes:?}");
            assert_eq!(guest.state.phase(), Phase::Sent);
        }
        let mut guest = watched();
        guest.send_event(what, 1);
        assert_eq!(
            guest.reply(1, what.event(), CONTINUE, &vec![0; data]),
            VcpuVerdict::Replied
        );
        // Once is enough.
        assert_eq!(guest.reply(1, what.event(), CONTINUE, &[]), VcpuVerdict::Close);
    }
    assert_eq!(watched().reply(0, event::PAUSE, CONTINUE, &[]), VcpuVerdict::Close);
}

#[test]
fn replies_to_voided_events_are_ignored_once() {
    let mut guest = watched();
    guest.send_event(CR3, 5);
    guest.state.event_void();
    assert_eq!(guest.state.phase(), Phase::Idle);
    guest.send_event(CR3, 8);
    // Neither the number between nor the next one was ever sent here.
    assert_eq!(guest.reply(7, event::CR, CONTINUE, &[]), VcpuVerdict::Close);
    assert_eq!(guest.reply(5, event::CR, CRASH, &[]), VcpuVerdict::Answered(0));
    assert_eq!(guest.state.phase(), Phase::Sent);
    assert_eq!(guest.reply(5, event::CR, CONTINUE, &[]), VcpuVerdict::Close);
    assert_eq!(guest.reply(8, event::CR, CONTINUE, &[2]), VcpuVerdict::Replied);
    assert_eq!(guest.state.reply_value(event::CR, 3), Some(2));
}

#[test]
fn any_number_of_events_can_be_voided() {
    let mut guest = watched();
    let first = u32::MAX - 100;
    for n in 0..500u32 {
        guest.send_event(Occurrence::Hypercall, first.wrapping_add(2 * n));
        guest.state.event_void();
    }
    for n in (0..500u32).rev() {
        let seq = first.wrapping_add(2 * n);
        assert_eq!(
            guest.reply(seq, event::HYPERCALL, CONTINUE, &[]),
            VcpuVerdict::Answered(0)
        );
    }
    assert_eq!(guest.reply(first, event::HYPERCALL, CONTINUE, &[]), VcpuVerdict::Close);
}

#[test]
fn pauses_and_traps_outlive_a_write_of_registers() {
    for what in [Occurrence::Pause, TRAP] {
        let mut guest = watched();
        assert_eq!(guest.state.record(&guest.vm, &what), Site::Defer);
        guest.state.event_void();
        assert_eq!(guest.state.phase(), Phase::Recorded);
        guest.state.event_sent(1);
        guest.state.event_void();
        assert_eq!(guest.state.phase(), Phase::Sent);
        assert_eq!(guest.reply(1, what.event(), CONTINUE, &[]), VcpuVerdict::Replied);
    }
}

#[test]
fn a_control_register_and_an_msr_of_one_number_are_told_apart() {
    let mut guest = watched();
    guest.send_event(MSR3, 1);
    assert_eq!(guest.reply(1, event::MSR, CONTINUE, &[7]), VcpuVerdict::Replied);
    assert_eq!(guest.state.reply_value(event::CR, 3), None);
    assert_eq!(guest.state.reply_value(event::MSR, 0), None);
    assert_eq!(guest.state.reply_value(event::MSR, 3), Some(7));
    assert_eq!(guest.state.record(&guest.vm, &CR3), Site::Defer);
}

#[test]
fn what_belongs_to_no_instruction_completes_none() {
    for what in ALL {
        let mut guest = watched();
        guest.send_event(what, 1);
        assert!(!guest.state.completes_exit());
        assert_eq!(guest.reply(1, what.event(), CONTINUE, &[]), VcpuVerdict::Replied);
        assert_eq!(guest.state.completes_exit(), ![Occurrence::Pause, TRAP].contains(&what));
    }
}

#[test]
fn an_event_that_was_not_sent_is_voided_without_a_trace() {
    let mut guest = watched();
    assert_eq!(guest.state.record(&guest.vm, &CR3), Site::Defer);
    guest.state.event_void();
    assert_eq!(guest.state.phase(), Phase::Idle);
    assert_eq!(guest.reply(0, event::CR, CONTINUE, &[]), VcpuVerdict::Close);
    guest.send_event(CR3, 1);
    guest.reply(1, event::CR, CONTINUE, &[]);
    guest.state.event_void();
    assert_eq!(
        (guest.state.phase(), guest.state.reply_value(event::CR, 3)),
        (Phase::Idle, None)
    );
}

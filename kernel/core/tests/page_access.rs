// SPDX-License-Identifier: GPL-2.0-only
//! Page access: what may be asked for, what follows, and events about it.

mod fake;

use fake::{Guest, message};
use kvmi_core::{Occurrence, Phase, Site, VmVerdict};
use kvmi_uapi::{
    Features, MAX_PAGE_ACCESS_ENTRIES, PageAccessEntry, VmPageAccess,
    error::{EINVAL, EOPNOTSUPP, EPERM},
    event::{CONTINUE, PF, RETRY},
    msg,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const R: u8 = PageAccessEntry::READ;
const W: u8 = PageAccessEntry::WRITE;
const X: u8 = PageAccessEntry::EXEC;

fn entry(gpa: u64, access: u8) -> PageAccessEntry {
    PageAccessEntry {
        gpa,
        access,
        pad: [0; 7],
    }
}

fn payload(entries: &[PageAccessEntry]) -> Vec<u8> {
    let head = VmPageAccess {
        count: entries.len() as u16,
        ..Default::default()
    };
    [head.as_bytes(), entries.as_bytes()].concat()
}

fn set(guest: &mut Guest, entries: &[PageAccessEntry]) -> i32 {
    guest.vm_call(msg::VM_SET_PAGE_ACCESS, &payload(entries)[..]).0
}

fn get(guest: &mut Guest, entries: &[PageAccessEntry]) -> Result<Vec<PageAccessEntry>, i32> {
    let (err, data) = guest.vm_call(msg::VM_GET_PAGE_ACCESS, &payload(entries)[..]);
    if err != 0 {
        return Err(err);
    }
    Ok(data
        .chunks(16)
        .map(|entry| PageAccessEntry::read_from_bytes(entry).unwrap())
        .collect())
}

#[test]
fn only_what_can_be_expressed_is_set() {
    for bits in 0..16 {
        let mut guest = Guest::default();
        guest.fake_vm.access_bits = bits;
        for access in 0..8 {
            let denied = |kind| access & kind == 0;
            let can = (!denied(R) || bits & Features::READ_DENY != 0)
                && (!denied(W) || bits & Features::WRITE_DENY != 0)
                && (!denied(X) || bits & Features::EXEC_DENY != 0)
                && (!denied(R) || denied(W))
                && (!denied(R) || denied(X) || bits & Features::EXEC_ONLY != 0);
            guest.fake_vm.access.clear();
            let err = set(&mut guest, &[entry(0x1000, access)]);
            assert_eq!(err, if can { 0 } else { -EOPNOTSUPP }, "{access:03b} with {bits:04b}");
            let wanted = can.then_some(access);
            assert_eq!(guest.fake_vm.access.get(&1).copied(), wanted);
        }
    }
}

#[test]
fn all_entries_are_tried_and_the_first_error_is_told() {
    let mut guest = Guest::default();
    let entries = [
        entry(0x0123, R),
        entry(0x1000, W),
        entry(0x9000, R),
        entry(0x1fff, R | X),
    ];
    assert_eq!(set(&mut guest, &entries), -EOPNOTSUPP);
    assert!(guest.fake_vm.in_force);
    assert_eq!(guest.fake_vm.access, [(0, R), (1, R | X)].into());
    assert_eq!(set(&mut guest, &entries[2..]), -EINVAL);
    let padded = PageAccessEntry {
        pad: [0, 0, 0, 0, 0, 0, 1],
        ..entry(0, 7)
    };
    for wrong in [padded, entry(0, 8), entry(0, 0xff)] {
        assert_eq!(set(&mut guest, &[wrong]), -EINVAL);
    }
    assert_eq!(guest.fake_vm.access, [(0, R), (1, R | X)].into());
    assert_eq!(
        get(&mut guest, &[entry(0x1abc, 0xff), entry(0, 0)]),
        Ok(vec![entry(0x1abc, R | X), entry(0, R)])
    );
    assert_eq!(get(&mut guest, &[entry(0, 0), entry(0x9000, 0)]), Err(-EINVAL));
    assert_eq!(get(&mut guest, &[padded]), Err(-EINVAL));
    assert_eq!(get(&mut guest, &[]), Ok(vec![]));
}

#[test]
fn the_head_is_checked() {
    for id in [msg::VM_SET_PAGE_ACCESS, msg::VM_GET_PAGE_ACCESS] {
        let mut guest = Guest::default();
        for at in 2..8 {
            let mut bytes = payload(&[entry(0, R)]);
            bytes[at] = 1;
            assert_eq!(guest.vm_call(id, &bytes[..]).0, -EINVAL, "{at}");
        }
        assert!(guest.fake_vm.access.is_empty());
        let full = payload(&vec![entry(0, 7); MAX_PAGE_ACCESS_ENTRIES]);
        assert_eq!(guest.vm_call(id, &full[..]).0, 0);
        // One entry more than there is: closed, even with padding.
        let mut short = payload(&[entry(0, R), entry(0x1000, R)]);
        short.pop();
        for pad in [0, 1] {
            short[2] = pad;
            assert_eq!(guest.vm_message(&message(id, 1, &short)), VmVerdict::Close);
        }
        guest.vm.allow_command(0, id.into()).unwrap();
        assert_eq!(guest.vm_call(id, &short[..]).0, -EPERM);
    }
}

proptest! {
    #[test]
    fn any_request_is_answered_or_closes(
        count in prop_oneof![0u16..8, any::<u16>()],
        rest in proptest::collection::vec(any::<u8>(), 0..100),
        is_set in any::<bool>(),
    ) {
        let mut guest = Guest::default();
        let bytes = [&count.to_ne_bytes()[..], &[0; 6], &rest].concat();
        let id = if is_set { msg::VM_SET_PAGE_ACCESS } else { msg::VM_GET_PAGE_ACCESS };
        let verdict = guest.vm_message(&message(id, 1, &bytes));
        if 16 * usize::from(count) > rest.len() {
            prop_assert_eq!(verdict, VmVerdict::Close);
        } else {
            let VmVerdict::Answered(length) = verdict else { panic!("{verdict:?}") };
            prop_assert!(length == 16 || length == 16 + 16 * usize::from(count));
        }
        prop_assert!(guest.fake_vm.in_force);
    }
}

const fn pf(gpa: u64, access: u8) -> Occurrence {
    Occurrence::Pf {
        gpa,
        gva: 0x7000_0000 | gpa,
        access,
    }
}

/// A vCPU with PF on.
fn watched() -> Guest {
    let mut guest = Guest::default();
    let request = kvmi_uapi::VcpuControlEvents {
        event_id: PF,
        enable: 1,
        ..Default::default()
    };
    assert_eq!(guest.vcpu_call(msg::VCPU_CONTROL_EVENTS, &request).0, 0);
    guest
}

#[test]
fn each_access_of_an_instruction_has_its_event() {
    let mut guest = watched();
    let (first, second) = (pf(0x1ffc, W), pf(0x2000, W));
    guest.send_event(first, 1);
    guest.reply(1, PF, CONTINUE, &[]);
    assert_eq!(guest.state.phase(), Phase::ReplyHere);
    // The same page, though the exit may name another byte of it.
    assert_eq!(guest.state.record(&guest.vm, &pf(0x1ff8, W)), Site::Continue);
    guest.state.event_done();
    guest.send_event(second, 2);
    guest.reply(2, PF, RETRY, &[]);
    assert_eq!(guest.state.record(&guest.vm, &second), Site::Retry);
    guest.state.event_done();
    assert_eq!(guest.state.phase(), Phase::Idle);
}

#[test]
fn a_reply_is_about_one_page_and_kind() {
    for other in [pf(0x2000, W), pf(0x1000, R), pf(0x1000, X)] {
        let mut guest = watched();
        guest.send_event(pf(0x1000, W), 1);
        guest.reply(1, PF, CONTINUE, &[]);
        assert_eq!(guest.state.record(&guest.vm, &other), Site::Defer, "{other:?}");
        assert_eq!(guest.state.phase(), Phase::Recorded);
    }
}

#[test]
fn the_event_carries_its_data() {
    let mut guest = watched();
    guest.send_event(pf(0x1234, X), 1);
    // Header, event header, vCPU event.
    let data = kvmi_uapi::event::Pf::read_from_prefix(&guest.out[8 + 8 + 544..])
        .unwrap()
        .0;
    assert_eq!((data.gpa, data.gva, data.access), (0x1234, 0x7000_1234, X));
    assert_eq!((data.pad1, data.pad2, data.pad3), (0, 0, 0));
}

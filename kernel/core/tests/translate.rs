// SPDX-License-Identifier: GPL-2.0-only
//! VCPU_TRANSLATE_GVA in each paging mode.

mod fake;

use fake::{Guest, LONG_MODE};
use kvmi_core::Control;
use kvmi_uapi::{
    VcpuTranslateGva,
    error::{EINVAL, EOPNOTSUPP},
    msg,
};

const NOWHERE: u64 = u64::MAX;
const P: u64 = 1;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;

/// A guest with these tables, each entry by its table, index and bytes.
fn guest(control: Control, entries: &[(u64, u64, u64)]) -> Guest {
    let mut guest = Guest::default();
    guest.fake_vcpu.control = control;
    guest.fake_vcpu.tables.clear();
    for &(table, index, entry) in entries {
        guest.fake_vcpu.tables.insert(table + 8 * index, entry);
    }
    guest
}

fn ask(guest: &mut Guest, request: VcpuTranslateGva) -> Result<u64, i32> {
    let (err, data) = guest.vcpu_call(msg::VCPU_TRANSLATE_GVA, &request);
    match err {
        0 => Ok(u64::from_ne_bytes(data.try_into().unwrap())),
        err => Err(-err),
    }
}

#[track_caller]
fn check(guest: &mut Guest, gva: u64, gpa: u64) {
    let request = VcpuTranslateGva {
        gva,
        ..Default::default()
    };
    assert_eq!(ask(guest, request), Ok(gpa), "{gva:#x}");
}

/// 4 KiB at 0x7f0000123000, 2 MiB at 0x7f0000200000, 1 GiB at 0x7f0040000000, and a supervisor's page high up.
fn long_mode() -> Guest {
    guest(
        LONG_MODE,
        &[
            (0x1000, 0xfe, 0x2000 | P),
            (0x1000, 0x1ff, 0x2000 | P),
            (0x2000, 0, 0x3000 | P),
            (0x2000, 1, 0x8000_0000 | P | LARGE),
            (0x3000, 0, 0x4000 | P),
            (0x3000, 1, 0xa0_0000 | P | LARGE | 1 << 12),
            (0x4000, 0x123, 0x55_5000 | P | NX | 1 << 2),
            (0x4000, 0x124, 0x66_6000),
            (0x4000, 0x125, 1 << 40 | P),
        ],
    )
}

#[test]
fn long_mode_has_pages_of_three_sizes() {
    let mut guest = long_mode();
    check(&mut guest, 0x7f00_0012_3456, 0x55_5456);
    check(&mut guest, 0x7f00_0023_4567, 0xa3_4567);
    check(&mut guest, 0x7f00_5234_5678, 0x9234_5678);
    check(&mut guest, 0xffff_ff80_0012_3456, 0x55_5456);
    // Not present; above physical addresses; no table; no address.
    check(&mut guest, 0x7f00_0012_4000, NOWHERE);
    check(&mut guest, 0x7f00_0012_5000, NOWHERE);
    check(&mut guest, 0x7f00_0040_0000, NOWHERE);
    check(&mut guest, 0x8000_0000_0000, NOWHERE);
}

#[test]
fn permissions_are_nobodys_business() {
    // SMEP, SMAP, PKE, and a page that is the user's, read-only, never executed.
    let mut guest = long_mode();
    guest.fake_vcpu.control.cr4 |= 1 << 20 | 1 << 21 | 1 << 22;
    check(&mut guest, 0x7f00_0012_3456, 0x55_5456);
    let before = guest.fake_vcpu.tables.clone();
    check(&mut guest, 0x7f00_0012_3456, 0x55_5456);
    assert_eq!(guest.fake_vcpu.tables, before, "no accessed bit is set");
}

#[test]
fn reserved_bits_map_nothing() {
    let mut guest = long_mode();
    guest.fake_vcpu.control.efer &= !(1 << 11);
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);
    check(&mut guest, 0x7f00_0023_4567, 0xa3_4567);
    for (table, index, entry) in [
        // A page where there are but tables; pages that do not begin where they must.
        (0x1000, 0xfe, 0x2000 | P | LARGE),
        (0x3000, 1, 0xa0_2000 | P | LARGE),
    ] {
        let mut guest = long_mode();
        guest.fake_vcpu.tables.insert(table + 8 * index, entry);
        check(&mut guest, 0x7f00_0023_4567, NOWHERE);
    }
}

#[test]
fn a_fifth_level() {
    let mut control = LONG_MODE;
    control.cr4 |= 1 << 12;
    control.cr3 = 0x9000;
    let mut guest = long_mode();
    guest.fake_vcpu.control = control;
    guest.fake_vcpu.tables.insert(0x9000 + 8 * 0x42, 0x1000 | P);
    check(&mut guest, 0x42 << 48 | 0x7f00_0012_3456, 0x55_5456);
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);
    check(&mut guest, 1 << 56, NOWHERE);
}

#[test]
fn another_root() {
    let mut guest = long_mode();
    guest.fake_vcpu.tables.insert(0x2_0000 + 8 * 5, 0x2000 | P);
    let by = |root, gva| VcpuTranslateGva {
        gva,
        root,
        by_root: 1,
        ..Default::default()
    };
    let gva = 5 << 39 | 0x12_3456;
    // With a PCID and the bit that keeps the TLB.
    for root in [0x2_0000, 0x2_0fff, 1 << 63 | 0x2_0000] {
        assert_eq!(ask(&mut guest, by(root, gva)), Ok(0x55_5456), "{root:#x}");
        assert_eq!(ask(&mut guest, by(root, 0x7f00_0012_3456)), Ok(NOWHERE), "{root:#x}");
    }
    check(&mut guest, gva, NOWHERE);
    assert_eq!(ask(&mut guest, by(1 << 40, gva)), Err(EINVAL));
    let request = VcpuTranslateGva { by_root: 2, ..by(0, 0) };
    assert_eq!(ask(&mut guest, request), Err(EINVAL));
    let request = VcpuTranslateGva {
        pad: [0, 0, 0, 0, 0, 0, 1],
        ..by(0, 0)
    };
    assert_eq!(ask(&mut guest, request), Err(EINVAL));
    guest.fake_vcpu.control = Control {
        rflags: 2,
        physical_bits: 40,
        ..Control::default()
    };
    assert_eq!(ask(&mut guest, by(0, gva)), Err(EOPNOTSUPP));
}

#[test]
fn a_tool_of_v12_sends_the_address_alone() {
    let mut guest = long_mode();
    let (err, data) = guest.vcpu_call(msg::VCPU_TRANSLATE_GVA, &0x7f00_0012_3456u64);
    assert_eq!((err, data), (0, 0x55_5456u64.to_ne_bytes().to_vec()));
}

#[test]
fn pae_paging_takes_the_pointers_that_the_cpu_has() {
    let control = Control {
        cr0: 0x8000_0011,
        cr3: 0x1020,
        cr4: 0x20,
        rflags: 2,
        pdptrs: [0, 0x2000 | P, 0, 0x2002 | P],
        physical_bits: 36,
        ..Control::default()
    };
    let entries = [
        // What the pointers are in memory by now.
        (0x1020, 1, 0x7000 | P),
        (0x2000, 3, 0x3000 | P),
        (0x3000, 4, 0x5_5000_0000 | P),
        (0x2000, 4, 0x4000_0000 | P | LARGE),
        (0x7000, 3, 0x6000_0000 | P | LARGE),
    ];
    let mut guest = guest(control, &entries);
    check(&mut guest, 0x4060_4321, 0x5_5000_0321);
    check(&mut guest, 0x4081_2345, 0x4001_2345);
    // The pointer is absent, or has a reserved bit; no address.
    check(&mut guest, 0x60_4321, NOWHERE);
    check(&mut guest, 0xc060_4321, NOWHERE);
    check(&mut guest, 1 << 32, NOWHERE);
    let request = VcpuTranslateGva {
        gva: 0x4060_4321,
        root: 0x1020,
        by_root: 1,
        ..Default::default()
    };
    assert_eq!(ask(&mut guest, request), Ok(0x6000_4321));
}

#[test]
fn two_levels_and_none() {
    let mut control = Control {
        cr0: 0x8000_0011,
        cr3: 0x1000,
        cr4: 0x10,
        rflags: 2,
        physical_bits: 36,
        ..Control::default()
    };
    // Two entries a word: of a table, and of 4 MiB whose address has bits 35 to 32.
    let directory = (0x2000 | P) | (0x0080_0000 | 0x5 << 13 | P | LARGE) << 32;
    let table = (0x1234_5000 | P) << 32;
    let entries = [(0x1000, 0, directory), (0x2000, 1, table)];
    let mut guest = guest(control, &entries);
    check(&mut guest, 0x3abc, 0x1234_5abc);
    check(&mut guest, 0x2abc, NOWHERE);
    check(&mut guest, 0x7f_ffff, 0x5_00bf_ffff);
    // Without CR4.PSE it is a table.
    guest.fake_vcpu.control.cr4 = 0;
    check(&mut guest, 0x7f_ffff, NOWHERE);
    control.cr0 = 0x11;
    guest.fake_vcpu.control = control;
    check(&mut guest, 0x3abc, 0x3abc);
    check(&mut guest, 1 << 32, NOWHERE);
}

#[test]
fn what_a_guest_of_the_guest_has_may_be_nowhere() {
    let mut guest = long_mode();
    guest.fake_vcpu.unmapped.insert(0x555);
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);
    check(&mut guest, 0x7f00_0023_4567, 0xa3_4567);
}

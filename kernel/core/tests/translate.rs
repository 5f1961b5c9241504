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
        has_pdptrs: 1,
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
    // One that has loaded none reads them there, too.
    guest.fake_vcpu.control.has_pdptrs = 0;
    check(&mut guest, 0x4060_4321, 0x6000_4321);
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

/// The tables of [`long_mode`] in a guest of the guest's, which has them from `offset` on in the guest; with nested tables,
/// each entry by its table, index and bytes.
fn nested(offset: u64, levels: u8, entries: &[(u64, u64, u64)]) -> Guest {
    let mut guest = long_mode();
    let tables = std::mem::take(&mut guest.fake_vcpu.tables);
    guest.fake_vcpu.tables = tables.iter().map(|(at, entry)| (at + offset, *entry)).collect();
    for (table, index, entry) in entries {
        guest.fake_vcpu.tables.insert(table + 8 * index, *entry);
    }
    guest.fake_vcpu.control.nested_root = 0x20_0000;
    guest.fake_vcpu.control.nested_levels = levels;
    guest
}

/// Four pages of tables and one of data.
fn four_levels(bits: u64) -> Vec<(u64, u64, u64)> {
    let mut entries = vec![
        (0x20_0000, 0, 0x20_1000 | bits),
        (0x20_1000, 0, 0x20_2000 | bits),
        (0x20_2000, 0, 0x20_3000 | bits),
        (0x20_2000, 2, 0x20_4000 | bits),
        (0x20_4000, 0x155, 0x77_7000 | bits),
    ];
    entries.extend((1..5).map(|page| (0x20_3000, page, (0x100 + page) << 12 | bits)));
    entries
}

#[test]
fn a_guest_of_the_guest_is_behind_tables_of_its_hypervisor() {
    let mut guest = nested(0x10_0000, 4, &four_levels(P));
    check(&mut guest, 0x7f00_0012_3456, 0x77_7456);
    // What it maps, and its hypervisor does not; so with its tables.
    check(&mut guest, 0x7f00_0023_4567, NOWHERE);
    guest.fake_vcpu.tables.remove(&(0x20_3000 + 8 * 3));
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);
    // Five levels, of which the first has one entry.
    let mut entries = four_levels(P);
    entries.push((0x30_0000, 0, 0x20_0000 | P));
    let mut guest = nested(0x10_0000, 5, &entries);
    guest.fake_vcpu.control.nested_root = 0x30_0000;
    check(&mut guest, 0x7f00_0012_3456, 0x77_7456);
}

#[test]
fn extended_page_tables_are_present_when_anything_is_let() {
    for bits in [1, 2, 4, 7] {
        let mut guest = nested(0x10_0000, 4, &four_levels(bits));
        guest.fake_vcpu.control.nested_ept = 1;
        // The bits of EPTP that are no address.
        guest.fake_vcpu.control.nested_root |= 0x5e;
        check(&mut guest, 0x7f00_0012_3456, 0x77_7456);
    }
    let mut guest = nested(0x10_0000, 4, &four_levels(1 << 3));
    guest.fake_vcpu.control.nested_ept = 1;
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);
}

#[test]
fn nested_tables_of_three_levels_and_of_two() {
    let mut entries = four_levels(P);
    // Four pointers, not at the begin of their page.
    entries.push((0x20_0020, 0, 0x20_2000 | P));
    let mut guest = nested(0x10_0000, 3, &entries);
    guest.fake_vcpu.control.nested_root = 0x20_0020;
    check(&mut guest, 0x7f00_0012_3456, 0x77_7456);
    // Above what three levels can map.
    let data = 0x10_4000 + 8 * 0x123;
    guest.fake_vcpu.tables.insert(data, 1 << 32 | 0x55_5000 | P);
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);

    // 4 MiB, and a table of which two entries are in a word.
    let entries = [
        (0x20_0000, 0, (0x40_0000 | P | LARGE) | (0x20_1000 | P) << 32),
        (0x20_1000, 0x155 / 2, (0x77_7000 | P) << 32),
    ];
    let mut guest = nested(0x40_0000, 2, &entries);
    guest.fake_vcpu.control.nested_pse = 1;
    check(&mut guest, 0x7f00_0012_3456, 0x77_7456);
    guest.fake_vcpu.control.nested_pse = 0;
    check(&mut guest, 0x7f00_0012_3456, NOWHERE);
}

// SPDX-License-Identifier: GPL-2.0-only
//! CPUID, XCR0, extended state, memory types, translations.

mod fake;

use fake::Guest;
use kvmi_core::KvmError;
use kvmi_uapi::{
    VcpuGetCpuid, VcpuGetMtrrType, VcpuGetXcr,
    error::{EINVAL, ENOENT, EOPNOTSUPP},
    msg,
};

#[test]
fn cpuid_is_read() {
    let mut guest = Guest::default();
    let leaf = |function, index| VcpuGetCpuid { function, index };
    guest.fake_vcpu.cpuid_edx = 4;
    let (err, data) = guest.vcpu_call(msg::VCPU_GET_CPUID, &leaf(1, 0));
    assert_eq!((err, data), (0, [1u32, 2, 3, 4].map(u32::to_ne_bytes).concat()));
    for missing in [leaf(2, 0), leaf(1, 1), leaf(u32::MAX, u32::MAX)] {
        assert_eq!(guest.vcpu_call(msg::VCPU_GET_CPUID, &missing).0, -ENOENT);
    }
}

#[test]
fn xcr0_is_read_and_no_other() {
    let mut guest = Guest::default();
    let request = VcpuGetXcr::default();
    assert_eq!(
        guest.vcpu_call(msg::VCPU_GET_XCR, &request),
        (0, 7u64.to_ne_bytes().to_vec())
    );
    let mut bad = vec![VcpuGetXcr { xcr: 1, ..request }, VcpuGetXcr { xcr: 255, ..request }];
    bad.extend((0..7).map(|at| {
        let mut pad = [0; 7];
        pad[at] = 1;
        VcpuGetXcr { xcr: 0, pad }
    }));
    for bad in bad {
        assert_eq!(guest.vcpu_call(msg::VCPU_GET_XCR, &bad).0, -EINVAL, "{bad:?}");
    }
}

#[test]
fn extended_state_is_moved_whole() {
    let mut guest = Guest::default();
    assert_eq!(guest.vcpu_call(msg::VCPU_GET_XSAVE, &[0u8; 0]), (0, vec![0xdd; 4096]));
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_XSAVE, &[0x11u8; 4095]).0, -EINVAL);
    assert_eq!(guest.fake_vcpu.xsave, [0xdd; 4096]);
    // What is behind it belongs to a newer tool.
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_XSAVE, &[0x22u8; 4100]).0, 0);
    assert_eq!(guest.fake_vcpu.xsave, [0x22; 4096]);
    guest.fake_vcpu.xsave_answer = Err(KvmError(EOPNOTSUPP));
    assert_eq!(guest.vcpu_call(msg::VCPU_GET_XSAVE, &[0u8; 0]), (-EOPNOTSUPP, vec![]));
    assert_eq!(guest.vcpu_call(msg::VCPU_SET_XSAVE, &[0u8; 4096]).0, -EOPNOTSUPP);
}

const CAP: u32 = 0xfe;
const DEFAULT_TYPE: u32 = 0x2ff;
const ENABLED: u64 = 1 << 11;
const FIXED_ENABLED: u64 = 1 << 10;
const VALID: u64 = 1 << 11;
const MTRR: u32 = 1 << 12;

/// A guest whose MTRRs are off and all zero.
fn with_mtrrs() -> Guest {
    let mut guest = Guest::default();
    guest.fake_vcpu.cpuid_edx = MTRR;
    let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f);
    let registers = fixed.chain(0x200..0x210).chain([DEFAULT_TYPE]);
    guest.fake_vcpu.msrs = registers.map(|msr| (msr, 0)).collect();
    guest.fake_vcpu.msrs.insert(CAP, 0x508);
    guest
}

/// Covers `size` bytes from `base`, with 40 bits of physical address.
fn cover(guest: &mut Guest, index: u32, base: u64, size: u64, type_: u64) {
    guest.fake_vcpu.msrs.insert(0x200 + 2 * index, base | type_);
    let mask = (1 << 40) - size;
    guest.fake_vcpu.msrs.insert(0x201 + 2 * index, mask | VALID);
}

fn type_at(guest: &mut Guest, gpa: u64) -> u8 {
    let (err, data) = guest.vcpu_call(msg::VCPU_GET_MTRR_TYPE, &VcpuGetMtrrType { gpa });
    assert_eq!((err, &data[1..]), (0, &[0; 7][..]));
    data[0]
}

#[test]
fn without_mtrrs_memory_is_write_back_and_with_them_off_uncacheable() {
    assert_eq!(type_at(&mut Guest::default(), 0), 6);
    let mut guest = with_mtrrs();
    assert_eq!(type_at(&mut guest, 0), 0);
    guest.fake_vcpu.msrs.insert(DEFAULT_TYPE, FIXED_ENABLED | 6);
    assert_eq!(type_at(&mut guest, 0x50_0000), 0);
    guest.fake_vcpu.msrs.insert(DEFAULT_TYPE, ENABLED | 5);
    assert_eq!((type_at(&mut guest, 0), type_at(&mut guest, u64::MAX)), (5, 5));
}

#[test]
fn each_fixed_range_has_its_byte() {
    let mut guest = with_mtrrs();
    guest.fake_vcpu.msrs.insert(DEFAULT_TYPE, ENABLED | FIXED_ENABLED | 6);
    let ranges = [
        (0u64, 0x250u32, 0x1_0000u64, 1u32),
        (0x8_0000, 0x258, 0x4000, 2),
        (0xc_0000, 0x268, 0x1000, 8),
    ];
    for (first, msr, size, registers) in ranges {
        for range in 0..8 * registers {
            let (at, byte) = (msr + range / 8, range % 8);
            guest.fake_vcpu.msrs.insert(at, 5 << (8 * byte));
            let gpa = first + size * u64::from(range);
            let types = [gpa, gpa + size - 1].map(|gpa| type_at(&mut guest, gpa));
            assert_eq!(types, [5, 5], "range at {gpa:#x}");
            guest.fake_vcpu.msrs.insert(at, 0);
            assert_eq!(type_at(&mut guest, gpa), 0);
        }
    }
    assert_eq!(type_at(&mut guest, 0x10_0000), 6);
}

#[test]
fn variable_ranges_overlap_as_the_manuals_say() {
    let mut guest = with_mtrrs();
    guest.fake_vcpu.msrs.insert(DEFAULT_TYPE, ENABLED | 6);
    cover(&mut guest, 0, 0x40_0000, 0x20_0000, 4);
    assert_eq!(type_at(&mut guest, 0x3f_ffff), 6);
    assert_eq!([0x40_0000, 0x5f_ffff].map(|gpa| type_at(&mut guest, gpa)), [4, 4]);
    assert_eq!(type_at(&mut guest, 0x60_0000), 6);
    // The last range counts as well as the first.
    for (other, together) in [(4, 4), (6, 4), (0, 0), (1, 0), (5, 0)] {
        cover(&mut guest, 7, 0x50_0000, 0x10_0000, other);
        assert_eq!(type_at(&mut guest, 0x50_0000), together, "with {other}");
        assert_eq!(type_at(&mut guest, 0x40_0000), 4);
    }
    guest.fake_vcpu.msrs.insert(0x20f, 0);
    assert_eq!(type_at(&mut guest, 0x50_0000), 4, "a range that is not valid");
}

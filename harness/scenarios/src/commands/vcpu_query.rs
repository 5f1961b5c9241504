// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU holds beside its registers: CPUID, XCR0, extended state, memory types, translations.

use std::time::Duration;

use kvmi::command::{GetCpuid, GetMtrrType, GetXsave, TranslateGva};
use kvmi_guests::{Op, layout};
use kvmi_lab_control::Backend;
use kvmi_uapi::error::EINVAL;
use kvmi_uapi::{VcpuGetCpuidReply, VcpuGetMtrrTypeReply, VcpuTranslateGvaReply, msg};

use crate::requests::{expect_data, read_exactly};
use crate::vmm::{Vm, field};
use crate::wire::Wire;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::vcpu_get_cpuid",
        "VCPU_GET_CPUID: leaves as the VMM set them for each vCPU",
        get_cpuid,
    ),
    scenario(
        "commands::vcpu_get_xcr",
        "VCPU_GET_XCR: XCR0 as the guest wrote it",
        get_xcr,
    ),
    scenario(
        "commands::vcpu_xsave",
        "VCPU_GET_XSAVE and VCPU_SET_XSAVE: an SSE register there and back",
        xsave,
    ),
    scenario(
        "commands::vcpu_xsave_of_busy",
        "VCPU_SET_XSAVE and VCPU_GET_XSAVE of a vCPU that never sleeps",
        xsave_of_busy,
    ),
    scenario(
        "commands::vcpu_xsave_avx",
        "VCPU_GET_XSAVE and VCPU_SET_XSAVE: the upper half of a YMM register there and back",
        xsave_avx,
    ),
    scenario(
        "commands::vcpu_get_mtrr_type",
        "VCPU_GET_MTRR_TYPE: as the guest programs its MTRRs",
        get_mtrr_type,
    ),
    scenario(
        "commands::vcpu_translate_gva",
        "VCPU_TRANSLATE_GVA: mapped, unmapped, not canonical",
        translate_gva,
    ),
    scenario(
        "commands::vcpu_translate_gva_whoever_may",
        "VCPU_TRANSLATE_GVA of a user's page with SMAP and SMEP on, no accessed bit set; by other tables than the current ones",
        translate_whoever_may,
    ),
];

fn cpuid(wire: &mut Wire, vcpu: u16, function: u32, index: u32) -> Result<Result<VcpuGetCpuidReply, i32>, Failure> {
    let answer = wire.ask(&GetCpuid { vcpu, function, index })?;
    answer.map_or_else(
        |errno| Ok(Err(errno)),
        |data| read_exactly(&data, "VCPU_GET_CPUID").map(Ok),
    )
}

/// A leaf that must be there.
fn leaf(wire: &mut Wire, vcpu: u16, function: u32, index: u32) -> Result<VcpuGetCpuidReply, Failure> {
    cpuid(wire, vcpu, function, index)?
        .map_err(|errno| Failure::new(format!("leaf {function:#x} {index:#x} was answered with error {errno}")))
}

fn get_cpuid(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 2)?;
    context.stage("answers", Duration::from_secs(10));
    let vendor = leaf(&mut wire, 0, 0, 0)?;
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
    let wanted: &[u8] = match context.backend {
        Backend::Vmx => b"GenuineIntel",
        Backend::Svm => b"AuthenticAMD",
    };
    check_eq!(name, wanted, "vendor");
    let hypervisor = leaf(&mut wire, 0, 0x4000_0000, 0)?;
    check_eq!(
        hypervisor.ebx.to_le_bytes(),
        *b"KVMK",
        "the hypervisor's name begins with"
    );
    for vcpu in 0..2 {
        let processor = leaf(&mut wire, vcpu, 1, 0)?;
        check_eq!(processor.ebx >> 24, u32::from(vcpu), "APIC id in leaf 1 of vCPU {vcpu}");
        // A leaf without sub-leaves is the same for each.
        check_eq!(leaf(&mut wire, vcpu, 1, 77)?, processor, "leaf 1 with a sub-leaf");
    }
    let [state, features] = [0, 1].map(|index| leaf(&mut wire, 0, 0xd, index));
    check!(state? != features?, "leaf 0xd says the same for sub-leaves 0 and 1");
    vm.exit()
}

fn get_xcr(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    context.stage("answers", Duration::from_secs(10));
    check_eq!(wire.xcr0(0)?, 1, "XCR0 after reset");
    for value in [3, 1] {
        let now = vm.carry_out(context, 0, Op::WriteXcr0, [value, 0, 0, 0])?;
        check_eq!(
            (now, wire.xcr0(0)?),
            (value, value),
            "XCR0 as the guest and the tool read it"
        );
    }
    vm.exit()
}

/// Where XMM3, MXCSR and the header's XSTATE_BV lie in an XSAVE area.
const XMM3: usize = 160 + 3 * 16;
const MXCSR: usize = 24;
const XSTATE_BV: usize = 512;

fn get_xsave(wire: &mut Wire) -> Result<Vec<u8>, Failure> {
    let state = expect_data(wire.ask(&GetXsave { vcpu: 0 })?, "VCPU_GET_XSAVE")?;
    check_eq!(state.len(), 4096, "bytes of extended state");
    Ok(state)
}

fn put(state: &mut [u8], at: usize, value: u64) {
    state[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn xsave_avx(context: &mut Context) -> Result<(), Failure> {
    const GUESTS: u64 = 0x1122_3344_5566_7788;
    const TOOLS: u64 = 0x8877_6655_4433_2211;
    const X87_SSE_AVX: u64 = 7;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    let xcr0 = vm.carry_out(context, 0, Op::WriteXcr0, [X87_SSE_AVX, 0, 0, 0])?;
    check_eq!(xcr0, X87_SSE_AVX, "XCR0 with AVX");
    let ymm3 = leaf(&mut wire, 0, 0xd, 2)?.ebx as usize + 3 * 16;
    context.stage("read", Duration::from_secs(10));
    vm.carry_out(context, 0, Op::WriteYmm, [GUESTS, 0, 0, 0])?;
    let mut state = get_xsave(&mut wire)?;
    check_eq!(state[ymm3..ymm3 + 8], GUESTS.to_le_bytes(), "YMM3 as the tool reads it");
    check_eq!(state[XSTATE_BV] & 4, 4, "XSTATE_BV's bit for AVX");
    context.stage("write", Duration::from_secs(10));
    put(&mut state, ymm3, TOOLS);
    check_eq!(
        wire.vcpu(0, msg::VCPU_SET_XSAVE, &state[..])?,
        Ok(vec![]),
        "VCPU_SET_XSAVE"
    );
    check_eq!(get_xsave(&mut wire)?, state, "state after it");
    let read = vm.carry_out(context, 0, Op::ReadYmm, [0; 4])?;
    check_eq!(read, TOOLS, "YMM3 as the guest reads it");
    vm.exit()
}

fn xsave(context: &mut Context) -> Result<(), Failure> {
    const GUESTS: u64 = 0x1122_3344_5566_7788;
    const TOOLS: u64 = 0x8877_6655_4433_2211;
    let id = msg::VCPU_SET_XSAVE;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    context.stage("read", Duration::from_secs(10));
    vm.carry_out(context, 0, Op::WriteXmm, [GUESTS, 0, 0, 0])?;
    let mut state = get_xsave(&mut wire)?;
    check_eq!(state[XMM3..XMM3 + 8], GUESTS.to_le_bytes(), "XMM3 as the tool reads it");
    check_eq!(state[XSTATE_BV] & 2, 2, "XSTATE_BV's bit for SSE");
    context.stage("write", Duration::from_secs(10));
    put(&mut state, XMM3, TOOLS);
    check_eq!(wire.vcpu(0, id, &state[..])?, Ok(vec![]), "VCPU_SET_XSAVE");
    check_eq!(get_xsave(&mut wire)?, state, "state after it");
    check_eq!(
        vm.carry_out(context, 0, Op::ReadXmm, [0; 4])?,
        TOOLS,
        "XMM3 as the guest reads it"
    );
    context.stage("errors", Duration::from_secs(10));
    check_eq!(wire.vcpu(0, id, &state[..4095])?, Err(EINVAL), "4095 of 4096 bytes");
    for (what, at, value) in [("XSTATE_BV", XSTATE_BV, 1 << 62), ("MXCSR", MXCSR, u64::from(u32::MAX))] {
        let mut bad = state.clone();
        put(&mut bad, at, value);
        check_eq!(
            wire.vcpu(0, id, &bad[..])?,
            Err(EINVAL),
            "VCPU_SET_XSAVE with a bad {what}"
        );
    }
    check_eq!(
        vm.carry_out(context, 0, Op::ReadXmm, [0; 4])?,
        TOOLS,
        "XMM3 after the errors"
    );
    vm.exit()
}

fn xsave_of_busy(context: &mut Context) -> Result<(), Failure> {
    const ROUNDS: u64 = 200;
    context.stage("start", Duration::from_secs(20));
    // It never sleeps, so that the CPU holds its state when a command comes.
    let (vm, mut wire) = context.hooked_vm("counter", 1)?;
    let mut state = get_xsave(&mut wire)?;
    state[XSTATE_BV] |= 2;
    context.stage("write and read", Duration::from_secs(30));
    for round in 1..=ROUNDS {
        put(&mut state, XMM3, round);
        check_eq!(
            wire.vcpu(0, msg::VCPU_SET_XSAVE, &state[..])?,
            Ok(vec![]),
            "VCPU_SET_XSAVE"
        );
        let now = get_xsave(&mut wire)?;
        check_eq!(now[XMM3..XMM3 + 8], round.to_le_bytes(), "XMM3 as the tool reads it");
    }
    vm.exit()
}

fn memory_type(wire: &mut Wire, gpa: u64) -> Result<u8, Failure> {
    let reply = wire.get(&GetMtrrType { vcpu: 0, gpa }, size_of::<VcpuGetMtrrTypeReply>())?;
    check_eq!(reply.pad, [0; 7], "padding of VCPU_GET_MTRR_TYPE's reply");
    Ok(reply.type_)
}

fn write_msr(context: &Context, vm: &Vm, msr: u64, value: u64) -> Result<(), Failure> {
    vm.carry_out(context, 0, Op::WriteMsr, [msr, value, 0, 0])?;
    check_eq!(
        vm.guest.field(0, field!(protection_faults))?,
        0,
        "#GP after a write of MSR {msr:#x}"
    );
    Ok(())
}

fn get_mtrr_type(context: &mut Context) -> Result<(), Failure> {
    const DEFAULT_TYPE: u64 = 0x2ff;
    const ENABLED: u64 = 1 << 11;
    const FIXED_ENABLED: u64 = 1 << 10;
    const SIZE: u64 = 0x10_0000;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    context.stage("answers", Duration::from_secs(10));
    check_eq!(memory_type(&mut wire, layout::SCRATCH)?, 0, "with MTRRs off");
    write_msr(context, &vm, DEFAULT_TYPE, ENABLED | FIXED_ENABLED | 6)?;
    write_msr(context, &vm, 0x250, 0x0000_0605_0401_0000)?;
    let bits = leaf(&mut wire, 0, 0x8000_0008, 0)?.eax & 0xff;
    write_msr(context, &vm, 0x200, layout::SCRATCH | 4)?;
    write_msr(context, &vm, 0x201, ((1 << bits) - SIZE) | ENABLED)?;
    let wanted = [
        (0x1_0000, 0),
        (0x2_0000, 1),
        (0x3_ffff, 4),
        (0x4_0000, 5),
        (0x5_0000, 6),
        (layout::SCRATCH - 1, 6),
        (layout::SCRATCH, 4),
        (layout::SCRATCH + SIZE - 1, 4),
        (layout::SCRATCH + SIZE, 6),
        (u64::MAX, 6),
    ];
    for (gpa, type_) in wanted {
        check_eq!(memory_type(&mut wire, gpa)?, type_, "memory type at {gpa:#x}");
    }
    write_msr(context, &vm, DEFAULT_TYPE, ENABLED)?;
    let types = [0x5_0000, layout::SCRATCH, layout::SCRATCH + SIZE].map(|gpa| memory_type(&mut wire, gpa));
    for (type_, wanted) in types.into_iter().zip([0, 4, 0]) {
        check_eq!(type_?, wanted, "memory type without fixed ranges");
    }
    vm.exit()
}

fn translation(wire: &mut Wire, gva: u64) -> Result<u64, Failure> {
    translation_by(wire, None, gva)
}

/// By the tables at this root, if there is one.
fn translation_by(wire: &mut Wire, root: Option<u64>, gva: u64) -> Result<u64, Failure> {
    let command = TranslateGva { vcpu: 0, gva, root };
    Ok(wire.get(&command, size_of::<VcpuTranslateGvaReply>())?.gpa)
}

fn translate_whoever_may(context: &mut Context) -> Result<(), Failure> {
    const LARGE_PAGE: u64 = 2 << 20;
    const USERS: u64 = 300;
    /// Present, the user's, large: neither written nor accessed yet.
    const ENTRY: u64 = layout::SCRATCH | 0x85;
    /// CR4.SMEP and SMAP.
    const KEPT_OUT: u64 = 1 << 20 | 1 << 21;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("system", 1)?;
    let cr4 = vm.carry_out(context, 0, Op::ReadCr, [4, 0, 0, 0])?;
    context.stage("a user's page", Duration::from_secs(10));
    let entry = layout::PAGE_DIRECTORY + 8 * USERS;
    vm.guest.write(entry, &ENTRY.to_le_bytes())?;
    let now = vm.carry_out(context, 0, Op::WriteCr, [4, cr4 | KEPT_OUT, 0, 0])?;
    check_eq!(now, cr4 | KEPT_OUT, "CR4");
    check_eq!(
        translation(&mut wire, USERS * LARGE_PAGE + 0x456)?,
        layout::SCRATCH + 0x456,
        "translation with SMAP and SMEP"
    );
    let mut bytes = [0; 8];
    vm.guest.read(entry, &mut bytes)?;
    check_eq!(u64::from_le_bytes(bytes), ENTRY, "the entry: no accessed bit");
    context.stage("another root", Duration::from_secs(10));
    // The same tables five entries further on.
    let root = layout::SCRATCH + 0x10_0000;
    vm.guest.write(root + 8 * 5, &(layout::PDPT | 3).to_le_bytes())?;
    let moved = 5 << 39 | layout::PROGRAM;
    for (root, gva, gpa) in [
        (root, moved, layout::PROGRAM),
        (root | 0xfff, moved, layout::PROGRAM),
        (root, layout::PROGRAM, u64::MAX),
        (layout::OTHER_ROOT, layout::PROGRAM, layout::PROGRAM),
    ] {
        check_eq!(
            translation_by(&mut wire, Some(root), gva)?,
            gpa,
            "translation of {gva:#x} by {root:#x}"
        );
    }
    check_eq!(
        translation(&mut wire, moved)?,
        u64::MAX,
        "translation by the current root"
    );
    vm.exit()
}

fn translate_gva(context: &mut Context) -> Result<(), Failure> {
    const LARGE_PAGE: u64 = 2 << 20;
    const MOVED: u64 = 300;
    const NOWHERE: u64 = u64::MAX;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("answers", Duration::from_secs(10));
    // The kernel's view of the tables is the guest's, not a copy: one entry of them is changed here.
    let entry = layout::PAGE_DIRECTORY + 8 * MOVED;
    let moved = (layout::SCRATCH | 0x83).to_le_bytes();
    check_eq!(
        wire.write_physical(entry, &moved)?,
        Ok(vec![]),
        "a write of a page directory entry"
    );
    let wanted = [
        (layout::PROGRAM, layout::PROGRAM),
        (layout::PROGRAM + 0x123, layout::PROGRAM + 0x123),
        (0x3fff_ffff, 0x3fff_ffff),
        (MOVED * LARGE_PAGE + 0x456, layout::SCRATCH + 0x456),
        // The tables end at 1 GiB.
        (1 << 30, NOWHERE),
        (1 << 46, NOWHERE),
        // What the tables would find for the low 48 bits is mapped.
        (1 << 48 | layout::PROGRAM, NOWHERE),
        (1 << 63 | layout::PROGRAM, NOWHERE),
        (u64::MAX, NOWHERE),
    ];
    for (gva, gpa) in wanted {
        check_eq!(translation(&mut wire, gva)?, gpa, "translation of {gva:#x}");
    }
    check_eq!(wire.write_physical(entry, &[0])?, Ok(vec![]), "its present bit cleared");
    check_eq!(
        translation(&mut wire, MOVED * LARGE_PAGE)?,
        NOWHERE,
        "translation of a page that went"
    );
    vm.exit()
}

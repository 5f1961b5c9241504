// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions of system software: MSRs, XCR0, descriptor tables, and an SSE register to tell extended state by.

use core::arch::asm;

use super::{Cpu, cpuid, read_cr, write_cr};
use crate::{DescriptorOp, layout};

/// CR4.OSFXSR and OSXMMEXCPT.
const CR4_SSE: u64 = 3 << 9;
/// XCR0: x87, SSE and AVX.
const XCR0_AVX: u64 = 7;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;

/// Executes an instruction that may fault, by itself or (`emulated`) behind the prefix that has KVM emulate it; the #GP handler counts a
/// refusal and goes on behind it.
macro_rules! or_fault {
    ($cpu:expr, $instruction:literal, $($operand:tt)*) => {
        or_fault!(@ $cpu, "", $instruction, $($operand)*)
    };
    ($cpu:expr, $emulated:expr, $instruction:literal, $($operand:tt)*) => {
        if $emulated {
            or_fault!(@ $cpu, ".byte 0x0f, 0x0b, 0x6b, 0x76, 0x6d", $instruction, $($operand)*)
        } else {
            or_fault!(@ $cpu, "", $instruction, $($operand)*)
        }
    };
    (@ $cpu:expr, $prefix:literal, $instruction:literal, $($operand:tt)*) => {
        core::arch::asm!(
            "lea {here}, [rip + 2f]",
            "mov [{slot} + {resume}], {here}",
            $prefix,
            $instruction,
            "2:",
            "mov qword ptr [{slot} + {resume}], 0",
            here = out(reg) _,
            slot = in(reg) $cpu.slot as *const $crate::Slot,
            resume = const core::mem::offset_of!($crate::Slot, resume),
            $($operand)*
        )
    };
}
pub(super) use or_fault;

/// Writes an MSR.
pub fn write_msr_or_fault(cpu: &Cpu, msr: u32, value: u64, emulated: bool) {
    // SAFETY: scenarios choose MSRs and values that do not concern the program; `resume` is an atomic of this vCPU's own slot.
    unsafe {
        or_fault!(cpu, emulated, "wrmsr",
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
    }
}

/// Reads an MSR that there is.
#[must_use]
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR changes nothing that the program relies on.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high) }
    u64::from(high) << 32 | u64::from(low)
}

/// Lets the program use SSE, and XGETBV and XSETBV.
pub fn enable_extended_state(cpu: &Cpu) {
    write_cr(cpu, 4, read_cr(4) | CR4_SSE | CR4_OSXSAVE);
}

/// Lets the program use AVX, if the CPU has it.
pub fn enable_avx(cpu: &Cpu) {
    /// CPUID leaf 1, ECX: XSAVE and AVX.
    const XSAVE_AVX: u32 = 1 << 26 | 1 << 28;
    enable_extended_state(cpu);
    if cpuid(1).ecx & XSAVE_AVX == XSAVE_AVX {
        write_xcr0_or_fault(cpu, XCR0_AVX, false);
    }
}

/// Writes XCR0.
pub fn write_xcr0_or_fault(cpu: &Cpu, value: u64, emulated: bool) {
    // SAFETY: the program keeps no extended state but what scenarios put there; `resume` is an atomic of this vCPU's own slot.
    unsafe {
        or_fault!(cpu, emulated, "xsetbv",
            in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32)
    }
}

/// Reads XCR0.
#[must_use]
pub fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading it changes nothing.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) }
    u64::from(high) << 32 | u64::from(low)
}

/// Puts a value into the low half of XMM3.
pub fn write_xmm(value: u64) {
    // SAFETY: nothing else in the program uses SSE registers: it is built without them.
    unsafe { asm!("movq xmm3, {}", in(reg) value) }
}

/// The low half of XMM3.
#[must_use]
pub fn read_xmm() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("movq {}, xmm3", out(reg) value) }
    value
}

/// Puts a value into the third quarter of YMM3.
pub fn write_ymm(value: u64) {
    // SAFETY: as `write_xmm`; AVX is there and on, or the scenario sees a #UD.
    unsafe { asm!("vmovq xmm4, {}", "vinsertf128 ymm3, ymm3, xmm4, 1", in(reg) value) }
}

/// The third quarter of YMM3.
#[must_use]
pub fn read_ymm() -> u64 {
    let value;
    // SAFETY: as `write_ymm`.
    unsafe { asm!("vextractf128 xmm4, ymm3, 1", "vmovq {}, xmm4", out(reg) value) }
    value
}

/// What SGDT, SIDT and their reverse move.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
pub struct TablePointer {
    /// Size of the table in bytes, less one.
    pub limit: u16,
    /// Its linear address.
    pub base: u64,
}

/// GDTR and IDTR.
#[must_use]
pub fn table_registers() -> [TablePointer; 2] {
    let mut pointers = [TablePointer::default(); 2];
    let [gdtr, idtr] = &mut pointers;
    // SAFETY: each is as large as what is stored.
    unsafe { asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut *gdtr, in(reg) &raw mut *idtr) };
    pointers
}

/// Executes one instruction about a descriptor table register. What is loaded is what is there already. The result is the base or selector that
/// was stored, 0 for a load.
#[must_use]
pub fn descriptor(op: DescriptorOp) -> u64 {
    let mut gdt = TablePointer::default();
    let mut idt = TablePointer::default();
    let mut selector: u64 = 0;
    // SAFETY: loads put back what was stored just before or what the VMM set up; a TSS descriptor that is marked busy is made available first,
    // as LTR wants it.
    unsafe {
        match op {
            DescriptorOp::Sgdt => asm!("sgdt [{}]", in(reg) &raw mut gdt),
            DescriptorOp::Sidt => asm!("sidt [{}]", in(reg) &raw mut idt),
            DescriptorOp::Sldt => asm!("sldt {:r}", out(reg) selector),
            DescriptorOp::Str => asm!("str {:r}", out(reg) selector),
            DescriptorOp::Lgdt => {
                let pointer = TablePointer {
                    limit: 5 * 8 - 1,
                    base: layout::GDT,
                };
                asm!("lgdt [{}]", in(reg) &raw const pointer);
            }
            DescriptorOp::Lidt => super::exceptions::install(),
            DescriptorOp::Lldt => asm!("lldt {:x}", in(reg) 0u16),
            DescriptorOp::Ltr => {
                let descriptor = (layout::GDT + u64::from(layout::TSS_SELECTOR)) as *mut u64;
                descriptor.write_volatile(descriptor.read_volatile() & !(1 << 41));
                asm!("ltr {:x}", in(reg) layout::TSS_SELECTOR);
            }
        }
    }
    match op {
        DescriptorOp::Sgdt => gdt.base,
        DescriptorOp::Sidt => idt.base,
        _ => selector,
    }
}

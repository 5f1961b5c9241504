// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single instructions that Rust has no words for.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, CpuidResult};

use super::Cpu;
use super::system::or_fault;
use crate::{CONSOLE_PORT, COUNTED_VECTOR, MARK_PORT};

/// x2APIC register "spurious interrupt vector", as an MSR.
const X2APIC_SPURIOUS: u32 = 0x80f;
/// x2APIC register "interrupt command", as an MSR.
const X2APIC_ICR: u32 = 0x830;
/// x2APIC register "end of interrupt", as an MSR.
const X2APIC_EOI: u32 = 0x80b;
/// Bit 8 of the spurious register: the APIC is on.
const APIC_ON: u64 = 1 << 8;

/// Whose instructions this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VMCALL.
    Intel,
    /// VMMCALL.
    Amd,
}

/// The CPU's vendor, by CPUID leaf 0.
#[must_use]
pub fn vendor() -> Vendor {
    if cpuid(0).ebx == u32::from_le_bytes(*b"Genu") {
        Vendor::Intel
    } else {
        Vendor::Amd
    }
}

/// Executes CPUID with this leaf and subleaf 0.
#[must_use]
pub fn cpuid(leaf: u32) -> CpuidResult {
    __cpuid(leaf)
}

/// Executes the vendor's hypercall instruction; the results are RAX and RDI.
#[must_use]
pub fn hypercall(vendor: Vendor, mut rax: u64, mut rdi: u64, rsi: u64) -> [u64; 2] {
    // SAFETY: KVM answers a hypercall by changing RAX alone; RBX, RCX and RDX, its arguments otherwise, are not looked at for this one. A tool
    // changes RDI too, in a scenario about that.
    unsafe {
        match vendor {
            Vendor::Intel => {
                asm!("vmcall", inout("rax") rax, inout("rdi") rdi, in("rsi") rsi, in("rcx") 0, in("rdx") 0)
            }
            Vendor::Amd => {
                asm!("vmmcall", inout("rax") rax, inout("rdi") rdi, in("rsi") rsi, in("rcx") 0, in("rdx") 0)
            }
        }
    }
    [rax, rdi]
}

/// The same in the shadow of an STI; RAX after it. Interrupts are on in the end.
pub fn shadowed_hypercall(vendor: Vendor, [mut rax, rdi, rsi]: [u64; 3]) -> u64 {
    // SAFETY: as above; nothing happens with interrupts off.
    unsafe {
        match vendor {
            Vendor::Intel => {
                asm!("cli", "sti", "vmcall", "sti", inout("rax") rax, in("rdi") rdi, in("rsi") rsi, in("rcx") 0, in("rdx") 0)
            }
            Vendor::Amd => {
                asm!("cli", "sti", "vmmcall", "sti", inout("rax") rax, in("rdi") rdi, in("rsi") rsi, in("rcx") 0, in("rdx") 0)
            }
        }
    }
    rax
}

/// Executes int3.
pub fn int3() {
    // SAFETY: the #BP handler returns behind it and keeps all registers.
    unsafe { asm!("int3") }
}

/// Executes INT 3 in its long form, or INT with [`COUNTED_VECTOR`] if that is asked for; the address behind the instruction.
#[must_use]
pub fn software_interrupt(vector: u64) -> u64 {
    macro_rules! int {
        ($vector:expr) => {{
            let behind: u64;
            // SAFETY: the handler of either vector returns behind the instruction and keeps all registers.
            unsafe {
                asm!("lea {behind}, [rip + 2f]", ".byte 0xcd, {vector}", "2:", vector = const $vector, behind = out(reg) behind);
            }
            behind
        }};
    }
    if vector == u64::from(COUNTED_VECTOR) {
        int!(COUNTED_VECTOR)
    } else {
        int!(3)
    }
}

/// Sends what the value of the interrupt command register says: another vCPU's INIT or SIPI, for one.
pub fn send_ipi(command: u64) {
    write_msr(X2APIC_ICR, command);
}

/// Tells the VMM that the program reached this instant.
pub fn mark(value: u32) {
    // SAFETY: the VMM takes writes to this port and changes nothing in the guest.
    unsafe { asm!("out dx, eax", in("dx") MARK_PORT, in("eax") value) }
}

pub(super) fn console_byte(byte: u8) {
    // SAFETY: as in `mark`.
    unsafe { asm!("out dx, al", in("dx") CONSOLE_PORT, in("al") byte) }
}

pub(super) fn disable_interrupts() {
    // SAFETY: delays interrupts, nothing else.
    unsafe { asm!("cli") }
}

pub(super) fn enable_interrupts() {
    // SAFETY: every vector has a handler before the first call.
    unsafe { asm!("sti") }
}

/// Halts until an interrupt comes; one that is pending already ends it at once.
pub(super) fn enable_interrupts_and_halt() {
    // SAFETY: sti takes effect after hlt has begun, so no wake is lost.
    unsafe { asm!("sti", "hlt") }
}

fn write_msr(msr: u32, value: u64) {
    // SAFETY: only called for x2APIC registers of this CPU, which hold no state of the program. What they send to another CPU is what a scenario
    // asked for.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32) }
}

pub(super) fn enable_local_apic() {
    write_msr(X2APIC_SPURIOUS, APIC_ON | 0xff);
}

pub(super) fn end_of_interrupt() {
    write_msr(X2APIC_EOI, 0);
}

/// The value of CR0, CR2, CR3 or CR4; of any other register, 0.
#[must_use]
pub fn read_cr(cr: u64) -> u64 {
    let value;
    // SAFETY: reading a control register has no effect.
    unsafe {
        match cr {
            0 => asm!("mov {}, cr0", out(reg) value),
            2 => asm!("mov {}, cr2", out(reg) value),
            3 => asm!("mov {}, cr3", out(reg) value),
            4 => asm!("mov {}, cr4", out(reg) value),
            _ => value = 0,
        }
    }
    value
}

/// Writes CR0, CR3 or CR4 with a value known to be legal.
pub fn write_cr(cpu: &Cpu, cr: u64, value: u64) {
    write_cr_or_fault(cpu, cr, value);
}

/// Writes CR0, CR3 or CR4; the #GP handler counts a refusal and goes on behind the instruction.
///
/// A value that is legal but unmaps the program ends it: scenarios choose bits that do not matter here.
pub fn write_cr_or_fault(cpu: &Cpu, cr: u64, value: u64) {
    // SAFETY: both roots map all of RAM, and the bits that scenarios change do not concern the program; `resume` is an atomic of this
    // vCPU's own slot.
    unsafe {
        match cr {
            0 => or_fault!(cpu, "mov cr0, {value}", value = in(reg) value),
            3 => or_fault!(cpu, "mov cr3, {value}", value = in(reg) value),
            4 => or_fault!(cpu, "mov cr4, {value}", value = in(reg) value),
            _ => {}
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ring 3: into it by SYSRET, and back by SYSCALL or by the #GP that an instruction has raised.

use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering::Relaxed;

use super::{Cpu, read_msr, write_msr_or_fault};
use crate::{StoreOp, layout};

const IA32_EFER: u32 = 0xc000_0080;
const EFER_SCE: u64 = 1;
const IA32_STAR: u32 = 0xc000_0081;
const IA32_LSTAR: u32 = 0xc000_0082;
const IA32_FMASK: u32 = 0xc000_0084;
const FLAGS_IF_TF: u64 = 0x300;
/// In a page table entry: ring 3 may.
const USER: u64 = 1 << 2;
/// Where the task state segment says which stack ring 0 has.
const RSP0: u64 = layout::TSS + 4;

// RDI: what runs in ring 3, up to a SYSCALL, with RAX zero and an address in RSI. The stack stays where it is, for an exception too.
global_asm!(
    ".pushsection .text",
    "kvmi_guest_in_ring_3:",
    "mov [{rsp0}], rsp",
    "mov rcx, rdi",
    "mov r11d, 2",
    "xor eax, eax",
    "cli",
    "sysretq",
    "kvmi_guest_back_in_ring_0:",
    "sti",
    "ret",
    "kvmi_guest_sgdt: sgdt [rsi]",
    "mov rax, [rsi + 2]",
    "syscall",
    "kvmi_guest_sidt: sidt [rsi]",
    "mov rax, [rsi + 2]",
    "syscall",
    "kvmi_guest_sldt: sldt rax",
    "syscall",
    "kvmi_guest_str: str rax",
    "syscall",
    "kvmi_guest_smsw: smsw rax",
    "syscall",
    ".popsection",
    rsp0 = const RSP0,
);

unsafe extern "C" {
    static kvmi_guest_in_ring_3: u8;
    static kvmi_guest_back_in_ring_0: u8;
    static kvmi_guest_sgdt: u8;
    static kvmi_guest_sidt: u8;
    static kvmi_guest_sldt: u8;
    static kvmi_guest_str: u8;
    static kvmi_guest_smsw: u8;
}

/// SYSCALL, which enters there, and SYSRET, with the segments that there are, and pages that ring 3 may touch.
pub fn enable_ring_3(cpu: &Cpu, entry: u64) {
    for table in [layout::ROOT, layout::PDPT, layout::PAGE_DIRECTORY] {
        for entry in 0..4 {
            // SAFETY: the tables lie where layout.rs says and map the same as before; all vCPUs write the same.
            unsafe {
                let entry = (table as *mut u64).add(entry);
                if entry.read_volatile() & 1 != 0 {
                    entry.write_volatile(entry.read_volatile() | USER);
                }
            }
        }
    }
    // SAFETY: the same root is loaded again.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _) };
    // SYSRET takes CS 16 and SS 8 above the upper half, SYSCALL CS at the lower half and SS 8 above.
    let star = u64::from(layout::CODE_SELECTOR) | u64::from(layout::CODE_SELECTOR) << 16;
    for (msr, value) in [
        (IA32_EFER, read_msr(IA32_EFER) | EFER_SCE),
        (IA32_STAR, star << 32),
        (IA32_LSTAR, entry),
        (IA32_FMASK, FLAGS_IF_TF),
    ] {
        write_msr_or_fault(cpu, msr, value, false);
    }
}

/// Executes the instruction in ring 3; what it stores, or 0 if it raises #GP, which is counted.
#[must_use]
pub fn store_in_ring_3(cpu: &Cpu, op: StoreOp) -> u64 {
    let mut place = [0u8; 10];
    let code = match op {
        StoreOp::Sgdt => &raw const kvmi_guest_sgdt,
        StoreOp::Sidt => &raw const kvmi_guest_sidt,
        StoreOp::Sldt => &raw const kvmi_guest_sldt,
        StoreOp::Str => &raw const kvmi_guest_str,
        StoreOp::Smsw => &raw const kvmi_guest_smsw,
    };
    let back = (&raw const kvmi_guest_back_in_ring_0) as u64;
    enable_ring_3(cpu, back);
    cpu.slot.resume.store(back, Relaxed);
    let result;
    // SAFETY: the code above, with room for what it stores; it comes back with the stack as it was.
    unsafe {
        asm!("call {entry}", entry = in(reg) &raw const kvmi_guest_in_ring_3, inout("rdi") code => _,
            inout("rsi") &raw mut place => _, out("rax") result, clobber_abi("C"));
    }
    cpu.slot.resume.store(0, Relaxed);
    result
}

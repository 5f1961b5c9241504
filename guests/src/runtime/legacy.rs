// SPDX-License-Identifier: MIT OR Apache-2.0
//! What 64-bit programs do not do: LMSW, and 32-bit code under PAE paging.

use core::arch::global_asm;

use super::Cpu;
use super::system::or_fault;

// A GDT of its own, whose first selectors mean what the VMM's do, with 32-bit code behind them.
global_asm!(
    ".pushsection .data",
    ".balign 8",
    "kvmi_guest_pae_gdt:",
    ".quad 0",
    ".quad 0x00209a0000000000", // 0x08: 64-bit code
    ".quad 0x00cf92000000ffff", // 0x10: data
    ".quad 0x00cf9a000000ffff", // 0x18: 32-bit code
    "kvmi_guest_pae_gdtr:",
    ".word 31",
    ".quad kvmi_guest_pae_gdt",
    ".popsection",
    ".pushsection .text",
    ".globl kvmi_guest_read_by_pae",
    "kvmi_guest_read_by_pae:", // edi: page directory pointer table; esi: address
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "cli",
    "sub rsp, 16",
    "sgdt [rsp]",
    "lgdt [rip + kvmi_guest_pae_gdtr]",
    "mov rbp, cr3",
    "push 0x18",
    "lea rax, [rip + 2f]",
    "push rax",
    "retfq",
    ".code32",
    "2:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax", // paging and long mode are off
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr",
    "mov cr3, edi",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax", // PAE paging is on
    "mov esi, [esi]",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax", // and off
    "mov cr3, ebp",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax", // long mode is back
    ".byte 0xea",   // far jump
    ".long 3f",
    ".word 0x08",
    ".code64",
    "3:",
    "lgdt [rsp]",
    "add rsp, 16",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "mov eax, esi",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn kvmi_guest_read_by_pae(pdpt: u64, address: u64) -> u64;
}

/// Leaves long mode, reads 32 bits at an address below 4 GiB through this page directory pointer table, which has to map the program as
/// the VMM's tables do, and comes back. CR0 is written four times; the second write turns PAE paging on.
#[must_use]
pub fn read_by_pae(pdpt: u64, address: u64) -> u64 {
    // SAFETY: everything that the code uses lies below 4 GiB, identity mapped with and without paging; it keeps what the caller relies on.
    unsafe { kvmi_guest_read_by_pae(pdpt, address) }
}

/// Executes LMSW; the #GP handler counts a refusal and goes on behind the instruction.
pub fn lmsw_or_fault(cpu: &Cpu, value: u16) {
    // SAFETY: bits 1 to 3 of CR0 concern the FPU, which the program does not use, and bit 0 is set anyway; `resume` is an atomic of this
    // vCPU's own slot.
    unsafe { or_fault!(cpu, "lmsw {value:x}", value = in(reg) value) }
}

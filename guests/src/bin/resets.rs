// SPDX-License-Identifier: MIT OR Apache-2.0
//! Can be started again: a vCPU that gets INIT and SIPI, from another one ([`Op::SendIpi`]), comes from real mode to its program as at first.
//! Meanwhile each does what a tool may watch: hypercalls, int3, CR writes.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering::{Relaxed, Release};

use kvmi_guests::runtime::{self, Cpu, hypercall, int3, read_cr, send_ipi, vendor, write_cr};
use kvmi_guests::{Op, layout};

kvmi_guests::guest!(program);

// From real mode straight to 64-bit mode: CR4.PAE, CR3, EFER.LME, then CR0.PE and CR0.PG at once. It runs at layout::TRAMPOLINE, so it names
// its own places by their distance from its start. Its stack is known by the x2APIC's id, which is the vCPU's index.
global_asm!(
    ".pushsection .text",
    ".balign 16",
    ".code16",
    "kvmi_guest_trampoline:",
    "cli",
    // lgdt of the pointer below, at an absolute address.
    ".byte 0x0f, 0x01, 0x16",
    ".word {page} + (kvmi_guest_trampoline_gdt - kvmi_guest_trampoline)",
    "mov eax, 0x60",
    "mov cr4, eax",
    "mov eax, {root}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    // To protected mode for a data segment of 4 GiB, and back with it: a CPU without unrestricted guest cannot run that, and its host emulates
    // one instruction after the other. Two of them write an MSR that nobody uses.
    "mov eax, 0x11",
    "mov cr0, eax",
    "mov ax, {data}",
    "mov ds, ax",
    "mov eax, 0x10",
    "mov cr0, eax",
    "mov ecx, 0xc0000102",
    "xor edx, edx",
    "mov eax, {first}",
    "wrmsr",
    "mov eax, {second}",
    "wrmsr",
    "mov eax, 0x80010033",
    "mov cr0, eax",
    // A far jump with a 32-bit offset.
    ".byte 0x66, 0xea",
    ".long {page} + (kvmi_guest_trampoline_64 - kvmi_guest_trampoline)",
    ".word {code}",
    ".code64",
    "kvmi_guest_trampoline_64:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov ecx, 0x802",
    "rdmsr",
    "mov edi, eax",
    "inc eax",
    "imul eax, eax, {stack_bytes}",
    "lea rsp, [rax + {stacks} - 8]",
    "jmp [rip + kvmi_guest_trampoline_entry]",
    ".balign 8",
    "kvmi_guest_trampoline_entry:",
    ".quad 0",
    "kvmi_guest_trampoline_gdt:",
    ".word 5 * 8 - 1",
    ".long {gdt}",
    ".balign 8",
    "kvmi_guest_trampoline_end:",
    ".popsection",
    first = const layout::TRAMPOLINE_WRITES[0],
    second = const layout::TRAMPOLINE_WRITES[1],
    page = const layout::TRAMPOLINE,
    root = const layout::ROOT,
    code = const layout::CODE_SELECTOR,
    data = const layout::DATA_SELECTOR,
    stacks = const layout::STACKS,
    stack_bytes = const layout::STACK_BYTES,
    gdt = const layout::GDT,
);

unsafe extern "C" {
    static kvmi_guest_trampoline: [u8; 0];
    static kvmi_guest_trampoline_entry: [u8; 0];
    static kvmi_guest_trampoline_end: [u8; 0];
}

/// Where the trampoline goes, with the vCPU's index in RDI.
extern "C" fn enter(index: usize) -> ! {
    runtime::start(index, program)
}

fn write_trampoline() {
    let start = (&raw const kvmi_guest_trampoline).cast::<u8>();
    let bytes = (&raw const kvmi_guest_trampoline_end) as usize - start as usize;
    let entry = (&raw const kvmi_guest_trampoline_entry) as usize - start as usize;
    let page = layout::TRAMPOLINE as *mut u8;
    for i in 0..bytes {
        // SAFETY: the bytes between the two symbols are the trampoline; the page is RAM that holds nothing else (layout.rs).
        unsafe { page.add(i).write_volatile(start.add(i).read()) };
    }
    // SAFETY: as above; the place of the entry is aligned to 8 from the trampoline's start, which stands at a page's start here.
    unsafe { page.add(entry).cast::<u64>().write_volatile(enter as *const () as u64) };
}

fn program(cpu: Cpu) -> ! {
    if cpu.index == 0 {
        write_trampoline();
    }
    // Commands that were given before a reset are not carried out again.
    cpu.slot.done.store(cpu.slot.rung.load(Relaxed), Release);
    let vendor = vendor();
    cpu.serve(|op, args| match op {
        Op::SendIpi => {
            send_ipi(args[0]);
            Some(0)
        }
        Op::Hypercall => Some(hypercall(vendor, args[0], args[1], args[2])[0]),
        Op::CallTarget => {
            let target = cpu.slot.target.load(Relaxed);
            // SAFETY: the scenario has put a function there that returns and changes nothing.
            unsafe { asm!("call {}", in(reg) target, clobber_abi("C")) }
            Some(0)
        }
        Op::Int3 => {
            int3();
            Some(0)
        }
        Op::WriteCr => {
            write_cr(&cpu, args[0], args[1]);
            Some(read_cr(args[0]))
        }
        _ => None,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Routines for a tool that steps ([`Op::Step`]). Each begins and ends with a hypercall; the addresses of the instructions
//! from the first behind the one to the other, in the order in which they are executed, are a list ([`Slot::target`]).
//!
//! [`Slot::target`]: kvmi_guests::Slot::target
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering::Release;

use kvmi_guests::runtime::{Cpu, Vendor, enable_avx, enable_ring_3, vendor};
use kvmi_guests::{COUNTED_VECTOR, MARK_PORT, Op, Routine, layout, protected};

kvmi_guests::guest!(program);

// `step` puts an instruction's address on the routine's list, `again` puts the last one there once more, `mark` is a hypercall, of which
// the last byte is the vendor's. The routine's result is what it leaves in RBX.
global_asm!(
    ".macro mark",
    "88: .byte 0x0f, 0x01, 0xc1",
    ".pushsection .data.marks, \"aw\", @progbits",
    ".quad 88b",
    ".popsection",
    ".endm",
    ".macro listed",
    "99:",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".quad 99b",
    ".popsection",
    ".endm",
    ".macro step insn:vararg",
    "listed",
    "\\insn",
    ".endm",
    ".macro again",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".quad 99b",
    ".popsection",
    ".endm",
    ".macro begin",
    ".balign 16",
    "77:",
    ".pushsection .data.routines, \"aw\", @progbits",
    ".quad 77b, 66f",
    ".popsection",
    ".pushsection .data.lists, \"aw\", @progbits",
    "66:",
    ".popsection",
    "push rbx",
    "push rbp",
    "push r12",
    "mov r12, rdi",
    "xor ebx, ebx",
    "mov eax, 34",
    "mov edi, 24",
    "xor esi, esi",
    "mark",
    ".endm",
    ".macro finish",
    "step mov eax, 34",
    "step mov edi, 24",
    "step xor esi, esi",
    "listed",
    "mark",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".quad 0",
    ".popsection",
    "mov rax, rbx",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".endm",
    ".pushsection .data.marks, \"aw\", @progbits",
    "kvmi_guest_marks:",
    ".popsection",
    ".pushsection .data.routines, \"aw\", @progbits",
    ".balign 8",
    "kvmi_guest_routines:",
    ".popsection",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".balign 8",
    ".popsection",
    ".pushsection .text",
    // Straight: no branch but forward ones.
    "begin",
    "step nop",
    "step mov ecx, 5",
    "step add rbx, rcx",
    "step lea rbx, [rbx + rcx*2 + 1]",
    "step push rbx",
    "step jmp 2f",
    "ud2",
    "2:",
    "step cmp ecx, 5",
    "step jne 3f",
    "step je 3f",
    "ud2",
    "3:",
    "step call 4f",
    "4:",
    "step pop rax",
    "step pop rbx",
    "step xchg rbx, rax",
    "step xchg rbx, rax",
    "finish",
    // Flags: what PUSHF shows, what POPF loads.
    "begin",
    "step pushfq",
    "step pop rbx",
    "step push rbx",
    "step or qword ptr [rsp], 1",
    "step popfq",
    "step setc cl",
    "step pushfq",
    "step pop rax",
    "step or rbx, rax",
    "step movzx ecx, cl",
    "step shl rcx, 32",
    "step or rbx, rcx",
    "finish",
    // IRET to the next instruction.
    "begin",
    "step mov rcx, rsp",
    "step mov eax, ss",
    "step push rax",
    "step push rcx",
    "step pushfq",
    "step mov eax, cs",
    "step push rax",
    "step lea rax, [rip + 2f]",
    "step push rax",
    "step iretq",
    "2:",
    "step pushfq",
    "step pop rbx",
    "finish",
    // SYSRET to ring 3, and SYSCALL back. R10: the flags that ring 3 sees; R11: those that SYSCALL saves.
    "begin",
    "step lea rcx, [rip + 2f]",
    "step mov r11d, 2",
    "step cli",
    "step sysretq",
    "2:",
    "step nop",
    "step pushfq",
    "step pop r10",
    "step syscall",
    "kvmi_guest_syscall:",
    "step mov rbx, r11",
    "step or rbx, r10",
    "step pushfq",
    "step pop r10",
    "step or rbx, r10",
    "step mov eax, ss",
    "step sti",
    "finish",
    // MOV SS.
    "begin",
    "step mov eax, ss",
    "step mov ss, eax",
    "step nop",
    "step nop",
    "finish",
    // STI.
    "begin",
    "step cli",
    "step nop",
    "step sti",
    "step nop",
    "step nop",
    "finish",
    // Three rounds of REP STOSB: RIP stands on it before each.
    "begin",
    "step lea rdi, [r12 + 8]",
    "step mov ecx, 3",
    "step rep stosb",
    "again",
    "again",
    "step mov rbx, rcx",
    "finish",
    // A fault: the address is not canonical. The scenario says where the #GP handler resumes.
    "begin",
    "step movabs rax, 0x8000000000000000",
    "step mov rax, [rax]",
    "step nop",
    "finish",
    // INT3 and INT n.
    "begin",
    "step nop",
    "step int3",
    "step nop",
    "step int {vector}",
    "step nop",
    "finish",
    // Instructions that KVM and the VMM carry out.
    "begin",
    "step xor eax, eax",
    "step xor ecx, ecx",
    "step cpuid",
    "step mov edx, {port}",
    "step mov eax, 7",
    "step out dx, eax",
    "step in eax, dx",
    "step mov ecx, 0x277",
    "step rdmsr",
    "step mov rbx, cr3",
    "finish",
    // HLT: what wakes it waits.
    "begin",
    "step sti",
    "step hlt",
    "step nop",
    "finish",
    // The guest's own TF: a #DB behind the instruction after POPF, whose handler takes TF off again. RBX counts.
    "begin",
    "step pushfq",
    "step or qword ptr [rsp], 0x100",
    "step popfq",
    "step nop",
    "listed",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".quad kvmi_guest_debug, kvmi_guest_debug_1, kvmi_guest_debug_2, kvmi_guest_debug_3",
    ".popsection",
    "step nop",
    "step pushfq",
    "step pop rax",
    "step and eax, 0x100",
    "step or rbx, rax",
    "finish",
    "kvmi_guest_debug:",
    "inc rbx",
    "kvmi_guest_debug_1:",
    "btr qword ptr [rsp + 16], 8",
    "kvmi_guest_debug_2:",
    "adc rbx, 0",
    "kvmi_guest_debug_3:",
    "iretq",
    // A store to the address in the argument.
    "begin",
    "step mov ecx, 7",
    "step mov [r12], rcx",
    "step mov rbx, [r12]",
    "finish",
    // ICEBP, whose #DB the handler above takes.
    "begin",
    "step nop",
    "step .byte 0xf1",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".quad kvmi_guest_debug, kvmi_guest_debug_1, kvmi_guest_debug_2, kvmi_guest_debug_3",
    ".popsection",
    "step nop",
    "finish",
    // SYSCALL_MASK, which the guest writes without an exit.
    "begin",
    "step mov ecx, 0xc0000084",
    "step xor edx, edx",
    "step mov eax, 0x200",
    "step wrmsr",
    "step nop",
    "step rdmsr",
    "step mov ebx, eax",
    "step mov eax, 0x300",
    "step wrmsr",
    "finish",
    // BS in DR6, which a step may be made of.
    "begin",
    "step mov eax, 0xffff4ff0",
    "step mov dr6, rax",
    "step nop",
    "step mov rbx, dr6",
    "step mov eax, 0xffff0ff0",
    "step mov dr6, rax",
    "step nop",
    "step mov rax, dr6",
    "step shl rax, 32",
    "step or rbx, rax",
    "finish",
    kvmi_guests::protected_routines!(),
    // AVX, of which KVM's emulator knows nothing.
    "begin",
    "step mov eax, 0x1234",
    "step vmovq xmm0, rax",
    "step vmovlhps xmm0, xmm0, xmm0",
    "step vinsertf128 ymm0, ymm0, xmm0, 1",
    "step vmovdqu [r12], ymm0",
    "step vpxor xmm1, xmm1, xmm1",
    "step vorpd ymm1, ymm1, [r12]",
    "step vextractf128 xmm1, ymm1, 1",
    "step vmovq rbx, xmm1",
    "finish",
    // A breakpoint of the guest's own, at four bytes that are written: its #DB comes behind the store, to the handler above.
    "begin",
    "step mov dr0, r12",
    "step mov eax, 0xffff0ff0",
    "step mov dr6, rax",
    "step mov ecx, 0xd0402",
    "step mov dr7, rcx",
    "step mov [r12], ecx",
    "listed",
    ".pushsection .data.lists, \"aw\", @progbits",
    ".quad kvmi_guest_debug, kvmi_guest_debug_1, kvmi_guest_debug_2, kvmi_guest_debug_3",
    ".popsection",
    "step mov rcx, dr6",
    "step shl rcx, 32",
    "step or rbx, rcx",
    "step mov ecx, 0x400",
    "step mov dr7, rcx",
    "finish",
    ".popsection",
    ".pushsection .data.marks, \"aw\", @progbits",
    ".quad 0",
    ".popsection",
    vector = const COUNTED_VECTOR,
    port = const MARK_PORT,
    code = const layout::CODE_SELECTOR,
    data = const layout::DATA_SELECTOR,
    code_32 = const protected::CODE_32,
    code_far = const protected::CODE_FAR,
    far_base = const protected::FAR_BASE,
    task = const protected::TASK,
    other_task = const protected::OTHER_TASK,
    absent = const protected::ABSENT,
    stack_end = const protected::STACK_END,
    virtual_segment = const protected::VIRTUAL_SEGMENT,
    virtual_stack_end = const protected::VIRTUAL_STACK_END,
    virtual_ip = const protected::VIRTUAL_IP,
);

unsafe extern "C" {
    static kvmi_guest_marks: [*mut u8; 2 * Routine::COUNT];
    static kvmi_guest_routines: [[u64; 2]; Routine::COUNT];
    static mut kvmi_guest_tss: [u32; 26];
    static mut kvmi_guest_other_tss: [u32; 26];
    static mut kvmi_guest_protected_gdt: [u64; 8];
    static mut kvmi_guest_protected_idt: [u64; 0x21];
    static kvmi_guest_protection: u8;
    static kvmi_guest_virtual_end: u8;
    static kvmi_guest_debug: u8;
    static kvmi_guest_syscall: u8;
}

fn program(cpu: Cpu) -> ! {
    enable_avx(&cpu);
    // SAFETY: the tables are those that the assembly above has made; the program's pages can be written and are this vCPU's alone.
    unsafe {
        if vendor() == Vendor::Amd {
            for mark in kvmi_guest_marks {
                mark.add(2).write_volatile(0xd9);
            }
        }
        enable_ring_3(&cpu, (&raw const kvmi_guest_syscall) as u64);
        install_debug_handler();
    }
    cpu.slot.target.store((&raw const kvmi_guest_routines) as u64, Release);
    cpu.serve(|op, args| match op {
        Op::Step => call(args),
        _ => None,
    })
}

fn call([routine, arg, ..]: [u64; 4]) -> Option<u64> {
    // SAFETY: as above; a routine keeps what a C function keeps.
    unsafe {
        prepare_protected();
        let [entry, _] = *kvmi_guest_routines.get(usize::try_from(routine).ok()?)?;
        let result: u64;
        asm!("call {}", in(reg) entry, inout("rdi") arg => _, out("rax") result, clobber_abi("C"));
        Some(result)
    }
}

/// The tables of the code outside of 64-bit mode, as it finds them each time: no task is busy.
///
/// # Safety
/// Nobody else uses that code, and its page.
unsafe fn prepare_protected() {
    const DATA: u32 = layout::DATA_SELECTOR as u32;
    // A task state segment: an available one of 32 bits, 104 bytes.
    let task = |at: u64| 0x8900_0000_0067 | (at & 0xff_ffff) << 16 | at >> 24 << 56;
    let gate = |to: u64, kind: u64| to & 0xffff | 0x18 << 16 | kind << 32 | to >> 16 << 48;
    // ESP0, SS0.
    let mut first = [0; 26];
    (first[1], first[2]) = (protected::STACK_END, DATA);
    // EFLAGS, ESP; ES, CS, SS, DS.
    let mut other = [0; 26];
    (other[9], other[14]) = (2, protected::TASK_STACK_END);
    (other[18], other[19], other[20], other[21]) = (DATA, protected::CODE_32.into(), DATA, DATA);
    // SAFETY: the caller's promise; these tables are those that the assembly has made.
    unsafe {
        (&raw mut kvmi_guest_tss).write_volatile(first);
        (&raw mut kvmi_guest_other_tss).write_volatile(other);
        (&raw mut kvmi_guest_protected_gdt).write_volatile([
            0,
            0x0020_9a00_0000_0000,
            0x00cf_9200_0000_ffff,
            0x00cf_9a00_0000_ffff,
            0x00cf_9a00_0000_ffff | u64::from(protected::FAR_BASE) << 16,
            task((&raw const kvmi_guest_tss) as u64),
            task((&raw const kvmi_guest_other_tss) as u64),
            0x00cf_1200_0000_ffff,
        ]);
        let mut gates = [0; 0x21];
        gates[11] = u64::from(protected::OTHER_TASK) << 16 | 0x8500 << 32;
        gates[13] = gate((&raw const kvmi_guest_protection) as u64, 0x8e00);
        gates[0x20] = gate((&raw const kvmi_guest_virtual_end) as u64, 0xee00);
        (&raw mut kvmi_guest_protected_idt).write_volatile(gates);
        let code = protected::PAGE + u64::from(protected::VIRTUAL_IP);
        (code as *mut [u8; 6]).write_volatile(protected::VIRTUAL_CODE);
    }
}

/// The gate of vector 1 leads to the handler above.
///
/// # Safety
/// Nobody else uses the IDT.
unsafe fn install_debug_handler() {
    let mut pointer = [0u8; 10];
    let handler = (&raw const kvmi_guest_debug) as u64;
    // SAFETY: the caller's promise: the IDT is in memory of the program's own and has a gate for vector 1, of 16 bytes.
    unsafe {
        asm!("sidt [{}]", in(reg) pointer.as_mut_ptr());
        let base = u64::from_le_bytes([2, 3, 4, 5, 6, 7, 8, 9].map(|at: usize| pointer[at]));
        let gate = (base + 16) as *mut u64;
        let low = gate.read_volatile() & 0x0000_ffff_ffff_0000;
        gate.write_volatile(low | handler & 0xffff | (handler >> 16 & 0xffff) << 48);
        gate.add(1).write_volatile(handler >> 32);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the program `steps` does outside of 64-bit mode: in 32-bit code without paging, in virtual-8086 mode, and as two tasks.

/// Selectors of the GDT of this code; the first two mean what the VMM's do.
pub const CODE_32: u16 = 0x18;
/// 32-bit code whose segment begins at [`FAR_BASE`].
pub const CODE_FAR: u16 = 0x20;
/// The task that runs the routines.
pub const TASK: u16 = 0x28;
/// The task that it calls.
pub const OTHER_TASK: u16 = 0x30;
/// A segment that is not present.
pub const ABSENT: u16 = 0x38;

/// Base of [`CODE_FAR`].
pub const FAR_BASE: u32 = 0x1_0000;

/// The page of the stacks, and of the code in virtual-8086 mode: [`crate::layout::TRAMPOLINE`], which is below 1 MiB.
pub const PAGE: u64 = crate::layout::TRAMPOLINE;
/// The end of the stack of the first task, in ring 0.
pub const STACK_END: u32 = PAGE as u32 + 0x400;
/// The end of the stack in virtual-8086 mode, in its segment, which is the page.
pub const VIRTUAL_STACK_END: u32 = 0x800;
/// The end of the other task's stack.
pub const TASK_STACK_END: u32 = PAGE as u32 + 0xc00;

/// The segment of that mode.
pub const VIRTUAL_SEGMENT: u32 = (PAGE >> 4) as u32;

/// Where the code in virtual-8086 mode begins in its segment.
pub const VIRTUAL_IP: u32 = 0x10;
/// PUSHF, which raises #GP with IOPL below 3; POP AX, PUSH AX, POPF, INT 0x20.
pub const VIRTUAL_CODE: [u8; 6] = [0x9c, 0x58, 0x50, 0x9d, 0xcd, 0x20];

/// The routines, for [`core::arch::global_asm!`] behind the macros of the program.
#[macro_export]
macro_rules! protected_routines {
    () => {
        concat!(
            // From 64-bit mode to 32-bit code without paging. RBP: RSP; RDI: CR3; RSI: the routine's argument.
            ".macro leave_long_mode\n",
            "step cli\n",
            "step sgdt [rip + kvmi_guest_saved_gdtr]\n",
            "step sidt [rip + kvmi_guest_saved_idtr]\n",
            "step mov rbp, rsp\n",
            "step mov rdi, cr3\n",
            "step mov rsi, r12\n",
            "step lgdt [rip + kvmi_guest_protected_gdtr]\n",
            "step lidt [rip + kvmi_guest_protected_idtr]\n",
            "step push {code_32}\n",
            "step lea rax, [rip + 51f]\n",
            "step push rax\n",
            "step retfq\n",
            ".code32\n",
            "51:\n",
            "step mov eax, {data}\n",
            "step mov ds, eax\n",
            "step mov es, eax\n",
            "step mov eax, cr0\n",
            "step and eax, 0x7fffffff\n",
            "step mov cr0, eax\n",
            "step mov ecx, 0xc0000080\n",
            "step rdmsr\n",
            "step and eax, 0xfffffeff\n",
            "step wrmsr\n",
            "step mov eax, {data}\n",
            "step mov ss, eax\n",
            ".endm\n",
            ".macro enter_long_mode\n",
            "step mov cr3, edi\n",
            "step mov ecx, 0xc0000080\n",
            "step rdmsr\n",
            "step or eax, 0x100\n",
            "step wrmsr\n",
            "step mov eax, cr0\n",
            "step or eax, 0x80000000\n",
            "step mov cr0, eax\n",
            // A far jump.
            "listed\n",
            ".byte 0xea\n",
            ".long 52f\n",
            ".word {code}\n",
            ".code64\n",
            "52:\n",
            "step lgdt [rip + kvmi_guest_saved_gdtr]\n",
            "step lidt [rip + kvmi_guest_saved_idtr]\n",
            "step mov rsp, rbp\n",
            "step sti\n",
            ".endm\n",
            // A routine that leaves 64-bit mode as the first task, which may call another that begins there.
            ".macro begin_as_task other\n",
            "begin\n",
            "leave_long_mode\n",
            "step mov esp, {stack_end}\n",
            "step mov eax, {task}\n",
            "step ltr ax\n",
            ".ifnb \\other\n",
            "step mov eax, offset \\other\n",
            "step mov [kvmi_guest_other_tss + 32], eax\n",
            ".endif\n",
            ".endm\n",
            ".macro list where:vararg\n",
            ".pushsection .data.lists, \"aw\", @progbits\n",
            ".quad \\where\n",
            ".popsection\n",
            ".endm\n",
            // A far CALL, which KVM emulates, to a segment with another base; its stack ends at the argument.
            "begin\n",
            "leave_long_mode\n",
            "step mov esp, esi\n",
            "listed\n",
            ".byte 0x0f, 0x0b, 0x6b, 0x76, 0x6d\n",
            ".byte 0x9a\n",
            ".long kvmi_guest_far - {far_base}\n",
            ".word {code_far}\n",
            "list kvmi_guest_far - {far_base}, kvmi_guest_far_1 - {far_base}\n",
            "step inc ebx\n",
            "enter_long_mode\n",
            "finish\n",
            ".code32\n",
            "kvmi_guest_far:\n",
            "inc ebx\n",
            "kvmi_guest_far_1:\n",
            ".byte 0xcb\n", // far return
            ".code64\n",
            // PUSHF in virtual-8086 mode. BL: how many #GP; from bit 16 on: the flags that it showed.
            "begin_as_task\n",
            "step push 0\n",
            "step push 0\n",
            "step push 0\n",
            "step push 0\n",
            "step push {virtual_segment}\n",
            "step push {virtual_stack_end}\n",
            "step push 0x20002\n",
            "step push {virtual_segment}\n",
            "step push {virtual_ip}\n",
            "step iretd\n",
            "list {virtual_ip}\n",
            "list kvmi_guest_protection, kvmi_guest_protection_1, kvmi_guest_protection_2, kvmi_guest_protection_3\n",
            "list {virtual_ip}, {virtual_ip} + 1, {virtual_ip} + 2, {virtual_ip} + 3, {virtual_ip} + 4\n",
            "kvmi_guest_virtual_end:\n",
            "step mov ecx, {data}\n",
            "step mov ds, ecx\n",
            "step mov es, ecx\n",
            "step shl eax, 16\n",
            "step or ebx, eax\n",
            "enter_long_mode\n",
            "finish\n",
            ".code32\n",
            "kvmi_guest_protection:\n",
            "inc ebx\n",
            "kvmi_guest_protection_1:\n",
            "add esp, 4\n",
            "kvmi_guest_protection_2:\n",
            "or byte ptr [esp + 9], 0x30\n", // IOPL 3
            "kvmi_guest_protection_3:\n",
            "iretd\n",
            ".code64\n",
            // CALL of a task, which returns by IRET.
            "begin_as_task kvmi_guest_task\n",
            "listed\n",
            ".byte 0x9a\n",
            ".long 0\n",
            ".word {other_task}\n",
            "list kvmi_guest_task, kvmi_guest_task_1\n",
            "step inc ebx\n",
            "enter_long_mode\n",
            "finish\n",
            ".code32\n",
            "kvmi_guest_task:\n",
            "inc dword ptr [kvmi_guest_tss + 52]\n", // EBX of the first
            "kvmi_guest_task_1:\n",
            "iretd\n",
            ".code64\n",
            // #NP, whose gate leads to a task: the error code is on its stack.
            "begin_as_task kvmi_guest_absent\n",
            "step mov eax, {absent}\n",
            "step mov fs, eax\n",
            "list kvmi_guest_absent, kvmi_guest_absent_1, kvmi_guest_absent_2, kvmi_guest_absent_3\n",
            "step inc ebx\n",
            "enter_long_mode\n",
            "finish\n",
            ".code32\n",
            "kvmi_guest_absent:\n",
            "pop eax\n",
            "kvmi_guest_absent_1:\n",
            "add [kvmi_guest_tss + 52], eax\n",
            "kvmi_guest_absent_2:\n",
            "add dword ptr [kvmi_guest_tss + 32], 2\n", // EIP: behind MOV FS
            "kvmi_guest_absent_3:\n",
            "iretd\n",
            ".code64\n",
            ".pushsection .data.protected, \"aw\", @progbits\n",
            ".balign 16\n",
            "kvmi_guest_tss: .skip 104\n",
            "kvmi_guest_other_tss: .skip 104\n",
            "kvmi_guest_protected_gdt: .skip 8 * 8\n",
            "kvmi_guest_protected_idt: .skip 8 * 0x21\n",
            "kvmi_guest_saved_gdtr: .skip 16\n",
            "kvmi_guest_saved_idtr: .skip 16\n",
            "kvmi_guest_protected_gdtr:\n",
            ".word 8 * 8 - 1\n",
            ".quad kvmi_guest_protected_gdt\n",
            "kvmi_guest_protected_idtr:\n",
            ".word 8 * 0x21 - 1\n",
            ".quad kvmi_guest_protected_idt\n",
            ".popsection\n",
        )
    };
}

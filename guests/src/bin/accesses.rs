// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses memory in each way that a tool may want to know of, one instruction each ([`Op::Access`]).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

use core::arch::asm;

use kvmi_guests::runtime::{Cpu, enable_avx, read_cr, write_msr_or_fault};
use kvmi_guests::{Access, COUNTED_VECTOR, MARK_PORT, Op, layout};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    enable_avx(&cpu);
    cpu.serve(|op, args| match op {
        Op::Access => access(args),
        Op::ReadCr => Some(read_cr(args[0])),
        Op::WriteMsr => {
            write_msr_or_fault(&cpu, args[0] as u32, args[1], false);
            Some(0)
        }
        _ => None,
    })
}

fn access([what, gpa, a, b]: [u64; 4]) -> Option<u64> {
    let mut result = 0;
    // SAFETY: the scenario names memory that the program does not use, or code of its own that returns and keeps what a C function keeps.
    unsafe {
        match Access::from_number(what)? {
            Access::Read => asm!("mov {}, [{}]", out(reg) result, in(reg) gpa),
            Access::Write => asm!("mov [{}], {}", in(reg) gpa, in(reg) a),
            Access::Add => (0..b).for_each(|_| asm!("add [{}], {}", in(reg) gpa, in(reg) a)),
            Access::LockedAdd => (0..b).for_each(|_| {
                result = a;
                asm!("lock xadd [{}], {}", in(reg) gpa, inout(reg) result);
            }),
            // RBX is the compiler's.
            Access::CompareExchange => asm!(
                "xchg {new}, rbx",
                "lock cmpxchg16b [{place}]",
                "setz {done:l}",
                "xchg {new}, rbx",
                new = inout(reg) a => _,
                place = in(reg) gpa,
                done = inout(reg) result,
                inout("rax") 0u64 => _,
                inout("rdx") 0u64 => _,
                in("rcx") a,
            ),
            Access::Copy => asm!("rep movsb", inout("rdi") gpa => _, inout("rsi") a => _, inout("rcx") b => _),
            Access::Fill => asm!("rep stosq", inout("rdi") gpa => _, in("rax") a, inout("rcx") b => _),
            // No code of the program's uses XMM registers: it is compiled without.
            Access::StoreSse => {
                asm!("movq xmm0, {a}", "movlhps xmm0, xmm0", "movdqu [{gpa}], xmm0", a = in(reg) a, gpa = in(reg) gpa)
            }
            Access::LoadSse => asm!("movdqu xmm1, [{}]", "movq {}, xmm1", in(reg) gpa, out(reg) result),
            Access::StoreAvx => asm!(
                "vmovq xmm0, {a}", "vmovlhps xmm0, xmm0, xmm0", "vinsertf128 ymm0, ymm0, xmm0, 1", "vmovdqu [{gpa}], ymm0",
                a = in(reg) a, gpa = in(reg) gpa,
            ),
            Access::LoadAvx => asm!(
                "vmovdqu ymm1, [{gpa}]", "vextractf128 xmm1, ymm1, 1", "vpsrldq xmm1, xmm1, 8", "vmovq {result}, xmm1",
                gpa = in(reg) gpa, result = out(reg) result,
            ),
            // What writes an XMM register clears the upper half of its YMM register: of the mask, too.
            Access::StoreHalf => asm!(
                "vmovq xmm0, {a}", "vmovlhps xmm0, xmm0, xmm0", "vinsertf128 ymm0, ymm0, xmm0, 1",
                "vpcmpeqd xmm2, xmm2, xmm2", "vmaskmovpd [{gpa}], ymm2, ymm0",
                a = in(reg) a, gpa = in(reg) gpa,
            ),
            Access::LoadHalf => asm!(
                "vpcmpeqd xmm2, xmm2, xmm2", "vmaskmovpd ymm1, ymm2, [{gpa}]", "vmovq {result}, xmm1",
                gpa = in(reg) gpa, result = out(reg) result,
            ),
            Access::Push => asm!(
                "cli", "mov {saved}, rsp", "mov rsp, {gpa}", "push {a}", "mov rsp, {saved}", "sti",
                saved = out(reg) _, gpa = in(reg) gpa, a = in(reg) a,
            ),
            Access::PushFrom => asm!(
                "cli", "mov {saved}, rsp", "mov rsp, {gpa}", "push qword ptr [{a}]", "mov {result}, rsp", "mov rsp, {saved}", "sti",
                saved = out(reg) _, gpa = in(reg) gpa, a = in(reg) a, result = out(reg) result,
            ),
            Access::CallThrough => asm!(
                "cli", "mov r12, rsp", "mov rsp, {gpa}", "call qword ptr [{a}]", "mov rax, rsp", "mov rsp, r12", "sti",
                gpa = in(reg) gpa, a = in(reg) a, out("rax") result, clobber_abi("C"), out("r12") _,
            ),
            Access::Call => asm!("call {}", in(reg) gpa, out("rax") result, clobber_abi("C")),
            Access::Interrupt => asm!(
                "mov {saved}, rsp", "mov rsp, {gpa}", "int {vector}", "mov rsp, {saved}",
                saved = out(reg) _, gpa = in(reg) gpa, vector = const COUNTED_VECTOR,
            ),
            Access::CallOnStack => asm!(
                "cli", "mov r12, rsp", "mov rsp, {gpa}", "call {a}", "mov rsp, r12", "sti",
                gpa = in(reg) gpa, a = in(reg) a, out("rax") result, clobber_abi("C"), out("r12") _,
            ),
            Access::Output => asm!("rep outsd", in("dx") MARK_PORT, inout("rsi") gpa => _, inout("rcx") a => _),
            Access::StoreGdt => asm!("sgdt [{}]", in(reg) gpa),
            Access::LoadGdt => asm!("lgdt [{}]", in(reg) gpa),
            Access::Input => asm!("rep insd", in("dx") MARK_PORT, inout("rdi") gpa => _, inout("rcx") a => _),
            Access::AddEmulated => asm!("ud2", ".ascii \"kvm\"", "add [{}], {}", in(reg) gpa, in(reg) a),
            Access::CopyEmulated => asm!(
                "ud2", ".ascii \"kvm\"", "rep movsb",
                inout("rdi") gpa => _, inout("rsi") a => _, inout("rcx") b => _,
            ),
            Access::CallFar => asm!(
                "sub rsp, 16", "sgdt [rsp]", "mov r12, rsp", "cli",
                "mov rax, [{four} + 8]", "lea {target}, [rip + 2f]",
                "mov [rax], {target}", "mov word ptr [rax + 8], {code}",
                "lgdt [{four} + 24]", "mov rsp, [{four} + 16]", "jmp qword ptr [{four}]",
                "2:", "mov rsp, r12", "lgdt [rsp]", "sti", "add rsp, 16",
                four = in(reg) gpa, target = out(reg) _, code = const layout::CODE_SELECTOR,
                out("rax") _, out("r12") _,
            ),
        }
    }
    Some(result)
}

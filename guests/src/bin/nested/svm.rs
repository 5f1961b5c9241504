// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor on AMD (APM volume 2, chapter 15, appendix B).

use core::arch::asm;

use kvmi_guests::runtime::{Cpu, TablePointer, read_cr, read_msr, write_msr_or_fault};
use kvmi_guests::{NestedOp, Operand, layout};

use crate::{Exit, NestedPaging, Page, nested, nested_rsp};

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const PAT: u32 = 0x277;
const EXIT_VMMCALL: u64 = 0x81;

static VMCB: Page = Page::zero();
static HOST: Page = Page::zero();

/// Byte offsets into the VMCB, each of a 64-bit word.
mod at {
    pub(super) const INTERCEPTS_2: usize = 0x10;
    pub(super) const ASID: usize = 0x58;
    pub(super) const EXIT_CODE: usize = 0x70;
    pub(super) const NESTED_PAGING: usize = 0x90;
    pub(super) const NESTED_CR3: usize = 0xb0;
    pub(super) const ES: usize = 0x400;
    pub(super) const CS: usize = 0x410;
    pub(super) const SS: usize = 0x420;
    pub(super) const DS: usize = 0x430;
    pub(super) const GDTR: usize = 0x460;
    pub(super) const IDTR: usize = 0x480;
    pub(super) const EFER: usize = 0x4d0;
    pub(super) const CR4: usize = 0x548;
    pub(super) const CR3: usize = 0x550;
    pub(super) const CR0: usize = 0x558;
    pub(super) const DR7: usize = 0x560;
    pub(super) const DR6: usize = 0x568;
    pub(super) const RFLAGS: usize = 0x570;
    pub(super) const RIP: usize = 0x578;
    pub(super) const RSP: usize = 0x5d8;
    pub(super) const PAT: usize = 0x668;
}

fn set(offset: usize, word: u64) {
    VMCB.set(offset / 8, word);
}

/// Selector, attributes, limit in one word, the base in the next.
fn set_segment(offset: usize, selector: u16, attributes: u16, limit: u32, base: u64) {
    set(
        offset,
        u64::from(selector) | u64::from(attributes) << 16 | u64::from(limit) << 32,
    );
    set(offset + 8, base);
}

/// Fills the VMCB of a guest with these GDTR and IDTR.
fn fill(cpu: &Cpu, [gdtr, idtr]: [TablePointer; 2], has_paging: bool) {
    write_msr_or_fault(cpu, EFER, read_msr(EFER) | EFER_SVME, false);
    write_msr_or_fault(cpu, VM_HSAVE_PA, HOST.address(), false);
    // VMRUN, which must be, and VMMCALL.
    set(at::INTERCEPTS_2, 0b11);
    set(at::ASID, 1);
    set(at::NESTED_PAGING, has_paging.into());
    if has_paging {
        // Present, writable, of the user; a leaf is large.
        set(at::NESTED_CR3, NestedPaging::new(7, 7 | 1 << 7).root.address());
    }
    set_segment(at::CS, layout::CODE_SELECTOR, 0xa9b, u32::MAX, 0);
    for data in [at::ES, at::SS, at::DS] {
        set_segment(data, layout::DATA_SELECTOR, 0xc93, u32::MAX, 0);
    }
    set_segment(at::GDTR, 0, 0, gdtr.limit.into(), gdtr.base);
    set_segment(at::IDTR, 0, 0, idtr.limit.into(), idtr.base);
    set(at::EFER, read_msr(EFER));
    for (offset, cr) in [(at::CR0, 0), (at::CR3, 3), (at::CR4, 4)] {
        set(offset, read_cr(cr));
    }
    set(at::DR7, 0x400);
    set(at::DR6, 0xffff_0ff0);
    set(at::PAT, read_msr(PAT));
    set(at::RFLAGS, layout::NESTED_RFLAGS);
    set(at::RIP, nested as *const () as u64);
    set(at::RSP, nested_rsp());
}

/// VMRUN with RDI and RSI; RSI afterwards.
///
/// # Safety
/// A VMCB that [`fill`] has made, or a copy of it, lies at this address.
unsafe fn enter(vmcb: u64, [rdi, rsi]: [u64; 2]) -> u64 {
    let result: u64;
    // SAFETY: the guest keeps this stack and ends by an exit; all registers that it can change are saved here or named.
    unsafe {
        asm!(
            "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
            "clgi",
            "vmrun rax",
            "stgi",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
            inout("rax") vmcb => _,
            inout("rdi") rdi => _,
            inout("rsi") rsi => result,
            clobber_abi("C"),
        );
    }
    result
}

/// Enters the guest once, with these GDTR and IDTR, RDI and RSI.
pub(crate) fn run(cpu: &Cpu, tables: [TablePointer; 2], registers: [u64; 2], has_paging: bool) -> Exit {
    fill(cpu, tables, has_paging);
    // SAFETY: it is filled.
    let result = unsafe { enter(VMCB.address(), registers) };
    match VMCB.get(at::EXIT_CODE / 8) {
        EXIT_VMMCALL => Exit::Hypercall(result),
        other => Exit::Other(other),
    }
}

/// Executes one instruction with a VMCB at this address.
pub(crate) fn operand(cpu: &Cpu, tables: [TablePointer; 2], what: Operand, address: u64) -> Option<u64> {
    fill(cpu, tables, false);
    // SAFETY: SVM is on; the scenario names a page that the program does not use, and has it prepared before it is run.
    unsafe {
        match what {
            Operand::Prepare => {
                // What VMLOAD loads is as it is now.
                asm!("vmsave rax", in("rax") VMCB.address());
                asm!(
                    "rep movsq",
                    inout("rdi") address => _, inout("rsi") VMCB.address() => _, inout("rcx") 512u64 => _,
                );
                Some(VMCB.get(0))
            }
            Operand::Vmsave => {
                asm!("vmsave rax", in("rax") address);
                Some(0)
            }
            Operand::Vmload => {
                asm!("vmload rax", in("rax") address);
                Some(0)
            }
            Operand::Vmrun => Some(enter(address, [NestedOp::Nothing as u64, 0])),
            _ => None,
        }
    }
}

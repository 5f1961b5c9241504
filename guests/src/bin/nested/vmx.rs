// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor on Intel (SDM volume 3C, chapters 25 to 28, appendices A and B).

use core::arch::asm;

use kvmi_guests::runtime::{Cpu, TablePointer, read_cr, read_msr, write_cr, write_msr_or_fault};
use kvmi_guests::{Operand, layout};

use crate::{Exit, NestedPaging, Page, nested, nested_rsp};

const FEATURE_CONTROL: u32 = 0x3a;
/// Locked, VMXON outside of SMX.
const FEATURE_CONTROL_ON: u64 = 0b101;
const VMX_BASIC: u32 = 0x480;
const CR0_FIXED_0: u32 = 0x486;
const CR4_FIXED_0: u32 = 0x488;
const SECONDARY_CONTROLS: u32 = 0x48b;
/// The MSRs of the other controls, true to what may be 0.
const TRUE_CONTROLS: [u32; 4] = [0x48d, 0x48e, 0x48f, 0x490];

const USE_MSR_BITMAPS: u64 = 1 << 28;
const USE_SECONDARY: u64 = 1 << 31;
const ENABLE_EPT: u64 = 1 << 1;
const HOST_IS_64_BIT: u64 = 1 << 9;
const GUEST_IS_64_BIT: u64 = 1 << 9;
const EXIT_VMCALL: u64 = 18;

static VMXON: Page = Page::zero();
static VMCS: Page = Page::zero();
/// No MSR exits.
static MSR_BITMAP: Page = Page::zero();

/// Encodings of VMCS fields.
mod field {
    pub(super) const CONTROLS: [u64; 4] = [0x4000, 0x4002, 0x400c, 0x4012];
    pub(super) const SECONDARY: u64 = 0x401e;
    pub(super) const MSR_BITMAP: u64 = 0x2004;
    pub(super) const EPT_POINTER: u64 = 0x201a;
    pub(super) const LINK: u64 = 0x2800;
    pub(super) const EXIT_REASON: u64 = 0x4402;
    pub(super) const HOST_RSP: u64 = 0x6c14;
    pub(super) const HOST_RIP: u64 = 0x6c16;
}

/// # Safety
/// This CPU is in VMX operation, and what the value does to the guest or to the return from it is right.
unsafe fn set(field: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmwrite {}, {}", in(reg) field, in(reg) value) }
}

fn get(field: u64) -> u64 {
    let value;
    // SAFETY: only called in VMX operation; reading changes nothing.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) field) }
    value
}

/// What is wanted, with the bits that must be 1, without those that must be 0.
fn allowed(wanted: u64, msr: u32) -> u64 {
    let capability = read_msr(msr);
    (wanted | capability & 0xffff_ffff) & capability >> 32
}

/// VMX operation on, this VMCS cleared and current.
fn turn_on(cpu: &Cpu) {
    if read_msr(FEATURE_CONTROL) & 1 == 0 {
        write_msr_or_fault(cpu, FEATURE_CONTROL, FEATURE_CONTROL_ON, false);
    }
    write_cr(cpu, 0, read_cr(0) | read_msr(CR0_FIXED_0));
    write_cr(cpu, 4, read_cr(4) | read_msr(CR4_FIXED_0));
    let revision = read_msr(VMX_BASIC) & 0x7fff_ffff;
    VMXON.set(0, revision);
    VMCS.set(0, revision);
    // SAFETY: the regions are pages of this program's own that nothing else uses.
    unsafe {
        asm!("vmxon [{}]", in(reg) &VMXON.address());
        asm!("vmclear [{}]", in(reg) &VMCS.address());
        asm!("vmptrld [{}]", in(reg) &VMCS.address());
    }
}

/// What is the same for the guest and for the return from it.
///
/// # Safety
/// This CPU is in VMX operation.
unsafe fn set_state([gdtr, idtr]: [TablePointer; 2]) {
    let (code, data, task) = (
        layout::CODE_SELECTOR.into(),
        layout::DATA_SELECTOR.into(),
        layout::TSS_SELECTOR.into(),
    );
    let unusable = 1 << 16;
    // Selector, limit, access rights, base; ES, CS, SS, DS, FS, GS, LDTR, TR.
    let segments: [[u64; 4]; 8] = [
        [data, 0xffff_ffff, 0xc093, 0],
        [code, 0xffff_ffff, 0xa09b, 0],
        [data, 0xffff_ffff, 0xc093, 0],
        [data, 0xffff_ffff, 0xc093, 0],
        [0, 0, unusable, 0],
        [0, 0, unusable, 0],
        [0, 0, unusable, 0],
        [task, 0x67, 0x8b, layout::TSS],
    ];
    // SAFETY: the caller's promise; the state is the program's present one.
    unsafe {
        for ([selector, limit, rights, base], index) in segments.into_iter().zip(0..) {
            set(0x800 + 2 * index, selector);
            set(0x4800 + 2 * index, limit);
            set(0x4814 + 2 * index, rights);
            set(0x6806 + 2 * index, base);
        }
        for (host, selector) in (0xc00..).step_by(2).zip([data, code, data, data, 0, 0, task]) {
            set(host, selector);
        }
        for (index, cr) in [0, 3, 4].into_iter().enumerate() {
            set(0x6800 + 2 * index as u64, read_cr(cr));
            set(0x6c00 + 2 * index as u64, read_cr(cr));
        }
        set(0x4810, gdtr.limit.into());
        set(0x4812, idtr.limit.into());
        for (guest, host, base) in [(0x6816, 0x6c0c, gdtr.base), (0x6818, 0x6c0e, idtr.base)] {
            set(guest, base);
            set(host, base);
        }
        set(0x6c0a, layout::TSS);
        // DR7, RFLAGS.
        set(0x681a, 0x400);
        set(0x6820, layout::NESTED_RFLAGS);
        set(field::LINK, u64::MAX);
    }
}

/// Executes one instruction with an operand at this address.
pub(crate) fn operand(cpu: &Cpu, what: Operand, address: u64) -> Option<u64> {
    /// A field that takes any canonical address.
    const FIELD: u64 = field::HOST_RIP;
    const VALUE: u64 = 0x1234_5000;
    const ALL_CONTEXTS: u64 = 2;
    turn_on(cpu);
    let zeros = address + 64;
    // SAFETY: VMX operation is on until the end of this function; the scenario names memory that the program does not use.
    let result = unsafe {
        match what {
            Operand::Prepare => {
                asm!("mov [{}], {}", in(reg) address, in(reg) VMCS.address());
                VMCS.address()
            }
            Operand::Vmptrst => {
                asm!("vmptrst [{}]", in(reg) address);
                VMCS.address()
            }
            Operand::Vmptrld => {
                asm!("vmptrld [{}]", in(reg) address);
                0
            }
            Operand::Vmclear => {
                asm!("vmclear [{}]", in(reg) address);
                0
            }
            Operand::Vmread => {
                set(FIELD, VALUE);
                asm!("vmread [{}], {}", in(reg) address, in(reg) FIELD);
                VALUE
            }
            Operand::Vmwrite => {
                asm!("vmwrite {}, [{}]", in(reg) FIELD, in(reg) address);
                get(FIELD)
            }
            Operand::Invept => {
                asm!("invept {}, [{}]", in(reg) ALL_CONTEXTS, in(reg) zeros);
                0
            }
            Operand::Invvpid => {
                asm!("invvpid {}, [{}]", in(reg) ALL_CONTEXTS, in(reg) zeros);
                0
            }
            _ => return None,
        }
    };
    // SAFETY: as at the end of `run`.
    unsafe { asm!("vmclear [{}]", "vmxoff", in(reg) &VMCS.address()) };
    Some(result)
}

/// Enters the guest once, with these GDTR and IDTR, RDI and RSI.
pub(crate) fn run(cpu: &Cpu, tables: [TablePointer; 2], [rdi, rsi]: [u64; 2], has_paging: bool) -> Exit {
    turn_on(cpu);
    let result: u64;
    // SAFETY: VMX operation is on until the end of this function. The guest keeps this stack and ends by an exit; all registers that it can change
    // are saved here or named. An entry that fails goes on behind VMLAUNCH, or, with the state of a return, at the same place.
    unsafe {
        set_state(tables);
        let wanted = [0, USE_MSR_BITMAPS | USE_SECONDARY, HOST_IS_64_BIT, GUEST_IS_64_BIT];
        for ((field, wanted), msr) in field::CONTROLS.into_iter().zip(wanted).zip(TRUE_CONTROLS) {
            set(field, allowed(wanted, msr));
        }
        set(
            field::SECONDARY,
            allowed(if has_paging { ENABLE_EPT } else { 0 }, SECONDARY_CONTROLS),
        );
        set(field::MSR_BITMAP, MSR_BITMAP.address());
        if has_paging {
            // Readable, writable, executable; a leaf is large and write-back. The pointer: write-back, four levels.
            let tables = NestedPaging::new(7, 7 | 6 << 3 | 1 << 7);
            set(field::EPT_POINTER, tables.root.address() | 6 | 3 << 3);
        }
        set(0x681c, nested_rsp());
        set(0x681e, nested as *const () as u64);
        asm!(
            "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
            "vmwrite rax, rsp",
            "lea rdx, [rip + 2f]",
            "vmwrite rcx, rdx",
            "vmlaunch",
            "2:",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
            in("rax") field::HOST_RSP,
            in("rcx") field::HOST_RIP,
            inout("rdi") rdi => _,
            inout("rsi") rsi => result,
            clobber_abi("C"),
        );
    }
    let reason = get(field::EXIT_REASON);
    // SAFETY: the regions stay what they are; outside of VMX operation CR4.VMXE may be cleared, which nobody does.
    unsafe { asm!("vmclear [{}]", "vmxoff", in(reg) &VMCS.address()) };
    match reason {
        EXIT_VMCALL => Exit::Hypercall(result),
        other => Exit::Other(other),
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The IDT and what the program does about each vector.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::Ordering::{Relaxed, Release};

use super::{Console, count, instructions, mailbox};
use crate::{COUNTED_VECTOR, DOORBELL_VECTOR, layout};

const BREAKPOINT: u64 = 3;
const GENERAL_PROTECTION: u64 = 13;

/// Vectors 0 to 0x40.
const VECTORS: usize = DOORBELL_VECTOR as usize + 1;

/// Bytes between two entry stubs.
const STUB_BYTES: usize = 16;

/// One entry of the IDT.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    /// Interrupt stack table index 0, present, 64-bit interrupt gate.
    kind: u16,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

/// What an entry stub leaves on the stack.
#[repr(C)]
struct Frame {
    /// R11, R10, R9, R8, RDI, RSI, RDX, RCX, RAX.
    saved: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

#[repr(C, align(16))]
struct Idt(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: each vCPU writes the same bytes into it before its first interrupt; the CPU only reads it.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new(
    [Gate {
        offset_low: 0,
        selector: 0,
        kind: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    }; VECTORS],
));

#[repr(C, packed)]
struct IdtPointer {
    limit: u16,
    base: u64,
}

// Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code; the others get a zero in its place.
global_asm!(
    ".pushsection .text",
    ".balign 16",
    ".globl kvmi_guest_stubs",
    "kvmi_guest_stubs:",
    ".set kvmi_vector, 0",
    ".rept {vectors}",
    ".balign 16",
    ".if (kvmi_vector == 8) || (kvmi_vector >= 10 && kvmi_vector <= 14) || (kvmi_vector == 17) || (kvmi_vector == 21) || (kvmi_vector == 29) || (kvmi_vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push kvmi_vector",
    "jmp kvmi_guest_stub_tail",
    ".set kvmi_vector, kvmi_vector + 1",
    ".endr",
    "kvmi_guest_stub_tail:",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "mov rdi, rsp",
    "cld",
    "call {handle}",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    vectors = const VECTORS,
    handle = sym handle,
);

unsafe extern "C" {
    static kvmi_guest_stubs: [[u8; STUB_BYTES]; VECTORS];
}

pub(super) fn install() {
    let pointer = IdtPointer {
        limit: (VECTORS * size_of::<Gate>() - 1) as u16,
        base: IDT.0.get() as u64,
    };
    for vector in 0..VECTORS {
        let stub = (&raw const kvmi_guest_stubs) as u64 + (vector * STUB_BYTES) as u64;
        let gate = Gate {
            offset_low: stub as u16,
            selector: layout::CODE_SELECTOR,
            kind: 0x8e00,
            offset_middle: (stub >> 16) as u16,
            offset_high: (stub >> 32) as u32,
            reserved: 0,
        };
        // SAFETY: `vector` is within the table; all vCPUs write the same.
        unsafe { IDT.0.get().cast::<Gate>().add(vector).write_volatile(gate) };
    }
    // SAFETY: the table is complete and lives as long as the program.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer) };
}

/// What happens at each vector; called by the stubs.
extern "C" fn handle(frame: &mut Frame) {
    let slot = &mailbox().slots[layout::vcpu_of_rsp(&raw const *frame as u64)];
    match frame.vector {
        vector if vector == u64::from(DOORBELL_VECTOR) => {
            count(&slot.counter);
            instructions::end_of_interrupt();
        }
        vector if vector == u64::from(COUNTED_VECTOR) => {
            slot.counted_rip.store(frame.rip, Relaxed);
            count(&slot.counted_interrupts);
        }
        BREAKPOINT => {
            slot.breakpoint_rip.store(frame.rip, Relaxed);
            count(&slot.breakpoints);
        }
        GENERAL_PROTECTION if slot.resume.load(Relaxed) != 0 => {
            count(&slot.protection_faults);
            frame.rip = slot.resume.load(Relaxed);
            // In ring 0, wherever the fault was.
            (frame.cs, frame.ss) = (layout::CODE_SELECTOR.into(), layout::DATA_SELECTOR.into());
        }
        vector @ 0..32 if slot.tolerated.load(Relaxed) >> vector & 1 == 1 => {
            slot.exception.store(vector, Relaxed);
            slot.exception_error_code.store(frame.error_code, Relaxed);
            slot.exception_cr2.store(instructions::read_cr(2), Relaxed);
            slot.exception_rip.store(frame.rip, Relaxed);
            count(&slot.exceptions);
        }
        vector => {
            slot.unexpected_rip.store(frame.rip, Relaxed);
            slot.unexpected.store(256 + vector, Release);
            // Nothing can be done about a failed write here.
            let _ = writeln!(
                Console,
                "unexpected exception {vector}, error code {:#x}, rip {:#x}",
                frame.error_code, frame.rip
            );
            stop_for_good();
        }
    }
}

/// Halts with interrupts off.
pub(super) fn stop_for_good() -> ! {
    loop {
        // SAFETY: halting changes nothing.
        unsafe { asm!("cli", "hlt") }
    }
}

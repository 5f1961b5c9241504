// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every program needs on bare metal: entry, exceptions, waiting for commands, ports, privileged instructions.

#![allow(unsafe_code)]

mod exceptions;
mod instructions;
mod legacy;
mod ring_3;
mod system;

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

pub use instructions::{
    Vendor, cpuid, hypercall, int3, mark, read_cr, send_ipi, shadowed_hypercall, software_interrupt, vendor, write_cr,
    write_cr_or_fault,
};
pub use legacy::{lmsw_or_fault, read_by_pae};
pub use ring_3::{enable_ring_3, store_in_ring_3};
pub use system::{
    TablePointer, descriptor, enable_avx, enable_extended_state, read_msr, read_xcr0, read_xmm, read_ymm,
    table_registers, write_msr_or_fault, write_xcr0_or_fault, write_xmm, write_ymm,
};

use crate::{Mailbox, Op, Slot, layout};

/// One vCPU, as its program sees it.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Its index, from 0.
    pub index: usize,
    /// Its slot in the mailbox.
    pub slot: &'static Slot,
}

/// The guest's mailbox.
#[must_use]
pub fn mailbox() -> &'static Mailbox {
    // SAFETY: the page at this address is RAM that holds nothing else (layout.rs), it is zero at the start, which is a valid Mailbox, and
    // all its fields are atomics.
    unsafe { &*(layout::MAILBOX as *const Mailbox) }
}

/// Runs a program on one vCPU. Called by the entry that [`crate::guest!`] defines.
pub fn start(index: usize, program: fn(Cpu) -> !) -> ! {
    exceptions::install();
    instructions::enable_local_apic();
    program(Cpu {
        index,
        slot: &mailbox().slots[index],
    })
}

impl Cpu {
    /// Carries out commands forever, halted while there is none. A command that the program does not know (`None`) results in all ones.
    pub fn serve(&self, mut command: impl FnMut(Op, [u64; 4]) -> Option<u64>) -> ! {
        let mut seen = self.slot.done.load(Relaxed);
        self.slot.ready.store(1, Release);
        loop {
            let rung = self.wait_for_ring(seen);
            let args = [0, 1, 2, 3].map(|i: usize| self.slot.args[i].load(Relaxed));
            let result = match Op::from_number(self.slot.op.load(Relaxed)) {
                Some(Op::Nothing) => Some(0),
                Some(op) => command(op, args),
                None => None,
            };
            let result = result.unwrap_or(u64::MAX);
            self.slot.result.store(result, Relaxed);
            self.slot.done.store(rung, Release);
            seen = rung;
        }
    }

    fn wait_for_ring(&self, seen: u64) -> u64 {
        loop {
            instructions::disable_interrupts();
            let rung = self.slot.rung.load(Acquire);
            if rung != seen {
                instructions::enable_interrupts();
                return rung;
            }
            instructions::enable_interrupts_and_halt();
        }
    }
}

/// Adds one to a field that only its own vCPU writes.
pub fn count(field: &core::sync::atomic::AtomicU64) {
    field.store(field.load(Relaxed).wrapping_add(1), Release);
}

/// Text for the VMM's log.
#[derive(Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(instructions::console_byte);
        Ok(())
    }
}

/// Defines the entry of a bare-metal program; for the host, an empty `main`.
#[macro_export]
macro_rules! guest {
    ($program:path) => {
        /// Where the VMM enters, with the vCPU's index in RDI.
        #[cfg(target_os = "none")]
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        pub extern "C" fn _start(index: usize) -> ! {
            $crate::runtime::start(index, $program)
        }

        #[cfg(not(target_os = "none"))]
        fn main() {
            let _: fn($crate::runtime::Cpu) -> ! = $program;
        }
    };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing can be done about a failed write here.
    let _ = writeln!(Console, "guest panicked: {info}");
    exceptions::stop_for_good()
}

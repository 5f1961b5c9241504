// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fills memory with patterns and adds them up on command ([`Op::Memory`]).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

use kvmi_guests::runtime::Cpu;
use kvmi_guests::{MemoryOp, Op};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.serve(|op, [what, gpa, words, value]| match op {
        Op::Memory if what == MemoryOp::Fill as u64 => {
            for i in 0..words {
                // SAFETY: the scenario names memory that the program does not use (layout::SCRATCH) or a slot of its own.
                unsafe { ((gpa + 8 * i) as *mut u64).write_volatile(value.wrapping_add(i)) };
            }
            Some(0)
        }
        Op::Memory if what == MemoryOp::Sum as u64 => Some((0..words).fold(0u64, |sum, i| {
            // SAFETY: as above; any eight bytes are a u64.
            sum.wrapping_add(unsafe { ((gpa + 8 * i) as *const u64).read_volatile() })
        })),
        _ => None,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sleeps: halts and does nothing when woken, unless told to halt once more ([`Op::Halt`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering::Relaxed;

use kvmi_guests::Op;
use kvmi_guests::runtime::{Cpu, enable_interrupts_and_halt};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.serve(|op, _| match op {
        Op::Halt => {
            let before = cpu.slot.counter.load(Relaxed);
            enable_interrupts_and_halt();
            Some(cpu.slot.counter.load(Relaxed).wrapping_sub(before))
        }
        _ => None,
    })
}

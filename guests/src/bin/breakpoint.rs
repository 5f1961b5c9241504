// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executes int3 of its own ([`Op::Int3`]), a function that a tool may plant one on ([`Op::CallTarget`]), and INT n
//! ([`Op::SoftwareInterrupt`]).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering::Release;

use kvmi_guests::runtime::{Cpu, int3, software_interrupt};
use kvmi_guests::{Op, Slot};

kvmi_guests::guest!(program);

// The first instruction is one byte long and does nothing: an int3 in its place can be stepped over by a #BP handler that just returns.
global_asm!(
    ".pushsection .text",
    ".balign 64",
    "kvmi_guest_target:",
    "nop",
    "inc qword ptr [rdi + {runs}]",
    "ret",
    ".popsection",
    runs = const offset_of!(Slot, target_runs),
);

// SAFETY: defined above; it adds one to a field of the slot, which is this vCPU's own, and keeps every register.
unsafe extern "C" {
    safe fn kvmi_guest_target(slot: &Slot);
}

fn program(cpu: Cpu) -> ! {
    cpu.slot.target.store(kvmi_guest_target as *const () as u64, Release);
    cpu.serve(|op, args| match op {
        Op::Int3 => {
            int3();
            Some(0)
        }
        Op::CallTarget => {
            (0..args[0]).for_each(|_| kvmi_guest_target(cpu.slot));
            Some(0)
        }
        Op::SoftwareInterrupt => (0..args[1]).fold(None, |_, _| Some(software_interrupt(args[0]))),
        _ => None,
    })
}

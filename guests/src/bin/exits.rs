// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leaves the guest as often as told, by CPUID ([`Op::Cpuid`]), between two marks: what an exit costs can be counted outside.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::hint::black_box;

use kvmi_guests::Op;
use kvmi_guests::runtime::{Cpu, cpuid, mark};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.serve(|op, [times, ..]| match op {
        Op::Cpuid => {
            mark(1);
            for _ in 0..times {
                black_box(cpuid(0));
            }
            mark(2);
            Some(times)
        }
        _ => None,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes hypercalls on command ([`Op::Hypercall`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

use kvmi_guests::Op;
use kvmi_guests::runtime::{Cpu, count, hypercall, vendor};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    let vendor = vendor();
    cpu.serve(|op, [rax, rdi, rsi, _]| match op {
        Op::Hypercall => {
            let result = hypercall(vendor, rax, rdi, rsi);
            count(&cpu.slot.hypercalls);
            Some(result)
        }
        _ => None,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes hypercalls on command ([`Op::Hypercall`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering::Relaxed;

use kvmi_guests::Op;
use kvmi_guests::runtime::{Cpu, count, hypercall, shadowed_hypercall, vendor};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    let vendor = vendor();
    cpu.serve(|op, [rax, rdi, rsi, _]| match op {
        Op::Hypercall => {
            let [result, rdi] = hypercall(vendor, rax, rdi, rsi);
            cpu.slot.hypercall_rdi.store(rdi, Relaxed);
            count(&cpu.slot.hypercalls);
            Some(result)
        }
        Op::ShadowedHypercall => Some(shadowed_hypercall(vendor, [rax, rdi, rsi])),
        _ => None,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads and writes control registers on command ([`Op::ReadCr`], [`Op::WriteCr`]) and counts the #GP that a write meets.
#![cfg_attr(target_os = "none", no_std, no_main)]

use kvmi_guests::Op;
use kvmi_guests::runtime::{Cpu, count, read_cr, write_cr_or_fault};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.serve(|op, [cr, value, ..]| match op {
        Op::WriteCr => {
            write_cr_or_fault(&cpu, cr, value);
            count(&cpu.slot.cr_writes);
            Some(read_cr(cr))
        }
        Op::ReadCr => Some(read_cr(cr)),
        _ => None,
    })
}

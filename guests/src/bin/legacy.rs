// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does what 64-bit programs do not: LMSW ([`Op::Lmsw`]) and PAE paging ([`Op::ReadByPae`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

use kvmi_guests::Op;
use kvmi_guests::runtime::{Cpu, count, lmsw_or_fault, read_by_pae, read_cr};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.serve(|op, [first, second, ..]| match op {
        Op::Lmsw => {
            lmsw_or_fault(&cpu, first as u16);
            count(&cpu.slot.cr_writes);
            Some(read_cr(0))
        }
        Op::ReadByPae => Some(read_by_pae(first, second)),
        Op::ReadCr => Some(read_cr(first)),
        _ => None,
    })
}

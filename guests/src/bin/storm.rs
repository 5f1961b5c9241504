// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each round ([`Op::Storm`]): a hypercall, an int3 and a CR3 write with a new value, each counted when it has returned.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering::Relaxed;

use kvmi_guests::runtime::{Cpu, count, hypercall, int3, vendor, write_cr};
use kvmi_guests::{Op, layout};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    let vendor = vendor();
    let mut root = layout::ROOT;
    let mut rounds = 0;
    cpu.serve(|op, _| match op {
        Op::Storm => {
            while rounds < cpu.slot.args[0].load(Relaxed) {
                if hypercall(vendor, 34, 24, 0)[0] != 0 {
                    count(&cpu.slot.hypercalls_refused);
                }
                count(&cpu.slot.hypercalls);
                // The #BP handler counts it.
                int3();
                root ^= layout::ROOT ^ layout::OTHER_ROOT;
                write_cr(&cpu, 3, root);
                count(&cpu.slot.cr_writes);
                rounds += 1;
            }
            Some(rounds)
        }
        _ => None,
    })
}

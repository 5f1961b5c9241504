// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every vCPU counts in its slot, without ever leaving the guest by itself.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering::Release;

use kvmi_guests::runtime::{Cpu, count};

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.slot.ready.store(1, Release);
    loop {
        count(&cpu.slot.counter);
    }
}

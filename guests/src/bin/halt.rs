// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sleeps: every vCPU is halted unless it is told something ([`Op::Nothing`]).
//!
//! [`Op::Nothing`]: kvmi_guests::Op::Nothing
#![cfg_attr(target_os = "none", no_std, no_main)]

use kvmi_guests::runtime::Cpu;

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    cpu.serve(|_, _| None)
}

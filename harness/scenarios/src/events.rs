// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events and what the tool's reply does.

mod control_registers;
mod foreign_hypercalls;
mod held;
mod hypercall_and_breakpoint;
mod hypercall_registers;
mod legacy;
mod msr;
mod owners;
mod ring_3;
mod software_interrupts;
mod system;
mod trap;
mod void;
mod voided;
mod waiting;

use crate::Scenario;

pub(crate) fn scenarios() -> Vec<Scenario> {
    [
        held::SCENARIOS,
        hypercall_and_breakpoint::SCENARIOS,
        hypercall_registers::SCENARIOS,
        foreign_hypercalls::SCENARIOS,
        software_interrupts::SCENARIOS,
        control_registers::SCENARIOS,
        legacy::SCENARIOS,
        msr::SCENARIOS,
        owners::SCENARIOS,
        ring_3::SCENARIOS,
        system::SCENARIOS,
        trap::SCENARIOS,
        waiting::SCENARIOS,
        void::SCENARIOS,
        voided::SCENARIOS,
    ]
    .concat()
}

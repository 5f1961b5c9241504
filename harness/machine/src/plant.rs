// SPDX-License-Identifier: MIT OR Apache-2.0
//! What L0 does for scenarios that are planted failures (`harness/scenarios/src/planted.rs`).

use crate::scenario::Limits;

/// Deadlines that the planted ones need not wait half a minute for.
const SHORT: Limits = Limits {
    start_ms: 5_000,
    power_off_ms: 5_000,
    slowness: 1,
};

/// Deadlines of what is no stage of a scenario.
pub(crate) fn limits(scenario: &str) -> Limits {
    if scenario.starts_with("planted::deadline_of_") {
        SHORT
    } else {
        Limits::default()
    }
}

/// The stage in which the emulator is to be ended.
pub(crate) fn end_emulator_at(scenario: &str) -> Option<&'static str> {
    (scenario == "planted::emulator_gone").then_some("L0 ends the emulator")
}

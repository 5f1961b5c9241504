//! The nextest face: one test per scenario and lane.

fn main() {}

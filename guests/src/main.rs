//! Bare-metal guests for the lab's scenarios.

fn main() {}

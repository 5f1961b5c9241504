//! L1 from inside: init, module loading, the L2 VMM, running one scenario.

fn main() {}

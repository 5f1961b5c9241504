//! The seam between kvmi-core and the kernel.

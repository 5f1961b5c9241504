// SPDX-License-Identifier: GPL-2.0-only
//! The seam between kvmi-core and the kernel: `kernel/glue/seam.h` from the Rust side.
//!
//! The only unsafe Rust in the kernel. What each block relies on is one of these, promised by the C side:
//!
//! 1. A state pointer comes from memory of the size that `kvmi_*_state_bytes()` names, aligned to 8, initialised by
//!    `kvmi_*_state_init()`, and stays valid during the call.
//! 2. Whoever passes a vCPU's state is in the vcpu context and has it for itself. No `kvmi_glue_*()` function but
//!    `kvmi_glue_intercepts_changed()` calls back with that state.
//! 3. A message buffer holds `KVMI_BUFFER_BYTES`, is for the caller alone, and does not overlap another argument.
//! 4. A session or vCPU handle is passed back to the C side as it came and never looked into.

#![cfg_attr(target_os = "none", no_std)]
#![allow(unsafe_code)]

mod abi;
mod effects;
mod vcpu;
mod vm;

/// Never linked: nothing here panics, and the build fails when it finds this in the object.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

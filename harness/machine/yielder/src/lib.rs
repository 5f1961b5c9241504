// SPDX-License-Identifier: MIT OR Apache-2.0
//! Preloaded into a QEMU whose CPUs are threads: a CPU that executes PAUSE gives way to the other threads of this machine.
//!
//! It spins for something that another CPU is about to do: to let a lock go, to take an interrupt. Where there are more such threads than
//! processors, that other one may well wait for the processor that this one keeps busy.

// Unsafe is what this library is for: it replaces a function of a program that is not its own.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem;
use std::sync::OnceLock;

use kvmi_lab_preload::Program;

/// The program that this library knows.
const QEMU: Program = Program {
    name: "QEMU",
    library: env!("CARGO_PKG_NAME"),
};

/// What QEMU does where a CPU executes PAUSE: it leaves translated code, and comes back to it.
type Pause = unsafe extern "C" fn(*mut c_void) -> !;

static PAUSE: OnceLock<Pause> = OnceLock::new();

/// Runs when the program is loaded, before its own main function.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    if let Err(why) = stand_before() {
        QEMU.give_up(&why);
    }
}

fn stand_before() -> Result<(), String> {
    let old = QEMU.exported(c"helper_pause")?;
    // SAFETY: a function of this type in QEMU 10.0.
    let old = unsafe { mem::transmute::<*mut c_void, Pause>(old) };
    PAUSE.set(old).map_err(|_| "it starts twice")?;
    // SAFETY: the program's own main function has not begun; `pause` does what QEMU's function does.
    unsafe { QEMU.replace(c"helper_pause", pause as *const c_void) }
}

/// Stands before QEMU's function, which translated code calls by a pointer.
unsafe extern "C" fn pause(cpu: *mut c_void) -> ! {
    let Some(pause) = PAUSE.get() else {
        QEMU.give_up("it has not started")
    };
    // SAFETY: it changes nothing.
    unsafe { libc::sched_yield() };
    // SAFETY: the caller's argument, passed on.
    unsafe { pause(cpu) }
}

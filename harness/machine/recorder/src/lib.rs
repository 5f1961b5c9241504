// SPDX-License-Identifier: MIT OR Apache-2.0
//! Preloaded into a QEMU that records or replays: makes good one thing that QEMU 10.0 forgets.
//!
//! QEMU writes down each interrupt that its CPU takes, in the main loop, once the function that takes it has returned. Where L2 runs and L1
//! intercepts interrupts, which KVM always does, that function never returns: the #VMEXIT leaves it by a long jump into the main loop.
//! So the recording lacks the interrupt, and a replay, which takes interrupts only where the recording has one, stands there for ever.
//!
//! This library stands between the main loop and that function, whose pointer it replaces, and before the long jump. If the jump comes from
//! within the function it has QEMU write the interrupt down (in a replay: take it off the recording) first. All names by which it knows QEMU are ones that QEMU
//! exports to its own modules; where they are not as expected it says so and ends QEMU, rather than make a recording that is of no use.

// Unsafe is what this library is for: it replaces a function of a program that is not its own.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem;
use std::sync::OnceLock;

use kvmi_lab_preload::{Program, next};

/// The program that this library knows.
const QEMU: Program = Program {
    name: "QEMU",
    library: env!("CARGO_PKG_NAME"),
};

/// Takes an interrupt that is pending, if it can be taken.
type TakeInterrupt = unsafe extern "C" fn(*mut c_void, c_int) -> bool;
/// Writes down that an interrupt was taken, or takes that off the recording.
type NoteInterrupt = unsafe extern "C" fn() -> bool;
type LongJump = unsafe extern "C" fn(*mut c_void, c_int) -> !;

/// What of QEMU and the C library is used.
struct Found {
    take_interrupt: TakeInterrupt,
    note_interrupt: NoteInterrupt,
    long_jump: LongJump,
}

static FOUND: OnceLock<Found> = OnceLock::new();

thread_local! {
    /// Whether this thread is inside of QEMU's function that takes an interrupt.
    static TAKES_INTERRUPT: Cell<bool> = const { Cell::new(false) };
}

/// Runs when the program is loaded, before its own main function.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    if let Err(why) = stand_between() {
        QEMU.give_up(&why);
    }
}

fn stand_between() -> Result<(), String> {
    let old = QEMU.exported(c"x86_cpu_exec_interrupt")?;
    let note_interrupt = QEMU.exported(c"replay_interrupt")?;
    let long_jump = next(c"__longjmp_chk").ok_or("the C library has no __longjmp_chk")?;
    // SAFETY: functions of these types in QEMU 10.0 and in the C library.
    let found = unsafe {
        Found {
            take_interrupt: mem::transmute::<*mut c_void, TakeInterrupt>(old),
            note_interrupt: mem::transmute::<*mut c_void, NoteInterrupt>(note_interrupt),
            long_jump: mem::transmute::<*mut c_void, LongJump>(long_jump),
        }
    };
    FOUND.set(found).map_err(|_| "it starts twice")?;
    // SAFETY: the program's own main function has not begun; ours does what QEMU's does.
    unsafe { QEMU.replace(c"x86_cpu_exec_interrupt", take_interrupt as *const c_void) }
}

/// Stands between QEMU's main loop and its function that takes an interrupt.
unsafe extern "C" fn take_interrupt(cpu: *mut c_void, request: c_int) -> bool {
    let Some(found) = FOUND.get() else {
        QEMU.give_up("it has not started")
    };
    TAKES_INTERRUPT.set(true);
    // SAFETY: the caller's arguments, passed on. A long jump over this frame leaves nothing undone.
    let taken = unsafe { (found.take_interrupt)(cpu, request) };
    TAKES_INTERRUPT.set(false);
    taken
}

/// Stands before the C library's long jump.
///
/// # Safety
///
/// As `siglongjmp(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __longjmp_chk(environment: *mut c_void, value: c_int) -> ! {
    let Some(found) = FOUND.get() else {
        QEMU.give_up("it has not started")
    };
    if TAKES_INTERRUPT.replace(false) {
        // SAFETY: QEMU's main loop calls it in the same place when the function returns, with the same locks held.
        unsafe { (found.note_interrupt)() };
    }
    // SAFETY: the caller's promise, passed on.
    unsafe { (found.long_jump)(environment, value) }
}

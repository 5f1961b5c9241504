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
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use std::{mem, process, ptr, slice};

/// Exit code of a QEMU that is not as expected.
const GIVE_UP: c_int = 75;

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

fn give_up(why: &str) -> ! {
    eprintln!("kvmi-lab-recorder: {why}: this is not the QEMU that it knows");
    process::exit(GIVE_UP)
}

fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a pseudo-handle of dlsym's, and a C string.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if found.is_null() {
        give_up(&format!("no {name:?}"));
    }
    found
}

/// Runs when the program is loaded, before its own main function.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    let take_interrupt = symbol(libc::RTLD_DEFAULT, c"x86_cpu_exec_interrupt");
    let note_interrupt = symbol(libc::RTLD_DEFAULT, c"replay_interrupt");
    let long_jump = symbol(libc::RTLD_NEXT, c"__longjmp_chk");
    // SAFETY: functions of these types in QEMU 10.0 and in the C library.
    let found = unsafe {
        Found {
            take_interrupt: mem::transmute::<*mut c_void, TakeInterrupt>(take_interrupt),
            note_interrupt: mem::transmute::<*mut c_void, NoteInterrupt>(note_interrupt),
            long_jump: mem::transmute::<*mut c_void, LongJump>(long_jump),
        }
    };
    if FOUND.set(found).is_err() {
        give_up("it starts twice");
    }
    let mut replaced = Replaced {
        what: take_interrupt as usize,
        times: 0,
    };
    // SAFETY: the callback gets the pointer that is passed here, and nothing keeps it.
    unsafe { libc::dl_iterate_phdr(Some(replace_in_program), ptr::from_mut(&mut replaced).cast()) };
    if replaced.times != 1 {
        give_up(&format!("{} pointers to x86_cpu_exec_interrupt", replaced.times));
    }
}

struct Replaced {
    what: usize,
    times: u32,
}

/// Called for the program first, and stops there: puts our function wherever a pointer to QEMU's lies in its data.
unsafe extern "C" fn replace_in_program(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a program, and the `Replaced` of `start`, both for the time of this call.
    let (info, replaced) = unsafe { (&*info, &mut *data.cast::<Replaced>()) };
    // SAFETY: as the description says.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let of_data = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W != 0;
    for header in headers.iter().filter(of_data) {
        let begin = (info.dlpi_addr + header.p_vaddr) as usize;
        let words = begin.next_multiple_of(size_of::<usize>())..begin + header.p_filesz as usize;
        for at in words.step_by(size_of::<usize>()) {
            let place = at as *mut usize;
            // SAFETY: within a segment that is loaded and readable; no other thread runs yet.
            if unsafe { place.read() } == replaced.what {
                replaced.times += 1;
                write_protected(place, take_interrupt as *const () as usize);
            }
        }
    }
    1
}

/// Writes a word that lies where nothing may be written once the program is loaded. Its page stays writable, which harms nothing.
fn write_protected(place: *mut usize, word: usize) {
    const PAGE: usize = 4096;
    let page = (place as usize & !(PAGE - 1)) as *mut c_void;
    // SAFETY: the page is one of data and holds the word, which is aligned and so lies in it whole.
    unsafe {
        if libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE) < 0 {
            give_up("its table of functions cannot be written");
        }
        place.write(word);
    }
}

/// Stands between QEMU's main loop and its function that takes an interrupt.
unsafe extern "C" fn take_interrupt(cpu: *mut c_void, request: c_int) -> bool {
    let Some(found) = FOUND.get() else {
        give_up("it has not started")
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
        give_up("it has not started")
    };
    if TAKES_INTERRUPT.replace(false) {
        // SAFETY: QEMU's main loop calls it in the same place when the function returns, with the same locks held.
        unsafe { (found.note_interrupt)() };
    }
    // SAFETY: the caller's promise, passed on.
    unsafe { (found.long_jump)(environment, value) }
}

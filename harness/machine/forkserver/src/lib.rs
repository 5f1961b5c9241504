// SPDX-License-Identifier: MIT OR Apache-2.0
//! Preloaded into Bochs: saves L1 at its snapshot, and makes a Bochs that was restored from there fork, once for each scenario.
//!
//! Bochs sends what L1 writes to its second serial port over a socket, by `send`, and looks there for what it may read, by `select`. It
//! tells its screen when the CPU goes to sleep, which calls `select` too. This library stands before these functions:
//!
//! - A Bochs that boots saves itself (`save`) when its CPU first sleeps after the byte `SNAPSHOT` has left.
//! - A Bochs that was restored stops being a machine and becomes a server (`serve`) when it first looks at the serial port: it accepts
//!   connections of its own user on a unix socket that it inherited, and for each forks a child that goes on as the machine.
//!
//! Which of the two it is, is in the environment that the process is given: `save::FOLDER` or `serve::SOCKET`.
//!
//! Bochs also draws its screen on a terminal that it opens for someone to look at, and stops for good when nobody does. So this library
//! looks, up to the snapshot, and after it lets the machine draw on nothing.
//!
//! While its CPU sleeps Bochs waits a millisecond of real time for someone to type, again and again, although the time inside passes by
//! itself. Nobody types, so this library answers at once.
//!
//! Where its CPU has SVM, `svm` mends that.

// Unsafe is what this library is for: it replaces C functions, calls one of Bochs's, and forks a process that is not its own.
#![allow(unsafe_code)]

mod cpu;
pub mod random;
mod save;
mod serve;
mod svm;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::{mem, ptr, thread};

use kvmi_lab_preload::{GIVE_UP, Program, next};

/// The program that this library knows.
const BOCHS: Program = Program {
    name: "Bochs",
    library: env!("CARGO_PKG_NAME"),
};

/// As in kvmi-lab-control, which this library does not depend on: it lives inside another program and is kept small.
const SNAPSHOT: u8 = 0x06;

type Send = unsafe extern "C" fn(c_int, *const c_void, usize, c_int) -> isize;
type Select =
    unsafe extern "C" fn(c_int, *mut libc::fd_set, *mut libc::fd_set, *mut libc::fd_set, *mut libc::timeval) -> c_int;
type Ptsname = unsafe extern "C" fn(c_int) -> *mut c_char;
type Tmpfile = unsafe extern "C" fn() -> *mut libc::FILE;

/// Stands before the C library's `ptsname`, by which Bochs learns the name of the terminal that it made for its screen.
///
/// # Safety
///
/// As `ptsname(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptsname(terminal: c_int) -> *mut c_char {
    let Some(symbol) = next(c"ptsname") else {
        return ptr::null_mut();
    };
    // SAFETY: the symbol is the C library's function of the type `Ptsname`; its result is null or a C string until the next call.
    let name = unsafe { mem::transmute::<*mut c_void, Ptsname>(symbol)(terminal) };
    if !name.is_null() {
        // SAFETY: as above.
        let path = unsafe { CStr::from_ptr(name) }.to_owned();
        thread::spawn(move || look_at(&path));
    }
    name
}

/// Reads what is drawn on a terminal and forgets it. A fork does not have this thread: it takes but the thread that forks.
fn look_at(path: &CStr) {
    // SAFETY: a C string, plain numbers, and memory of this function that outlives each call.
    unsafe {
        let terminal = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        let mut settings: libc::termios = mem::zeroed();
        if terminal < 0 || libc::tcgetattr(terminal, &raw mut settings) < 0 {
            return;
        }
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(terminal, libc::TCSANOW, &raw const settings);
        let mut drawn = [0_u8; 4096];
        while libc::read(terminal, drawn.as_mut_ptr().cast(), drawn.len()) > 0 {}
    }
}

/// Stands before the C library's `tmpfile64`. Bochs would first copy all of a restored L1's memory into such a file, to read it from
/// there; it is given the saved file itself, which it cannot write.
///
/// # Safety
///
/// As `tmpfile(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tmpfile64() -> *mut libc::FILE {
    if let Some(memory) = serve::saved_memory() {
        // SAFETY: both are C strings.
        return unsafe { libc::fopen(memory.as_ptr(), c"rb".as_ptr()) };
    }
    let Some(symbol) = next(c"tmpfile64") else {
        return ptr::null_mut();
    };
    // SAFETY: the symbol is the C library's function of the type `Tmpfile`.
    unsafe { mem::transmute::<*mut c_void, Tmpfile>(symbol)() }
}

/// Stands before the C library's `select`, by which Bochs waits for someone to type and looks at its serial port.
///
/// # Safety
///
/// As `select(2)`: each pointer is null or points to its type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    count: c_int,
    read: *mut libc::fd_set,
    write: *mut libc::fd_set,
    except: *mut libc::fd_set,
    at_most: *mut libc::timeval,
) -> c_int {
    if !read.is_null() && write.is_null() && except.is_null() {
        // Descriptor 0 alone is the keyboard: the CPU has gone to sleep.
        if count == 1 {
            save::asleep();
            // SAFETY: the caller's promise.
            unsafe { libc::FD_ZERO(read) };
            return 0;
        }
        // Any other one is the serial port's: there are no other connections. Returns at once, in a child too.
        serve::at_port(count - 1);
    }
    static NEXT: OnceLock<Option<Select>> = OnceLock::new();
    let found = NEXT.get_or_init(|| {
        let symbol = next(c"select")?;
        // SAFETY: the symbol is the C library's function of the type `Select`.
        Some(unsafe { mem::transmute::<*mut c_void, Select>(symbol) })
    });
    let Some(next) = found else { return -1 };
    // SAFETY: the caller's promise, passed on.
    unsafe { next(count, read, write, except, at_most) }
}

/// Stands before the C library's `send`.
///
/// # Safety
///
/// As `send(2)`: `data` points to `length` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(socket: c_int, data: *const c_void, length: usize, flags: c_int) -> isize {
    static NEXT: OnceLock<Option<Send>> = OnceLock::new();
    let found = NEXT.get_or_init(|| {
        let symbol = next(c"send")?;
        // SAFETY: the symbol is the C library's function of the type `Send`.
        Some(unsafe { mem::transmute::<*mut c_void, Send>(symbol) })
    });
    let Some(next) = found else { return -1 };
    // SAFETY: the caller's promise, passed on.
    let sent = unsafe { next(socket, data, length, flags) };
    // SAFETY: the caller promises that `data` has `length` bytes; serial ports send a few at a time.
    if length > 0 && unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) }.contains(&SNAPSHOT) {
        save::stands_at_snapshot();
    }
    sent
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds functions of the QEMU that a library is preloaded into, by the names that QEMU exports to its own modules, and puts others in the
//! place of those that QEMU calls by a pointer. Where something is not as expected it says so and ends QEMU.

// Unsafe is what this library is for: it replaces functions of a program that is not its own.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::{process, ptr, slice};

/// Exit code of a QEMU that is not as expected.
const GIVE_UP: c_int = 75;

/// Ends QEMU.
pub fn give_up(why: &str) -> ! {
    eprintln!("kvmi-lab-preload: {why}: this is not the QEMU that it knows");
    process::exit(GIVE_UP)
}

/// A function of QEMU's.
#[must_use]
pub fn of_program(name: &CStr) -> *mut c_void {
    symbol(libc::RTLD_DEFAULT, name)
}

/// A function of the libraries behind the one that asks, which may have one of that name itself.
#[must_use]
pub fn of_libraries(name: &CStr) -> *mut c_void {
    symbol(libc::RTLD_NEXT, name)
}

fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a pseudo-handle of dlsym's, and a C string.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if found.is_null() {
        give_up(&format!("no {name:?}"));
    }
    found
}

/// Has QEMU call `ours` where its data have a pointer to the function `name`, which is to be once.
///
/// # Safety
///
/// No other thread runs yet, and `ours` can stand for that function.
pub unsafe fn replace(name: &CStr, ours: *const c_void) {
    let mut replaced = Replaced {
        what: of_program(name) as usize,
        by: ours as usize,
        times: 0,
    };
    // SAFETY: the callback gets the pointer that is passed here, and nothing keeps it.
    unsafe { libc::dl_iterate_phdr(Some(replace_in_program), ptr::from_mut(&mut replaced).cast()) };
    if replaced.times != 1 {
        give_up(&format!("{} pointers to {name:?}", replaced.times));
    }
}

struct Replaced {
    what: usize,
    by: usize,
    times: u32,
}

/// Called for the program first, and stops there: puts our function wherever a pointer to QEMU's lies in its data.
unsafe extern "C" fn replace_in_program(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a program, and the `Replaced` of `replace`, both for the time of this call.
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
                write_protected(place, replaced.by);
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

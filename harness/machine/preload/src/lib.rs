// SPDX-License-Identifier: MIT OR Apache-2.0
//! For libraries that are preloaded into an emulator: finds functions of the program by the names that it exports to its own modules and
//! plugins, and has it call others in their place, where its data point to one ([`pointers`]) or its code calls one ([`calls`]). Where something
//! is not as expected it is another program: then nothing is changed, and the library says so and ends it.

// Unsafe is what this crate is for: it changes a program that is not its own.
#![allow(unsafe_code)]

pub mod calls;
pub mod pointers;

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::{io, ptr, slice};

/// Exit code of a process that cannot go on.
pub const GIVE_UP: c_int = 75;

const PAGE: usize = 4096;

/// A program, as one of the libraries knows it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name, for people.
    pub name: &'static str,
    /// The package of the library that knows it. What it says begins with that, by which the lab tells it from what the program says.
    pub library: &'static str,
}

impl Program {
    /// What the program exports by this name.
    ///
    /// # Errors
    ///
    /// When it exports nothing by that name.
    pub fn exported(&self, name: &CStr) -> Result<*mut c_void, String> {
        symbol(libc::RTLD_DEFAULT, name)
            .ok_or_else(|| format!("this {} does not export {}", self.name, name.to_string_lossy()))
    }

    /// Says why the process cannot go on, where the program's own errors go, and ends it.
    ///
    /// Without exit handlers: they are the program's, which may not have begun, or those of the process that this one is a fork of.
    pub fn give_up(&self, why: &str) -> ! {
        eprintln!("{}: {why}", self.library);
        // SAFETY: ends the process, whatever state it is in.
        unsafe { libc::_exit(GIVE_UP) }
    }
}

/// The function that a library stands before with one of the same name: the next one in the order in which they are searched.
#[must_use]
pub fn next(name: &CStr) -> Option<*mut c_void> {
    symbol(libc::RTLD_NEXT, name)
}

fn symbol(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a pseudo-handle of dlsym's, and a C string.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Where the program lies in memory, as far as its file fills that: its segments with this flag.
fn segments(flag: u32) -> Vec<Range<usize>> {
    let mut found = (flag, Vec::new());
    // SAFETY: the callback gets the pointer that is passed here, and nothing keeps it.
    unsafe { libc::dl_iterate_phdr(Some(take_segments), ptr::from_mut(&mut found).cast()) };
    found.1
}

/// Called for the program first, and stops there.
unsafe extern "C" fn take_segments(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a program, and the variable of `segments`, both for the time of this call.
    let (info, (flag, found)) = unsafe { (&*info, &mut *data.cast::<(u32, Vec<Range<usize>>)>()) };
    // SAFETY: as the description says.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & *flag != 0 {
            let begin = (info.dlpi_addr + header.p_vaddr) as usize;
            found.push(begin..begin + header.p_filesz as usize);
        }
    }
    1
}

/// Sets what may be done with the pages that these addresses lie in.
///
/// # Safety
///
/// They are mapped, and what runs or is used there meanwhile needs no more than that.
unsafe fn protect(addresses: &Range<usize>, how: c_int) -> Result<(), String> {
    let begin = addresses.start & !(PAGE - 1);
    // SAFETY: the caller's promise.
    if unsafe { libc::mprotect(begin as *mut c_void, addresses.end - begin, how) } < 0 {
        return Err(format!(
            "what lies at {:#x} cannot be changed: {}",
            addresses.start,
            io::Error::last_os_error()
        ));
    }
    Ok(())
}

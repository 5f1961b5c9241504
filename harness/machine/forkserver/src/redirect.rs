// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has Bochs call functions of this library where it calls its own.
//!
//! Bochs exports its functions, so they can be found, and calls them directly: by an instruction that holds a distance. All calls of one
//! function are looked for in Bochs's code and their distances written anew. How many there are is one of the things that are known of
//! this Bochs; another number is another Bochs, and then nothing is written.

use std::ffi::{CStr, c_int, c_void};
use std::{ptr, slice};

use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE};

const PAGE: usize = 4096;

/// The instruction of a call: one byte, and the distance from its end.
const CALL: u8 = 0xe8;
const CALL_BYTES: usize = 5;

/// A jump to the address that follows it, and its length with that.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const JUMP_BYTES: usize = JUMP.len() + size_of::<usize>();

/// How far below the code, and in what steps, room for the jumps is looked for. A call goes eight times as far.
const REACH: usize = 1 << 28;
const STRIDE: usize = 16 * PAGE;

/// One function of Bochs's, and what is called instead.
pub(crate) struct Redirect {
    pub(crate) function: &'static CStr,
    pub(crate) calls: usize,
    pub(crate) by: *const c_void,
}

/// What Bochs exports by this name.
pub(crate) fn exported(name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        return Err(format!("this Bochs does not export {}", name.to_string_lossy()));
    }
    Ok(found)
}

/// Redirects the calls of each function.
///
/// # Safety
///
/// What is called instead takes and returns what the function does. No other thread runs.
pub(crate) unsafe fn redirect(all: &[Redirect]) -> Result<(), String> {
    let code = code_of_program()?;
    // SAFETY: the program's code, loaded and readable, as long as the process.
    let bytes = unsafe { slice::from_raw_parts(code.begin as *const u8, code.bytes) };
    let mut places = Vec::new();
    for (number, redirect) in all.iter().enumerate() {
        let function = exported(redirect.function)? as usize;
        let calls = calls_of(bytes, code.begin, function);
        if calls.len() != redirect.calls {
            return Err(format!(
                "this Bochs calls {} in {} places, not in {}",
                redirect.function.to_string_lossy(),
                calls.len(),
                redirect.calls
            ));
        }
        places.extend(calls.into_iter().map(|offset| (offset, number)));
    }
    let targets: Vec<_> = all.iter().map(|redirect| redirect.by).collect();
    let jumps = jumps_near(&code, &targets)?;
    protect(&code, PROT_READ | PROT_WRITE)?;
    for (offset, number) in places {
        let distance = distance(code.begin + offset, jumps + number * JUMP_BYTES).ok_or("a jump is too far away")?;
        // SAFETY: the distance of a call within the code, which can be written now.
        unsafe { ((code.begin + offset + 1) as *mut i32).write_unaligned(distance) };
    }
    protect(&code, PROT_READ | PROT_EXEC)
}

/// Where the code of a program is.
struct Code {
    begin: usize,
    bytes: usize,
}

fn code_of_program() -> Result<Code, String> {
    let mut found = None;
    // SAFETY: the callback gets the pointer that is passed here, and nothing keeps it.
    unsafe { libc::dl_iterate_phdr(Some(take_code), ptr::from_mut(&mut found).cast()) };
    found.ok_or_else(|| "this Bochs has no code".to_owned())
}

/// Called for the program first, and stops there.
unsafe extern "C" fn take_code(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a program, and the variable of `code_of_program`, both for the time of this call.
    let (info, found) = unsafe { (&*info, &mut *data.cast::<Option<Code>>()) };
    // SAFETY: as the description says.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let is_code = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0;
    *found = headers.iter().find(is_code).map(|header| Code {
        begin: (info.dlpi_addr + header.p_vaddr) as usize,
        bytes: header.p_memsz as usize,
    });
    1
}

/// Where in the code a function is called.
fn calls_of(code: &[u8], begin: usize, function: usize) -> Vec<usize> {
    let goes_there = |(offset, call): (usize, &[u8])| {
        let &[CALL, a, b, c, d] = call else { return None };
        let end = begin + offset + CALL_BYTES;
        (end.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]) as isize) == function).then_some(offset)
    };
    code.windows(CALL_BYTES).enumerate().filter_map(goes_there).collect()
}

/// How far a call has to go, if it can go so far.
fn distance(call: usize, to: usize) -> Option<i32> {
    i32::try_from(to.wrapping_sub(call + CALL_BYTES).cast_signed()).ok()
}

/// Makes a page with a jump to each target, near enough to the code for its calls.
fn jumps_near(code: &Code, targets: &[*const c_void]) -> Result<usize, String> {
    if targets.len() * JUMP_BYTES > PAGE {
        return Err("a page has no room for so many jumps".to_owned());
    }
    let begin = code.begin & !(PAGE - 1);
    let page = (1..REACH / STRIDE)
        .filter_map(|step| begin.checked_sub(step * STRIDE))
        .find_map(page_at)
        .ok_or_else(|| format!("there is no room for jumps below {begin:#x}"))?;
    for (number, target) in targets.iter().enumerate() {
        let at = (page + number * JUMP_BYTES) as *mut u8;
        // SAFETY: within the page that was made above.
        unsafe {
            at.cast::<[u8; JUMP.len()]>().write(JUMP);
            at.add(JUMP.len()).cast::<*const c_void>().write_unaligned(*target);
        }
    }
    protect(
        &Code {
            begin: page,
            bytes: PAGE,
        },
        PROT_READ | PROT_EXEC,
    )?;
    Ok(page)
}

/// Makes a page there, unless something is.
fn page_at(begin: usize) -> Option<usize> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    // SAFETY: a new page, which replaces nothing.
    let page = unsafe { libc::mmap(begin as *mut c_void, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) };
    (page != MAP_FAILED).then_some(page as usize)
}

fn protect(code: &Code, how: c_int) -> Result<(), String> {
    let begin = code.begin & !(PAGE - 1);
    // SAFETY: pages of code that this thread does not run in.
    if unsafe { libc::mprotect(begin as *mut c_void, code.begin + code.bytes - begin, how) } < 0 {
        return Err(format!(
            "Bochs's code cannot be changed: {}",
            std::io::Error::last_os_error()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_by_where_they_go() {
        let mut code = vec![0x90; 32];
        code[3] = CALL;
        code[4..8].copy_from_slice(&(0x2000_i32 - 8).to_le_bytes());
        code[20] = CALL;
        code[21..25].copy_from_slice(&(0x2000_i32 - 25).to_le_bytes());
        assert_eq!(calls_of(&code, 0x1000, 0x3000), [3, 20]);
        assert_eq!(calls_of(&code, 0x1000, 0x3001), Vec::<usize>::new());
        assert_eq!(calls_of(&code[..24], 0x1000, 0x3000), [3], "the last is cut off");
    }

    #[test]
    fn another_program_is_left_alone() {
        let refusal = |function, calls| {
            let by = calls_of as *const c_void;
            // SAFETY: nothing is redirected to it, for this program is not as expected.
            unsafe { redirect(&[Redirect { function, calls, by }]) }.unwrap_err()
        };
        assert_eq!(refusal(c"kvmi_no_such", 1), "this Bochs does not export kvmi_no_such");
        // The C library's functions are called by way of a table.
        assert_eq!(refusal(c"getpid", 7), "this Bochs calls getpid in 0 places, not in 7");
    }

    #[test]
    fn a_call_goes_two_gigabytes_and_no_farther() {
        assert_eq!(distance(0x1000, 0x1005), Some(0));
        assert_eq!(distance(0x1000, 0x800), Some(-0x805));
        assert_eq!(distance(0x1000, 0x1005 + 0x7fff_ffff), Some(i32::MAX));
        assert_eq!(distance(0x1000, 0x1005 + 0x8000_0000), None);
    }
}

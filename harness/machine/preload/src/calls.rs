// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has a program call a function of the library where its code calls one of its own.
//!
//! Such a call is an instruction that holds a distance. All calls of one function are looked for in the program's code and their distances
//! written anew. How many there are is one of the things that are known of the program; another number is another program.

use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::slice;

use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PF_X, PROT_EXEC, PROT_READ, PROT_WRITE};

use crate::{PAGE, Program, protect, segments};

/// The instruction of a call: one byte, and the distance from its end.
const CALL: u8 = 0xe8;
const CALL_BYTES: usize = 5;

/// A jump to the address that follows it, and its length with that.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const JUMP_BYTES: usize = JUMP.len() + size_of::<usize>();

/// How far below the code, and in what steps, room for the jumps is looked for. A call goes eight times as far.
const REACH: usize = 1 << 28;
const STRIDE: usize = 16 * PAGE;

/// One function of the program's, and what is called instead.
#[derive(Clone, Copy, Debug)]
pub struct Redirect {
    /// Its name.
    pub function: &'static CStr,
    /// In how many places the program calls it.
    pub calls: usize,
    /// What it calls there from then on.
    pub by: *const c_void,
}

impl Program {
    /// Redirects the calls of each function.
    ///
    /// # Errors
    ///
    /// When the program is not as expected. Nothing is changed then.
    ///
    /// # Safety
    ///
    /// What is called instead takes and returns what the function does. No other thread runs.
    pub unsafe fn redirect(&self, all: &[Redirect]) -> Result<(), String> {
        let no_code = || format!("this {} has no code", self.name);
        let code = segments(PF_X).into_iter().next().ok_or_else(no_code)?;
        // SAFETY: the program's code, loaded and readable, as long as the process.
        let bytes = unsafe { slice::from_raw_parts(code.start as *const u8, code.len()) };
        let mut places = Vec::new();
        for (number, redirect) in all.iter().enumerate() {
            let function = self.exported(redirect.function)? as usize;
            let calls = calls_of(bytes, code.start, function);
            if calls.len() != redirect.calls {
                return Err(format!(
                    "this {} calls {} in {} places, not in {}",
                    self.name,
                    redirect.function.to_string_lossy(),
                    calls.len(),
                    redirect.calls
                ));
            }
            places.extend(calls.into_iter().map(|offset| (code.start + offset, number)));
        }
        let targets: Vec<_> = all.iter().map(|redirect| redirect.by).collect();
        let jumps = jumps_near(&code, &targets)?;
        let places = places
            .into_iter()
            .map(|(call, number)| Some((call, distance(call, jumps + number * JUMP_BYTES)?)))
            .collect::<Option<Vec<_>>>()
            .ok_or("a jump is too far away")?;
        // SAFETY: the program's code, which nothing executes now: this thread is in the library.
        unsafe { protect(&code, PROT_READ | PROT_WRITE) }?;
        for (call, distance) in places {
            // SAFETY: the distance of a call within the code, which can be written now.
            unsafe { ((call + 1) as *mut i32).write_unaligned(distance) };
        }
        // SAFETY: as above.
        unsafe { protect(&code, PROT_READ | PROT_EXEC) }
    }
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
fn jumps_near(code: &Range<usize>, targets: &[*const c_void]) -> Result<usize, String> {
    if targets.len() * JUMP_BYTES > PAGE {
        return Err("a page has no room for so many jumps".to_owned());
    }
    let begin = code.start & !(PAGE - 1);
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
    // SAFETY: the same page, which nobody knows yet.
    unsafe { protect(&(page..page + PAGE), PROT_READ | PROT_EXEC) }?;
    Ok(page)
}

/// Makes a page there, unless something is.
fn page_at(begin: usize) -> Option<usize> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    // SAFETY: a new page, which replaces nothing.
    let page = unsafe { libc::mmap(begin as *mut c_void, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) };
    (page != MAP_FAILED).then_some(page as usize)
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
        let program = Program {
            name: "program of tests",
            library: "tests",
        };
        let refusal = |function, calls| {
            let by = calls_of as *const c_void;
            // SAFETY: nothing is redirected to it, for this program is not as expected.
            unsafe { program.redirect(&[Redirect { function, calls, by }]) }.unwrap_err()
        };
        assert_eq!(
            refusal(c"kvmi_no_such", 1),
            "this program of tests does not export kvmi_no_such"
        );
        // The C library's functions are called by way of a table.
        assert_eq!(
            refusal(c"getpid", 7),
            "this program of tests calls getpid in 0 places, not in 7"
        );
    }

    #[test]
    fn a_call_goes_two_gigabytes_and_no_farther() {
        assert_eq!(distance(0x1000, 0x1005), Some(0));
        assert_eq!(distance(0x1000, 0x800), Some(-0x805));
        assert_eq!(distance(0x1000, 0x1005 + 0x7fff_ffff), Some(i32::MAX));
        assert_eq!(distance(0x1000, 0x1005 + 0x8000_0000), None);
    }
}

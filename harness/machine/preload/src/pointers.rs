// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has a program call a function of the library where its data have a pointer to one of its own.

use std::ffi::{CStr, c_void};

use libc::{PF_W, PROT_READ, PROT_WRITE};

use crate::{Program, protect, segments};

impl Program {
    /// Puts `ours` where the program's data have a pointer to its function `name`, which is to be once.
    ///
    /// # Errors
    ///
    /// When the program is not as expected. Nothing is changed then.
    ///
    /// # Safety
    ///
    /// No other thread runs yet, and `ours` can stand for that function.
    pub unsafe fn replace(&self, name: &CStr, ours: *const c_void) -> Result<(), String> {
        let function = self.exported(name)? as usize;
        let places: Vec<usize> = segments(PF_W)
            .into_iter()
            .flat_map(|data| (data.start.next_multiple_of(size_of::<usize>())..data.end).step_by(size_of::<usize>()))
            // SAFETY: a word within a segment that is loaded and can be read; no other thread writes it.
            .filter(|&at| unsafe { (at as *const usize).read() } == function)
            .collect();
        let [place] = places[..] else {
            return Err(format!(
                "this {} points to {} in {} places, not in one",
                self.name,
                name.to_string_lossy(),
                places.len()
            ));
        };
        // It may lie where nothing may be written once the program is loaded. Its page stays writable, which harms nothing.
        // SAFETY: data, which stay as they are.
        unsafe { protect(&(place..place + size_of::<usize>()), PROT_READ | PROT_WRITE) }?;
        // SAFETY: an aligned word, which can be written now; `ours` can stand for what is there, by the caller's promise.
        unsafe { (place as *mut usize).write(ours as usize) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_long;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use super::*;

    const TESTS: Program = Program {
        name: "program of tests",
        library: "tests",
    };

    // Functions that nothing here calls, for then there would be a further pointer to them.
    unsafe extern "C" {
        fn srand48(seed: c_long);
        fn seed48(seed: *mut u16) -> *mut u16;
    }

    static ONE: AtomicPtr<c_void> = AtomicPtr::new(srand48 as *mut c_void);
    static TWO: [AtomicPtr<c_void>; 2] = [const { AtomicPtr::new(seed48 as *mut c_void) }; 2];

    fn replace(name: &CStr) -> Result<(), String> {
        // SAFETY: nothing calls what is replaced, and no thread writes this program's data meanwhile.
        unsafe { TESTS.replace(name, ptr::from_ref(&ONE).cast()) }
    }

    #[test]
    fn the_pointer_to_a_function_is_found() {
        replace(c"srand48").unwrap();
        assert_eq!(ONE.load(Ordering::Relaxed).cast_const(), ptr::from_ref(&ONE).cast());
    }

    #[test]
    fn another_program_is_left_alone() {
        let before = TWO.each_ref().map(|pointer| pointer.load(Ordering::Relaxed));
        for (name, why) in [
            (c"kvmi_no_such", "does not export kvmi_no_such"),
            (c"lcong48", "points to lcong48 in 0 places, not in one"),
            (c"seed48", "points to seed48 in 2 places, not in one"),
        ] {
            assert_eq!(replace(name).unwrap_err(), format!("this program of tests {why}"));
        }
        assert_eq!(TWO.each_ref().map(|pointer| pointer.load(Ordering::Relaxed)), before);
    }
}

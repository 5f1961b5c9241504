// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Bochs's CPU holds, by the names under which Bochs saves it.

use std::ffi::{CStr, c_char, c_void};
use std::{mem, ptr};

use crate::BOCHS;

/// Bochs's variable that points to its simulator, and a method of that: `bx_param_num_c *get_param_num(const char *name, bx_param_c *base)`.
const SIMULATOR: &CStr = c"SIM";
const GET_PARAM_NUM: &CStr = c"_ZN13bx_real_sim_c13get_param_numEPKcP10bx_param_c";
/// A kind of number that lies elsewhere: its class's table of virtual functions, and two methods of that, `Bit64s get64()` and `void set(Bit64s)`.
struct Class {
    table: &'static CStr,
    get: &'static CStr,
    set: &'static CStr,
}

const NUMBER: Class = Class {
    table: c"_ZTV15bx_shadow_num_c",
    get: c"_ZN15bx_shadow_num_c5get64Ev",
    set: c"_ZN15bx_shadow_num_c3setEl",
};
const TRUTH: Class = Class {
    table: c"_ZTV16bx_shadow_bool_c",
    get: c"_ZN16bx_shadow_bool_c5get64Ev",
    set: c"_ZN16bx_shadow_bool_c3setEl",
};

/// An object points behind the first two words of its class's table.
const TABLE_BEGIN: usize = 2 * size_of::<usize>();

type GetParamNum = unsafe extern "C" fn(*mut c_void, *const c_char, *mut c_void) -> *mut c_void;
type Get = unsafe extern "C" fn(*mut c_void) -> i64;
type Set = unsafe extern "C" fn(*mut c_void, i64);

/// A number that Bochs's CPU holds.
#[derive(Clone, Copy)]
pub(crate) struct Number {
    object: *mut c_void,
    get: Get,
    set: Set,
}

// SAFETY: whatever thread looks it up, only Bochs's one that runs the machine uses it.
unsafe impl Send for Number {}
// SAFETY: as above.
unsafe impl Sync for Number {}

impl Number {
    /// The number that is saved under this name. They are registered once the CPU has been made.
    pub(crate) fn named(name: &CStr) -> Result<Self, String> {
        let (simulator, get_param_num) = (BOCHS.exported(SIMULATOR)?, BOCHS.exported(GET_PARAM_NUM)?);
        // SAFETY: the method has this type in Bochs 3.0. The variable points to the simulator, which the method takes first; it looks for a
        // name, from the root if it gets no other place.
        let object = unsafe {
            let get_param_num = mem::transmute::<*mut c_void, GetParamNum>(get_param_num);
            get_param_num(*simulator.cast::<*mut c_void>(), name.as_ptr(), ptr::null_mut())
        };
        if !object.is_null() {
            // SAFETY: an object of a class with virtual functions, which begins with the pointer to its table.
            let table = unsafe { *object.cast::<usize>() };
            for class in [NUMBER, TRUTH] {
                if table == BOCHS.exported(class.table)? as usize + TABLE_BEGIN {
                    let (get, set) = (BOCHS.exported(class.get)?, BOCHS.exported(class.set)?);
                    // SAFETY: the methods of that class have these types in Bochs 3.0.
                    let (get, set) = unsafe {
                        (
                            mem::transmute::<*mut c_void, Get>(get),
                            mem::transmute::<*mut c_void, Set>(set),
                        )
                    };
                    return Ok(Self { object, get, set });
                }
            }
        }
        Err(format!("this Bochs saves no number {}", name.to_string_lossy()))
    }

    pub(crate) fn get(&self) -> u64 {
        // SAFETY: the method of the object, which lives as long as the machine. Only one thread touches the machine, and that calls this.
        unsafe { (self.get)(self.object) }.cast_unsigned()
    }

    pub(crate) fn set(&self, value: u64) {
        // SAFETY: as above.
        unsafe { (self.set)(self.object, value.cast_signed()) }
    }
}

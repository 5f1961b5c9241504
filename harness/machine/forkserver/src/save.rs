// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saving L1 at its snapshot.

use std::env;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::BOCHS;

/// Names the variable with the folder that L1 is saved in.
pub(crate) const FOLDER: &str = "KVMI_LAB_SAVE_IN";

/// Bochs's variable that points to its simulator, and the simulator's method `bool save_state(const char *folder)`. It exports both,
/// because its devices are plugins.
const SIMULATOR: &CStr = c"SIM";
const SAVE_STATE: &CStr = c"_ZN13bx_real_sim_c10save_stateEPKc";

type SaveState = unsafe extern "C" fn(*mut c_void, *const c_char) -> bool;

/// Whether L1 has said that it stands at its snapshot.
static AT_SNAPSHOT: AtomicBool = AtomicBool::new(false);

/// L1 says that it stands at its snapshot. It cannot be saved now: a timer's handler is half through.
pub(crate) fn stands_at_snapshot() {
    AT_SNAPSHOT.store(true, Ordering::Relaxed);
}

/// The CPU has gone to sleep, and nothing else is under way. Saves L1 and ends the process if it is time.
pub(crate) fn asleep() {
    if !AT_SNAPSHOT.load(Ordering::Relaxed) {
        return;
    }
    let Some(folder) = env::var_os(FOLDER) else { return };
    let Ok(folder) = CString::new(folder.into_vec()) else {
        BOCHS.give_up("a folder's name has a null byte");
    };
    if let Err(why) = save(&folder) {
        BOCHS.give_up(&why);
    }
    // SAFETY: ends the process without exit handlers: Bochs's would say something about its end.
    unsafe { libc::_exit(0) }
}

/// Has Bochs save its machine in a folder, which exists.
pub(crate) fn save(folder: &CStr) -> Result<(), String> {
    let (simulator, method) = (BOCHS.exported(SIMULATOR)?, BOCHS.exported(SAVE_STATE)?);
    // SAFETY: the variable holds a pointer to the simulator since before any device was made, and is not written any more. The method
    // takes that pointer first, as the ABI has it for C++, and a C string. Bochs's only thread that touches the machine is this one.
    let saved = unsafe {
        let simulator = *simulator.cast::<*mut c_void>();
        std::mem::transmute::<*mut c_void, SaveState>(method)(simulator, folder.as_ptr())
    };
    saved
        .then_some(())
        .ok_or_else(|| "Bochs could not save itself".to_owned())
}

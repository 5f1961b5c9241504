// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the threads of vCPUs share L1's few CPUs with everyone else.

use std::io;

/// How long a vCPU may run before its turn is over, in nanoseconds: longer than anyone else, and no longer than from tick to tick.
const SLICE_NS: u64 = 4_000_000;

/// Asks for long time slices for this thread. The scheduler lets a thread with shorter ones, which all others have, run as soon as it wakes.
/// Otherwise each step between tool, kernel and VMM waits for the next tick where guests keep all CPUs busy.
pub(super) fn give_way() -> io::Result<()> {
    // SAFETY: plain numbers; all zeros is a policy of SCHED_OTHER without any wish.
    #[allow(unsafe_code)]
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the structure says how large it is and outlives the call, which concerns this thread alone (0).
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

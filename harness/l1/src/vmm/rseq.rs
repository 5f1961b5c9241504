// SPDX-License-Identifier: MIT OR Apache-2.0
//! Restartable sequences, which the C library has the kernel know of for each thread: whenever such a thread has been scheduled away, the
//! kernel has work to do before it is back in user space.

#![allow(unsafe_code)]

use std::arch::asm;
use std::io;

/// `RSEQ_FLAG_UNREGISTER`
const UNREGISTER: u32 = 1;
/// `RSEQ_SIG`
const SIGNATURE: u32 = 0x5305_3053;
/// `sizeof(struct rseq)` as it was first, which is what the C library registers.
const BYTES: u32 = 32;

unsafe extern "C" {
    /// Where the C library keeps the structure, from the thread pointer on.
    static __rseq_offset: isize;
}

/// Has the kernel forget this thread's.
pub(super) fn unregister() -> io::Result<()> {
    let thread: usize;
    // SAFETY: the thread pointer lies at its own beginning, by the ABI; the C library has set the offset before main().
    let (area, answer) = unsafe {
        asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly));
        let area = thread.wrapping_add_signed(__rseq_offset);
        (area, libc::syscall(libc::SYS_rseq, area, BYTES, UNREGISTER, SIGNATURE))
    };
    if answer == 0 {
        Ok(())
    } else {
        let e = io::Error::last_os_error();
        Err(io::Error::new(e.kind(), format!("rseq at {area:#x}: {e}")))
    }
}

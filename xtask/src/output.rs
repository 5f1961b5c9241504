// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a command prints. Its reader may go away, as `| head -1` does: that is no reason to stop the work, nor to call it failed.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether something could not be printed though there was somebody to read it, e.g. because a disk is full.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints a line on standard output, as `println!` does for readers that stay.
macro_rules! show {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use show;

/// Prints a line on standard error.
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::error_line(format_args!($($text)*)) };
}
pub(crate) use complain;

pub(crate) fn line(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    keep(
        out.write_fmt(text)
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush()),
    );
}

pub(crate) fn error_line(text: Arguments<'_>) {
    // There is no other place to complain of this one.
    let _ = io::stderr().lock().write_fmt(format_args!("{text}\n"));
}

fn keep(written: io::Result<()>) {
    if let Err(e) = written
        && e.kind() != ErrorKind::BrokenPipe
    {
        LOST.store(true, Ordering::Relaxed);
        complain!("error: cannot write to standard output: {e}");
    }
}

/// Whether all that was printed reached whoever wanted it.
pub(crate) fn is_whole() -> bool {
    !LOST.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_went_away_is_fine_and_a_full_disk_is_not() {
        keep(Err(ErrorKind::BrokenPipe.into()));
        assert!(is_whole());
        keep(Err(ErrorKind::StorageFull.into()));
        assert!(!is_whole());
    }
}

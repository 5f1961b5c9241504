// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a command prints. Its reader may go away, as `| head -1` does: that is no reason to stop the work, nor to call it failed.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};
use rustix::termios::tcgetwinsize;

/// Whether something could not be printed though there was somebody to read it, e.g. because a disk is full.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints a line on standard output, as `println!` does for readers that stay.
#[macro_export]
macro_rules! show {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}

/// Prints a line on standard error.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::error_line(format_args!($($text)*)) };
}

/// What `show!` does.
pub fn line(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    keep(
        out.write_fmt(text)
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush()),
    );
}

/// What `complain!` does.
pub fn error_line(text: Arguments<'_>) {
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

/// So many of them, in words.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Readers whose screen has no width have one of this.
const COLUMNS: u16 = 100;

/// A text in lines that fit the screen; all but the first are indented.
pub fn wrapped(text: &str, indent: usize) -> String {
    wrapped_within(screen_width().unwrap_or(COLUMNS).into(), text, indent)
}

fn wrapped_within(width: usize, text: &str, indent: usize) -> String {
    let indent = " ".repeat(indent);
    let options = textwrap::Options::new(width)
        .subsequent_indent(&indent)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(text, options)
}

fn screen_width() -> Option<u16> {
    let out = io::stdout();
    let width = out.is_terminal().then(|| tcgetwinsize(&out)).and_then(Result::ok);
    width.map(|size| size.ws_col).filter(|width| *width > 0)
}

/// A table in a form that Markdown takes as it is; on a terminal, as wide as that at most.
pub fn table<'h>(header: impl IntoIterator<Item = &'h str>) -> Table {
    table_within(screen_width(), header)
}

fn table_within<'h>(width: Option<u16>, header: impl IntoIterator<Item = &'h str>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    table
}

/// Whether all that was printed reached whoever wanted it.
pub fn is_whole() -> bool {
    !LOST.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_terminal_at_most() {
        let of = |width| {
            let mut table = table_within(width, ["scenario", "shows"]);
            table.add_row(["a::b", &"word ".repeat(20)]);
            table.to_string().lines().map(str::len).max()
        };
        assert_eq!(of(Some(60)), Some(60));
        assert!(of(None) > Some(100) && of(Some(300)) == of(None));
    }

    #[test]
    fn lines_are_as_wide_as_the_screen_at_most() {
        assert_eq!(wrapped_within(9, "a:  bc def ghij", 4), "a:  bc\n    def\n    ghij");
        assert_eq!(wrapped_within(100, "a:  bc def", 4), "a:  bc def");
        assert_eq!(wrapped_within(5, "a: muchtoolong x", 2), "a:\n  muchtoolong\n  x");
    }

    #[test]
    fn one_is_no_plural() {
        let of = |number| count(number, "kernel");
        assert_eq!([0, 1, 2].map(of), ["0 kernels", "1 kernel", "2 kernels"]);
    }

    #[test]
    fn a_reader_that_went_away_is_fine_and_a_full_disk_is_not() {
        keep(Err(ErrorKind::BrokenPipe.into()));
        assert!(is_whole());
        keep(Err(ErrorKind::StorageFull.into()));
        assert!(!is_whole());
    }
}

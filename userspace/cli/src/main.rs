// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program `kvmi`; the lab runs the same from its library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kvmi_cli::main(std::env::args_os())
}

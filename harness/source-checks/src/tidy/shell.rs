// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scripts that bash can read: those of the checkout, and those within workflows.

use std::io::Write;
use std::process::{Command, Stdio};

/// What bash says of a script that it is not to run, without its own name in front; nothing if all is well.
pub(super) fn complaint(script: &str) -> Option<String> {
    let run = || {
        let mut bash = Command::new("bash")
            .arg("-n")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env("LC_ALL", "C")
            .spawn()?;
        // It may stop reading at the first mistake.
        let _ = bash.stdin.take().map(|mut input| input.write_all(script.as_bytes()));
        bash.wait_with_output()
    };
    match run() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let first = text.lines().next().unwrap_or_default();
            Some(first.trim_start_matches("bash: ").to_owned())
        }
        Err(e) => Some(format!("bash cannot be asked: {e}")),
    }
}

/// Whether a file is a script of bash's.
pub(super) fn is_script(text: &str) -> bool {
    text.lines()
        .next()
        .is_some_and(|line| line.starts_with("#!") && line.ends_with("bash"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_says_what_it_cannot_read() {
        assert_eq!(complaint("set -eu\nif true; then echo a; fi\n"), None);
        let said = complaint("if true; then\n  echo a\n").unwrap();
        assert!(said.starts_with("line ") && said.contains("syntax error"), "{said}");
    }

    #[test]
    fn what_a_script_is() {
        assert!(is_script("#!/usr/bin/env bash\ntrue\n") && is_script("#!/bin/bash\n"));
        assert!(!is_script("#!/usr/bin/env python3\n") && !is_script("bash\n"));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is made of the table of messages in `uapi`: the C header, and the tables of docs/protocol.md.

mod header;
mod page;
mod words;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kvmi_lab_environment::finding::{Finding, finding};

const HEADER: &str = "uapi/include/kvmi.h";
const PAGE: &str = "docs/protocol.md";

/// Writes both anew; whether that changed anything.
///
/// # Errors
/// A file cannot be read or written, or the page lacks a table.
pub fn write(checkout: &Path) -> Result<bool> {
    let mut changed = false;
    for (name, text) in [(HEADER, Ok(header::text())), (PAGE, page::text(&read(checkout, PAGE)?))] {
        let text = text?;
        if read(checkout, name).is_ok_and(|old| old == text) {
            continue;
        }
        fs::write(checkout.join(name), text).with_context(|| format!("write {name}"))?;
        changed = true;
    }
    Ok(changed)
}

/// What is stale, or has no place.
///
/// # Errors
/// The page cannot be read.
pub fn findings(checkout: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let page = read(checkout, PAGE)?;
    for (name, old, new) in [
        (HEADER, read(checkout, HEADER).unwrap_or_default(), Ok(header::text())),
        (PAGE, page.clone(), page::text(&page)),
    ] {
        match new {
            Ok(new) if new == old => {}
            Ok(_) => findings.push(finding(name, "is not what uapi says: cargo xtask docs")),
            Err(e) => findings.push(finding(name, format!("{e:#}"))),
        }
    }
    Ok(findings)
}

fn read(checkout: &Path, name: &str) -> Result<String> {
    fs::read_to_string(checkout.join(name)).with_context(|| format!("read {name}"))
}

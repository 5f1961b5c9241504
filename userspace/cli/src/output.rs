// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the command says: tables for people, one JSON object for programs.

use std::io::{self, ErrorKind, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

/// Where to, and how.
#[derive(Debug)]
pub(crate) struct Output {
    /// For a program.
    pub(crate) json: bool,
}

impl Output {
    /// Text for people, or the object for a program, with the command's name in it.
    pub(crate) fn say(&self, command: &str, object: Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.json {
            let mut all = Map::new();
            all.insert("command".to_owned(), command.into());
            if let Value::Object(object) = object {
                all.extend(object);
            }
            Value::Object(all).to_string()
        } else {
            text()
        };
        let mut out = io::stdout().lock();
        out.write_all(text.trim_end().as_bytes())?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }
}

/// A table without lines but under its head.
pub(crate) fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head);
    table
}

/// Whoever reads the output has enough: no failure.
pub(crate) fn reader_is_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// An address as people read it.
pub(crate) fn hex(value: u64) -> String {
    format!("{value:#x}")
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use kvmi::{KvmError, Session};
use serde_json::json;

use crate::{
    Place,
    output::{Output, hex},
    vcpus,
};

const PAGE: u64 = 4096;
/// What is shown at once, at most; more goes to a file.
const SHOWN: u64 = 64 << 10;
/// From here on it takes long enough for a bar.
const LONG: u64 = 1 << 20;

/// A piece of guest memory within a page, by its physical address.
struct Piece {
    gpa: u64,
    bytes: u16,
}

/// What lies at an address, as far as its page reaches; at most so many bytes.
fn piece(session: &Session, place: Place, address: u64, most: u64) -> anyhow::Result<Piece> {
    let bytes = (PAGE - address % PAGE).min(most) as u16;
    if !place.is_virtual {
        return Ok(Piece { gpa: address, bytes });
    }
    let gpa = session.vcpu(place.vcpu).translate(address)?;
    let gpa = gpa.with_context(|| format!("the page tables of vCPU {} map nothing at {address:#x}", place.vcpu))?;
    Ok(Piece { gpa, bytes })
}

/// Calls `each` with the pieces of a range, one after the other, and with how many bytes came before.
fn walk(
    session: &Session,
    place: Place,
    bytes: u64,
    mut each: impl FnMut(Piece, u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if place.is_virtual {
        vcpus::check(session, place.vcpu)?;
    }
    let end = place.address.checked_add(bytes);
    ensure!(end.is_some(), "the range ends beyond the last address");
    let bar = if bytes < LONG {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(bytes).with_style(ProgressStyle::with_template(
            "{bar:40} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
        )?)
    };
    let mut done = 0;
    while done < bytes {
        let piece = piece(session, place, place.address + done, bytes - done)?;
        let length = u64::from(piece.bytes);
        each(piece, done)?;
        done += length;
        bar.set_position(done);
    }
    bar.finish_and_clear();
    Ok(())
}

fn nothing_there(error: kvmi::Error, gpa: u64) -> anyhow::Error {
    let is_hole = error.kernel() == Some(KvmError::NotFound);
    let error = anyhow::Error::from(error);
    if is_hole {
        error.context(format!("the guest has no memory at physical address {gpa:#x}"))
    } else {
        error
    }
}

pub(crate) fn read(
    session: &Session,
    place: Place,
    bytes: u64,
    to: Option<&Path>,
    output: &Output,
) -> anyhow::Result<()> {
    if let Some(path) = to {
        let file = File::create(path).with_context(|| format!("write to {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let written = walk(session, place, bytes, |piece, _| {
            let data = session.read_physical(piece.gpa, piece.bytes);
            let data = data.map_err(|error| nothing_there(error, piece.gpa))?;
            file.write_all(&data)
                .with_context(|| format!("write to {}", path.display()))
        });
        file.flush().with_context(|| format!("write to {}", path.display()))?;
        written?;
        let object = json!({ "address": hex(place.address), "bytes": bytes, "file": path });
        return output.say("read", object, || format!("{bytes} bytes are in {}", path.display()));
    }
    ensure!(
        bytes <= SHOWN,
        "{bytes} bytes are too many to show: --to FILE writes them to a file"
    );
    let mut data = Vec::new();
    walk(session, place, bytes, |piece, _| {
        let part = session.read_physical(piece.gpa, piece.bytes);
        data.extend(part.map_err(|error| nothing_there(error, piece.gpa))?);
        Ok(())
    })?;
    let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    let object = json!({ "address": hex(place.address), "bytes": bytes, "data": digits });
    output.say("read", object, || hexdump(place.address, &data))
}

/// Sixteen bytes a line, with what of them is text.
fn hexdump(address: u64, data: &[u8]) -> String {
    let mut said = String::new();
    for (at, line) in data.chunks(16).enumerate() {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = line
            .iter()
            .map(|&byte| {
                if (0x20..0x7f).contains(&byte) {
                    char::from(byte)
                } else {
                    '.'
                }
            })
            .collect();
        said.push_str(&format!(
            "{:016x}  {:<47}  {text}\n",
            address.wrapping_add(16 * at as u64),
            digits.join(" ")
        ));
    }
    said
}

/// Bytes in hexadecimal, with or without spaces.
fn parse_hex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    ensure!(
        !digits.is_empty() && digits.len().is_multiple_of(2),
        "`{text}` is no sequence of bytes: two hexadecimal digits are one"
    );
    let byte = |pair: &[char]| match (pair[0].to_digit(16), pair[1].to_digit(16)) {
        (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
        _ => bail!("`{}{}` is no byte in hexadecimal", pair[0], pair[1]),
    };
    digits.chunks(2).map(byte).collect()
}

pub(crate) fn write(
    session: &Session,
    place: Place,
    hex_bytes: Option<&str>,
    from: Option<&Path>,
    output: &Output,
) -> anyhow::Result<()> {
    let data = match (hex_bytes, from) {
        (Some(text), _) => parse_hex(text)?,
        (None, Some(path)) => fs::read(path).with_context(|| format!("read {}", path.display()))?,
        (None, None) => bail!("no bytes are given"),
    };
    walk(session, place, data.len() as u64, |piece, done| {
        let part = &data[done as usize..done as usize + usize::from(piece.bytes)];
        let written = session.write_physical(piece.gpa, part);
        written.map_err(|error| nothing_there(error, piece.gpa))
    })?;
    let object = json!({ "address": hex(place.address), "bytes": data.len() });
    output.say("write", object, || format!("{} bytes are written", data.len()))
}

pub(crate) fn translate(
    session: &Session,
    address: u64,
    vcpu: u16,
    root: Option<u64>,
    output: &Output,
) -> anyhow::Result<()> {
    vcpus::check(session, vcpu)?;
    let of = session.vcpu(vcpu);
    let gpa = match root {
        Some(root) => of.translate_in(root, address),
        None => of.translate(address),
    };
    let gpa = gpa.context("VCPU_TRANSLATE_GVA")?;
    let object = json!({ "vcpu": vcpu, "virtual": hex(address), "physical": gpa.map(hex) });
    output.say("translate", object, || match gpa {
        Some(gpa) => format!("{address:#x} is at physical address {gpa:#x}"),
        None => format!("the page tables map nothing at {address:#x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_two_digits_each() {
        assert_eq!(parse_hex("90cc").unwrap(), [0x90, 0xcc]);
        assert_eq!(parse_hex(" 0F 0b ").unwrap(), [0x0f, 0x0b]);
        for wrong in ["", " ", "9", "90c", "9g", "0x90", "ää"] {
            assert!(parse_hex(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dump_has_sixteen_bytes_a_line() {
        let data: Vec<u8> = (0x38..0x4b).collect();
        let lines = [
            "0000000000001000  38 39 3a 3b 3c 3d 3e 3f 40 41 42 43 44 45 46 47  89:;<=>?@ABCDEFG",
            "0000000000001010  48 49 4a                                         HIJ",
        ];
        assert_eq!(hexdump(0x1000, &data).lines().collect::<Vec<_>>(), lines);
    }
}

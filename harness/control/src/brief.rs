// SPDX-License-Identifier: MIT OR Apache-2.0
//! The order to run a scenario in so few bytes that a serial port takes them in while its machine stands still.
//!
//! A machine whose time counts instructions repeats itself to the instruction, unless something comes in at an instant of the host's
//! choosing. So its order has to be there before it runs on, and QEMU's UART takes [`BYTES`] before anyone reads them.

use crate::message::ToL1;

/// How many bytes there may be: Linux has a UART of the 16550 kind speak up at so many, and QEMU gives it no more at once.
pub const BYTES: usize = 8;

/// The largest seed that a brief order has room for.
pub const MAX_SEED: u64 = (1 << BITS) - 1;

/// How many bits of the seed, and of the name's hash, there are.
const BITS: u32 = 6 * DIGITS;

/// In so many digits.
const DIGITS: u32 = 3;

/// The digits, of six bits each, are the characters from this one on.
const ZERO: u8 = b'0';

/// What a brief order begins with, where JSON begins otherwise.
const MARK: u8 = b'#';

fn digits(number: u64) -> impl Iterator<Item = u8> {
    (0..DIGITS)
        .rev()
        .map(move |place| ZERO + (number >> (6 * place) & 63) as u8)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = digit.checked_sub(ZERO).filter(|value| *value < 64)?;
        Some(number << 6 | u64::from(value))
    })
}

/// The order to run this scenario by this seed, with its newline; nothing for a seed beyond [`MAX_SEED`].
#[must_use]
pub fn brief(scenario: &str, seed: u64) -> Option<[u8; BYTES]> {
    let text = [MARK]
        .into_iter()
        .chain(digits(hash(scenario)))
        .chain(digits(seed))
        .chain([b'\n']);
    let text: Vec<u8> = text.collect();
    text.try_into().ok().filter(|_| seed <= MAX_SEED)
}

/// The order that a line says, which may be brief; `names` are those of all scenarios.
///
/// # Errors
///
/// Why it makes no sense.
pub fn order(line: &[u8], mut names: impl Iterator<Item = String>) -> Result<ToL1, String> {
    let Some(text) = line.strip_prefix(&[MARK]) else {
        return serde_json::from_slice(line).map_err(|e| e.to_string());
    };
    let parts = text.split_at_checked(DIGITS as usize);
    let parts = parts.filter(|(_, seed)| seed.len() == DIGITS as usize);
    let numbers = parts.and_then(|(wanted, seed)| Some((number(wanted)?, number(seed)?)));
    let (wanted, seed) = numbers.ok_or_else(|| format!("it is not {DIGITS} and {DIGITS} digits"))?;
    let scenario = names.find(|name| hash(name) == wanted);
    let scenario = scenario.ok_or_else(|| format!("no scenario has the hash {wanted:x}"))?;
    Ok(ToL1::Run { scenario, seed })
}

/// FNV-1a, folded, which tells the names of a few hundred scenarios apart; a test of theirs looks.
#[must_use]
pub fn hash(name: &str) -> u64 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    u64::from((hash >> BITS ^ hash) & (MAX_SEED as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["a::b", "a::c"];

    #[test]
    fn a_brief_order_is_understood() {
        let line = brief("a::c", 0x2a).unwrap();
        assert_eq!(line.last(), Some(&b'\n'));
        let said = order(&line[..BYTES - 1], NAMES.map(str::to_owned).into_iter());
        let scenario = "a::c".to_owned();
        assert_eq!(said, Ok(ToL1::Run { scenario, seed: 0x2a }));
        assert!(brief("a::c", MAX_SEED).is_some() && brief("a::c", MAX_SEED + 1).is_none());
    }

    #[test]
    fn an_order_at_length_is_understood_too() {
        let said = order(
            br#"{"type":"run","scenario":"x::y","seed":7}"#,
            NAMES.map(str::to_owned).into_iter(),
        );
        let scenario = "x::y".to_owned();
        assert_eq!(said, Ok(ToL1::Run { scenario, seed: 7 }));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for wrong in ["", "{}", "#", "#123", "#00002", "#0000002", "#zzz00a", "#000 00"] {
            assert!(
                order(wrong.as_bytes(), NAMES.map(str::to_owned).into_iter()).is_err(),
                "{wrong}"
            );
        }
        assert!(order(b"#\xff\xff", NAMES.map(str::to_owned).into_iter()).is_err());
    }
}

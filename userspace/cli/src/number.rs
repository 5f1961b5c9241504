// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers as people type them.

/// Decimal, or hexadecimal behind 0x; K, M and G multiply by 1024 and so on.
///
/// # Errors
/// What is no such number, or too large, in words.
pub(crate) fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let (digits, shift) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    let value = value.map_err(|error| format!("{error}; it is decimal, or hexadecimal behind 0x"))?;
    let value = value.checked_mul(1 << shift).ok_or("it is too large")?;
    value.try_into().map_err(|_| "it is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        for (text, value) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("0x1000", Some(4096)),
            ("4K", Some(4096)),
            ("0x10M", Some(16 << 20)),
            ("1G", Some(1 << 30)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("17179869184G", None),
            ("", None),
            ("K", None),
            ("0x", None),
            ("-1", None),
            ("1k", None),
            ("ä", None),
        ] {
            assert_eq!(number::<u64>(text).ok(), value, "{text}");
        }
        assert_eq!(number::<u32>("0xc0000080"), Ok(0xc000_0080));
        assert!(number::<u32>("4G").is_err());
    }
}

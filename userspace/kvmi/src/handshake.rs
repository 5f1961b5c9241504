// SPDX-License-Identifier: MIT OR Apache-2.0
//! What VMM and tool tell each other before the VMM hands the socket to the kernel.
//!
//! Each side first says how many bytes it sends, so that both can grow: a side reads what it knows and drains the rest.

use std::io::{self, Read, Write};

use kvmi_uapi::{ToolHandshake, VmmHandshake};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Sizes that are taken for a handshake, in bytes.
const SIZES: std::ops::RangeInclusive<usize> = 32..=65536;
/// Bytes of the tool's answer as every version sends it.
const TOOL_BYTES: usize = size_of::<ToolHandshake>();

/// SHA-1 of the key that VMM and tool share; computing it is the caller's business.
pub type CookieHash = [u8; 20];

/// Who the VMM says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmm {
    /// Names the VM.
    pub uuid: [u8; 16],
    /// When the VM started, in seconds since the epoch.
    pub start_time: i64,
    /// Name of the VM; at most 63 bytes travel.
    pub name: String,
    /// Highest guest physical address in bytes; 0 when unknown.
    pub max_gpa: u64,
}

/// Why the two did not come together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The socket failed or ended.
    #[error("handshake: {0}")]
    Io(#[from] io::Error),
    /// The other side announces a size that is none.
    #[error("handshake of {got} bytes, expected {least} to {most}", least = .expected.start(), most = .expected.end())]
    Size {
        /// Announced size in bytes.
        got: usize,
        /// Sizes that are taken.
        expected: std::ops::RangeInclusive<usize>,
    },
    /// The tool does not know the key.
    #[error("the tool's cookie does not match: give both sides the same key")]
    Cookie,
}

/// The tool's part: hears who the VMM is and answers with the cookie (zeros without one).
///
/// # Errors
/// [`HandshakeError::Io`], [`HandshakeError::Size`].
pub fn tool<S: Read + Write>(mut stream: S, cookie: Option<&CookieHash>) -> Result<Vmm, HandshakeError> {
    let vmm: VmmHandshake = read(&mut stream, SIZES)?;
    let answer = ToolHandshake {
        struct_size: TOOL_BYTES as u32,
        cookie_hash: cookie.copied().unwrap_or_default(),
    };
    stream.write_all(answer.as_bytes())?;
    let name = vmm.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Vmm {
        uuid: vmm.uuid,
        start_time: vmm.start_time,
        name: String::from_utf8_lossy(name).into_owned(),
        max_gpa: vmm.max_gpa,
    })
}

/// The VMM's part: says who it is and checks the tool's cookie if it expects one.
///
/// # Errors
/// [`HandshakeError::Io`], [`HandshakeError::Size`], [`HandshakeError::Cookie`].
pub fn vmm<S: Read + Write>(mut stream: S, me: &Vmm, cookie: Option<&CookieHash>) -> Result<(), HandshakeError> {
    let mut hello = VmmHandshake::new_zeroed();
    hello.struct_size = size_of::<VmmHandshake>() as u32;
    hello.uuid = me.uuid;
    hello.start_time = me.start_time;
    hello.max_gpa = me.max_gpa;
    // The last byte stays NUL.
    let room = hello.name.len() - 1;
    for (to, from) in hello.name[..room].iter_mut().zip(me.name.as_bytes()) {
        *to = *from;
    }
    stream.write_all(hello.as_bytes())?;
    let answer: ToolHandshake = read(&mut stream, TOOL_BYTES..=*SIZES.end())?;
    match cookie {
        Some(cookie) if answer.cookie_hash != *cookie => Err(HandshakeError::Cookie),
        _ => Ok(()),
    }
}

/// Reads a structure that begins with its size; what the other side does not send is zero.
fn read<T: FromBytes + IntoBytes>(
    mut from: impl Read,
    expected: std::ops::RangeInclusive<usize>,
) -> Result<T, HandshakeError> {
    let mut size = [0; 4];
    from.read_exact(&mut size)?;
    let got = u32::from_ne_bytes(size) as usize;
    if !expected.contains(&got) {
        return Err(HandshakeError::Size { got, expected });
    }
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let known = got.min(bytes.len());
    bytes[..size.len()].copy_from_slice(&size);
    from.read_exact(&mut bytes[size.len()..known])?;
    let rest = (got - known) as u64;
    let drained = io::copy(&mut from.take(rest), &mut io::sink())?;
    if drained < rest {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use super::*;

    fn someone() -> Vmm {
        Vmm {
            uuid: [7; 16],
            start_time: -5,
            name: "guest".into(),
            max_gpa: 1 << 30,
        }
    }

    #[test]
    fn both_sides_come_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let tool_side = thread::spawn(move || tool(a, Some(&[9; 20])).unwrap());
        vmm(b, &someone(), Some(&[9; 20])).unwrap();
        assert_eq!(tool_side.join().unwrap(), someone());
    }

    #[test]
    fn a_wrong_cookie_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let tool_side = thread::spawn(move || tool(a, None).unwrap());
        assert!(matches!(
            vmm(b, &someone(), Some(&[9; 20])),
            Err(HandshakeError::Cookie)
        ));
        tool_side.join().unwrap();
    }

    #[test]
    fn older_and_newer_vmms_are_understood() {
        for size in [96u32, 104, 200] {
            let (a, mut b) = UnixStream::pair().unwrap();
            let mut hello = vec![0u8; size as usize];
            hello[..4].copy_from_slice(&size.to_ne_bytes());
            hello[32..96].fill(b'x');
            b.write_all(&hello).unwrap();
            b.write_all(b"next").unwrap();
            let vmm = tool(&a, None).unwrap();
            assert_eq!((vmm.name.len(), vmm.max_gpa), (64, 0));
            let mut next = [0; 4];
            (&a).read_exact(&mut next).unwrap();
            assert_eq!(&next, b"next");
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for size in [0u32, 31, 65537, u32::MAX] {
            let (a, mut b) = UnixStream::pair().unwrap();
            b.write_all(&size.to_ne_bytes()).unwrap();
            assert!(matches!(tool(a, None), Err(HandshakeError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn an_early_end_is_an_error() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(&200u32.to_ne_bytes()).unwrap();
        b.write_all(&[0; 150]).unwrap();
        drop(b);
        assert!(matches!(tool(a, None), Err(HandshakeError::Io(_))));
    }
}

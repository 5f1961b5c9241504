// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a tool listens.

use std::{fmt, io, os::unix::net::UnixStream, path::PathBuf, str::FromStr};

use vsock::{VMADDR_CID_ANY, VsockStream};

use crate::Stream;

/// Where a tool listens and a VMM connects: `unix:PATH`, `vsock:PORT` or `vsock:CID:PORT`; anything else is a path. `vsock:PORT` is for the
/// listener alone and means each CID that this machine has. A path that begins with `vsock:` is written `unix:vsock:…`.
///
/// With vsock the tool runs in a VM of its own and the VMM outside of it. Nothing but the parsing is covered by tests: the lab's L1 has no
/// second VM for a tool, and not every machine has the kernel's vsock loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A unix socket's path.
    Unix(PathBuf),
    /// A vsock address.
    Vsock {
        /// The machine, host or VM; `None`: each that this one is known by.
        cid: Option<u32>,
        /// The port.
        port: u32,
    },
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is nothing behind `unix:`, or nothing at all.
    #[error("an empty path, expected unix:PATH, vsock:PORT or vsock:CID:PORT")]
    Empty,
    /// What follows `vsock:` is no number or two.
    #[error("vsock address `{0}`, expected vsock:PORT or vsock:CID:PORT with numbers below 4294967295")]
    Vsock(String),
}

impl Address {
    /// Connects to a tool that listens there, as a VMM does.
    ///
    /// # Errors
    /// Those of connect(2); `InvalidInput` for a vsock address without CID.
    pub fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => Ok(UnixStream::connect(path)?.into()),
            Self::Vsock { cid: Some(cid), port } => Ok(VsockStream::connect_with_cid_port(*cid, *port)?.into()),
            Self::Vsock { cid: None, port } => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{self} names no machine to connect to, write vsock:CID:{port}"),
            )),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some(numbers) = text.strip_prefix("vsock:") else {
            let path = text.strip_prefix("unix:").unwrap_or(text);
            return if path.is_empty() {
                Err(AddressError::Empty)
            } else {
                Ok(Self::Unix(path.into()))
            };
        };
        // The highest number of either means "any" to the kernel. Digits alone: a sign would parse too.
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse().ok().filter(|number| plain && *number != VMADDR_CID_ANY);
            number.ok_or_else(|| AddressError::Vsock(numbers.to_owned()))
        };
        Ok(match numbers.split_once(':') {
            None => Self::Vsock {
                cid: None,
                port: number(numbers)?,
            },
            Some((cid, port)) => Self::Vsock {
                cid: Some(number(cid)?),
                port: number(port)?,
            },
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid: None, port } => write!(f, "vsock:{port}"),
            Self::Vsock { cid: Some(cid), port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vsock(cid: Option<u32>, port: u32) -> Address {
        Address::Vsock { cid, port }
    }

    #[test]
    fn addresses_are_read_and_written() {
        let cases = [
            ("vsock:5000", vsock(None, 5000)),
            ("vsock:3:5000", vsock(Some(3), 5000)),
            ("vsock:0:0", vsock(Some(0), 0)),
            ("vsock:2:4294967294", vsock(Some(2), u32::MAX - 1)),
            ("unix:/run/tool.sock", Address::Unix("/run/tool.sock".into())),
            ("unix:vsock:1", Address::Unix("vsock:1".into())),
        ];
        for (text, address) in cases {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("tool.sock".parse(), Ok(Address::Unix("tool.sock".into())));
        assert_eq!("/run/a:b".parse(), Ok(Address::Unix("/run/a:b".into())));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for numbers in [
            "",
            ":",
            "1:",
            ":1",
            "x",
            "1:x",
            "1:2:3",
            "-1",
            "+1",
            " 1",
            "4294967295",
            "4294967295:1",
            "99999999999",
        ] {
            let text = format!("vsock:{numbers}");
            assert_eq!(
                text.parse::<Address>(),
                Err(AddressError::Vsock(numbers.into())),
                "{text}"
            );
        }
        for text in ["", "unix:"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError::Empty), "{text}");
        }
    }

    #[test]
    fn nobody_connects_to_a_port_of_no_machine() {
        let error = vsock(None, 5).connect().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("vsock:CID:5"), "{error}");
    }
}

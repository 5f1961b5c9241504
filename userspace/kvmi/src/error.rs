// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong.

use std::{fmt, io, time::Duration};

use kvmi_uapi::error as code;

/// Why something asked of a session did not come about. There may be further reasons later, here and in the types below,
/// so a `match` has to provide for them:
///
/// ```compile_fail,E0004
/// # fn is_closed(reason: kvmi::CloseReason) -> bool {
/// use kvmi::CloseReason::{Failed, Local, Peer, Protocol, Truncated};
/// match reason {
///     Local | Peer | Truncated(_) | Failed(_) | Protocol(_) => true,
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a command.
    #[error("{command} answered {error}")]
    Kernel {
        /// Name of the command.
        command: &'static str,
        /// The kernel's reason.
        error: KvmError,
    },
    /// The connection is closed.
    #[error("connection is closed: {0}")]
    Closed(CloseReason),
    /// Nothing came in time.
    #[error("no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The other side takes no more bytes. When a part of them was sent, the connection is closed.
    #[error("the other side took {sent} of {bytes} bytes within {after:?}: it does not read")]
    SendTimeout {
        /// How many were to be sent.
        bytes: usize,
        /// How many it took.
        sent: usize,
        /// How long ([`crate::SessionOptions::send_timeout`]).
        after: Duration,
    },
    /// The other side does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Another event came than was expected. It is answered as one that is dropped ([`crate::OpenEvent`]).
    #[error("expected a {expected} event, got {got}")]
    UnexpectedEvent {
        /// Name of the event that was expected.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// What the kernel answered, if that is the reason.
    pub fn kernel(&self) -> Option<KvmError> {
        match self {
            Self::Kernel { error, .. } => Some(*error),
            _ => None,
        }
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }

    /// Whether a time was over: nothing came, or nothing could be sent.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::SendTimeout { .. })
    }
}

/// How a connection came to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed here")]
    Local,
    /// The other side closed it between two messages.
    #[error("closed by the other side")]
    Peer,
    /// The other side closed it in the middle of a message.
    #[error("closed by the other side {0}")]
    Truncated(String),
    /// Receiving or sending failed.
    #[error("failed: {0}")]
    Failed(String),
    /// What came was no message.
    #[error("{0}")]
    Protocol(ProtocolError),
}

/// A message that the protocol does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A header announces more than any message holds.
    #[error("message {id} announces {size} bytes, more than {max}", max = kvmi_uapi::MAX_PAYLOAD)]
    TooLarge {
        /// Message id.
        id: u16,
        /// Announced payload in bytes.
        size: u16,
    },
    /// A message is shorter than its kind.
    #[error("message {id} has {got} bytes of payload, at least {needed} are needed")]
    TooShort {
        /// Message id.
        id: u16,
        /// Payload in bytes.
        got: usize,
        /// Least payload in bytes.
        needed: usize,
    },
    /// A reply carries the sequence number of another command.
    #[error("reply to command {expected} (seq {seq}) carries id {got}")]
    WrongId {
        /// Sequence number.
        seq: u32,
        /// Id of the command that was sent.
        expected: u16,
        /// Id of the reply.
        got: u16,
    },
    /// The kernel says that there are more vCPUs than a message can name.
    #[error("{0} vCPUs, a message can name {max}", max = u16::MAX)]
    TooManyVcpus(u32),
    /// The other side sends faster than they are taken: no kernel has so many open.
    #[error("more than {limit} {what} that nobody has taken")]
    TooMany {
        /// Events, or replies to nothing.
        what: &'static str,
        /// How many are kept.
        limit: usize,
    },
    /// A request does not fit into a message.
    #[error("a request of {0} bytes does not fit into a message, the most is {max}", max = kvmi_uapi::MAX_PAYLOAD)]
    RequestTooLarge(usize),
}

/// An error that the kernel answered ([`kvmi_uapi::error`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvmError {
    /// EPERM: not allowed by the VMM.
    NotPermitted,
    /// ENOENT: there is no such thing.
    NotFound,
    /// E2BIG: too much.
    TooBig,
    /// EAGAIN: the vCPU is not initialised yet.
    TryAgain,
    /// ENOMEM: out of memory.
    NoMemory,
    /// EFAULT: bad address.
    Fault,
    /// EBUSY: taken, or too many waiting.
    Busy,
    /// EINVAL: malformed or out of range.
    Invalid,
    /// EOPNOTSUPP: not offered by this CPU or at this moment.
    NotSupported,
    /// ENOSYS: the kernel does not know the message.
    NotImplemented,
    /// A value that the protocol does not name, as in the reply's `err`.
    Other(i32),
}

const CODES: [(KvmError, i32); 10] = [
    (KvmError::NotPermitted, code::EPERM),
    (KvmError::NotFound, code::ENOENT),
    (KvmError::TooBig, code::E2BIG),
    (KvmError::TryAgain, code::EAGAIN),
    (KvmError::NoMemory, code::ENOMEM),
    (KvmError::Fault, code::EFAULT),
    (KvmError::Busy, code::EBUSY),
    (KvmError::Invalid, code::EINVAL),
    (KvmError::NotSupported, code::EOPNOTSUPP),
    (KvmError::NotImplemented, code::ENOSYS),
];

impl KvmError {
    /// Reads a reply's `err`; `None` for success.
    pub fn from_err(err: i32) -> Option<Self> {
        if err == 0 {
            return None;
        }
        let known = CODES.iter().find(|(_, value)| value.checked_neg() == Some(err));
        Some(known.map_or(Self::Other(err), |(error, _)| *error))
    }

    /// As a reply's `err` carries it: negative.
    pub fn err(self) -> i32 {
        match self {
            Self::Other(err) => err,
            _ => CODES
                .iter()
                .find(|(error, _)| *error == self)
                .map_or(0, |(_, value)| -value),
        }
    }
}

impl fmt::Display for KvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let err = self.err();
        match code::ALL.iter().find(|(value, _)| value.checked_neg() == Some(err)) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "error {err}"),
        }
    }
}

impl std::error::Error for KvmError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_protocol_has_a_name_and_comes_back() {
        for (value, name) in code::ALL {
            let error = KvmError::from_err(-value).unwrap();
            assert!(!matches!(error, KvmError::Other(_)), "{name}");
            assert_eq!(error.err(), -value);
            assert_eq!(error.to_string(), *name);
        }
        assert_eq!(KvmError::from_err(0), None);
        assert_eq!(KvmError::from_err(-5), Some(KvmError::Other(-5)));
        assert_eq!(KvmError::from_err(i32::MIN).unwrap().err(), i32::MIN);
    }
}

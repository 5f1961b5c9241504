// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages as bytes.

use std::io::{self, Read};

use kvmi_uapi::{MAX_PAYLOAD, MsgHdr, VcpuEventReply, VcpuHdr, msg};
use zerocopy::{FromBytes, IntoBytes};

use crate::{CloseReason, ProtocolError};

/// How much of a connection is read at once.
pub(crate) const READ_AHEAD_BYTES: usize = 16 << 10;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its header.
    pub hdr: MsgHdr,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Message {
    /// Reads one message; waits for it.
    ///
    /// # Errors
    /// [`CloseReason::Peer`] when the stream ends before it, [`CloseReason::Truncated`] when it ends within it,
    /// [`CloseReason::Failed`] when it fails, [`CloseReason::Protocol`] when it is too large.
    pub fn read(mut from: impl Read) -> Result<Self, CloseReason> {
        let mut hdr = [0; size_of::<MsgHdr>()];
        let mut have = 0;
        while have < hdr.len() {
            match from.read(&mut hdr[have..]) {
                Ok(0) if have == 0 => return Err(CloseReason::Peer),
                Ok(0) => return Err(CloseReason::Truncated(format!("after {have} bytes of a header"))),
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // How a unix socket says that the other side closed without reading all that it was sent.
                Err(error) if have == 0 && error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(CloseReason::Peer);
                }
                Err(error) => return Err(CloseReason::Failed(error.to_string())),
            }
        }
        let hdr = MsgHdr::read_from_bytes(&hdr).unwrap_or_default();
        if usize::from(hdr.size) > MAX_PAYLOAD {
            return Err(CloseReason::Protocol(ProtocolError::TooLarge {
                id: hdr.id,
                size: hdr.size,
            }));
        }
        let mut payload = vec![0; usize::from(hdr.size)];
        from.read_exact(&mut payload).map_err(|error| {
            let place = format!("within message {} of {} bytes", hdr.id, hdr.size);
            match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => CloseReason::Truncated(place),
                _ => CloseReason::Failed(format!("{place}: {error}")),
            }
        })?;
        Ok(Self { hdr, payload })
    }

    /// The structure at an offset of the payload; what follows it is ignored.
    ///
    /// # Errors
    /// [`ProtocolError::TooShort`].
    pub fn get<T: FromBytes>(&self, offset: usize) -> Result<T, ProtocolError> {
        let needed = offset + size_of::<T>();
        let short = || ProtocolError::TooShort {
            id: self.hdr.id,
            got: self.payload.len(),
            needed,
        };
        let bytes = self.payload.get(offset..needed).ok_or_else(short)?;
        T::read_from_bytes(bytes).map_err(|_| short())
    }
}

/// Header and payload as bytes. A payload that a header cannot announce is cut off in the header alone: such a message
/// is for trying what the other side makes of it.
pub fn encode(id: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
    let size = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut bytes = MsgHdr { id, size, seq }.as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// A vCPU command as bytes.
pub fn encode_vcpu(id: u16, seq: u32, vcpu: u16, request: &[u8]) -> Vec<u8> {
    let mut payload = VcpuHdr { vcpu, pad1: 0, pad2: 0 }.as_bytes().to_vec();
    payload.extend_from_slice(request);
    encode(id, seq, &payload)
}

/// The reply to a vCPU event as bytes, legal or not.
pub fn encode_event_reply(vcpu: u16, seq: u32, event: u8, action: u8, data: &[u8]) -> Vec<u8> {
    let mut reply = VcpuEventReply {
        action,
        event,
        pad1: 0,
        pad2: 0,
    }
    .as_bytes()
    .to_vec();
    reply.extend_from_slice(data);
    encode_vcpu(msg::VCPU_EVENT, seq, vcpu, &reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_from_its_bytes() {
        let bytes = encode_event_reply(3, 77, 7, 0, &[1; 8]);
        let message = Message::read(&bytes[..]).unwrap();
        assert_eq!((message.hdr.id, message.hdr.size, message.hdr.seq), (1, 24, 77));
        assert_eq!(message.get::<VcpuHdr>(0).unwrap().vcpu, 3);
        assert_eq!(message.get::<VcpuEventReply>(8).unwrap().event, 7);
        assert_eq!(
            message.get::<u64>(20),
            Err(ProtocolError::TooShort {
                id: 1,
                got: 24,
                needed: 28
            })
        );
    }

    #[test]
    fn ends_are_told_apart() {
        let bytes = encode(2, 1, &[0; 4]);
        assert_eq!(Message::read(&bytes[..0]), Err(CloseReason::Peer));
        for cut in 1..bytes.len() {
            assert!(
                matches!(Message::read(&bytes[..cut]), Err(CloseReason::Truncated(_))),
                "{cut}"
            );
        }
        let large = encode(2, 1, &[0; 9000]);
        let reason = CloseReason::Protocol(ProtocolError::TooLarge { id: 2, size: 9000 });
        assert_eq!(Message::read(&large[..]), Err(reason));
    }
}

// SPDX-License-Identifier: GPL-2.0-only
//! Taking messages apart and putting them together.

use kvmi_uapi::{ErrorCode, MAX_PAYLOAD, MsgHdr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::effects::KvmError;

/// Bytes before a reply's data: header and error code.
pub(crate) const REPLY_HEAD: usize = 16;

/// A message from the tool.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) hdr: MsgHdr,
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// None when the header's size is not the payload's or exceeds the largest.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (hdr, payload) = MsgHdr::read_from_prefix(bytes).ok()?;
        let size = usize::from(hdr.size);
        (size == payload.len() && size <= MAX_PAYLOAD).then_some(Self { hdr, payload })
    }

    /// The message without the first `bytes` of its payload; a shorter one has nothing left.
    pub(crate) fn skip(self, bytes: usize) -> Self {
        Self {
            hdr: self.hdr,
            payload: self.payload.get(bytes..).unwrap_or_default(),
        }
    }

    /// The structure at the front of the payload. A shorter request reads as zero in the tail, a longer one's tail is
    /// ignored.
    pub(crate) fn request<T: FromBytes + IntoBytes>(&self) -> T {
        let mut request = T::new_zeroed();
        copy(request.as_mut_bytes(), self.payload);
        request
    }
}

/// Copies what both have room for.
pub(crate) fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Writes a value to `out` at an offset; None when there is no room.
pub(crate) fn put<T: IntoBytes + Immutable>(out: &mut [u8], at: usize, value: &T) -> Option<()> {
    let bytes = value.as_bytes();
    let to = out.get_mut(at..)?.get_mut(..bytes.len())?;
    copy(to, bytes);
    Some(())
}

/// `N` bytes of `out` at an offset, zeroed; None when there is no room.
pub(crate) fn area<const N: usize>(out: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    let area: &mut [u8; N] = out.get_mut(at..)?.get_mut(..N)?.try_into().ok()?;
    area.fill(0);
    Some(area)
}

/// Writes header and error code of the reply to `request`, whose data of `data_bytes` are in place already (or absent,
/// with an error); returns the length of the whole reply, None when there is no room.
pub(crate) fn finish(out: &mut [u8], request: MsgHdr, err: Result<(), KvmError>, data_bytes: usize) -> Option<usize> {
    let (err, data_bytes) = match err {
        Ok(()) => (0, data_bytes),
        Err(KvmError(err)) => (0i32.wrapping_sub(err), 0),
    };
    let message = REPLY_HEAD.checked_add(data_bytes)?;
    if message > out.len() {
        return None;
    }
    let size = u16::try_from(message.checked_sub(size_of::<MsgHdr>())?).ok()?;
    put(
        out,
        0,
        &MsgHdr {
            id: request.id,
            size,
            seq: request.seq,
        },
    )?;
    put(out, size_of::<MsgHdr>(), &ErrorCode { err, pad: 0 })?;
    Some(message)
}

/// As [`finish`], with data that are a structure.
pub(crate) fn reply<T: IntoBytes + Immutable>(
    out: &mut [u8],
    request: MsgHdr,
    outcome: Result<T, KvmError>,
) -> Option<usize> {
    match outcome {
        Ok(data) => {
            put(out, REPLY_HEAD, &data)?;
            finish(out, request, Ok(()), size_of::<T>())
        }
        Err(err) => finish(out, request, Err(err), 0),
    }
}

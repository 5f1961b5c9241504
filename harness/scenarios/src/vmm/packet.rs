// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets with descriptors on a seqpacket socket.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::request::MAX_PACKET_BYTES;

/// The most descriptors beside one packet.
const MAX_FDS: usize = 8;

thread_local! {
    /// Where packets come to. Kept, because to clear so much for each one would take longer than the rest.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_PACKET_BYTES].into());
}

/// Sends one packet.
///
/// # Errors
///
/// Those of sendmsg(2), and `InvalidData` for what is no JSON.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, packet: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(format!("{} descriptors beside one packet", fds.len())));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; `None` when the other end is closed.
///
/// # Errors
///
/// Those of recvmsg(2), and `InvalidData` for what is no packet of this type.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    BUFFER.with_borrow_mut(|bytes| receive_into(bytes, socket))
}

fn receive_into<T: DeserializeOwned>(
    bytes: &mut [u8],
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut beside,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let fds = beside
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, fds)))
}

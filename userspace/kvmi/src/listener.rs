// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where VMMs find the tool.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixListener},
    path::{Path, PathBuf},
    time::Duration,
};

use vsock::{VMADDR_CID_ANY, VsockListener};

use crate::{
    Address, Stream,
    handshake::{self, CookieHash, HandshakeError, Vmm},
};

/// How long a VMM may take for its part of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A socket on which the tool waits for VMMs.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix { socket: UnixListener, _file: SocketFile },
    Vsock(VsockListener),
}

/// A unix socket's file; it goes when it is dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing is to be done about a file that is gone already.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens at a path. A socket that was left there is replaced; any other file is not.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        if fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
        let socket = UnixListener::bind(&path)?;
        Ok(Self {
            socket: Socket::Unix {
                socket,
                _file: SocketFile(path),
            },
        })
    }

    /// Listens at an address: a path, as [`Self::bind`] does, or a vsock port.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn bind_to(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::bind(path),
            Address::Vsock { cid, port } => {
                let socket = VsockListener::bind_with_cid_port(cid.unwrap_or(VMADDR_CID_ANY), *port)?;
                Ok(Self {
                    socket: Socket::Vsock(socket),
                })
            }
        }
    }

    /// Waits for a VMM and shakes hands; the stream is then ready for [`crate::Session::from`].
    ///
    /// # Errors
    /// [`HandshakeError`]; a VMM that says or takes nothing for 15 s is given up.
    pub fn accept(&self, cookie: Option<&CookieHash>) -> Result<(Stream, Vmm), HandshakeError> {
        let stream: Stream = match &self.socket {
            Socket::Unix { socket, .. } => socket.accept()?.0.into(),
            Socket::Vsock(socket) => socket.accept()?.0.into(),
        };
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let vmm = handshake::tool(&stream, cookie)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok((stream, vmm))
    }
}

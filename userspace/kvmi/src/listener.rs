// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where VMMs find the tool.

use std::{
    fs, io,
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use crate::handshake::{self, CookieHash, HandshakeError, Vmm};

/// How long a VMM may take for its part of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A unix socket on which the tool waits for VMMs; its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
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
        Ok(Self {
            socket: UnixListener::bind(&path)?,
            path,
        })
    }

    /// Waits for a VMM and shakes hands; the stream is then ready for [`crate::Session::from`].
    ///
    /// # Errors
    /// [`HandshakeError`]; a VMM that says nothing for 15 s is given up.
    pub fn accept(&self, cookie: Option<&CookieHash>) -> Result<(UnixStream, Vmm), HandshakeError> {
        let (stream, _) = self.socket.accept()?;
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let vmm = handshake::tool(&stream, cookie)?;
        stream.set_read_timeout(None)?;
        Ok((stream, vmm))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing is to be done about a file that is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

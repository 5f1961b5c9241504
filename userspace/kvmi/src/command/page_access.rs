// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM_SET_PAGE_ACCESS and VM_GET_PAGE_ACCESS.

use kvmi_uapi::{PageAccessEntry, VmPageAccess, msg};
use zerocopy::{FromBytes, IntoBytes};

use super::{Command, DATA};
use crate::{Message, ProtocolError};

/// VM_SET_PAGE_ACCESS.
#[derive(Clone, Copy, Debug)]
pub struct SetPageAccess<'a> {
    /// Pages and their access, at most [`kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES`].
    pub entries: &'a [PageAccessEntry],
}

impl Command for SetPageAccess<'_> {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_SET_PAGE_ACCESS
    }
    fn payload(&self) -> Vec<u8> {
        payload(self.entries)
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VM_GET_PAGE_ACCESS; the reply has an entry for each.
#[derive(Clone, Copy, Debug)]
pub struct GetPageAccess<'a> {
    /// Pages, at most [`kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES`].
    pub gpas: &'a [u64],
}

impl Command for GetPageAccess<'_> {
    type Reply = Vec<PageAccessEntry>;
    fn id(&self) -> u16 {
        msg::VM_GET_PAGE_ACCESS
    }
    fn payload(&self) -> Vec<u8> {
        let entry = |&gpa: &u64| PageAccessEntry {
            gpa,
            ..Default::default()
        };
        payload(&self.gpas.iter().map(entry).collect::<Vec<_>>())
    }
    fn reply(&self, message: &Message) -> Result<Vec<PageAccessEntry>, ProtocolError> {
        let needed = DATA + self.gpas.len() * size_of::<PageAccessEntry>();
        let short = || ProtocolError::TooShort {
            id: message.hdr.id,
            got: message.payload.len(),
            needed,
        };
        let entries = message.payload.get(DATA..needed).ok_or_else(short)?;
        Ok(entries
            .chunks_exact(size_of::<PageAccessEntry>())
            .filter_map(|e| PageAccessEntry::read_from_bytes(e).ok())
            .collect())
    }
}

fn payload(entries: &[PageAccessEntry]) -> Vec<u8> {
    let head = VmPageAccess {
        count: u16::try_from(entries.len()).unwrap_or(u16::MAX),
        ..Default::default()
    };
    [head.as_bytes(), entries.as_bytes()].concat()
}

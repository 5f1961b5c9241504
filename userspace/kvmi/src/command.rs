// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands as values, for [`crate::Session::submit`] and [`crate::Session::call`].

mod vcpu;
mod vm;

use kvmi_uapi::ErrorCode;
use zerocopy::FromBytes;

pub use vcpu::*;
pub use vm::*;

use crate::{Message, ProtocolError};

/// Bytes before a reply's data.
const DATA: usize = size_of::<ErrorCode>();

/// A command: what it sends and what it gets.
pub trait Command {
    /// What a successful reply holds.
    type Reply;

    /// Message id.
    fn id(&self) -> u16;

    /// Payload of the request, vCPU header included.
    fn payload(&self) -> Vec<u8>;

    /// Reads a reply whose error code is 0.
    ///
    /// # Errors
    /// [`ProtocolError::TooShort`].
    fn reply(&self, message: &Message) -> Result<Self::Reply, ProtocolError>;
}

/// Defines commands, a row each: the command's fields, its id, the request that is made of them, and what the reply holds.
///
/// ```text
/// /// NAME.
/// Name {
///     /// What it is.
///     pub field: u32,
/// } = NAME, |c| Request { field: c.field } => Reply;
/// ```
///
/// - `Name unit;` has no fields.
/// - `Request {…}, then c.list`: the elements of a list follow the structure.
/// - `=> Reply, |c, message| …` reads a reply that is not just a structure.
///
/// `vcpu_commands!` is the same with a field `vcpu` and the vCPU header.
macro_rules! vm_commands {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident $(<$life:lifetime>)? $({ $($fields:tt)* })? $(unit $end:tt)?
            = $id:ident, |$c:ident| $request:expr $(, then $tail:expr)?
            => $reply:ty $(, |$r:ident, $message:ident| $read:expr)?;
    )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name $(<$life>)? $({ $($fields)* })? $($end)?

            impl $(<$life>)? $crate::command::Command for $name $(<$life>)? {
                type Reply = $reply;

                fn id(&self) -> u16 {
                    kvmi_uapi::msg::$id
                }

                fn payload(&self) -> Vec<u8> {
                    let $c = self;
                    let payload = zerocopy::IntoBytes::as_bytes(&$request).to_vec();
                    $( let payload = [&payload[..], zerocopy::IntoBytes::as_bytes($tail)].concat(); )?
                    payload
                }

                $crate::command::read_reply!($reply $(, |$r, $message| $read)?);
            }
        )*

        /// Ids of what is defined here.
        #[cfg(test)]
        pub(super) const IDS: &[u16] = &[$( kvmi_uapi::msg::$id ),*];
    };
}
use vm_commands;

/// As `vm_commands!`, for commands that are about one vCPU.
macro_rules! vcpu_commands {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident $(<$life:lifetime>)? {$( $(#[doc = $field_doc:literal])* pub $field:ident: $type:ty ),* $(,)?}
            = $id:ident, |$c:ident| $request:expr $(, then $tail:expr)?
            => $reply:ty $(, |$r:ident, $message:ident| $read:expr)?;
    )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name $(<$life>)? {
                /// Index of the vCPU.
                pub vcpu: u16,
                $( $(#[doc = $field_doc])* pub $field: $type, )*
            }

            impl $(<$life>)? $crate::command::Command for $name $(<$life>)? {
                type Reply = $reply;

                fn id(&self) -> u16 {
                    kvmi_uapi::msg::$id
                }

                fn payload(&self) -> Vec<u8> {
                    let $c = self;
                    let hdr = kvmi_uapi::VcpuHdr {
                        vcpu: self.vcpu,
                        ..Default::default()
                    };
                    let payload = [zerocopy::IntoBytes::as_bytes(&hdr), zerocopy::IntoBytes::as_bytes(&$request)].concat();
                    $( let payload = [&payload[..], zerocopy::IntoBytes::as_bytes($tail)].concat(); )?
                    payload
                }

                $crate::command::read_reply!($reply $(, |$r, $message| $read)?);
            }
        )*

        /// Ids of what is defined here.
        #[cfg(test)]
        pub(super) const IDS: &[u16] = &[$( kvmi_uapi::msg::$id ),*];
    };
}
use vcpu_commands;

macro_rules! read_reply {
    ($reply:ty) => {
        fn reply(&self, message: &$crate::Message) -> Result<$reply, $crate::ProtocolError> {
            message.get($crate::command::DATA)
        }
    };
    ($reply:ty, |$c:ident, $message:ident| $read:expr) => {
        fn reply(&self, $message: &$crate::Message) -> Result<$reply, $crate::ProtocolError> {
            let $c = self;
            $read
        }
    };
}
use read_reply;

/// A request's count, of what follows it. More than that is more than fits into a message, which is refused.
fn count<T>(list: &[T]) -> u16 {
    u16::try_from(list.len()).unwrap_or(u16::MAX)
}

/// So many elements at an offset of a reply.
fn list<T: FromBytes>(message: &Message, at: usize, count: usize) -> Result<Vec<T>, ProtocolError> {
    let needed = at + count * size_of::<T>();
    let short = || ProtocolError::TooShort {
        id: message.hdr.id,
        got: message.payload.len(),
        needed,
    };
    let bytes = message.payload.get(at..needed).ok_or_else(short)?;
    let elements = bytes.chunks_exact(size_of::<T>());
    Ok(elements.filter_map(|bytes| T::read_from_bytes(bytes).ok()).collect())
}

/// Any command with any payload, well formed or not; the reply is its data.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Message id.
    pub id: u16,
    /// Everything after the header; for a vCPU command the [`kvmi_uapi::VcpuHdr`] too.
    pub payload: &'a [u8],
}

impl Command for Raw<'_> {
    type Reply = Vec<u8>;

    fn id(&self) -> u16 {
        self.id
    }

    fn payload(&self) -> Vec<u8> {
        self.payload.to_vec()
    }

    fn reply(&self, message: &Message) -> Result<Vec<u8>, ProtocolError> {
        Ok(message.payload.get(DATA..).unwrap_or_default().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvmi_uapi::{PageAccessEntry, table};

    use super::*;

    #[test]
    fn each_command_of_the_table_is_here() {
        let here: BTreeSet<u16> = [vm::IDS, vcpu::IDS].concat().into_iter().collect();
        let table: BTreeSet<u16> = table::COMMANDS.iter().map(|command| command.id).collect();
        assert_eq!(here, table, "src/command/vm.rs and vcpu.rs: a row for each command");
        for id in vcpu::IDS {
            assert!(kvmi_uapi::msg::is_vcpu(*id), "{id} is not about a vCPU");
        }
    }

    /// What a command sends has the length that its row in the table says.
    fn fits(command: &impl Command) {
        let row = table::command(command.id()).unwrap();
        let payload = command.payload();
        let request = if row.is_vcpu() { &payload[8..] } else { &payload[..] };
        assert_eq!(request.len(), row.request.bytes(request), "{}", row.name);
    }

    #[test]
    fn what_follows_a_structure_is_counted() {
        fits(&WritePhysical { gpa: 0, data: &[1; 5] });
        let entries = [PageAccessEntry::default(); 3];
        fits(&SetPageAccess { entries: &entries });
        fits(&GetPageAccess { gpas: &[0; 2] });
        fits(&GetRegisters { vcpu: 1, msrs: &[1, 2] });
        fits(&GetVersion);
        fits(&GetXsave { vcpu: 1 });
    }

    #[test]
    fn a_list_that_is_cut_off_is_an_error() {
        let message = |bytes| Message {
            hdr: Default::default(),
            payload: vec![0; bytes],
        };
        assert_eq!(list::<u32>(&message(16), DATA, 2), Ok(vec![0; 2]));
        assert!(list::<u32>(&message(15), DATA, 2).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events as they come over the socket.

use kvmi::Message;
use kvmi_uapi::{EventHdr, VcpuEvent, VcpuEventArch, msg};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::{Failure, check_eq};

/// An event from the kernel.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id, one of [`kvmi_uapi::event`].
    pub id: u16,
    /// Its sequence number.
    pub seq: u32,
    /// The vCPU; 0 for a VM event.
    pub vcpu: u16,
    /// The vCPU's state; all zero for a VM event.
    pub arch: VcpuEventArch,
    /// What is particular to this event.
    pub data: Vec<u8>,
}

impl Event {
    /// The event's own data.
    ///
    /// # Errors
    ///
    /// Data that is not exactly as long as it must be.
    pub fn data<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, Failure> {
        T::read_from_bytes(&self.data).map_err(|_| {
            Failure::new(format!(
                "event {} carries {} bytes, not {}",
                self.id,
                self.data.len(),
                size_of::<T>()
            ))
        })
    }
}

/// The event that a message from the kernel is.
pub(super) fn parse(message: &Message) -> Result<Event, Failure> {
    let Ok((header, rest)) = EventHdr::read_from_prefix(&message.payload) else {
        return Err(Failure::new(format!("an event of {} bytes", message.payload.len())));
    };
    check_eq!(header.pad, [0; 3], "padding of the header of event {}", header.event);
    if message.hdr.id == msg::VM_EVENT {
        return Ok(Event {
            id: header.event,
            seq: message.hdr.seq,
            vcpu: 0,
            arch: VcpuEventArch::default(),
            data: rest.to_vec(),
        });
    }
    let Ok((vcpu, data)) = VcpuEvent::read_from_prefix(rest) else {
        return Err(Failure::new(format!(
            "event {} has {} bytes of vCPU state",
            header.event,
            rest.len()
        )));
    };
    check_eq!(
        usize::from(vcpu.size),
        size_of::<VcpuEvent>(),
        "size field of event {}",
        header.event
    );
    check_eq!(vcpu.pad, 0, "padding of event {}", header.event);
    Ok(Event {
        id: header.event,
        seq: message.hdr.seq,
        vcpu: vcpu.vcpu,
        arch: vcpu.arch,
        data: data.to_vec(),
    })
}

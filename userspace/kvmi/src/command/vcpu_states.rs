// SPDX-License-Identifier: MIT OR Apache-2.0
//! What vCPUs are doing, and letting go those that HOOK keeps stopped.

use kvmi_uapi::{VcpuRunState, VmGetVcpuStates, msg};
use zerocopy::{FromBytes, IntoBytes};

use super::{Command, DATA};
use crate::{Message, ProtocolError};

/// VM_GET_VCPU_STATES; the reply has a state for each.
#[derive(Clone, Copy, Debug)]
pub struct GetVcpuStates {
    /// Index of the first vCPU.
    pub first: u16,
    /// How many vCPUs, at most [`kvmi_uapi::MAX_VCPU_STATES`].
    pub count: u16,
}

impl Command for GetVcpuStates {
    type Reply = Vec<VcpuRunState>;
    fn id(&self) -> u16 {
        msg::VM_GET_VCPU_STATES
    }
    fn payload(&self) -> Vec<u8> {
        let (first, count) = (self.first, self.count);
        VmGetVcpuStates { first, count, pad: 0 }.as_bytes().to_vec()
    }
    fn reply(&self, message: &Message) -> Result<Vec<VcpuRunState>, ProtocolError> {
        let needed = DATA + usize::from(self.count) * size_of::<VcpuRunState>();
        let short = || ProtocolError::TooShort {
            id: message.hdr.id,
            got: message.payload.len(),
            needed,
        };
        let states = message.payload.get(DATA..needed).ok_or_else(short)?;
        Ok(states
            .chunks_exact(size_of::<VcpuRunState>())
            .filter_map(|state| VcpuRunState::read_from_bytes(state).ok())
            .collect())
    }
}

/// VM_RELEASE.
#[derive(Clone, Copy, Debug)]
pub struct Release;

impl Command for Release {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_RELEASE
    }
    fn payload(&self) -> Vec<u8> {
        Vec::new()
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that make a vCPU tell of something, or have something happen to it.

use kvmi_uapi::{VcpuControlMsr, VcpuInjectException, msg};

use super::{Command, vcpu_payload};
use crate::{Message, ProtocolError};

/// VCPU_CONTROL_MSR.
#[derive(Clone, Copy, Debug)]
pub struct ControlMsr {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Which MSR: 0 to 0x1fff or 0xc0000000 to 0xc0001fff.
    pub msr: u32,
    /// Whether its changes are to be events.
    pub enable: bool,
}

impl Command for ControlMsr {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_CONTROL_MSR
    }
    fn payload(&self) -> Vec<u8> {
        let request = VcpuControlMsr {
            enable: self.enable.into(),
            msr: self.msr,
            ..Default::default()
        };
        vcpu_payload(self.vcpu, &request)
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VCPU_INJECT_EXCEPTION.
#[derive(Clone, Copy, Debug)]
pub struct InjectException {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Vector.
    pub nr: u8,
    /// Used if the exception has an error code.
    pub error_code: u32,
    /// CR2, for a page fault.
    pub address: u64,
}

impl Command for InjectException {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_INJECT_EXCEPTION
    }
    fn payload(&self) -> Vec<u8> {
        let request = VcpuInjectException {
            nr: self.nr,
            error_code: self.error_code,
            address: self.address,
            ..Default::default()
        };
        vcpu_payload(self.vcpu, &request)
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands about what a vCPU holds beside its registers.

use kvmi_uapi::{
    VcpuGetCpuid, VcpuGetCpuidReply, VcpuGetMtrrType, VcpuGetMtrrTypeReply, VcpuGetXcr, VcpuGetXcrReply,
    VcpuTranslateGva, VcpuTranslateGvaReply, Xsave, msg,
};

use super::{Command, DATA, vcpu_payload};
use crate::{Message, ProtocolError};

/// VCPU_GET_CPUID.
#[derive(Clone, Copy, Debug)]
pub struct GetCpuid {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
}

impl Command for GetCpuid {
    type Reply = VcpuGetCpuidReply;
    fn id(&self) -> u16 {
        msg::VCPU_GET_CPUID
    }
    fn payload(&self) -> Vec<u8> {
        let request = VcpuGetCpuid {
            function: self.function,
            index: self.index,
        };
        vcpu_payload(self.vcpu, &request)
    }
    fn reply(&self, message: &Message) -> Result<VcpuGetCpuidReply, ProtocolError> {
        message.get(DATA)
    }
}

/// VCPU_GET_XCR.
#[derive(Clone, Copy, Debug)]
pub struct GetXcr {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Which register: 0.
    pub xcr: u8,
}

impl Command for GetXcr {
    type Reply = VcpuGetXcrReply;
    fn id(&self) -> u16 {
        msg::VCPU_GET_XCR
    }
    fn payload(&self) -> Vec<u8> {
        let request = VcpuGetXcr {
            xcr: self.xcr,
            ..Default::default()
        };
        vcpu_payload(self.vcpu, &request)
    }
    fn reply(&self, message: &Message) -> Result<VcpuGetXcrReply, ProtocolError> {
        message.get(DATA)
    }
}

/// VCPU_GET_XSAVE.
#[derive(Clone, Copy, Debug)]
pub struct GetXsave {
    /// Index of the vCPU.
    pub vcpu: u16,
}

impl Command for GetXsave {
    type Reply = Box<Xsave>;
    fn id(&self) -> u16 {
        msg::VCPU_GET_XSAVE
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(self.vcpu, &[0u8; 0])
    }
    fn reply(&self, message: &Message) -> Result<Box<Xsave>, ProtocolError> {
        message.get(DATA).map(Box::new)
    }
}

/// VCPU_SET_XSAVE.
#[derive(Clone, Copy, Debug)]
pub struct SetXsave<'a> {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// The state that it is to have.
    pub state: &'a Xsave,
}

impl Command for SetXsave<'_> {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_SET_XSAVE
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(self.vcpu, self.state)
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VCPU_GET_MTRR_TYPE.
#[derive(Clone, Copy, Debug)]
pub struct GetMtrrType {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Guest physical address in the page that is asked about.
    pub gpa: u64,
}

impl Command for GetMtrrType {
    type Reply = VcpuGetMtrrTypeReply;
    fn id(&self) -> u16 {
        msg::VCPU_GET_MTRR_TYPE
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(self.vcpu, &VcpuGetMtrrType { gpa: self.gpa })
    }
    fn reply(&self, message: &Message) -> Result<VcpuGetMtrrTypeReply, ProtocolError> {
        message.get(DATA)
    }
}

/// VCPU_TRANSLATE_GVA.
#[derive(Clone, Copy, Debug)]
pub struct TranslateGva {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Guest virtual address.
    pub gva: u64,
    /// By the page tables at this root, as CR3 holds it, instead of the current ones.
    pub root: Option<u64>,
}

impl Command for TranslateGva {
    type Reply = VcpuTranslateGvaReply;
    fn id(&self) -> u16 {
        msg::VCPU_TRANSLATE_GVA
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(
            self.vcpu,
            &VcpuTranslateGva {
                gva: self.gva,
                root: self.root.unwrap_or_default(),
                by_root: self.root.is_some().into(),
                ..Default::default()
            },
        )
    }
    fn reply(&self, message: &Message) -> Result<VcpuTranslateGvaReply, ProtocolError> {
        message.get(DATA)
    }
}

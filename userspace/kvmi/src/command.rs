// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands as values, for [`crate::Session::submit`] and [`crate::Session::call`].

mod vcpu_control;
mod vcpu_query;
mod vcpu_states;

use kvmi_uapi::{
    ErrorCode, GetVersionReply, MsrEntry, Regs, VcpuControlCr, VcpuControlEvents, VcpuControlSinglestep,
    VcpuGetInfoReply, VcpuGetRegisters, VcpuGetRegistersReply, VcpuHdr, VmCheckCommand, VmCheckEvent, VmControlCleanup,
    VmControlEvents, VmGetInfoReply, VmPauseVcpu, VmReadPhysical, VmWritePhysical, msg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use vcpu_control::{ControlMsr, InjectException};
pub use vcpu_query::{GetCpuid, GetMtrrType, GetXcr, GetXsave, SetXsave, TranslateGva};
pub use vcpu_states::{GetVcpuStates, Release};

use crate::{Message, ProtocolError, Registers};

mod page_access;

pub use page_access::{GetPageAccess, SetPageAccess};

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

fn vcpu_payload(vcpu: u16, request: &(impl IntoBytes + Immutable + ?Sized)) -> Vec<u8> {
    let mut payload = VcpuHdr { vcpu, pad1: 0, pad2: 0 }.as_bytes().to_vec();
    payload.extend_from_slice(request.as_bytes());
    payload
}

/// GET_VERSION.
#[derive(Clone, Copy, Debug)]
pub struct GetVersion;

impl Command for GetVersion {
    type Reply = GetVersionReply;
    fn id(&self) -> u16 {
        msg::GET_VERSION
    }
    fn payload(&self) -> Vec<u8> {
        Vec::new()
    }
    fn reply(&self, message: &Message) -> Result<GetVersionReply, ProtocolError> {
        message.get(DATA)
    }
}

/// VM_CHECK_COMMAND.
#[derive(Clone, Copy, Debug)]
pub struct CheckCommand {
    /// Id of the command that is asked about.
    pub id: u16,
}

impl Command for CheckCommand {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_CHECK_COMMAND
    }
    fn payload(&self) -> Vec<u8> {
        VmCheckCommand {
            id: self.id,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VM_CHECK_EVENT.
#[derive(Clone, Copy, Debug)]
pub struct CheckEvent {
    /// Id of the event that is asked about.
    pub id: u16,
}

impl Command for CheckEvent {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_CHECK_EVENT
    }
    fn payload(&self) -> Vec<u8> {
        VmCheckEvent {
            id: self.id,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VM_GET_INFO.
#[derive(Clone, Copy, Debug)]
pub struct GetInfo;

impl Command for GetInfo {
    type Reply = VmGetInfoReply;
    fn id(&self) -> u16 {
        msg::VM_GET_INFO
    }
    fn payload(&self) -> Vec<u8> {
        Vec::new()
    }
    fn reply(&self, message: &Message) -> Result<VmGetInfoReply, ProtocolError> {
        message.get(DATA)
    }
}

/// VM_CONTROL_EVENTS.
#[derive(Clone, Copy, Debug)]
pub struct ControlVmEvents {
    /// A VM event.
    pub event: u16,
    /// Whether it is to be sent.
    pub enable: bool,
}

impl Command for ControlVmEvents {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_CONTROL_EVENTS
    }
    fn payload(&self) -> Vec<u8> {
        VmControlEvents {
            event_id: self.event,
            enable: self.enable.into(),
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VM_READ_PHYSICAL; the reply is exactly the bytes that were asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReadPhysical {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Bytes, 1 to 4096, all in one page.
    pub size: u16,
}

impl Command for ReadPhysical {
    type Reply = Vec<u8>;
    fn id(&self) -> u16 {
        msg::VM_READ_PHYSICAL
    }
    fn payload(&self) -> Vec<u8> {
        VmReadPhysical {
            gpa: self.gpa,
            size: self.size,
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    }
    fn reply(&self, message: &Message) -> Result<Vec<u8>, ProtocolError> {
        let needed = DATA + usize::from(self.size);
        let short = || ProtocolError::TooShort {
            id: message.hdr.id,
            got: message.payload.len(),
            needed,
        };
        message.payload.get(DATA..needed).map(<[u8]>::to_vec).ok_or_else(short)
    }
}

/// VM_WRITE_PHYSICAL.
#[derive(Clone, Copy, Debug)]
pub struct WritePhysical<'a> {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// What to write, 1 to 4096 bytes, all in one page.
    pub data: &'a [u8],
}

impl Command for WritePhysical<'_> {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_WRITE_PHYSICAL
    }
    fn payload(&self) -> Vec<u8> {
        let size = u16::try_from(self.data.len()).unwrap_or(u16::MAX);
        let mut payload = VmWritePhysical {
            gpa: self.gpa,
            size,
            ..Default::default()
        }
        .as_bytes()
        .to_vec();
        payload.extend_from_slice(self.data);
        payload
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VM_PAUSE_VCPU.
#[derive(Clone, Copy, Debug)]
pub struct PauseVcpu {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Whether the reply is to wait until the vCPU has left guest mode.
    pub wait: bool,
}

impl Command for PauseVcpu {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_PAUSE_VCPU
    }
    fn payload(&self) -> Vec<u8> {
        VmPauseVcpu {
            vcpu: self.vcpu,
            wait: self.wait.into(),
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VM_CONTROL_CLEANUP.
#[derive(Clone, Copy, Debug)]
pub struct ControlCleanup {
    /// Whether unhook is to remove the intercepts.
    pub enable: bool,
}

impl Command for ControlCleanup {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VM_CONTROL_CLEANUP
    }
    fn payload(&self) -> Vec<u8> {
        VmControlCleanup {
            enable: self.enable.into(),
            ..Default::default()
        }
        .as_bytes()
        .to_vec()
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VCPU_GET_INFO.
#[derive(Clone, Copy, Debug)]
pub struct GetVcpuInfo {
    /// Index of the vCPU.
    pub vcpu: u16,
}

impl Command for GetVcpuInfo {
    type Reply = VcpuGetInfoReply;
    fn id(&self) -> u16 {
        msg::VCPU_GET_INFO
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(self.vcpu, &[0u8; 0])
    }
    fn reply(&self, message: &Message) -> Result<VcpuGetInfoReply, ProtocolError> {
        message.get(DATA)
    }
}

/// VCPU_CONTROL_EVENTS.
#[derive(Clone, Copy, Debug)]
pub struct ControlEvents {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// A vCPU event.
    pub event: u16,
    /// Whether it is to be sent.
    pub enable: bool,
}

impl Command for ControlEvents {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_CONTROL_EVENTS
    }
    fn payload(&self) -> Vec<u8> {
        let request = VcpuControlEvents {
            event_id: self.event,
            enable: self.enable.into(),
            ..Default::default()
        };
        vcpu_payload(self.vcpu, &request)
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VCPU_GET_REGISTERS.
#[derive(Clone, Copy, Debug)]
pub struct GetRegisters<'a> {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// MSRs that are asked for, at most [`kvmi_uapi::MAX_MSRS`].
    pub msrs: &'a [u32],
}

impl Command for GetRegisters<'_> {
    type Reply = Registers;
    fn id(&self) -> u16 {
        msg::VCPU_GET_REGISTERS
    }
    fn payload(&self) -> Vec<u8> {
        let nmsrs = u16::try_from(self.msrs.len()).unwrap_or(u16::MAX);
        let mut payload = vcpu_payload(
            self.vcpu,
            &VcpuGetRegisters {
                nmsrs,
                ..Default::default()
            },
        );
        payload.extend_from_slice(self.msrs.as_bytes());
        payload
    }
    fn reply(&self, message: &Message) -> Result<Registers, ProtocolError> {
        let head: VcpuGetRegistersReply = message.get(DATA)?;
        let first = DATA + size_of::<VcpuGetRegistersReply>();
        let count = head.msrs.nmsrs as usize;
        let needed = first + count * size_of::<MsrEntry>();
        let short = || ProtocolError::TooShort {
            id: message.hdr.id,
            got: message.payload.len(),
            needed,
        };
        let entries = message.payload.get(first..needed).ok_or_else(short)?;
        let msrs = entries
            .chunks_exact(size_of::<MsrEntry>())
            .filter_map(|e| MsrEntry::read_from_bytes(e).ok());
        Ok(Registers {
            mode: head.mode,
            regs: head.regs,
            sregs: head.sregs,
            msrs: msrs.collect(),
        })
    }
}

/// VCPU_SET_REGISTERS.
#[derive(Clone, Copy, Debug)]
pub struct SetRegisters {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// The general registers that it is to have.
    pub regs: Regs,
}

impl Command for SetRegisters {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_SET_REGISTERS
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(self.vcpu, &self.regs)
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VCPU_CONTROL_CR.
#[derive(Clone, Copy, Debug)]
pub struct ControlCr {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Which register: 0, 3 or 4.
    pub cr: u8,
    /// Whether its changes are to be events.
    pub enable: bool,
}

impl Command for ControlCr {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_CONTROL_CR
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(
            self.vcpu,
            &VcpuControlCr {
                cr: self.cr,
                enable: self.enable.into(),
                ..Default::default()
            },
        )
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// VCPU_CONTROL_SINGLESTEP.
#[derive(Clone, Copy, Debug)]
pub struct ControlSinglestep {
    /// Index of the vCPU.
    pub vcpu: u16,
    /// Whether each of its instructions is to end in an event.
    pub enable: bool,
    /// Whether interrupts, NMIs and SMIs come in between; otherwise they wait.
    pub interrupts: bool,
}

impl Command for ControlSinglestep {
    type Reply = ();
    fn id(&self) -> u16 {
        msg::VCPU_CONTROL_SINGLESTEP
    }
    fn payload(&self) -> Vec<u8> {
        vcpu_payload(
            self.vcpu,
            &VcpuControlSinglestep {
                enable: self.enable.into(),
                interrupts: self.interrupts.into(),
                ..Default::default()
            },
        )
    }
    fn reply(&self, _: &Message) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// Any command with any payload, well formed or not; the reply is its data.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Message id.
    pub id: u16,
    /// Everything after the header; for a vCPU command the [`VcpuHdr`] too.
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPU commands as calls.

use kvmi_uapi::{MsrEntry, Regs, Sregs};

use crate::{
    Error, Session,
    command::{ControlCr, ControlEvents, GetRegisters, GetVcpuInfo, SetRegisters},
};

/// What VCPU_GET_REGISTERS answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Operand mode in bytes: 2, 4 or 8.
    pub mode: u32,
    /// General registers.
    pub regs: Regs,
    /// Special registers.
    pub sregs: Sregs,
    /// The MSRs that were asked for, in the same order.
    pub msrs: Vec<MsrEntry>,
}

/// One vCPU of a session. Its commands are carried out by the vCPU itself, between two stretches of guest code or
/// while an event of it is open; each call waits for that.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu<'a> {
    pub(crate) session: &'a Session,
    pub(crate) index: u16,
}

impl Vcpu<'_> {
    /// Its index.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// VCPU_GET_INFO: guest TSC frequency in Hz, 0 when the CPU cannot control it.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn tsc_hz(&self) -> Result<u64, Error> {
        Ok(self.session.call(GetVcpuInfo { vcpu: self.index })?.tsc_speed)
    }

    /// VCPU_CONTROL_EVENTS: switches an event on or off.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL, EPERM, EBUSY for BREAKPOINT.
    pub fn control_event(&self, event: u16, enable: bool) -> Result<(), Error> {
        self.session.call(ControlEvents {
            vcpu: self.index,
            event,
            enable,
        })
    }

    /// VCPU_CONTROL_CR: whether changes of a control register (0, 3, 4) are CR events.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL.
    pub fn control_cr(&self, cr: u8, enable: bool) -> Result<(), Error> {
        self.session.call(ControlCr {
            vcpu: self.index,
            cr,
            enable,
        })
    }

    /// VCPU_GET_REGISTERS: registers and the MSRs that are asked for, at most [`kvmi_uapi::MAX_MSRS`].
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL for too many or unknown MSRs.
    pub fn registers(&self, msrs: &[u32]) -> Result<Registers, Error> {
        self.session.call(GetRegisters { vcpu: self.index, msrs })
    }

    /// VCPU_SET_REGISTERS: the general registers that the vCPU is to have after the open event is answered.
    ///
    /// # Errors
    /// As [`Session::call`]: EOPNOTSUPP when no event of it is open.
    pub fn set_registers(&self, regs: &Regs) -> Result<(), Error> {
        self.session.call(SetRegisters {
            vcpu: self.index,
            regs: *regs,
        })
    }
}

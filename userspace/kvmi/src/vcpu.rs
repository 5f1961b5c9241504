// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPU commands as calls.

use kvmi_uapi::{MsrEntry, Regs, Sregs, VcpuGetCpuidReply, Xsave};

use crate::{
    Error, KvmError, Session,
    command::{
        ControlCr, ControlEvents, ControlMsr, ControlSinglestep, GetCpuid, GetMtrrType, GetRegisters, GetVcpuInfo,
        GetXcr, GetXsave, InjectException, SetRegisters, SetXsave, TranslateGva,
    },
};

/// Size of the smallest page.
const PAGE_BYTES: u16 = 4096;

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

/// One vCPU of a session. Its commands are carried out between two stretches of guest code, while an event of it is open,
/// or while its VMM has it out of `KVM_RUN`; each call waits for that.
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
    /// As [`Session::call`]: EINVAL, EPERM; EOPNOTSUPP for DESCRIPTOR, EBUSY for BREAKPOINT.
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

    /// VCPU_CONTROL_MSR: whether changes of an MSR are MSR events.
    ///
    /// # Errors
    /// As [`Session::call`], to switch it on: EPERM when the VMM denies the guest to write it, EBUSY when as many others
    /// are watched as may be ([`kvmi_uapi::MAX_OTHER_MSRS`]).
    pub fn control_msr(&self, msr: u32, enable: bool) -> Result<(), Error> {
        self.session.call(ControlMsr {
            vcpu: self.index,
            msr,
            enable,
        })
    }

    /// VCPU_CONTROL_SINGLESTEP: whether each instruction of the vCPU ends in a SINGLESTEP event. Interrupts wait meanwhile.
    ///
    /// # Errors
    /// As [`Session::call`]: EPERM, EOPNOTSUPP; EBUSY while the VMM steps the vCPU.
    pub fn control_singlestep(&self, enable: bool) -> Result<(), Error> {
        self.session.call(ControlSinglestep {
            vcpu: self.index,
            enable,
            interrupts: false,
        })
    }

    /// VCPU_CONTROL_SINGLESTEP: from now on each instruction of the vCPU ends in a SINGLESTEP event, and interrupts, NMIs
    /// and SMIs come in between as they do without a tool. The instructions of their handlers are told too, but for those
    /// in SMM. [`Self::control_singlestep`] ends it.
    ///
    /// # Errors
    /// As [`Self::control_singlestep`].
    pub fn singlestep_with_interrupts(&self) -> Result<(), Error> {
        self.session.call(ControlSinglestep {
            vcpu: self.index,
            enable: true,
            interrupts: true,
        })
    }

    /// VCPU_INJECT_EXCEPTION: has the guest take an exception; a TRAP event tells which it took in the end. The error code
    /// is used by those that have one, the address by #PF.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL for what cannot be injected, EPERM, EBUSY while something else is on its way.
    pub fn inject_exception(&self, nr: u8, error_code: u32, address: u64) -> Result<(), Error> {
        self.session.call(InjectException {
            vcpu: self.index,
            nr,
            error_code,
            address,
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
    /// As [`Session::call`]: EINVAL for what the CPU could not have, EOPNOTSUPP when no event of it is open.
    pub fn set_registers(&self, regs: &Regs) -> Result<(), Error> {
        self.session.call(SetRegisters {
            vcpu: self.index,
            regs: *regs,
        })
    }

    /// VCPU_GET_CPUID: a leaf as the guest's CPUID table has it.
    ///
    /// # Errors
    /// As [`Session::call`]: ENOENT when it is not there.
    pub fn cpuid(&self, function: u32, index: u32) -> Result<VcpuGetCpuidReply, Error> {
        self.session.call(GetCpuid {
            vcpu: self.index,
            function,
            index,
        })
    }

    /// VCPU_GET_XCR: XCR0.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn xcr0(&self) -> Result<u64, Error> {
        let vcpu = self.index;
        Ok(self.session.call(GetXcr { vcpu, xcr: 0 })?.value)
    }

    /// VCPU_GET_XSAVE: the extended state.
    ///
    /// # Errors
    /// As [`Session::call`]: EOPNOTSUPP when it may be larger.
    pub fn xsave(&self) -> Result<Box<Xsave>, Error> {
        self.session.call(GetXsave { vcpu: self.index })
    }

    /// VCPU_SET_XSAVE: gives the vCPU this extended state.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL for a state that the CPU cannot have, EOPNOTSUPP as [`Self::xsave`].
    pub fn set_xsave(&self, state: &Xsave) -> Result<(), Error> {
        let vcpu = self.index;
        self.session.call(SetXsave { vcpu, state })
    }

    /// VCPU_GET_MTRR_TYPE: the memory type of a page, as MTRRs encode it.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn memory_type(&self, gpa: u64) -> Result<u8, Error> {
        let vcpu = self.index;
        Ok(self.session.call(GetMtrrType { vcpu, gpa })?.type_)
    }

    /// VCPU_TRANSLATE_GVA: where the current page tables map this guest virtual address, whoever may access it; `None`
    /// when nowhere.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn translate(&self, gva: u64) -> Result<Option<u64>, Error> {
        self.translate_by(None, gva)
    }

    /// The same by the page tables at another root, as CR3 holds it, in the current paging mode.
    ///
    /// # Errors
    /// As [`Session::call`]: EINVAL for a root that is no physical address, EOPNOTSUPP while paging is off.
    pub fn translate_in(&self, root: u64, gva: u64) -> Result<Option<u64>, Error> {
        self.translate_by(Some(root), gva)
    }

    fn translate_by(&self, root: Option<u64>, gva: u64) -> Result<Option<u64>, Error> {
        let vcpu = self.index;
        let gpa = self.session.call(TranslateGva { vcpu, gva, root })?.gpa;
        Ok((gpa != u64::MAX).then_some(gpa))
    }

    /// Guest memory at a linear address, as the vCPU's page tables map it: VCPU_TRANSLATE_GVA and VM_READ_PHYSICAL, page by
    /// page, with the vCPU running on in between unless an event of it is open. Fewer bytes come back when there is a page
    /// that is not mapped, or that is mapped to where the guest has no memory; they end there.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn read_linear(&self, address: u64, size: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while bytes.len() < size {
            let Some(address) = address.checked_add(bytes.len() as u64) else {
                break;
            };
            let Some(gpa) = self.translate(address)? else {
                break;
            };
            let in_page = PAGE_BYTES - (address % u64::from(PAGE_BYTES)) as u16;
            let size = usize::from(in_page).min(size - bytes.len()) as u16;
            match self.session.read_physical(gpa, size) {
                Ok(part) => bytes.extend(part),
                Err(error) if error.kernel() == Some(KvmError::NotFound) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A stay in SMM for as long as a scenario wants.

use kvmi_guests::MARK_PORT;

use crate::vmm::{VcpuWrite, Vm};
use crate::{Context, Failure, check_eq};

/// Where SMM starts, with the usual SMBASE.
const HANDLER: u64 = 0x3_8000;
/// What the handler writes when it is there, and what it waits for; within its first 64 KiB.
const ARRIVED: u64 = 0x9000;
const LEAVE: u64 = 0x9001;

impl Vm {
    /// Gives the guest a handler of SMIs, which stays until [`Vm::leave_smm`].
    pub(crate) fn prepare_smm(&self) -> Result<(), Failure> {
        // `mov byte [0x9000], 1`, `mov dx, port`, then `in eax, dx` for the VMM's CPU, `cmp byte [0x9001], 0` and `je` until that is not 0, `rsm`.
        let code = [
            &[0xc6, 0x06, 0x00, 0x90, 0x01, 0xba][..],
            &MARK_PORT.to_le_bytes(),
            &[0x66, 0xed, 0x80, 0x3e, 0x01, 0x90, 0x00, 0x74, 0xf7, 0x0f, 0xaa],
        ]
        .concat();
        self.guest.write(HANDLER, &code)?;
        self.show_ram_to_smm()
    }

    /// Has vCPU 0 enter SMM with its next instruction.
    pub(crate) fn send_smi(&self) -> Result<(), Failure> {
        self.pause(0)?;
        check_eq!(self.write(0, VcpuWrite::Smi)?, 0, "errno of KVM_SMI");
        self.resume(0)
    }

    /// Whether vCPU 0 has been in SMM.
    pub(crate) fn has_entered_smm(&self) -> Result<bool, Failure> {
        let mut arrived = [0];
        self.guest.read(ARRIVED, &mut arrived)?;
        Ok(arrived == [1])
    }

    /// Has vCPU 0 enter SMM, and waits until it is there.
    pub(crate) fn enter_smm(&self, context: &Context) -> Result<(), Failure> {
        self.send_smi()?;
        context.wait_for("SMM", || self.has_entered_smm())
    }

    /// Lets it go on to RSM.
    pub(crate) fn leave_smm(&self) -> Result<(), Failure> {
        self.guest.write(LEAVE, &[1])
    }
}

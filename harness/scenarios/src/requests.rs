// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requests that scenarios make again and again, in one word each.

use kvmi::Registers;
use kvmi::command::{
    ControlCleanup, ControlCr, ControlEvents, ControlMsr, ControlVmEvents, GetInfo, GetRegisters, GetVcpuStates,
    GetXcr, InjectException, PauseVcpu, ReadPhysical, Release, SetRegisters, WritePhysical,
};
use kvmi_uapi::{MsrEntry, Regs, VcpuGetRegistersReply, VcpuGetXcrReply, VcpuRunState, VmGetInfoReply};
use zerocopy::FromBytes;

use crate::wire::{Answer, Wire};
use crate::{Failure, check_eq};

impl Wire {
    /// Switches an event of a vCPU on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_event(&mut self, vcpu: u16, event: u16, enable: bool) -> Result<(), Failure> {
        self.carry_out(&ControlEvents { vcpu, event, enable })
    }

    /// Switches the UNHOOK event on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_unhook_event(&mut self, enable: bool) -> Result<(), Failure> {
        let event = kvmi_uapi::event::UNHOOK;
        self.carry_out(&ControlVmEvents { event, enable })
    }

    /// Switches the CREATE_VCPU event on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_create_vcpu(&mut self, enable: bool) -> Result<(), Failure> {
        let event = kvmi_uapi::event::CREATE_VCPU;
        self.carry_out(&ControlVmEvents { event, enable })
    }

    /// What each of so many vCPUs is doing.
    pub(crate) fn vcpu_states(&mut self, count: u16) -> Result<Vec<VcpuRunState>, Failure> {
        let bytes = usize::from(count) * size_of::<VcpuRunState>();
        self.get(&GetVcpuStates { first: 0, count }, bytes)
    }

    /// Lets vCPUs go that HOOK keeps stopped; must succeed.
    #[track_caller]
    pub(crate) fn release(&mut self) -> Result<(), Failure> {
        self.carry_out(&Release)
    }

    /// Says whether UNHOOK takes intercepts back or leaves them; must succeed.
    #[track_caller]
    pub(crate) fn control_cleanup(&mut self, enable: bool) -> Result<(), Failure> {
        self.carry_out(&ControlCleanup { enable })
    }

    /// Switches CR events of one register on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_cr(&mut self, vcpu: u16, cr: u8, enable: bool) -> Result<(), Failure> {
        self.carry_out(&ControlCr { vcpu, cr, enable })
    }

    /// Switches MSR events of one MSR on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_msr(&mut self, vcpu: u16, msr: u32, enable: bool) -> Result<(), Failure> {
        self.carry_out(&ControlMsr { vcpu, msr, enable })
    }

    /// Asks for MSR events of one MSR, or for none any more.
    pub(crate) fn try_control_msr(&mut self, vcpu: u16, msr: u32, enable: bool) -> Result<Answer, Failure> {
        self.ask(&ControlMsr { vcpu, msr, enable })
    }

    /// Asks for an exception.
    pub(crate) fn inject(&mut self, vcpu: u16, nr: u8, error_code: u32, address: u64) -> Result<Answer, Failure> {
        self.ask(&InjectException {
            vcpu,
            nr,
            error_code,
            address,
        })
    }

    /// XCR0, as the tool reads it.
    pub(crate) fn xcr0(&mut self, vcpu: u16) -> Result<u64, Failure> {
        Ok(self.get(&GetXcr { vcpu, xcr: 0 }, size_of::<VcpuGetXcrReply>())?.value)
    }

    /// Asks for a PAUSE event.
    pub(crate) fn pause(&mut self, vcpu: u16, wait: bool) -> Result<Answer, Failure> {
        self.ask(&PauseVcpu { vcpu, wait })
    }

    /// How many vCPUs the kernel says there are.
    pub(crate) fn vcpu_count(&mut self) -> Result<u32, Failure> {
        let info = self.get(&GetInfo, size_of::<VmGetInfoReply>())?;
        check_eq!(info.pad, [0; 3], "padding of VM_GET_INFO's reply");
        Ok(info.vcpu_count)
    }

    /// The registers of a vCPU, without MSRs.
    pub(crate) fn registers(&mut self, vcpu: u16) -> Result<Registers, Failure> {
        self.get(&GetRegisters { vcpu, msrs: &[] }, size_of::<VcpuGetRegistersReply>())
    }

    /// Sets the registers of a vCPU whose event is open; must succeed.
    #[track_caller]
    pub(crate) fn set_registers(&mut self, vcpu: u16, regs: &Regs) -> Result<(), Failure> {
        self.carry_out(&SetRegisters { vcpu, regs: *regs })
    }

    /// What one MSR holds, as the tool reads it.
    pub(crate) fn msr(&mut self, vcpu: u16, msr: u32) -> Result<u64, Failure> {
        let command = GetRegisters { vcpu, msrs: &[msr] };
        let bytes = size_of::<VcpuGetRegistersReply>() + size_of::<MsrEntry>();
        match self.get(&command, bytes)?.msrs[..] {
            [MsrEntry { index, data, .. }] if index == msr => Ok(data),
            ref other => Err(Failure::new(format!("the value of MSR {msr:#x}: {other:x?}"))),
        }
    }

    /// Reads guest memory.
    pub(crate) fn read_physical(&mut self, gpa: u64, size: u16) -> Result<Answer, Failure> {
        self.ask(&ReadPhysical { gpa, size })
    }

    /// Writes guest memory.
    pub(crate) fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, Failure> {
        self.ask(&WritePhysical { gpa, data })
    }

    /// Puts an int3 at a guest physical address; the byte that was there.
    pub(crate) fn plant_int3(&mut self, gpa: u64) -> Result<u8, Failure> {
        let original = self.get(&ReadPhysical { gpa, size: 1 }, 1)?;
        self.carry_out(&WritePhysical { gpa, data: &[0xcc] })?;
        Ok(original[0])
    }
}

/// Asks for more than the socket holds, and reads nothing; the sequence numbers. Each answer will be 4,096 bytes of the guest's program.
pub(crate) fn fill_socket(wire: &mut Wire) -> Result<Vec<u32>, Failure> {
    // A socket holds about 200 KiB in each direction, skb overhead included.
    const ANSWERS: usize = 200;
    let read = ReadPhysical {
        gpa: kvmi_guests::layout::PROGRAM,
        size: 4096,
    };
    (0..ANSWERS).map(|_| wire.submit(&read)).collect()
}

/// Takes the answers that [`fill_socket`] asked for: each whole and in its turn.
pub(crate) fn empty_socket(wire: &mut Wire, seqs: impl IntoIterator<Item = u32>) -> Result<(), Failure> {
    for wanted in seqs {
        let (seq, _, answer) = wire.next_answer()?;
        check_eq!(
            (seq, answer.map(|data| data.len())),
            (wanted, Ok(4096)),
            "answer, bytes"
        );
    }
    Ok(())
}

/// The data of an answer that must be a success.
#[track_caller]
pub(crate) fn expect_data(answer: Answer, what: &str) -> Result<Vec<u8>, Failure> {
    answer.map_err(|errno| Failure::new(format!("{what} was answered with error {errno}")))
}

/// Data of exactly this structure.
#[track_caller]
pub(crate) fn read_exactly<T: FromBytes>(data: &[u8], what: &str) -> Result<T, Failure> {
    T::read_from_bytes(data)
        .map_err(|_| Failure::new(format!("{what} returned {} bytes, not {}", data.len(), size_of::<T>())))
}

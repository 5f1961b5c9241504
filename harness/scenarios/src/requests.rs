// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requests that scenarios make again and again, in one word each.

use kvmi_uapi::{
    MsrEntry, Regs, VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuGetRegisters, VcpuGetRegistersReply,
    VcpuGetXcr, VcpuGetXcrReply, VcpuInjectException, VmControlCleanup, VmControlEvents, VmGetInfoReply, VmPauseVcpu,
    VmReadPhysical, VmWritePhysical, msg,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{Answer, Wire};
use crate::{Failure, check_eq};

impl Wire {
    /// Switches an event of a vCPU on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_event(&mut self, vcpu: u16, event: u16, on: bool) -> Result<(), Failure> {
        let request = VcpuControlEvents {
            event_id: event,
            enable: on.into(),
            ..Default::default()
        };
        let answer = self.vcpu(vcpu, msg::VCPU_CONTROL_EVENTS, &request)?;
        check_eq!(
            answer,
            Ok(vec![]),
            "VCPU_CONTROL_EVENTS of event {event} on vCPU {vcpu}"
        );
        Ok(())
    }

    /// Switches the UNHOOK event on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_unhook_event(&mut self, on: bool) -> Result<(), Failure> {
        let request = VmControlEvents {
            event_id: kvmi_uapi::event::UNHOOK,
            enable: on.into(),
            ..Default::default()
        };
        check_eq!(
            self.vm(msg::VM_CONTROL_EVENTS, &request)?,
            Ok(vec![]),
            "VM_CONTROL_EVENTS"
        );
        Ok(())
    }

    /// Says whether UNHOOK takes intercepts back (1) or leaves them (0); must succeed.
    #[track_caller]
    pub(crate) fn control_cleanup(&mut self, enable: u8) -> Result<(), Failure> {
        let request = VmControlCleanup {
            enable,
            ..Default::default()
        };
        check_eq!(
            self.vm(msg::VM_CONTROL_CLEANUP, &request)?,
            Ok(vec![]),
            "VM_CONTROL_CLEANUP"
        );
        Ok(())
    }

    /// Switches CR events of one register on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_cr(&mut self, vcpu: u16, cr: u8, on: bool) -> Result<(), Failure> {
        let request = VcpuControlCr {
            cr,
            enable: on.into(),
            ..Default::default()
        };
        let answer = self.vcpu(vcpu, msg::VCPU_CONTROL_CR, &request)?;
        check_eq!(answer, Ok(vec![]), "VCPU_CONTROL_CR of CR{cr} on vCPU {vcpu}");
        Ok(())
    }

    /// Switches MSR events of one MSR on or off; must succeed.
    #[track_caller]
    pub(crate) fn control_msr(&mut self, vcpu: u16, msr: u32, on: bool) -> Result<(), Failure> {
        let answer = self.try_control_msr(vcpu, msr, on)?;
        check_eq!(answer, Ok(vec![]), "VCPU_CONTROL_MSR of {msr:#x} on vCPU {vcpu}");
        Ok(())
    }

    /// Asks for MSR events of one MSR, or for none any more.
    pub(crate) fn try_control_msr(&mut self, vcpu: u16, msr: u32, on: bool) -> Result<Answer, Failure> {
        let request = VcpuControlMsr {
            enable: on.into(),
            msr,
            ..Default::default()
        };
        self.vcpu(vcpu, msg::VCPU_CONTROL_MSR, &request)
    }

    /// Asks for an exception.
    pub(crate) fn inject(&mut self, vcpu: u16, nr: u8, error_code: u32, address: u64) -> Result<Answer, Failure> {
        let request = VcpuInjectException {
            nr,
            error_code,
            address,
            ..Default::default()
        };
        self.vcpu(vcpu, msg::VCPU_INJECT_EXCEPTION, &request)
    }

    /// XCR0, as the tool reads it.
    pub(crate) fn xcr0(&mut self, vcpu: u16) -> Result<u64, Failure> {
        let data = expect_data(
            self.vcpu(vcpu, msg::VCPU_GET_XCR, &VcpuGetXcr::default())?,
            "VCPU_GET_XCR",
        )?;
        Ok(read_exactly::<VcpuGetXcrReply>(&data, "VCPU_GET_XCR")?.value)
    }

    /// Asks for a PAUSE event.
    pub(crate) fn pause(&mut self, vcpu: u16, wait: bool) -> Result<Answer, Failure> {
        let request = VmPauseVcpu {
            vcpu,
            wait: wait.into(),
            ..Default::default()
        };
        self.vm(msg::VM_PAUSE_VCPU, &request)
    }

    /// How many vCPUs the kernel says there are.
    pub(crate) fn vcpu_count(&mut self) -> Result<u32, Failure> {
        let data = expect_data(self.vm(msg::VM_GET_INFO, &[0u8; 0])?, "VM_GET_INFO")?;
        let info = read_exactly::<VmGetInfoReply>(&data, "VM_GET_INFO")?;
        check_eq!(info.pad, [0; 3], "padding of VM_GET_INFO's reply");
        Ok(info.vcpu_count)
    }

    /// The registers of a vCPU, without MSRs.
    pub(crate) fn registers(&mut self, vcpu: u16) -> Result<VcpuGetRegistersReply, Failure> {
        let request = VcpuGetRegisters::default();
        let data = expect_data(
            self.vcpu(vcpu, msg::VCPU_GET_REGISTERS, &request)?,
            "VCPU_GET_REGISTERS",
        )?;
        read_exactly(&data, "VCPU_GET_REGISTERS")
    }

    /// Sets the registers of a vCPU whose event is open; must succeed.
    #[track_caller]
    pub(crate) fn set_registers(&mut self, vcpu: u16, regs: &Regs) -> Result<(), Failure> {
        check_eq!(
            self.vcpu(vcpu, msg::VCPU_SET_REGISTERS, regs)?,
            Ok(vec![]),
            "VCPU_SET_REGISTERS"
        );
        Ok(())
    }

    /// What one MSR holds, as the tool reads it.
    pub(crate) fn msr(&mut self, vcpu: u16, msr: u32) -> Result<u64, Failure> {
        let head = VcpuGetRegisters {
            nmsrs: 1,
            ..Default::default()
        };
        let request = [head.as_bytes(), msr.as_bytes()].concat();
        let data = expect_data(
            self.vcpu(vcpu, msg::VCPU_GET_REGISTERS, &request[..])?,
            "VCPU_GET_REGISTERS with one MSR",
        )?;
        let (_, entry) = data.split_at(data.len().saturating_sub(size_of::<MsrEntry>()));
        let entry: MsrEntry = read_exactly(entry, "an MSR's entry")?;
        check_eq!(entry.index, msr, "index of the MSR");
        Ok(entry.data)
    }

    /// Reads guest memory.
    pub(crate) fn read_physical(&mut self, gpa: u64, size: u16) -> Result<Answer, Failure> {
        let request = VmReadPhysical {
            gpa,
            size,
            ..Default::default()
        };
        self.vm(msg::VM_READ_PHYSICAL, &request)
    }

    /// Writes guest memory.
    pub(crate) fn write_physical(&mut self, gpa: u64, bytes: &[u8]) -> Result<Answer, Failure> {
        let request = VmWritePhysical {
            gpa,
            size: bytes.len() as u16,
            ..Default::default()
        };
        let request = [request.as_bytes(), bytes].concat();
        self.vm(msg::VM_WRITE_PHYSICAL, &request[..])
    }

    /// Puts an int3 at a guest physical address; the byte that was there.
    pub(crate) fn plant_int3(&mut self, gpa: u64) -> Result<u8, Failure> {
        let original = expect_data(self.read_physical(gpa, 1)?, "VM_READ_PHYSICAL")?;
        check_eq!(original.len(), 1, "bytes that VM_READ_PHYSICAL returned");
        check_eq!(
            self.write_physical(gpa, &[0xcc])?,
            Ok(vec![]),
            "VM_WRITE_PHYSICAL of an int3"
        );
        Ok(original[0])
    }
}

/// Asks for more than the socket holds, and reads nothing; the sequence numbers. Each answer will be 4,096 bytes of the guest's program.
pub(crate) fn fill_socket(wire: &mut Wire) -> Result<Vec<u32>, Failure> {
    // A socket holds about 200 KiB in each direction, skb overhead included.
    const ANSWERS: usize = 200;
    let request = VmReadPhysical {
        gpa: kvmi_guests::layout::PROGRAM,
        size: 4096,
        ..Default::default()
    };
    (0..ANSWERS)
        .map(|_| wire.send(msg::VM_READ_PHYSICAL, request.as_bytes()))
        .collect()
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

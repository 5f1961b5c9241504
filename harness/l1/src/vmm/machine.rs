// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VM and what a scenario may ask to be done with it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES,
    KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_guest_debug, kvm_msi,
};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use kvmi::ioctls;
use kvmi_guests::{DOORBELL_VECTOR, layout};
use kvmi_lab_scenarios::vmm::{Answer, HookFd, Hypercalls, Permission, Refusal, Reply, Request, Until, VmConfig};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::slots::{RAM_SLOT, Slots};
use super::vcpu::Vcpu;
use super::{Refused, boot, hypercalls, refuse, state};

/// Names the VM in the kernel's log.
const UUID: [u8; 16] = *b"kvmi lab's guest";

/// Inputs of an I/O APIC, which KVM wants to know of even where it is the VMM's.
const IOAPIC_PINS: u64 = 24;

/// Bytes of a vCPU's ring of dirty pages: more than what KVM keeps free of it.
const DIRTY_RING_BYTES: u64 = 1 << 16;

/// A VM. Fields are dropped in this order: threads first, memory last.
pub(super) struct Machine {
    vcpus: Vec<Vcpu>,
    vm: VmFd,
    slots: Slots,
    cpuid: CpuId,
    entry: u64,
    uninitialised_aps: bool,
    without_rseq: bool,
    more: Vec<VmFd>,
}

impl Machine {
    pub(super) fn new(config: &VmConfig, ram: OwnedFd) -> Result<Self, Refusal> {
        let kvm = Kvm::new().refused("open /dev/kvm")?;
        let vm = kvm.create_vm().refused("KVM_CREATE_VM")?;
        let slots = Slots::new(ram)?;
        slots.set_ram(&vm, false)?;
        let enable = |cap, what, argument| {
            let request = kvm_enable_cap {
                cap,
                args: [argument, 0, 0, 0],
                ..Default::default()
            };
            vm.enable_cap(&request).refused(what)
        };
        if config.split_irqchip {
            enable(
                KVM_CAP_SPLIT_IRQCHIP,
                "KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP",
                IOAPIC_PINS,
            )?;
        } else {
            vm.create_irq_chip().refused("KVM_CREATE_IRQCHIP")?;
        }
        if config.dirty_ring {
            enable(
                KVM_CAP_DIRTY_LOG_RING,
                "KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING",
                DIRTY_RING_BYTES,
            )?;
        }
        if config.halts_in_guest {
            enable(
                KVM_CAP_X86_DISABLE_EXITS,
                "KVM_ENABLE_CAP of KVM_CAP_X86_DISABLE_EXITS",
                KVM_X86_DISABLE_EXITS_HLT.into(),
            )?;
        }
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .refused("KVM_GET_SUPPORTED_CPUID")?;
        match config.hypercalls {
            Hypercalls::Kvm => {}
            Hypercalls::Xen => hypercalls::as_xen(&vm)?,
            Hypercalls::HyperV => hypercalls::as_hyperv(&mut cpuid),
        }
        let mut machine = Self {
            vcpus: Vec::new(),
            entry: boot::prepare(&slots.ram, &config.guest)?,
            cpuid,
            vm,
            slots,
            uninitialised_aps: config.uninitialised_aps,
            without_rseq: config.without_rseq,
            more: Vec::new(),
        };
        for _ in 0..config.vcpus {
            machine.add_vcpu()?;
        }
        Ok(machine)
    }

    pub(super) fn vm_fd_number(&self) -> i32 {
        self.vm.as_raw_fd()
    }

    fn add_vcpu(&mut self) -> Result<usize, Refusal> {
        let index = self.vcpus.len();
        if index == layout::MAX_VCPUS {
            return Err(refuse(format!("the layout has room for {index} vCPUs")));
        }
        let vcpu = self.vm.create_vcpu(index as u64).refused("KVM_CREATE_VCPU")?;
        let initialised = index == 0 || !self.uninitialised_aps;
        boot::set_up(&vcpu, index, self.entry, &self.cpuid, initialised)?;
        self.vcpus.push(Vcpu::start(index, vcpu, self.without_rseq)?);
        Ok(index)
    }

    fn vcpu(&self, index: usize) -> Result<&Vcpu, Refusal> {
        self.vcpus
            .get(index)
            .ok_or_else(|| refuse(format!("no vCPU {index}, there are {}", self.vcpus.len())))
    }

    /// Does what the scenario asks.
    pub(super) fn serve(&mut self, request: Request, fds: Vec<OwnedFd>) -> Reply {
        match request {
            Request::Create(_) => return Err(refuse("the VM exists already")),
            Request::Run => self.vcpus.iter().for_each(Vcpu::resume),
            Request::AddVcpu => {
                let index = self.add_vcpu()?;
                self.vcpus[index].resume();
                return Ok(Answer::Number(index as i64));
            }
            Request::AddTakenVcpu(times) => {
                for _ in 0..times {
                    match self.vm.create_vcpu(0) {
                        Err(e) if e.errno() == rustix::io::Errno::EXIST.raw_os_error() => {}
                        Err(e) => return Err(refuse(format!("KVM_CREATE_VCPU of a taken index: {e}"))),
                        Ok(_) => return Err(refuse("a vCPU was created of an index that is taken")),
                    }
                }
            }
            Request::Hook { .. } | Request::Permit { .. } | Request::PreUnhook | Request::Unhook => {
                self.introspection(&request, &fds)?;
            }
            Request::HookCycles(times) => hook_cycles(self.borrow_vm(), times)?,
            Request::Ring { vcpu } => self.ring(vcpu)?,
            Request::Signal { vcpu } => self.vcpu(vcpu)?.kick()?,
            Request::Pause { vcpu } => self.vcpu(vcpu)?.pause()?,
            Request::Resume { vcpu } => self.vcpu(vcpu)?.resume(),
            Request::GetRegs { vcpu } => {
                let regs = self
                    .vcpu(vcpu)?
                    .while_out(|vcpu| vcpu.get_regs().refused("KVM_GET_REGS"))?;
                return Ok(Answer::Regs(Box::new(regs)));
            }
            Request::GetRegsOften { vcpu, times } => self.vcpu(vcpu)?.while_out(move |vcpu| {
                (0..times).try_for_each(|_| vcpu.get_regs().map(drop).refused("KVM_GET_REGS"))
            })?,
            Request::SetRegs { vcpu, regs } => {
                self.vcpu(vcpu)?
                    .while_out(move |vcpu| vcpu.set_regs(&regs).refused("KVM_SET_REGS"))?;
            }
            Request::Write { vcpu, by } => self.vcpu(vcpu)?.while_out(move |vcpu| state::write(vcpu, by))?,
            Request::Complete { vcpu } => self.vcpu(vcpu)?.while_out(complete)?,
            Request::StopAtInput { vcpu } => self.vcpu(vcpu)?.stop_at_input(),
            Request::InterruptInWindow { vcpu, vector } => self.vcpu(vcpu)?.interrupt_in_window(vector)?,
            Request::HookMore => self.hook_more(&fds)?,
            Request::GetMpState { vcpu } => {
                let state = self
                    .vcpu(vcpu)?
                    .while_out(|vcpu| vcpu.get_mp_state().refused("KVM_GET_MP_STATE"))?;
                return Ok(Answer::Number(state.mp_state.into()));
            }
            Request::Exits { vcpu } => return Ok(Answer::Number(self.vcpu(vcpu)?.exits()? as i64)),
            Request::DenyMsrWrite { msr } => self.deny_msr_write(msr)?,
            Request::SetGuestDebug { vcpu, control } => {
                let debug = kvm_guest_debug {
                    control,
                    ..Default::default()
                };
                self.vcpu(vcpu)?
                    .while_out(move |vcpu| vcpu.set_guest_debug(&debug).refused("KVM_SET_GUEST_DEBUG"))?;
            }
            Request::Status { vcpu } => return Ok(Answer::Status(self.vcpu(vcpu)?.status())),
            Request::Wait { vcpu, until } => return self.wait(vcpu, &until),
            Request::LogDirty { on } => self.slots.set_ram(&self.vm, on)?,
            Request::DirtyLog => {
                let bytes = layout::RAM_BYTES as usize;
                return Ok(Answer::Words(
                    self.vm.get_dirty_log(RAM_SLOT, bytes).refused("KVM_GET_DIRTY_LOG")?,
                ));
            }
            Request::AddReadOnlySlot { bytes } => self.slots.add_read_only(&self.vm, bytes)?,
            Request::AddSlot { gpa, bytes } => self.slots.add(&self.vm, gpa, bytes)?,
            Request::DeleteSlot { gpa } => self.slots.delete(&self.vm, gpa)?,
            Request::HideSlot => self.slots.hide()?,
            Request::WithholdSlot => self.slots.withhold()?,
            Request::WaitForFault => self.slots.wait_for_fault()?,
            Request::ServeSlot => self.slots.serve(),
            Request::Advise { gpa, bytes, advice } => self.slots.advise(gpa, bytes, advice)?,
            Request::HostAddress { gpa } => return Ok(Answer::Number(self.slots.host_address(gpa)? as i64)),
            Request::RemakeRam => self.slots.remake_ram(&self.vm)?,
            Request::ShowRamToSmm => self.slots.show_ram_to_smm(&self.vm)?,
            Request::CheckExtension { capability } => {
                let answer = self.vm.check_extension_raw(capability.into());
                return Ok(Answer::Number(answer.into()));
            }
            Request::Exit => return Err(refuse("Exit is the caller's to serve")),
        }
        Ok(Answer::Done)
    }

    fn introspection(&self, request: &Request, fds: &[OwnedFd]) -> Result<(), Refusal> {
        let vm = self.borrow_vm();
        match *request {
            Request::Hook { fd, flags } => {
                let number = match fd {
                    HookFd::Number(number) => number,
                    HookFd::Passed => fds
                        .first()
                        .ok_or_else(|| refuse("HOOK needs a descriptor"))?
                        .as_raw_fd(),
                };
                ioctls::hook(vm, number, flags, UUID).refused("KVM_INTROSPECTION_HOOK")
            }
            Request::Permit {
                what: Permission::Command,
                allow,
                id,
            } => ioctls::permit_command(vm, allow, id).refused("KVM_INTROSPECTION_COMMAND"),
            Request::Permit {
                what: Permission::Event,
                allow,
                id,
            } => ioctls::permit_event(vm, allow, id).refused("KVM_INTROSPECTION_EVENT"),
            Request::PreUnhook => ioctls::preunhook(vm).refused("KVM_INTROSPECTION_PREUNHOOK"),
            _ => ioctls::unhook(vm).refused("KVM_INTROSPECTION_UNHOOK"),
        }
    }

    /// Makes VMs that are there to be hooked alone.
    fn hook_more(&mut self, sockets: &[OwnedFd]) -> Result<(), Refusal> {
        let kvm = Kvm::new().refused("open /dev/kvm")?;
        for socket in sockets {
            let vm = kvm.create_vm().refused("KVM_CREATE_VM")?;
            ioctls::hook(super::slots::borrow(&vm), socket.as_raw_fd(), 0, UUID).refused("KVM_INTROSPECTION_HOOK")?;
            self.more.push(vm);
        }
        Ok(())
    }

    fn borrow_vm(&self) -> BorrowedFd<'_> {
        super::slots::borrow(&self.vm)
    }

    fn deny_msr_write(&self, msr: Option<u32>) -> Result<(), Refusal> {
        let denied = msr.map(|base| MsrFilterRange {
            flags: MsrFilterRangeFlags::WRITE,
            base,
            msr_count: 1,
            bitmap: &[0],
        });
        self.vm
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, denied.as_slice())
            .refused("KVM_X86_SET_MSR_FILTER")
    }

    fn ring(&self, vcpu: usize) -> Result<(), Refusal> {
        self.vcpu(vcpu)?;
        let message = kvm_msi {
            address_lo: 0xfee0_0000 | (vcpu as u32) << 12,
            data: DOORBELL_VECTOR.into(),
            ..Default::default()
        };
        self.vm.signal_msi(message).refused("KVM_SIGNAL_MSI")?;
        Ok(())
    }

    fn wait(&self, vcpu: usize, until: &Until) -> Reply {
        let status = self.vcpu(vcpu)?.wait_until(|status| match until {
            Until::Interrupted(times) => status.interrupted >= *times,
            Until::Exit(name, times) => status.exits(name) >= *times,
            Until::Marks(count) => status.marks.len() >= *count,
            Until::Running => status.running,
        });
        Ok(Answer::Status(status))
    }
}

/// `KVM_RUN` that enters no guest.
fn complete(vcpu: &mut VcpuFd) -> Result<(), Refusal> {
    vcpu.set_kvm_immediate_exit(1);
    let outcome = vcpu.run().map(|exit| format!("{exit:?}"));
    vcpu.set_kvm_immediate_exit(0);
    match outcome {
        Err(e) if e.errno() == rustix::io::Errno::INTR.raw_os_error() => Ok(()),
        other => Err(refuse(format!("KVM_RUN with immediate_exit ended with {other:?}"))),
    }
}

/// Hooks and unhooks a VM so many times.
pub(super) fn hook_cycles(vm: BorrowedFd<'_>, times: u32) -> Result<(), Refusal> {
    for _ in 0..times {
        let (ours, _theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).refused("socketpair")?;
        ioctls::hook(vm, ours.as_raw_fd(), 0, UUID).refused("KVM_INTROSPECTION_HOOK")?;
        ioctls::unhook(vm).refused("KVM_INTROSPECTION_UNHOOK")?;
    }
    Ok(())
}

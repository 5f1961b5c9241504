// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting, asking and ending a VMM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use kvm_bindings::kvm_regs;
use kvmi_guests::Op;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use super::guest::field;
use super::request::{Answer, Reply, Request, Until, VcpuStatus, VcpuWrite, VmConfig};
use super::spare::Vmm;
use super::{Guest, packet};
use crate::{Context, Failure, check_eq};

/// A VM and the VMM process that has it. Dropped, the VMM is killed.
#[derive(Debug)]
pub struct Vm {
    /// The guest's memory.
    pub guest: Guest,
    vcpus: usize,
    vm_fd: i32,
    socket: OwnedFd,
    process: Child,
}

impl Vm {
    /// Starts a VMM and has it make a VM. The vCPUs do not run yet.
    pub(crate) fn start(config: &VmConfig) -> Result<Self, Failure> {
        let Vmm { socket, process } = Vmm::spare_or_new()?;
        let guest = Guest::new()?;
        let mut vm = Self {
            guest,
            vcpus: config.vcpus,
            vm_fd: -1,
            socket,
            process,
        };
        let file = vm.guest.file().as_fd();
        packet::send(vm.socket.as_fd(), &Request::Create(config.clone()), &[file])?;
        match vm.answer()? {
            Ok(Answer::Created { vm_fd }) => vm.vm_fd = vm_fd,
            other => return Err(Failure::new(format!("the VMM could not make the VM: {other:?}"))),
        }
        Ok(vm)
    }

    /// The VMM's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How many vCPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus
    }

    fn answer(&self) -> Result<Reply, Failure> {
        match packet::receive::<Reply>(self.socket.as_fd())? {
            Some((reply, _)) => Ok(reply),
            None => Err(Failure::new("the VMM ended while it was asked something")),
        }
    }

    /// Sends a request without waiting for its answer; [`Vm::finish`] takes it.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn begin(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        Ok(packet::send(self.socket.as_fd(), request, fds)?)
    }

    /// Waits for the answer to what [`Vm::begin`] sent.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn finish(&self) -> Result<Reply, Failure> {
        self.answer()
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn ask(&self, request: &Request) -> Result<Reply, Failure> {
        self.begin(request, &[])?;
        self.finish()
    }

    pub(super) fn done(&self, request: &Request) -> Result<(), Failure> {
        self.ask(request)?
            .map_err(|r| Failure::new(format!("{request:?} was refused: {r}")))?;
        Ok(())
    }

    /// What became of an ioctl: its errno, 0 for success.
    #[must_use]
    pub(super) fn errno(reply: &Reply) -> i32 {
        reply.as_ref().err().map_or(0, |refusal| refusal.errno)
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn run(&self) -> Result<(), Failure> {
        self.done(&Request::Run)
    }

    /// Adds a vCPU and lets it run; its index.
    ///
    /// # Errors
    ///
    /// A VMM that cannot or is gone.
    pub fn add_vcpu(&mut self) -> Result<usize, Failure> {
        match self.ask(&Request::AddVcpu)? {
            Ok(Answer::Number(index)) => {
                self.vcpus += 1;
                Ok(index as usize)
            }
            other => Err(Failure::new(format!("no vCPU was added: {other:?}"))),
        }
    }

    /// Has the VMM create so many vCPUs of an index that is taken, which fails late.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, or one that could.
    pub fn add_taken_vcpu(&self, times: u32) -> Result<(), Failure> {
        self.done(&Request::AddTakenVcpu(times))
    }

    /// Sends SIGUSR1 to a vCPU's thread.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn signal(&self, vcpu: usize) -> Result<(), Failure> {
        self.done(&Request::Signal { vcpu })
    }

    /// Takes a vCPU out of `KVM_RUN`.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn pause(&self, vcpu: usize) -> Result<(), Failure> {
        self.done(&Request::Pause { vcpu })
    }

    /// Lets a vCPU into `KVM_RUN` again.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn resume(&self, vcpu: usize) -> Result<(), Failure> {
        self.done(&Request::Resume { vcpu })
    }

    /// The registers of a vCPU that is out, as KVM gives them to the VMM.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, a vCPU that is not out.
    pub fn regs(&self, vcpu: usize) -> Result<kvm_regs, Failure> {
        match self.ask(&Request::GetRegs { vcpu })? {
            Ok(Answer::Regs(regs)) => Ok(*regs),
            other => Err(Failure::new(format!("no registers of vCPU {vcpu}: {other:?}"))),
        }
    }

    /// Sets the registers of a vCPU that is out, by the VMM.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn set_regs(&self, vcpu: usize, regs: kvm_regs) -> Result<(), Failure> {
        self.done(&Request::SetRegs { vcpu, regs })
    }

    /// Changes a flag of a vCPU that is out and does nothing else to it (RFLAGS.ID); RFLAGS afterwards.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn change_regs(&self, vcpu: usize) -> Result<u64, Failure> {
        check_eq!(self.write(vcpu, VcpuWrite::ChangedRegs)?, 0, "errno of KVM_SET_REGS");
        Ok(self.regs(vcpu)?.rflags)
    }

    /// Writes the state of a vCPU that is out, by this ioctl; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn write(&self, vcpu: usize, by: VcpuWrite) -> Result<i32, Failure> {
        Ok(Self::errno(&self.ask(&Request::Write { vcpu, by })?))
    }

    /// Enters `KVM_RUN` on a vCPU that is out, with `immediate_exit`.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn complete(&self, vcpu: usize) -> Result<(), Failure> {
        self.done(&Request::Complete { vcpu })
    }

    /// Takes a vCPU out of `KVM_RUN` when it has read the port of the marks next.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn stop_at_input(&self, vcpu: usize) -> Result<(), Failure> {
        self.done(&Request::StopAtInput { vcpu })
    }

    /// Gives a vCPU that is out an interrupt as soon as KVM says that it takes one.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn interrupt_in_window(&self, vcpu: usize, vector: u8) -> Result<(), Failure> {
        self.done(&Request::InterruptInWindow { vcpu, vector })
    }

    /// The state of a vCPU that is out, `KVM_MP_STATE_*`; KVM carries out a pending INIT first.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn mp_state(&self, vcpu: usize) -> Result<u32, Failure> {
        match self.ask(&Request::GetMpState { vcpu })? {
            Ok(Answer::Number(state)) => Ok(state.try_into()?),
            other => Err(Failure::new(format!("no state of vCPU {vcpu}: {other:?}"))),
        }
    }

    /// `KVM_SET_GUEST_DEBUG` on a vCPU that is out; the errno, 0 for success.
    ///
    /// # Errors
    ///
    /// As [`Vm::regs`].
    pub fn set_guest_debug(&self, vcpu: usize, control: u32) -> Result<i32, Failure> {
        Ok(Self::errno(&self.ask(&Request::SetGuestDebug { vcpu, control })?))
    }

    /// What a vCPU's thread did so far.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn status(&self, vcpu: usize) -> Result<VcpuStatus, Failure> {
        self.expect_status(&Request::Status { vcpu })
    }

    /// Waits for something to happen to a vCPU's thread.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn wait(&self, vcpu: usize, until: Until) -> Result<VcpuStatus, Failure> {
        self.expect_status(&Request::Wait { vcpu, until })
    }

    fn expect_status(&self, request: &Request) -> Result<VcpuStatus, Failure> {
        match self.ask(request)? {
            Ok(Answer::Status(status)) => Ok(status),
            other => Err(Failure::new(format!("{request:?}: {other:?}"))),
        }
    }

    /// `KVM_CHECK_EXTENSION`
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn check_extension(&self, capability: u32) -> Result<i64, Failure> {
        match self.ask(&Request::CheckExtension { capability })? {
            Ok(Answer::Number(number)) => Ok(number),
            other => Err(Failure::new(format!(
                "no answer about capability {capability}: {other:?}"
            ))),
        }
    }

    /// Sends the doorbell interrupt to a vCPU.
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn ring(&self, vcpu: usize) -> Result<(), Failure> {
        self.done(&Request::Ring { vcpu })
    }

    /// Gives the guest on a vCPU a command and rings; returns the command's number for [`Vm::finished`].
    ///
    /// # Errors
    ///
    /// A VMM that is gone.
    pub fn command(&self, vcpu: usize, op: Op, args: [u64; 4]) -> Result<u64, Failure> {
        let number = self.guest.command(vcpu, op as u64, args)?;
        self.done(&Request::Ring { vcpu })?;
        Ok(number)
    }

    /// Waits until the guest has finished the command with this number; its result.
    ///
    /// # Errors
    ///
    /// An unexpected exception in the guest, or the stage's deadline.
    pub fn finished(&self, context: &Context, vcpu: usize, number: u64) -> Result<u64, Failure> {
        context.wait_for(&format!("vCPU {vcpu} to finish command {number}"), || {
            self.no_exception(vcpu)?;
            Ok(self.guest.field(vcpu, field!(done))? == number)
        })?;
        self.guest.field(vcpu, field!(result))
    }

    /// A command from ring to result.
    ///
    /// # Errors
    ///
    /// As [`Vm::finished`].
    pub fn carry_out(&self, context: &Context, vcpu: usize, op: Op, args: [u64; 4]) -> Result<u64, Failure> {
        let number = self.command(vcpu, op, args)?;
        self.finished(context, vcpu, number)
    }

    /// Waits until the guest's program serves commands, or counts, on every vCPU.
    ///
    /// # Errors
    ///
    /// As [`Vm::finished`].
    pub fn wait_ready(&self, context: &Context) -> Result<(), Failure> {
        (0..self.vcpus).try_for_each(|vcpu| self.wait_ready_on(context, vcpu))
    }

    /// The same on one vCPU.
    ///
    /// # Errors
    ///
    /// As [`Vm::finished`].
    pub fn wait_ready_on(&self, context: &Context, vcpu: usize) -> Result<(), Failure> {
        context.wait_for(&format!("vCPU {vcpu} to be ready"), || {
            self.no_exception(vcpu)?;
            Ok(self.guest.field(vcpu, field!(ready))? == 1)
        })
    }

    /// Fails if the guest took an exception that its program does not expect.
    ///
    /// # Errors
    ///
    /// Such an exception.
    pub fn no_exception(&self, vcpu: usize) -> Result<(), Failure> {
        match self.guest.field(vcpu, field!(unexpected))? {
            0 => Ok(()),
            vector => Err(Failure::new(format!(
                "vCPU {vcpu} took exception {} at rip {:#x}",
                vector - 256,
                self.guest.field(vcpu, field!(unexpected_rip))?
            ))),
        }
    }

    /// The VMM's process, whose main thread carries out what is asked of it.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The VMM's VM descriptor, taken as another process may.
    ///
    /// # Errors
    ///
    /// Those of pidfd_open(2) and pidfd_getfd(2).
    pub fn steal_vm_fd(&self) -> Result<OwnedFd, Failure> {
        let pidfd = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty())?;
        Ok(pidfd_getfd(pidfd, self.vm_fd, PidfdGetfdFlags::empty())?)
    }

    /// Ends the VMM as it should be: it destroys the VM and exits.
    ///
    /// # Errors
    ///
    /// A VMM that exits otherwise.
    pub fn exit(mut self) -> Result<(), Failure> {
        self.done(&Request::Exit)?;
        let status = self.process.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::new(format!("the VMM ended with {status}")))
        }
    }

    /// Has the VMM abort (SIGABRT) and waits until it is gone, with its VM.
    ///
    /// # Errors
    ///
    /// Those of kill(2) and wait(2).
    pub(crate) fn abort(&mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.process), Signal::ABORT)?;
        self.process.wait()?;
        Ok(())
    }

    /// Kills the VMM (SIGKILL) without waiting for its end.
    ///
    /// # Errors
    ///
    /// Those of kill(2).
    pub(crate) fn begin_kill(&mut self) -> Result<(), Failure> {
        Ok(self.process.kill()?)
    }

    /// Kills the VMM (SIGKILL) and waits until it is gone, with its VM.
    ///
    /// # Errors
    ///
    /// Those of kill(2) and wait(2).
    pub fn kill(&mut self) -> Result<(), Failure> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A VMM that has ended already has nothing to be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

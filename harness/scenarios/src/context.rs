// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a scenario is given.

use std::cell::Cell;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kvmi::Descriptor;
use kvmi::ioctls::{self, Open};
use kvmi_lab_control::{Backend, FromL1, encode};
use kvmi_uapi::ioctl::{OPEN_MASKED, OPEN_TAKE_OVER};
use zerocopy::FromZeros;

use crate::vmm::{Vm, VmConfig};
use crate::wire::Wire;
use crate::{Failure, Transport, check_eq};

/// How much longer than its deadline in host time a stage may take in L1's time: L0, which enforces the deadline, comes first.
const L1_PATIENCE: u32 = 4;

/// A scenario's surroundings: the control channel, stages, its seed, VMs.
#[derive(Debug)]
pub struct Context {
    /// The vendor back end of this L1.
    pub backend: Backend,
    /// Where random numbers start.
    pub seed: u64,
    /// How tools are connected.
    pub transport: Transport,
    stage: String,
    ends: Cell<Instant>,
}

impl Context {
    /// The surroundings of a scenario that runs in this process, whose standard output is the control channel.
    #[must_use]
    pub fn new(backend: Backend, seed: u64) -> Self {
        Self {
            backend,
            seed,
            transport: Transport::of(backend),
            stage: "start".to_owned(),
            ends: Cell::new(Instant::now() + Duration::from_secs(60)),
        }
    }

    /// Begins a stage, which ends the one before. L0 ends the scenario when it takes longer, in host time.
    pub fn stage(&mut self, name: &str, deadline: Duration) {
        self.stage = name.to_owned();
        self.ends.set(Instant::now() + deadline * L1_PATIENCE);
        say(&FromL1::Stage {
            name: name.to_owned(),
            deadline_ms: deadline.as_millis().try_into().unwrap_or(u64::MAX),
        });
    }

    /// A line for the scenario's log.
    pub fn log(&self, text: impl Into<String>) {
        say(&FromL1::Log {
            source: "scenario".to_owned(),
            text: text.into(),
        });
    }

    /// A line for the transcript of KVMI messages.
    pub fn wire(&self, text: impl Into<String>) {
        say(&FromL1::Transcript { text: text.into() });
    }

    /// A figure.
    pub fn measure(&self, name: &str, value: f64, unit: &str) {
        say(&FromL1::Measure {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
        });
    }

    /// A VM, not running yet, in a VMM process of its own.
    ///
    /// # Errors
    ///
    /// A VMM that cannot be started or cannot make the VM.
    pub fn vm(&self, guest: &str, vcpus: usize) -> Result<Vm, Failure> {
        Vm::start(&VmConfig::new(guest, vcpus))
    }

    /// As [`Context::vm`], with all particulars.
    ///
    /// # Errors
    ///
    /// As [`Context::vm`].
    pub fn vm_with(&self, config: &VmConfig) -> Result<Vm, Failure> {
        Vm::start(config)
    }

    /// A VM that runs and whose program is ready on every vCPU.
    ///
    /// # Errors
    ///
    /// As [`Context::vm`], or a guest that does not get there.
    pub fn running_vm(&self, guest: &str, vcpus: usize) -> Result<Vm, Failure> {
        let vm = self.vm(guest, vcpus)?;
        vm.run()?;
        vm.wait_ready(self)?;
        Ok(vm)
    }

    /// Hooks a VM with these flags, and allows every command and event; the tool's end.
    ///
    /// # Errors
    ///
    /// A HOOK that is refused.
    pub fn hook_with(&self, vm: &Vm, flags: u32) -> Result<Wire, Failure> {
        match self.transport {
            // HOOK follows on a session that failed closed, too.
            Transport::Descriptor => Self::open(vm, flags | OPEN_TAKE_OVER),
            Transport::Socket => self.hook_on_socket(vm, flags),
        }
    }

    /// As [`Context::hook_with`], on a new socket whatever the transport is.
    ///
    /// # Errors
    ///
    /// A HOOK that is refused.
    pub fn hook_on_socket(&self, vm: &Vm, flags: u32) -> Result<Wire, Failure> {
        let (ours, theirs) = UnixStream::pair()?;
        vm.hook_and_allow(theirs.as_fd(), flags)?;
        Ok(Wire::new(ours)?)
    }

    /// OPEN on a VM with these flags, as a tool from outside calls it: this process, with the VMM's descriptor.
    ///
    /// # Errors
    ///
    /// An OPEN that is refused.
    pub fn open(vm: &Vm, flags: u32) -> Result<Wire, Failure> {
        let how = Open {
            flags,
            ..Open::new_zeroed()
        };
        let session = ioctls::open(vm.steal_vm_fd()?, &how)?;
        Ok(Wire::new(Descriptor::new(session)?)?)
    }

    /// Hooks a VM, fail open, and allows every command and event; the tool's end.
    ///
    /// # Errors
    ///
    /// A HOOK that is refused.
    pub fn hook(&self, vm: &Vm) -> Result<Wire, Failure> {
        self.hook_with(vm, 0)
    }

    /// Hooks a VM and allows nothing; the tool's end.
    ///
    /// # Errors
    ///
    /// A HOOK that is refused.
    pub fn bare_hook(&self, vm: &Vm, flags: u32) -> Result<Wire, Failure> {
        match self.transport {
            Transport::Descriptor => Self::open(vm, flags | OPEN_TAKE_OVER | OPEN_MASKED),
            Transport::Socket => {
                let (ours, theirs) = UnixStream::pair()?;
                check_eq!(vm.hook(theirs.as_fd(), flags)?, 0, "errno of HOOK");
                Ok(Wire::new(ours)?)
            }
        }
    }

    /// A running VM that is hooked.
    ///
    /// # Errors
    ///
    /// As [`Context::running_vm`] and [`Context::hook`].
    pub fn hooked_vm(&self, guest: &str, vcpus: usize) -> Result<(Vm, Wire), Failure> {
        let vm = self.running_vm(guest, vcpus)?;
        let wire = self.hook(&vm)?;
        Ok((vm, wire))
    }

    /// Waits until the condition holds, giving the CPU away between looks. For what only shows in memory; whatever can be waited for by
    /// a system call is.
    ///
    /// # Errors
    ///
    /// The condition's own, or the stage's time running out.
    pub fn wait_for(&self, what: &str, mut condition: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
        while !condition()? {
            if Instant::now() > self.ends.get() {
                return Err(Failure::new(format!(
                    "waited in vain for {what} in stage `{}`",
                    self.stage
                )));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// Says something on the control channel, which is standard output, in one write.
pub fn say(message: &FromL1) {
    // Nobody could be told if the channel were broken.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(encode(message).as_bytes());
    let _ = out.flush();
}

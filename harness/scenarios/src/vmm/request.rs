// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a scenario asks of the VMM, and what the VMM answers: one JSON object per packet on a seqpacket socket, with file descriptors
//! beside it where the request names some.

use std::collections::BTreeMap;

use kvm_bindings::kvm_regs;
use serde::{Deserialize, Serialize};

/// The longest packet, in bytes.
pub const MAX_PACKET_BYTES: usize = 64 * 1024;

/// The guest to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmConfig {
    /// Name of the program in `/guests`.
    pub guest: String,
    /// How many vCPUs it has at the start.
    pub vcpus: usize,
    /// Leave all vCPUs but the first as an Intel or AMD board does: waiting for INIT and SIPI.
    pub uninitialised_aps: bool,
    /// Leave the 8259 and the I/O APIC to the VMM, which then brings interrupts from them with `KVM_INTERRUPT`.
    pub split_irqchip: bool,
    /// Whose hypercalls the guest makes, beside KVM's own.
    pub hypercalls: Hypercalls,
    /// Have KVM record dirty pages in rings of the vCPUs instead of bitmaps of the slots.
    pub dirty_ring: bool,
    /// Run vCPUs on threads without rseq(2), which the C library has each thread use.
    pub without_rseq: bool,
    /// Have the CPU itself halt at HLT, without an exit (`KVM_CAP_X86_DISABLE_EXITS`).
    pub halts_in_guest: bool,
}

/// A hypervisor that KVM passes itself off as, where a guest's hypercalls are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hypercalls {
    /// None.
    Kvm,
    /// Xen, whose hypercalls go to the VMM.
    Xen,
    /// Hyper-V, once the guest has written its MSR for the guest's name.
    HyperV,
}

impl VmConfig {
    /// A guest with this many vCPUs, all of which run its program.
    #[must_use]
    pub fn new(guest: &str, vcpus: usize) -> Self {
        Self {
            guest: guest.to_owned(),
            vcpus,
            uninitialised_aps: false,
            split_irqchip: false,
            hypercalls: Hypercalls::Kvm,
            dirty_ring: false,
            without_rseq: false,
            halts_in_guest: false,
        }
    }
}

/// What the VMM passes to HOOK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookFd {
    /// The descriptor that comes with the request.
    Passed,
    /// This number, whatever it is in the VMM.
    Number(i32),
}

/// Which of the two permission ioctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permission {
    /// `KVM_INTROSPECTION_COMMAND`
    Command,
    /// `KVM_INTROSPECTION_EVENT`
    Event,
}

/// An ioctl by which a VMM writes a vCPU's state. Each writes what it has just read, but those with a vector and those that change
/// something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VcpuWrite {
    /// `KVM_SET_REGS`
    Regs,
    /// `KVM_SET_SREGS`
    Sregs,
    /// Registers in `kvm_run` that are marked dirty; they are written by the next `KVM_RUN`.
    DirtyRegs,
    /// `KVM_SET_VCPU_EVENTS`
    Events,
    /// `KVM_SET_MP_STATE`
    MpState,
    /// `KVM_SET_NESTED_STATE`
    NestedState,
    /// `KVM_SET_REGS` with the other RFLAGS.ID.
    ChangedRegs,
    /// `KVM_SET_SREGS` with another CR2.
    ChangedSregs,
    /// Registers in `kvm_run` that are marked dirty, with the other RFLAGS.ID.
    ChangedDirtyRegs,
    /// `KVM_SET_VCPU_EVENTS` with NMIs blocked if they are not, and the other way round.
    ChangedEvents,
    /// `KVM_SET_MP_STATE`: the vCPU is halted.
    ChangedMpState,
    /// `KVM_SET_VCPU_EVENTS` with an interrupt of this vector that was on its way into the guest, as after a migration.
    InjectedInterrupt(u8),
    /// `KVM_SET_VCPU_EVENTS` with an NMI that was on its way into the guest.
    InjectedNmi,
    /// `KVM_SET_VCPU_EVENTS` with an exception of this vector, without error code, that is to be delivered.
    PendingException(u8),
    /// `KVM_INTERRUPT` with this vector.
    Interrupt(u32),
    /// `KVM_SMI`: the next entry is into SMM.
    Smi,
    /// `KVM_NMI`
    Nmi,
}

/// What L1's kernel may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Advice {
    /// `MADV_MERGEABLE`: pages that are alike may become one.
    Mergeable,
    /// `MADV_COLLAPSE`: at once, huge pages.
    Collapse,
    /// `MADV_SOFT_OFFLINE`: at once, into other page frames; those that it leaves are never used again.
    SoftOffline,
}

/// What to wait for on a vCPU. Counts are since its creation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Until {
    /// `KVM_RUN` returned `EINTR` this often.
    Interrupted(u64),
    /// This exit happened this often; names as in [`VcpuStatus::exits`].
    Exit(String, u64),
    /// The guest wrote this many marks.
    Marks(usize),
    /// The thread is about to call `KVM_RUN`, or in it.
    Running,
}

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make the VM. Comes with one descriptor: the memory file that becomes guest RAM. Answer: [`Answer::Created`].
    Create(VmConfig),
    /// Let all vCPUs run.
    Run,
    /// Create one more vCPU and let it run. Answer: [`Answer::Number`], its index.
    AddVcpu,
    /// So many times `KVM_CREATE_VCPU` with an index that is taken, which must fail with EEXIST.
    AddTakenVcpu(u32),
    /// `KVM_INTROSPECTION_HOOK` with these flags. Comes with a descriptor if the fd is [`HookFd::Passed`].
    Hook {
        /// Which descriptor.
        fd: HookFd,
        /// The second u32 of the argument.
        flags: u32,
    },
    /// `KVM_INTROSPECTION_COMMAND` or `KVM_INTROSPECTION_EVENT`.
    Permit {
        /// Which ioctl.
        what: Permission,
        /// 1 grants, 0 revokes.
        allow: u32,
        /// A message or event number, or -1 for all.
        id: i32,
    },
    /// `KVM_INTROSPECTION_PREUNHOOK`
    PreUnhook,
    /// `KVM_INTROSPECTION_UNHOOK`
    Unhook,
    /// As many times HOOK on a new socket, then UNHOOK; the other ends are closed at once.
    HookCycles(u32),
    /// Send the doorbell interrupt to a vCPU.
    Ring {
        /// Its index.
        vcpu: usize,
    },
    /// Send SIGUSR1 to a vCPU's thread.
    Signal {
        /// Its index.
        vcpu: usize,
    },
    /// Take a vCPU out of `KVM_RUN` and keep it out; answered when it is out.
    Pause {
        /// Its index.
        vcpu: usize,
    },
    /// Let a paused or stopped vCPU run again.
    Resume {
        /// Its index.
        vcpu: usize,
    },
    /// `KVM_GET_REGS` of a vCPU that is out. Answer: [`Answer::Regs`].
    GetRegs {
        /// Its index.
        vcpu: usize,
    },
    /// `KVM_GET_REGS` of a vCPU that is out, so many times.
    GetRegsOften {
        /// Its index.
        vcpu: usize,
        /// How often.
        times: u32,
    },
    /// `KVM_SET_REGS` of a vCPU that is out.
    SetRegs {
        /// Its index.
        vcpu: usize,
        /// What to set.
        regs: kvm_regs,
    },
    /// Write the state of a vCPU that is out.
    Write {
        /// Its index.
        vcpu: usize,
        /// By which ioctl.
        by: VcpuWrite,
    },
    /// `KVM_RUN` of a vCPU that is out, with `immediate_exit`: KVM ends what it has begun and goes no further.
    Complete {
        /// Its index.
        vcpu: usize,
    },
    /// Take a vCPU out of `KVM_RUN` when it has read the port of the marks next; what it read is there already.
    StopAtInput {
        /// Its index.
        vcpu: usize,
    },
    /// Ask KVM for the moment at which a vCPU that is out takes an interrupt, and give it this one then, by `KVM_INTERRUPT`.
    InterruptInWindow {
        /// Its index.
        vcpu: usize,
        /// The interrupt's vector.
        vector: u8,
    },
    /// Make as many VMs more as descriptors come along, without vCPUs, and hook each on one of them.
    HookMore,
    /// `KVM_GET_MP_STATE` of a vCPU that is out; KVM carries a pending INIT out by it. Answer: [`Answer::Number`].
    GetMpState {
        /// Its index.
        vcpu: usize,
    },
    /// How often a vCPU has left the guest, by KVM's statistics. Answer: [`Answer::Number`].
    Exits {
        /// Its index.
        vcpu: usize,
    },
    /// `KVM_X86_SET_MSR_FILTER`: the guest may not write this MSR, or may write each again.
    DenyMsrWrite {
        /// Which one.
        msr: Option<u32>,
    },
    /// `KVM_SET_GUEST_DEBUG` of a vCPU that is out.
    SetGuestDebug {
        /// Its index.
        vcpu: usize,
        /// KVM_GUESTDBG_*.
        control: u32,
    },
    /// Answer: [`Answer::Status`].
    Status {
        /// Its index.
        vcpu: usize,
    },
    /// Wait. Answer: [`Answer::Status`].
    Wait {
        /// The vCPU's index.
        vcpu: usize,
        /// What for.
        until: Until,
    },
    /// Turn dirty logging of RAM on or off.
    LogDirty {
        /// On?
        on: bool,
    },
    /// `KVM_GET_DIRTY_LOG` of RAM. Answer: [`Answer::Words`], a bit per page.
    DirtyLog,
    /// Map a read-only slot of this many bytes, each 0xa5, at `layout::READ_ONLY_SLOT`.
    AddReadOnlySlot {
        /// A multiple of 4096.
        bytes: u64,
    },
    /// Map a slot of this many bytes of anonymous memory at this address.
    AddSlot {
        /// Where; a multiple of 2 MiB.
        gpa: u64,
        /// A multiple of 4096.
        bytes: u64,
    },
    /// Delete a slot that [`Request::AddSlot`] has made.
    DeleteSlot {
        /// Where it lies.
        gpa: u64,
    },
    /// Take the VMM's own right to the memory of the slot that was added last.
    HideSlot,
    /// Withhold the memory of the slot that was added last, which nobody has touched: who touches it stands still.
    WithholdSlot,
    /// Wait until somebody stands still there.
    WaitForFault,
    /// Serve what stands still there.
    ServeSlot,
    /// `madvise` about memory of a slot that [`Request::AddSlot`] has made.
    Advise {
        /// Where it begins; a multiple of 4096.
        gpa: u64,
        /// A multiple of 4096.
        bytes: u64,
        /// What.
        advice: Advice,
    },
    /// Where memory of such a slot lies in the VMM. Answer: [`Answer::Number`].
    HostAddress {
        /// Which.
        gpa: u64,
    },
    /// Delete the slot of RAM and make it again.
    RemakeRam,
    /// Make the slot of RAM that a vCPU in SMM sees.
    ShowRamToSmm,
    /// `KVM_CHECK_EXTENSION` on the VM. Answer: [`Answer::Number`].
    CheckExtension {
        /// The capability's number.
        capability: u32,
    },
    /// Destroy the VM and end.
    Exit,
}

/// A mark that the guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it wrote.
    pub value: u32,
    /// L1's TSC when the VMM saw it.
    pub tsc: u64,
}

/// What a vCPU's thread did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStatus {
    /// About to call `KVM_RUN`, or in it.
    pub running: bool,
    /// How often `KVM_RUN` returned `EINTR`.
    pub interrupted: u64,
    /// How often it returned with each exit: `shutdown`, `io`, `mmio`, `fail entry`, `internal error`, `debug`, `errno N`, ...
    pub exits: BTreeMap<String, u64>,
    /// Marks the guest wrote.
    pub marks: Vec<Mark>,
    /// How often the guest read the port of the marks.
    pub inputs: u32,
    /// How often it read memory that is in no slot; each time it got the count so far.
    pub device_reads: u32,
}

impl VcpuStatus {
    /// How often `KVM_RUN` returned with this exit.
    #[must_use]
    pub fn exits(&self, name: &str) -> u64 {
        self.exits.get(name).copied().unwrap_or(0)
    }
}

/// What comes back for a request that succeeded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// The VM is there.
    Created {
        /// The VM's descriptor number in the VMM.
        vm_fd: i32,
    },
    /// A number.
    Number(i64),
    /// Registers.
    Regs(Box<kvm_regs>),
    /// A vCPU's doings.
    Status(VcpuStatus),
    /// Words.
    Words(Vec<u64>),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: errno {errno}")]
pub struct Refusal {
    /// The errno of the system call that failed, or 0 if none did.
    pub errno: i32,
    /// What was tried.
    pub what: String,
}

/// What the VMM sends for each request.
pub type Reply = Result<Answer, Refusal>;

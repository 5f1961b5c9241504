// SPDX-License-Identifier: GPL-2.0-only
//! What happened in the guest.

use kvmi_uapi::{event, table};

/// Something that happened in the guest and may become an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// A requested pause is due.
    Pause,
    /// The guest signals to the tool.
    Hypercall,
    /// The guest executed int3.
    Breakpoint {
        /// Guest physical address of the instruction.
        gpa: u64,
        /// Its length in bytes.
        insn_len: u8,
    },
    /// The guest is about to change a control register.
    Cr {
        /// Which one: 0, 3 or 4.
        cr: u8,
        /// Value now.
        old: u64,
        /// Value that the guest writes.
        new: u64,
    },
    /// The guest does with a page what its restriction denies.
    Pf {
        /// Guest physical address.
        gpa: u64,
        /// Guest virtual address, all ones when unknown.
        gva: u64,
        /// The kind of access: one bit of [`kvmi_uapi::PageAccessEntry`].
        access: u8,
    },
    /// The exception that the tool wanted, or another in its place, is about to be delivered.
    Trap {
        /// Vector.
        nr: u8,
        /// Error code; 0 for an exception without one.
        error_code: u32,
        /// CR2, for a page fault.
        address: u64,
    },
    /// The guest changed XCR0.
    Xsetbv {
        /// Value before.
        old: u64,
        /// Value that is in place now.
        new: u64,
    },
    /// The guest is about to read or load a descriptor table register.
    Descriptor {
        /// Which one: KVMI_DESCRIPTOR_*.
        descriptor: u8,
        /// Load rather than read.
        write: bool,
    },
    /// The guest is about to change an MSR.
    Msr {
        /// Which one.
        msr: u32,
        /// Value now.
        old: u64,
        /// Value that the guest writes.
        new: u64,
    },
    /// An instruction has ended on a vCPU that is stepped.
    Singlestep,
    /// The VMM has created the vCPU while the VM was hooked.
    CreateVcpu,
}

impl Occurrence {
    /// The event's id.
    pub fn event(&self) -> u16 {
        match self {
            Self::Pause => event::PAUSE,
            Self::Hypercall => event::HYPERCALL,
            Self::Breakpoint { .. } => event::BREAKPOINT,
            Self::Cr { .. } => event::CR,
            Self::Pf { .. } => event::PF,
            Self::Trap { .. } => event::TRAP,
            Self::Xsetbv { .. } => event::XSETBV,
            Self::Descriptor { .. } => event::DESCRIPTOR,
            Self::Msr { .. } => event::MSR,
            Self::Singlestep => event::SINGLESTEP,
            Self::CreateVcpu => event::CREATE_VCPU,
        }
    }

    /// The control register or MSR that it is about; 0 for events that are switched on as a whole.
    pub(crate) fn register(&self) -> u32 {
        match self {
            Self::Cr { cr, .. } => u32::from(*cr),
            Self::Msr { msr, .. } => *msr,
            _ => 0,
        }
    }

    /// Whether the reply to this one is the reply to `other`. An instruction may access several pages, in several ways.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let page = |what: &Self| match *what {
            Self::Pf { gpa, access, .. } => (gpa >> 12, access),
            _ => (0, 0),
        };
        self.event() == other.event() && self.register() == other.register() && page(self) == page(other)
    }

    /// Whether the reply holds a value that replaces the guest's.
    pub(crate) fn takes_value(&self) -> bool {
        self.old_value().is_some()
    }

    /// What a register that is written holds before, for an event whose reply can replace the value.
    pub(crate) fn old_value(&self) -> Option<u64> {
        match *self {
            Self::Cr { old, .. } | Self::Msr { old, .. } => Some(old),
            _ => None,
        }
    }

    /// Most bytes of event reply data.
    pub(crate) fn reply_bytes(&self) -> usize {
        table::event(self.event())
            .and_then(|event| event.reply)
            .map_or(0, |reply| reply.size)
    }

    /// Whether the tool may answer RETRY.
    pub(crate) fn may_retry(&self) -> bool {
        table::event(self.event()).is_some_and(|event| event.may_retry)
    }

    /// Whether it is about an instruction that is completed when the reply is here.
    pub(crate) fn is_of_instruction(&self) -> bool {
        !matches!(
            self,
            Self::Pause | Self::Trap { .. } | Self::Singlestep | Self::CreateVcpu
        )
    }
}

/// A reply that holds a value is read as that of CR.
const _: () = assert!(size_of::<event::MsrReply>() == size_of::<event::CrReply>());

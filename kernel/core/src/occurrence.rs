// SPDX-License-Identifier: GPL-2.0-only
//! What happened in the guest.

use kvmi_uapi::event;

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
        }
    }

    /// The control register that it is about; 0 for other events.
    pub(crate) fn cr(&self) -> u8 {
        match self {
            Self::Cr { cr, .. } => *cr,
            _ => 0,
        }
    }

    /// Whether the reply to this one is the reply to `other`. An instruction may access several pages, in several ways.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let page = |what: &Self| match *what {
            Self::Pf { gpa, access, .. } => (gpa >> 12, access),
            _ => (0, 0),
        };
        self.event() == other.event() && self.cr() == other.cr() && page(self) == page(other)
    }

    /// Most bytes of event reply data.
    pub(crate) fn reply_bytes(&self) -> usize {
        match self {
            Self::Cr { .. } => size_of::<event::CrReply>(),
            _ => 0,
        }
    }

    /// Whether the tool may answer RETRY.
    pub(crate) fn may_retry(&self) -> bool {
        matches!(self, Self::Breakpoint { .. } | Self::Pf { .. })
    }
}

// SPDX-License-Identifier: GPL-2.0-only
//! Section 5 of docs/protocol.md as a table. A new event gets a row.

use std::collections::BTreeSet;

use kvmi_core::Occurrence;
use kvmi_uapi::{event, msg};
use proptest::prelude::*;

/// What a tool switched on, on one vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Switches {
    /// By VCPU_CONTROL_EVENTS.
    pub(crate) events: BTreeSet<u16>,
    /// By VCPU_CONTROL_CR.
    pub(crate) crs: BTreeSet<u8>,
    /// By VCPU_CONTROL_MSR.
    pub(crate) msrs: BTreeSet<u32>,
    /// By VCPU_CONTROL_SINGLESTEP.
    pub(crate) singlestep: bool,
}

/// The MSRs that guests write. One has the number of a control register.
pub(crate) const MSRS: &[u32] = &[3, 0x174, 0xc000_0080];

/// In [`Switches::intercepts`]: the vCPU is stepped, which ends with the session whatever VM_CONTROL_CLEANUP said.
pub(crate) const STEPPED: u32 = 1 << 31;

impl Switches {
    /// A bit each for #BP, for writes of CR0, CR3 and CR4, for descriptor tables, for any MSR and for each of [`MSRS`], and for
    /// stepping: what the CPU has to intercept for the tool.
    pub(crate) fn intercepts(&self) -> u32 {
        let mut bits = u32::from(self.events.contains(&event::BREAKPOINT));
        if self.singlestep {
            bits |= STEPPED;
        }
        if self.events.contains(&event::CR) {
            bits |= self.crs.iter().map(|cr| 2 << cr).sum::<u32>();
        }
        bits |= u32::from(self.events.contains(&event::DESCRIPTOR)) << 6;
        if self.events.contains(&event::MSR) {
            bits |= u32::from(!self.msrs.is_empty()) << 7;
            for (at, msr) in MSRS.iter().enumerate() {
                bits |= u32::from(self.msrs.contains(msr)) << (8 + at);
            }
        }
        bits
    }
}

/// A vCPU event.
pub(crate) struct Event {
    pub(crate) id: u16,
    pub(crate) name: &'static str,
    /// Whether RETRY is legal.
    pub(crate) retry: bool,
    /// Bytes of the event's reply structure.
    pub(crate) reply_bytes: usize,
    /// Whether it is about an instruction, which is completed by the reply and happens anew when the VMM writes registers.
    pub(crate) of_instruction: bool,
    /// Whether the tool switched on what this is about; the VMM's permission is another matter.
    pub(crate) enabled: fn(&Switches, &Occurrence) -> bool,
    /// The event's data; None for an occurrence of another event.
    pub(crate) data: fn(&Occurrence) -> Option<Vec<u8>>,
    /// Such things as may happen in the guest; none where the tool asks for the event.
    pub(crate) happens: fn() -> Option<BoxedStrategy<Occurrence>>,
    /// What a tool sends to have it: commands with their requests.
    pub(crate) ask: &'static [(u16, &'static [u8])],
    /// One for each answer that "is this wanted" can have.
    pub(crate) examples: &'static [Occurrence],
}

const fn cr(cr: u8) -> Occurrence {
    Occurrence::Cr { cr, old: 0, new: 0 }
}

const fn msr(msr: u32) -> Occurrence {
    Occurrence::Msr { msr, old: 0, new: 0 }
}

pub(crate) const EVENTS: &[Event] = &[
    Event {
        id: event::PAUSE,
        name: "PAUSE",
        retry: false,
        reply_bytes: 0,
        of_instruction: false,
        enabled: |_, _| true,
        data: |what| matches!(what, Occurrence::Pause).then(Vec::new),
        happens: || None,
        ask: &[],
        examples: &[Occurrence::Pause],
    },
    Event {
        id: event::HYPERCALL,
        name: "HYPERCALL",
        retry: false,
        reply_bytes: 0,
        of_instruction: true,
        enabled: |on, _| on.events.contains(&event::HYPERCALL),
        data: |what| matches!(what, Occurrence::Hypercall).then(Vec::new),
        happens: || Some(Just(Occurrence::Hypercall).boxed()),
        ask: &[(msg::VCPU_CONTROL_EVENTS, &[event::HYPERCALL as u8, 0, 1])],
        examples: &[Occurrence::Hypercall],
    },
    Event {
        id: event::BREAKPOINT,
        name: "BREAKPOINT",
        retry: true,
        reply_bytes: 0,
        of_instruction: true,
        enabled: |on, _| on.events.contains(&event::BREAKPOINT),
        data: |what| match *what {
            Occurrence::Breakpoint { gpa, insn_len } => Some(bytes(&[gpa, u64::from(insn_len)])),
            _ => None,
        },
        happens: || {
            let gpa = prop_oneof![Just(0x1000), Just(u64::MAX)];
            let what = (gpa, 1u8..4).prop_map(|(gpa, insn_len)| Occurrence::Breakpoint { gpa, insn_len });
            Some(what.boxed())
        },
        ask: &[(msg::VCPU_CONTROL_EVENTS, &[event::BREAKPOINT as u8, 0, 1])],
        examples: &[Occurrence::Breakpoint { gpa: 0, insn_len: 1 }],
    },
    Event {
        id: event::CR,
        name: "CR",
        retry: false,
        reply_bytes: 8,
        of_instruction: true,
        enabled: |on, what| match what {
            Occurrence::Cr { cr, .. } => on.events.contains(&event::CR) && on.crs.contains(cr),
            _ => false,
        },
        data: |what| match *what {
            Occurrence::Cr { cr, old, new } => Some(bytes(&[u64::from(cr), old, new])),
            _ => None,
        },
        happens: || {
            let register = proptest::sample::select(&[0u8, 3, 4][..]);
            let what = (register, 0u64..9, 0u64..9).prop_map(|(cr, old, new)| Occurrence::Cr { cr, old, new });
            Some(what.boxed())
        },
        ask: &[
            (msg::VCPU_CONTROL_EVENTS, &[event::CR as u8, 0, 1]),
            (msg::VCPU_CONTROL_CR, &[0, 1]),
            (msg::VCPU_CONTROL_CR, &[3, 1]),
            (msg::VCPU_CONTROL_CR, &[4, 1]),
        ],
        examples: &[cr(0), cr(3), cr(4)],
    },
    Event {
        id: event::TRAP,
        name: "TRAP",
        retry: false,
        reply_bytes: 0,
        of_instruction: false,
        enabled: |_, _| true,
        data: |what| match *what {
            Occurrence::Trap {
                nr,
                error_code,
                address,
            } => Some(bytes(&[u64::from(nr) | u64::from(error_code) << 32, address])),
            _ => None,
        },
        happens: || None,
        ask: &[],
        examples: &[Occurrence::Trap {
            nr: 6,
            error_code: 0,
            address: 0,
        }],
    },
    Event {
        id: event::XSETBV,
        name: "XSETBV",
        retry: false,
        reply_bytes: 0,
        of_instruction: true,
        enabled: |on, _| on.events.contains(&event::XSETBV),
        data: |what| match *what {
            Occurrence::Xsetbv { old, new } => Some(bytes(&[0, old, new])),
            _ => None,
        },
        happens: || {
            let what = (0u64..9, 0u64..9).prop_map(|(old, new)| Occurrence::Xsetbv { old, new });
            Some(what.boxed())
        },
        ask: &[(msg::VCPU_CONTROL_EVENTS, &[event::XSETBV as u8, 0, 1])],
        examples: &[Occurrence::Xsetbv { old: 0, new: 0 }],
    },
    Event {
        id: event::DESCRIPTOR,
        name: "DESCRIPTOR",
        retry: true,
        reply_bytes: 0,
        of_instruction: true,
        enabled: |on, _| on.events.contains(&event::DESCRIPTOR),
        data: |what| match *what {
            Occurrence::Descriptor { descriptor, write } => {
                Some(bytes(&[u64::from(descriptor) | u64::from(write) << 8]))
            }
            _ => None,
        },
        happens: || {
            let what =
                (1u8..5, any::<bool>()).prop_map(|(descriptor, write)| Occurrence::Descriptor { descriptor, write });
            Some(what.boxed())
        },
        ask: &[(msg::VCPU_CONTROL_EVENTS, &[event::DESCRIPTOR as u8, 0, 1])],
        examples: &[Occurrence::Descriptor {
            descriptor: 1,
            write: false,
        }],
    },
    Event {
        id: event::MSR,
        name: "MSR",
        retry: false,
        reply_bytes: 8,
        of_instruction: true,
        enabled: |on, what| match what {
            Occurrence::Msr { msr, .. } => on.events.contains(&event::MSR) && on.msrs.contains(msr),
            _ => false,
        },
        data: |what| match *what {
            Occurrence::Msr { msr, old, new } => Some(bytes(&[u64::from(msr), old, new])),
            _ => None,
        },
        happens: || {
            let msr = proptest::sample::select(MSRS);
            let what = (msr, 0u64..9, 0u64..9).prop_map(|(msr, old, new)| Occurrence::Msr { msr, old, new });
            Some(what.boxed())
        },
        ask: &[
            (msg::VCPU_CONTROL_EVENTS, &[event::MSR as u8, 0, 1]),
            (msg::VCPU_CONTROL_MSR, &[1, 0, 0, 0, 3, 0, 0, 0]),
            (msg::VCPU_CONTROL_MSR, &[1, 0, 0, 0, 0x74, 1, 0, 0]),
            (msg::VCPU_CONTROL_MSR, &[1, 0, 0, 0, 0x80, 0, 0, 0xc0]),
        ],
        examples: &[msr(3), msr(0x174), msr(0xc000_0080)],
    },
    Event {
        id: event::PF,
        name: "PF",
        retry: true,
        reply_bytes: 0,
        of_instruction: true,
        enabled: |on, _| on.events.contains(&event::PF),
        data: |what| match *what {
            Occurrence::Pf { gpa, gva, access } => Some(bytes(&[gva, gpa, u64::from(access)])),
            _ => None,
        },
        happens: || {
            let gpa = proptest::sample::select(&[0x1000u64, 0x1008, 0x2000][..]);
            let gva = prop_oneof![Just(0x7000), Just(u64::MAX)];
            let access = proptest::sample::select(&[1u8, 2, 4][..]);
            let what = (gpa, gva, access).prop_map(|(gpa, gva, access)| Occurrence::Pf { gpa, gva, access });
            Some(what.boxed())
        },
        ask: &[(msg::VCPU_CONTROL_EVENTS, &[event::PF as u8, 0, 1])],
        examples: &[Occurrence::Pf {
            gpa: 0x1000,
            gva: 0,
            access: 2,
        }],
    },
    Event {
        id: event::SINGLESTEP,
        name: "SINGLESTEP",
        retry: false,
        reply_bytes: 0,
        of_instruction: false,
        enabled: |on, _| on.singlestep,
        data: |what| matches!(what, Occurrence::Singlestep).then(|| bytes(&[0])),
        happens: || Some(Just(Occurrence::Singlestep).boxed()),
        ask: &[(msg::VCPU_CONTROL_SINGLESTEP, &[1])],
        examples: &[Occurrence::Singlestep],
    },
    Event {
        id: event::CREATE_VCPU,
        name: "CREATE_VCPU",
        retry: false,
        reply_bytes: 0,
        of_instruction: false,
        enabled: |_, _| true,
        data: |what| matches!(what, Occurrence::CreateVcpu).then(Vec::new),
        happens: || None,
        ask: &[(msg::VM_CONTROL_EVENTS, &[event::CREATE_VCPU as u8, 0, 1])],
        examples: &[Occurrence::CreateVcpu],
    },
];

/// Structures of u64, and of a small value with padding up to the next (the byte order is the host's: little).
fn bytes(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Event {
    pub(crate) fn of(what: &Occurrence) -> &'static Self {
        EVENTS
            .iter()
            .find(|event| (event.data)(what).is_some())
            .expect("a row of EVENTS for each occurrence: give the new event one")
    }

    pub(crate) fn by_id(id: u16) -> Option<&'static Self> {
        EVENTS.iter().find(|event| event.id == id)
    }
}

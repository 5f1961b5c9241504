// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands as a tool would send them, with values by chance: right in each field, whether this is the moment for them or not.

use kvmi_guests::layout;
use kvmi_uapi::{PageAccessEntry, event, msg};

use super::generator::Generator;
use crate::conformance::good_request;

/// Bytes of an entry of VM_SET_PAGE_ACCESS.
pub(super) const PAGE_ENTRY: usize = size_of::<PageAccessEntry>();

const PAGE_BYTES: u64 = 4096;

/// Beyond the guest's memory.
const NOWHERE: u64 = 1 << 40;

/// MSRs that a guest has, of which KVM intercepts some and passes others through: SYSENTER_CS, PAT, EFER, STAR, LSTAR, KERNEL_GS_BASE.
const MSRS: [u32; 6] = [0x174, 0x277, 0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0102];

/// Leaves of CPUID, one of which is in no table.
const LEAVES: [u32; 6] = [0, 1, 7, 0xd, 0x8000_0000, 0x5000_0000];

impl Generator {
    /// The payload of a command.
    pub(super) fn right(&mut self, id: u16, vcpus: u16) -> Vec<u8> {
        let mut payload = Vec::new();
        if msg::is_vcpu(id) {
            payload.extend(self.vcpu(vcpus).to_ne_bytes());
            payload.resize(8, 0);
        }
        let enable = self.below(2) as u8;
        match id {
            msg::VM_CHECK_COMMAND => payload.extend(self.known().to_ne_bytes()),
            msg::VM_CHECK_EVENT => payload.extend(self.event().to_ne_bytes()),
            msg::VM_CONTROL_EVENTS => {
                payload.extend(self.pick(&[event::UNHOOK, event::CREATE_VCPU]).to_ne_bytes());
                payload.push(enable);
            }
            msg::VCPU_CONTROL_EVENTS => {
                let event = self.event();
                // Those that VM_CONTROL_EVENTS switches are none of this one.
                let is_of_vm = matches!(event, event::UNHOOK | event::CREATE_VCPU);
                payload.extend(if is_of_vm { event::CR } else { event }.to_ne_bytes());
                payload.push(enable);
            }
            msg::VM_READ_PHYSICAL => {
                let bytes = self.pick(&[1u16, 8, 64, 512, 4096]);
                payload.extend(self.range(bytes).to_ne_bytes());
                payload.extend(bytes.to_ne_bytes());
            }
            msg::VM_WRITE_PHYSICAL => {
                let bytes = self.pick(&[1u16, 2, 4, 7, 8, 512]);
                payload.extend(self.range(bytes).to_ne_bytes());
                payload.extend(bytes.to_ne_bytes());
                payload.resize(16, 0);
                payload.extend(self.bytes(bytes.into()));
            }
            msg::VM_PAUSE_VCPU => {
                payload.extend(self.vcpu(vcpus).to_ne_bytes());
                payload.push(enable);
            }
            msg::VM_CONTROL_CLEANUP => payload.push(enable),
            msg::VCPU_CONTROL_SINGLESTEP => payload.extend([enable, self.below(2) as u8]),
            msg::VM_GET_VCPU_STATES => {
                let first = self.below(u64::from(vcpus) + 1) as u16;
                payload.extend(first.to_ne_bytes());
                payload.extend((self.below(u64::from(vcpus - first) + 1) as u16).to_ne_bytes());
            }
            msg::VM_SET_PAGE_ACCESS | msg::VM_GET_PAGE_ACCESS => {
                let count = self.below(5) as u16;
                payload.extend(count.to_ne_bytes());
                payload.resize(8, 0);
                for _ in 0..count {
                    payload.extend(self.range(1).to_ne_bytes());
                    payload.push(self.pick(&[0, 1, 3, 4, 5, 5, 7, 7]));
                    payload.resize(payload.len().next_multiple_of(8), 0);
                }
            }
            msg::VCPU_GET_REGISTERS => {
                let msrs = self.below(4) as u16;
                payload.extend(msrs.to_ne_bytes());
                payload.resize(16, 0);
                for _ in 0..msrs {
                    payload.extend(self.pick(&MSRS).to_ne_bytes());
                }
            }
            // Without an event that is open there is no moment for it.
            msg::VCPU_SET_REGISTERS => payload.resize(8 + 143, 0),
            msg::VCPU_GET_CPUID => payload.extend(
                [self.pick(&LEAVES), self.below(2) as u32]
                    .map(u32::to_ne_bytes)
                    .concat(),
            ),
            msg::VCPU_CONTROL_CR => payload.extend([self.pick(&[0, 3, 4]), enable]),
            msg::VCPU_SET_XSAVE => payload.resize(8 + 4096, 0),
            msg::VCPU_GET_MTRR_TYPE => payload.extend(self.range(1).to_ne_bytes()),
            msg::VCPU_TRANSLATE_GVA => {
                payload.extend(self.range(1).to_ne_bytes());
                payload.extend(self.range(1).to_ne_bytes());
                payload.push(enable);
            }
            msg::VCPU_CONTROL_MSR => {
                payload.extend(u32::from(enable).to_ne_bytes());
                let any = self.pick(&[0, 0xc000_0000]) + self.below(0x2000) as u32;
                payload.extend(self.pick(&[MSRS[0], MSRS[3], any, any]).to_ne_bytes());
            }
            // Where nothing is to be chosen, the request of `conformance::`.
            _ => payload.extend(good_request(id)),
        }
        // What is not said is zero, and all have whole words.
        payload.resize(payload.len().next_multiple_of(8), 0);
        payload
    }

    fn vcpu(&mut self, vcpus: u16) -> u16 {
        self.below(vcpus.into()) as u16
    }

    pub(super) fn event(&mut self) -> u16 {
        event::ALL[self.below(event::ALL.len() as u64) as usize].0
    }

    /// Where so many bytes lie in a page, in scratch memory as a rule.
    fn range(&mut self, bytes: u16) -> u64 {
        let page = match self.below(16) {
            0 => NOWHERE + self.below(1 << 20) * PAGE_BYTES,
            _ => layout::SCRATCH + self.below((layout::RAM_BYTES - layout::SCRATCH) / PAGE_BYTES) * PAGE_BYTES,
        };
        page + self.below(PAGE_BYTES - u64::from(bytes) + 1)
    }
}

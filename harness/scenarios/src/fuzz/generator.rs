// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages by chance, from a seed.

use kvmi_guests::layout;
use kvmi_uapi::{MAX_PAYLOAD, MsgHdr, PageAccessEntry, msg};
use zerocopy::IntoBytes;

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Material {
    /// A message whose header tells the truth.
    Message {
        /// Its id.
        id: u16,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// Bytes that close the connection: an oversized or truncated message, or noise.
    Bytes(Vec<u8>),
}

/// Bytes of an entry of VM_SET_PAGE_ACCESS.
const PAGE_ENTRY: usize = size_of::<PageAccessEntry>();

/// Commands and how long their data are, without the vCPU header.
const SHAPES: [(u16, usize); 24] = [
    (msg::GET_VERSION, 0),
    (msg::VM_CHECK_COMMAND, 8),
    (msg::VM_CHECK_EVENT, 8),
    (msg::VM_GET_INFO, 0),
    (msg::VM_CONTROL_EVENTS, 8),
    (msg::VM_READ_PHYSICAL, 16),
    (msg::VM_WRITE_PHYSICAL, 24),
    (msg::VM_PAUSE_VCPU, 8),
    (msg::VM_CONTROL_CLEANUP, 8),
    (msg::VM_SET_PAGE_ACCESS, 8 + 2 * PAGE_ENTRY),
    (msg::VM_GET_PAGE_ACCESS, 8 + 2 * PAGE_ENTRY),
    (msg::VCPU_GET_INFO, 0),
    (msg::VCPU_CONTROL_EVENTS, 8),
    (msg::VCPU_GET_REGISTERS, 8),
    (msg::VCPU_SET_REGISTERS, 100),
    (msg::VCPU_GET_CPUID, 8),
    (msg::VCPU_CONTROL_CR, 8),
    (msg::VCPU_GET_XCR, 8),
    (msg::VCPU_GET_XSAVE, 0),
    (msg::VCPU_SET_XSAVE, 4096),
    (msg::VCPU_GET_MTRR_TYPE, 8),
    (msg::VCPU_CONTROL_MSR, 8),
    (msg::VCPU_CONTROL_SINGLESTEP, 8),
    (msg::VCPU_TRANSLATE_GVA, 8),
];

/// Whether the kernel carries this command out today.
pub(super) fn is_carried_out(id: u16) -> bool {
    SHAPES.iter().any(|(command, _)| *command == id)
}

/// A sequence of messages.
#[derive(Debug)]
pub(super) struct Generator {
    state: u64,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number of the sequence (splitmix64, by Sebastiano Vigna, public domain).
    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next_u64() as u8).collect()
    }

    /// The next message.
    pub(super) fn next(&mut self, vcpus: u16) -> Material {
        match self.below(1000) {
            0 => Material::Bytes(self.oversized()),
            1 => Material::Bytes(self.truncated()),
            2 => {
                let count = 1 + self.below(200) as usize;
                Material::Bytes(self.bytes(count))
            }
            3 => self.event_reply(vcpus),
            4..=99 => {
                let (id, count) = (self.next_u64() as u16, self.below(128) as usize);
                let payload = self.bytes(count);
                sane(id, payload)
            }
            100..=109 => {
                let id = self.known().0;
                let payload = vec![self.next_u64() as u8; MAX_PAYLOAD - self.below(3) as usize];
                sane(id, payload)
            }
            110..=299 => {
                let (id, count) = (self.known().0, self.below(64) as usize);
                let payload = self.bytes(count);
                sane(id, payload)
            }
            _ => self.nearly_right(vcpus),
        }
    }

    fn known(&mut self) -> (u16, usize) {
        SHAPES[self.below(SHAPES.len() as u64) as usize]
    }

    /// A command whose fields are chosen among values at and beyond the limits.
    fn nearly_right(&mut self, vcpus: u16) -> Material {
        let (id, size) = self.known();
        let mut payload = Vec::new();
        if msg::is_vcpu(id) {
            let vcpu = self.pick(&[0, 0, 0, vcpus - 1, vcpus - 1, vcpus, 0xffff]);
            let padding = self.pick(&[0, 0, 0, 0, 0, 0, 0, 1]);
            payload.extend([vcpu, padding, 0, 0].iter().flat_map(|word| word.to_ne_bytes()));
        }
        let start = payload.len();
        payload.resize(start + size, 0);
        if size >= 8 {
            match id {
                msg::VM_READ_PHYSICAL | msg::VM_WRITE_PHYSICAL => {
                    let nowhere = self.next_u64();
                    let gpa = match self.below(4) {
                        0 => nowhere | 1 << 40,
                        1 => layout::RAM_BYTES + self.below(1 << 20),
                        _ => layout::SCRATCH + self.below(layout::RAM_BYTES - layout::SCRATCH),
                    };
                    payload[start..start + 8].copy_from_slice(&gpa.to_ne_bytes());
                    let sizes = if id == msg::VM_READ_PHYSICAL {
                        [1, 8, 64, 4096, 4097, 0]
                    } else {
                        [1, 2, 4, 7, 8, 0]
                    };
                    let bytes: u16 = sizes[self.below(6) as usize];
                    payload[start + 8..start + 10].copy_from_slice(&bytes.to_ne_bytes());
                }
                msg::VM_SET_PAGE_ACCESS | msg::VM_GET_PAGE_ACCESS => {
                    let count = self.pick(&[0, 1, 1, 2, 2, 2, 2, 3, 0xffff]);
                    payload[start..start + 2].copy_from_slice(&count.to_ne_bytes());
                    for entry in payload[start + 8..].chunks_mut(PAGE_ENTRY) {
                        let gpa = layout::SCRATCH + self.below(layout::RAM_BYTES - layout::SCRATCH + (1 << 20));
                        entry[..8].copy_from_slice(&gpa.to_ne_bytes());
                        entry[8] = self.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 8]) as u8;
                    }
                }
                // Its first field counts MSRs, whose indices follow.
                msg::VCPU_GET_REGISTERS => {
                    let msrs = self.pick(&[0, 0, 0, 1, 2, 481, 482, 0xffff]);
                    payload[start..start + 2].copy_from_slice(&msrs.to_ne_bytes());
                    let indices = self.pick(&[0, 1, 2, msrs.min(481)]);
                    for _ in 0..indices {
                        payload
                            .extend([0xc000_0080u32, 0xc000_0081, 0x1234_5678][self.below(3) as usize].to_ne_bytes());
                    }
                }
                _ => {
                    let first = self.pick(&[0, 1, 2, 3, 4, 5, 7, 8, 20, 128, 255, 256, 0xffff]);
                    payload[start..start + 2].copy_from_slice(&first.to_ne_bytes());
                    payload[start + 2] = self.pick(&[0, 0, 1, 1, 2, 255]) as u8;
                }
            }
            // Now and then a byte of padding.
            if self.below(8) == 0 {
                let at = start + self.below(size.min(16) as u64) as usize;
                payload[at] = self.next_u64() as u8;
            }
        }
        // Older tools send less, newer ones more.
        match self.below(10) {
            0 => payload.truncate(self.below(payload.len() as u64 + 1) as usize),
            1 => {
                let count = self.below(32) as usize;
                let tail = self.bytes(count);
                payload.extend(tail);
            }
            _ => {}
        }
        sane(id, payload)
    }

    fn pick(&mut self, among: &[u16]) -> u16 {
        among[self.below(among.len() as u64) as usize]
    }

    /// A reply to no event.
    fn event_reply(&mut self, vcpus: u16) -> Material {
        let vcpu = self.pick(&[0, vcpus - 1, vcpus, 0xffff]);
        let mut payload: Vec<u8> = [vcpu, 0, 0, 0]
            .iter()
            .flat_map(|word: &u16| word.to_ne_bytes())
            .collect();
        let count = self.below(32) as usize;
        payload.extend(self.bytes(count));
        Material::Message {
            id: msg::VCPU_EVENT,
            payload,
        }
    }

    fn oversized(&mut self) -> Vec<u8> {
        let header = MsgHdr {
            id: self.next_u64() as u16,
            size: (MAX_PAYLOAD as u64 + 1 + self.below(0xffff - MAX_PAYLOAD as u64)) as u16,
            seq: self.next_u64() as u32,
        };
        header.as_bytes().to_vec()
    }

    fn truncated(&mut self) -> Vec<u8> {
        let size = 1 + self.below(MAX_PAYLOAD as u64) as u16;
        let header = MsgHdr {
            id: self.known().0,
            size,
            seq: self.next_u64() as u32,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(bytes.len() + usize::from(size), 0);
        bytes.truncate(1 + self.below(bytes.len() as u64 - 1) as usize);
        bytes
    }
}

/// Keeps from the guest what would end it: registers that fit, and writes elsewhere than into scratch memory.
fn sane(id: u16, mut payload: Vec<u8>) -> Material {
    match id {
        msg::VCPU_SET_REGISTERS => payload.truncate(8 + 143),
        msg::VM_WRITE_PHYSICAL if payload.len() >= 8 => {
            let gpa = u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| payload[i]));
            if gpa < layout::SCRATCH {
                payload[..8].copy_from_slice(&(gpa + layout::SCRATCH).to_ne_bytes());
            }
        }
        // What the program uses is left as it is.
        msg::VM_SET_PAGE_ACCESS => {
            for entry in payload.get_mut(8..).unwrap_or_default().chunks_mut(PAGE_ENTRY) {
                // A cut entry's address is not looked at.
                if let Some(address) = entry.first_chunk_mut::<8>() {
                    let gpa = u64::from_ne_bytes(*address);
                    if gpa < layout::SCRATCH {
                        *address = (gpa + layout::SCRATCH).to_ne_bytes();
                    }
                }
            }
        }
        // Without an address it is address 0.
        msg::VM_WRITE_PHYSICAL => payload.clear(),
        _ => {}
    }
    Material::Message { id, payload }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_messages() {
        let messages = |seed| {
            let mut generator = Generator::new(seed);
            (0..10_000).map(|_| generator.next(2)).collect::<Vec<_>>()
        };
        assert_eq!(messages(1), messages(1));
        assert_ne!(messages(1), messages(2));
    }

    #[test]
    fn payloads_fit() {
        let mut generator = Generator::new(7);
        for _ in 0..100_000 {
            if let Material::Message { payload, .. } = generator.next(2) {
                assert!(payload.len() <= MAX_PAYLOAD);
            }
        }
    }
}

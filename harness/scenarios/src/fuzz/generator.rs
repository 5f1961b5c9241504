// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages by chance, from a seed.

use kvmi_guests::layout;
use kvmi_uapi::table::{self, Short};
use kvmi_uapi::{MAX_PAYLOAD, MsgHdr, msg};
use zerocopy::IntoBytes;

use super::right::PAGE_ENTRY;

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
    pub(super) fn next_u64(&mut self) -> u64 {
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

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next_u64().to_ne_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// The next message.
    pub(super) fn next(&mut self, vcpus: u16) -> Material {
        match self.below(2000) {
            0 => Material::Bytes(self.oversized()),
            1 => Material::Bytes(self.truncated()),
            2 => {
                let count = 1 + self.below(200) as usize;
                Material::Bytes(self.bytes(count))
            }
            3 => self.event_reply(vcpus),
            4..=79 => {
                let (id, count) = (self.next_u64() as u16, self.below(128) as usize);
                let payload = self.bytes(count);
                self.sane(id, payload)
            }
            80..=89 => {
                let id = self.known();
                let payload = vec![self.next_u64() as u8; MAX_PAYLOAD - self.below(3) as usize];
                self.sane(id, payload)
            }
            90..=249 => {
                let (id, count) = (self.known(), self.below(64) as usize);
                let payload = self.bytes(count);
                self.sane(id, payload)
            }
            250..=849 => {
                let id = self.known();
                let mut payload = self.right(id, vcpus);
                self.spoil(id, &mut payload, vcpus);
                self.sane(id, payload)
            }
            _ => {
                let id = self.known();
                let payload = self.right(id, vcpus);
                self.sane(id, payload)
            }
        }
    }

    pub(super) fn known(&mut self) -> u16 {
        msg::COMMANDS[self.below(msg::COMMANDS.len() as u64) as usize].0
    }

    /// Makes one thing of a message otherwise than it should be, or what an older or a newer tool would send.
    fn spoil(&mut self, id: u16, payload: &mut Vec<u8>, vcpus: u16) {
        let size = payload.len() as u64;
        match self.below(5) {
            0 if msg::is_vcpu(id) => {
                let vcpu = self.pick(&[vcpus, 0x7fff, 0xffff]);
                payload[..2].copy_from_slice(&vcpu.to_ne_bytes());
            }
            1 => payload.truncate(self.below(size + 1) as usize),
            2 => {
                let count = 1 + self.below(32) as usize;
                payload.extend(self.bytes(count));
            }
            // Values at and beyond the limits of fields.
            3 if size >= 2 => {
                let at = 2 * self.below(size / 2) as usize;
                let value = self.pick(&[
                    0u16, 1, 2, 3, 8, 20, 128, 255, 256, 481, 482, 4096, 4097, 0x7fff, 0xffff,
                ]);
                payload[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
            _ if size > 0 => payload[self.below(size.min(24)) as usize] = self.next_u64() as u8,
            _ => {}
        }
    }

    pub(super) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
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
            id: self.known(),
            size,
            seq: self.next_u64() as u32,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(bytes.len() + usize::from(size), 0);
        bytes.truncate(1 + self.below(bytes.len() as u64 - 1) as usize);
        bytes
    }

    /// Keeps from the guest what would end it: registers that fit, writes elsewhere than into scratch memory, exceptions. And as a rule from
    /// the connection what closes it, so that sessions come to have a past.
    fn sane(&mut self, id: u16, mut payload: Vec<u8>) -> Material {
        match id {
            msg::VCPU_SET_REGISTERS => payload.truncate(8 + 143),
            msg::VM_WRITE_PHYSICAL if payload.len() >= 8 => into_scratch(&mut payload),
            // Without an address it is address 0.
            msg::VM_WRITE_PHYSICAL => payload.clear(),
            // What the program uses is left as it is.
            msg::VM_SET_PAGE_ACCESS => {
                let entries = payload.get_mut(8..).unwrap_or_default();
                entries.chunks_mut(PAGE_ENTRY).for_each(into_scratch);
            }
            // Where it is missing it is number 0, a division by zero.
            msg::VCPU_INJECT_EXCEPTION => {
                payload.resize(payload.len().max(24), 0);
                payload[8] |= 0x80;
            }
            _ => {}
        }
        if self.below(8) != 0 {
            mend_counts(id, &mut payload);
        }
        Material::Message { id, payload }
    }
}

/// Has an address at the beginning lie in scratch memory or behind it. One that is cut off is not looked at.
fn into_scratch(from: &mut [u8]) {
    if let Some(address) = from.first_chunk_mut::<8>() {
        let gpa = u64::from_ne_bytes(*address);
        if gpa < layout::SCRATCH {
            *address = (gpa + layout::SCRATCH).to_ne_bytes();
        }
    }
}

/// Makes no count larger than what follows it, of those that close the connection.
fn mend_counts(id: u16, payload: &mut [u8]) {
    let Some(row) = table::command(id).filter(|row| row.short == Short::Closes) else {
        return;
    };
    let Some(tail) = &row.request.tail else { return };
    let at = tail.count_at;
    let follow = payload.len().saturating_sub(row.request.head_bytes()) / tail.unit.size;
    if let Some(count) = payload.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>)
        && usize::from(u16::from_ne_bytes(*count)) > follow
    {
        *count = (follow as u16).to_ne_bytes();
    } else if payload.len() == at + 1 {
        payload[at] = 0;
    }
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

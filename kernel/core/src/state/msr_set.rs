// SPDX-License-Identifier: GPL-2.0-only
//! A set of MSRs.
//!
//! Hardware can be told of those in two ranges one by one, so that any number of them may be watched. A write of any
//! other leaves the guest anyway; of these a limited number is kept, in order.

use kvmi_uapi::MAX_OTHER_MSRS;

/// MSRs in each of the two ranges, 0 to 0x1fff and 0xc0000000 to 0xc0001fff.
const RANGE: u32 = 0x2000;
const HIGH: u32 = 0xc000_0000;
const WORDS: usize = (RANGE / 64) as usize;

#[derive(Debug)]
pub(crate) struct MsrSet {
    low: [u64; WORDS],
    high: [u64; WORDS],
    /// Ascending as far as `others_count`, then zero.
    others: [u32; MAX_OTHER_MSRS],
    others_count: usize,
    count: u32,
    /// How often it changed, wrapping.
    changes: u32,
}

impl Default for MsrSet {
    fn default() -> Self {
        Self {
            low: [0; WORDS],
            high: [0; WORDS],
            others: [0; MAX_OTHER_MSRS],
            others_count: 0,
            count: 0,
            changes: 0,
        }
    }
}

impl MsrSet {
    pub(crate) fn has(&self, msr: u32) -> bool {
        match in_range(msr) {
            Some(_) => self.word(msr).is_some_and(|word| word & bit(msr) != 0),
            None => self.find(msr).is_ok(),
        }
    }

    /// Puts an MSR in or takes it out; false when there is no room.
    pub(crate) fn set(&mut self, msr: u32, member: bool) -> bool {
        if self.has(msr) == member {
            return true;
        }
        let is_done = match in_range(msr) {
            Some(is_high) => {
                let half = if is_high { &mut self.high } else { &mut self.low };
                half.get_mut(index(msr)).map(|word| *word ^= bit(msr)).is_some()
            }
            None if member => self.insert(msr).is_some(),
            None => self.remove(msr).is_some(),
        };
        if is_done {
            self.changes = self.changes.wrapping_add(1);
            self.count = if member {
                self.count.saturating_add(1)
            } else {
                self.count.saturating_sub(1)
            };
        }
        is_done
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    fn word(&self, msr: u32) -> Option<u64> {
        let half = if in_range(msr)? { &self.high } else { &self.low };
        half.get(index(msr)).copied()
    }

    /// Where an MSR of neither range is, or would be.
    fn find(&self, msr: u32) -> Result<usize, usize> {
        self.others
            .get(..self.others_count)
            .unwrap_or_default()
            .binary_search(&msr)
    }

    fn insert(&mut self, msr: u32) -> Option<()> {
        let place = self.find(msr).err()?;
        let count = self.others_count.checked_add(1)?;
        let mut carried = msr;
        for slot in self.others.get_mut(place..count)? {
            carried = core::mem::replace(slot, carried);
        }
        self.others_count = count;
        Some(())
    }

    fn remove(&mut self, msr: u32) -> Option<()> {
        let place = self.find(msr).ok()?;
        let mut carried = 0;
        for slot in self.others.get_mut(place..self.others_count)?.iter_mut().rev() {
            carried = core::mem::replace(slot, carried);
        }
        self.others_count = self.others_count.checked_sub(1)?;
        Some(())
    }
}

/// Of an MSR in one of the two ranges, whether it is the second one.
fn in_range(msr: u32) -> Option<bool> {
    match msr & !(RANGE - 1) {
        0 => Some(false),
        HIGH => Some(true),
        _ => None,
    }
}

fn index(msr: u32) -> usize {
    (msr % RANGE) as usize / 64
}

fn bit(msr: u32) -> u64 {
    1 << (msr % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_do_not_disturb_each_other() {
        let mut set = MsrSet::default();
        let members = [
            0,
            63,
            64,
            0x1fff,
            0xc000_0000,
            0xc000_0080,
            0xc000_1fff,
            0x2000,
            0x4000_0000,
            0x4b56_4d00,
            0xc001_0117,
            0xbfff_ffff,
            0xc000_2000,
            u32::MAX,
        ];
        for msr in members {
            assert!(set.set(msr, true));
        }
        for msr in members {
            assert!(set.has(msr), "{msr:#x}");
        }
        for msr in [
            1,
            62,
            65,
            0x80,
            0xc000_0081,
            0x2001,
            0x4b56_4d01,
            0x4000_1fff,
            u32::MAX - 1,
        ] {
            assert!(!set.has(msr), "{msr:#x}");
        }
        let changes = set.changes();
        assert!(set.set(64, true) && set.set(2, false) && set.set(0x4b56_4d00, true) && set.set(0x4b56_4d01, false));
        assert_eq!(set.changes(), changes, "nothing changed");
        for msr in members {
            assert!(!set.is_empty());
            assert!(set.set(msr, false));
            assert!(!set.has(msr), "{msr:#x}");
        }
        assert!(set.is_empty() && set.others == [0; MAX_OTHER_MSRS]);
        assert_ne!(set.changes(), changes);
    }

    #[test]
    fn of_those_in_neither_range_there_is_room_for_so_many() {
        let mut set = MsrSet::default();
        let most = MAX_OTHER_MSRS as u32;
        // In no order.
        let all = (0..most).map(|n| 0x4000_0000 + n * 7 % most);
        for msr in all.clone() {
            assert!(set.set(msr, true));
        }
        let changes = set.changes();
        assert!(!set.set(0x4100_0000, true) && !set.has(0x4100_0000));
        assert!(set.set(0x1000, true) && set.set(0x1000, false));
        assert_eq!(set.changes(), changes + 2);
        assert!(set.set(0x4000_0005, false) && set.set(0x4100_0000, true) && set.has(0x4100_0000));
        for msr in all {
            assert_eq!(set.has(msr), msr != 0x4000_0005, "{msr:#x}");
        }
    }
}

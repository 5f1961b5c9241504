// SPDX-License-Identifier: GPL-2.0-only
//! A set of MSRs, of those that hardware can be told to watch one by one.

/// MSRs in each of the two ranges.
const RANGE: u32 = 0x2000;
const HIGH: u32 = 0xc000_0000;
const WORDS: usize = (RANGE / 64) as usize;

/// Whether an MSR is in one of the two ranges, 0 to 0x1fff and 0xc0000000 to 0xc0001fff.
pub(crate) fn is_watchable(msr: u32) -> bool {
    msr & !HIGH < RANGE && matches!(msr & HIGH, 0 | HIGH)
}

#[derive(Debug)]
pub(crate) struct MsrSet {
    low: [u64; WORDS],
    high: [u64; WORDS],
    count: u32,
    /// How often it changed, wrapping.
    changes: u32,
}

impl Default for MsrSet {
    fn default() -> Self {
        Self {
            low: [0; WORDS],
            high: [0; WORDS],
            count: 0,
            changes: 0,
        }
    }
}

impl MsrSet {
    pub(crate) fn has(&self, msr: u32) -> bool {
        let half = if msr & HIGH == 0 { &self.low } else { &self.high };
        let word = half.get((msr & !HIGH) as usize / 64);
        is_watchable(msr) && word.is_some_and(|word| word & bit(msr) != 0)
    }

    /// Puts an MSR in or takes it out; one that is not watchable stays outside.
    pub(crate) fn set(&mut self, msr: u32, member: bool) {
        if !is_watchable(msr) || self.has(msr) == member {
            return;
        }
        let half = if msr & HIGH == 0 { &mut self.low } else { &mut self.high };
        if let Some(word) = half.get_mut((msr & !HIGH) as usize / 64) {
            *word ^= bit(msr);
            self.changes = self.changes.wrapping_add(1);
            self.count = if member {
                self.count.saturating_add(1)
            } else {
                self.count.saturating_sub(1)
            };
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }
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
        let members = [0, 63, 64, 0x1fff, 0xc000_0000, 0xc000_0080, 0xc000_1fff];
        let strangers = [0x2000, 0x4000_0000, 0x8000_0000, 0xbfff_ffff, 0xc000_2000, u32::MAX];
        for msr in members.into_iter().chain(strangers) {
            set.set(msr, true);
        }
        for msr in members {
            assert!(set.has(msr) && is_watchable(msr), "{msr:#x}");
        }
        for msr in strangers.into_iter().chain([1, 62, 65, 0x80, 0xc000_0081]) {
            assert!(!set.has(msr), "{msr:#x}");
        }
        assert!(strangers.into_iter().all(|msr| !is_watchable(msr)));
        let changes = set.changes();
        set.set(64, true);
        set.set(2, false);
        assert_eq!(set.changes(), changes, "nothing changed");
        for msr in members {
            assert!(!set.is_empty());
            set.set(msr, false);
        }
        assert!(set.is_empty() && members.into_iter().all(|msr| !set.has(msr)));
        assert_ne!(set.changes(), changes);
    }
}

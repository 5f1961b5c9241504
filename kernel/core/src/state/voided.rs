// SPDX-License-Identifier: GPL-2.0-only
//! Void events, whose replies may still come.

/// Events whose reply is still under way and is to be ignored.
///
/// Remembered as a range and a count: the numbers between belong to other vCPUs or were answered. A VMM can void any
/// number of events while the tool is busy, and none of those replies may cost the connection. A tool that answers twice
/// may have that ignored instead; that harms nobody.
#[derive(Debug, Default)]
pub(crate) struct Voided {
    count: u32,
    first: u32,
    last: u32,
}

impl Voided {
    pub(crate) fn add(&mut self, seq: u32) {
        if self.count == 0 {
            self.first = seq;
        }
        self.last = seq;
        self.count = self.count.saturating_add(1);
    }

    /// Whether `seq` is one of them; it is not any more afterwards.
    pub(crate) fn take(&mut self, seq: u32) -> bool {
        let inside = seq.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first);
        if self.count == 0 || !inside {
            return false;
        }
        self.count = self.count.saturating_sub(1);
        true
    }
}

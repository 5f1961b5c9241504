// SPDX-License-Identifier: GPL-2.0-only
//! A set of message or event ids that may be used, changed by ioctls while other threads look.

use core::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = 4;

/// Ids below 256; none is in it at first.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    words: [AtomicU64; WORDS],
}

impl Permissions {
    pub(crate) const fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    pub(crate) fn has(&self, id: u16) -> bool {
        self.word(id)
            .is_some_and(|word| word.load(Ordering::Acquire) & bit(id) != 0)
    }

    pub(crate) fn set(&self, id: u16, allow: bool) {
        let Some(word) = self.word(id) else { return };
        if allow {
            word.fetch_or(bit(id), Ordering::AcqRel);
        } else {
            word.fetch_and(!bit(id), Ordering::AcqRel);
        }
    }

    fn word(&self, id: u16) -> Option<&AtomicU64> {
        self.words.get(usize::from(id / 64))
    }
}

fn bit(id: u16) -> u64 {
    1 << (id % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_disturb_each_other() {
        let set = Permissions::new();
        for id in [0, 2, 63, 64, 128, 255] {
            set.set(id, true);
        }
        set.set(64, false);
        set.set(256, true);
        set.set(u16::MAX, true);
        for id in 0..300 {
            assert_eq!(set.has(id), [0, 2, 63, 128, 255].contains(&id), "{id}");
        }
    }
}

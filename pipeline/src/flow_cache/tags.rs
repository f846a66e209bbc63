//! Which entries of a cache may have a key: a byte of its hash for each entry.
//!
//! Entries stand in groups of eight. A key is in its own group or in the one beside it, in whichever place was free. The
//! bytes of a group are one word, so a look-up reads that word and then, nearly always, just the entry that has the
//! key: a cold cache line a packet, where trying one place after the other would fetch several. Two groups hold 16 keys, so
//! a cache that is half full hardly ever has to forget one for another.
//!
//! Eight bytes are compared at once by arithmetic on the word, on every architecture alike. A byte can be that of another
//! key (one in 255 for each that is there), so whoever is told a place compares the whole key.

use packet::{Table, prefetch_at};

/// Entries of a group.
pub(super) const GROUP: usize = 8;
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;

/// The bytes of all entries; 0 for an entry that is free.
#[derive(Debug)]
pub(super) struct Tags {
    groups: Table<u64>,
    mask: usize,
}

/// Returns the byte of a key, never 0.
#[inline(always)]
fn tag(hash: u64) -> u64 {
    (hash >> 56).max(1)
}

/// Returns the highest bit of each byte of `word` that is `tag`. The lowest of them is right; one above it may be that
/// of a byte that differs by one bit.
#[inline(always)]
fn equal(word: u64, tag: u64) -> u64 {
    let differs = word ^ tag.wrapping_mul(LOW);
    differs.wrapping_sub(LOW) & !differs & HIGH
}

impl Tags {
    /// Makes the bytes of `entries` free entries, a power of two and at least two groups.
    pub(super) fn new(entries: usize) -> Self {
        let count = entries / GROUP;
        assert!(count.is_power_of_two() && count >= 2, "{entries} entries are no pairs of groups");
        Self { groups: Table::new(count, |_| 0), mask: count - 1 }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    /// Asks the processor for the word that the key's place is found by.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch_at(&self.groups, self.home(hash));
    }

    /// Returns the first entry that may have the key.
    #[inline(always)]
    pub(super) fn first(&self, hash: u64) -> Option<usize> {
        let home = self.home(hash);
        let found = equal(*self.groups.get(home)?, tag(hash));
        if found != 0 { Some(place(home, found)) } else { self.first_beside(hash) }
    }

    #[inline(never)]
    fn first_beside(&self, hash: u64) -> Option<usize> {
        let beside = self.home(hash) ^ 1;
        let found = equal(self.groups[beside], tag(hash));
        (found != 0).then(|| place(beside, found))
    }

    /// Returns all entries that may have the key.
    pub(super) fn all(&self, hash: u64) -> impl Iterator<Item = usize> {
        let home = self.home(hash);
        [home, home ^ 1].into_iter().flat_map(move |group| {
            let mut left = equal(self.groups[group], tag(hash));
            std::iter::from_fn(move || {
                let found = (left != 0).then(|| place(group, left));
                left &= left.wrapping_sub(1);
                found
            })
        })
    }

    /// Returns a free entry that the key may take.
    pub(super) fn free(&self, hash: u64) -> Option<usize> {
        let home = self.home(hash);
        [home, home ^ 1].into_iter().find_map(|group| {
            let free = equal(self.groups[group], 0);
            (free != 0).then(|| place(group, free))
        })
    }

    /// Returns the entries of the key's own group.
    pub(super) fn group(&self, hash: u64) -> std::ops::Range<usize> {
        let first = self.home(hash) * GROUP;
        first..first + GROUP
    }

    /// Says whether an entry is taken.
    #[inline]
    pub(super) fn is_taken(&self, at: usize) -> bool {
        self.groups[at / GROUP] >> shift(at) & 0xff != 0
    }

    /// Notes that an entry has a key of that hash.
    pub(super) fn take(&mut self, at: usize, hash: u64) {
        self.release(at);
        self.groups[at / GROUP] |= tag(hash) << shift(at);
    }

    /// Notes that an entry is free.
    pub(super) fn release(&mut self, at: usize) {
        self.groups[at / GROUP] &= !(0xff << shift(at));
    }
}

fn shift(at: usize) -> usize {
    at % GROUP * 8
}

#[inline(always)]
fn place(group: usize, found: u64) -> usize {
    group * GROUP + found.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_map(steps in prop::collection::vec((0u64..6, 0usize..40, any::<bool>()), 0..300)) {
            let mut tags = Tags::new(64);
            let mut model: BTreeMap<usize, u64> = BTreeMap::new();
            for (high, low, take) in steps {
                // Bytes that differ by one bit, and some that are 0 until `tag` changes them.
                let hash = high << 56 | low as u64;
                if take && let Some(at) = tags.free(hash) {
                    prop_assert!(!tags.is_taken(at));
                    prop_assert_eq!(at / GROUP / 2, low % 8 / 2, "in one of the key's two groups");
                    tags.take(at, hash);
                    model.insert(at, hash);
                } else if !take {
                    let at = tags.all(hash).find(|at| model.get(at) == Some(&hash));
                    if let Some(at) = at {
                        tags.release(at);
                        model.remove(&at);
                    }
                }
                for at in 0..64 {
                    prop_assert_eq!(tags.is_taken(at), model.contains_key(&at));
                }
                for (at, hash) in &model {
                    prop_assert!(tags.all(*hash).any(|found| found == *at));
                    prop_assert!(tags.first(*hash).is_some());
                }
                for (high, low) in (0..6).flat_map(|high| (0usize..40).map(move |low| (high, low))) {
                    let hash = high << 56 | low as u64;
                    prop_assert_eq!(tags.first(hash), tags.all(hash).next());
                    prop_assert!(tags.all(hash).all(|at| at / GROUP / 2 == low % 8 / 2));
                }
            }
        }
    }

    #[test]
    fn sixteen_keys_have_room_side_by_side() {
        let mut tags = Tags::new(64);
        let places: std::collections::BTreeSet<usize> = (0..16)
            .map(|n| {
                let hash = 5 | n << 56;
                let at = tags.free(hash).expect("two groups");
                tags.take(at, hash);
                at
            })
            .collect();
        assert_eq!(places, (32..48).collect());
        assert_eq!(tags.free(5), None);
        assert_eq!(tags.group(5), 40..48);
    }
}

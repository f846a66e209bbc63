//! An index from hashed keys to slots, for tables that keep what they know elsewhere.
//!
//! Open addressing in buckets of one cache line: fifteen words and a count of the words that belong here but found
//! no room and are in a later bucket. A look-up that finds nothing therefore reads one line, nearly always. A word is eight bits
//! of the hash, which of its two keys the slot is known by, and the slot. The caller compares keys.
//!
//! Buckets belong to shards. Whoever inserts or removes holds the shard's lock, which is the table's own; a reader
//! takes none and may meet a word that is just coming or going, so what it names has to be checked behind
//! the slot's lock.
//!
//! Made for at most [`MAX_SLOTS`]; at two thirds full when all slots are in use.

use std::sync::atomic::{AtomicU32, Ordering};

use packet::prefetch;

/// Most slots that a word can name.
pub(in crate::tables) const MAX_SLOTS: usize = (1 << SLOT_BITS) - 1;

const SLOT_BITS: u32 = 23;
const WORDS: usize = 15;
/// Words in a bucket when all slots are in use: with ten of fifteen on average, one bucket in twenty overflows.
const LOAD: usize = 10;
const EMPTY: u32 = u32::MAX;

#[repr(C, align(64))]
struct Bucket {
    words: [AtomicU32; WORDS],
    /// How many words passed this bucket because it was full.
    passed_on: AtomicU32,
}

/// Which of a slot's two keys a word is for.
pub(in crate::tables) type Side = bool;

/// Where a key belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tables) struct Place {
    /// The shard whose lock guards it.
    pub(in crate::tables) shard: usize,
    bucket: u32,
    /// Behind the shard's last bucket.
    end: u32,
    tag: u32,
}

/// The index. See the module header.
pub(in crate::tables) struct Index {
    buckets: Box<[Bucket]>,
    per_shard: u32,
    shards: u32,
}

impl Index {
    /// Makes an empty index for two keys of each of `slots` slots.
    pub(in crate::tables) fn new(slots: usize, shards: usize) -> Self {
        assert!(slots <= MAX_SLOTS, "at most {MAX_SLOTS} slots");
        let per_shard = (2 * slots).div_ceil(shards * LOAD) + 1;
        let bucket =
            || Bucket { words: std::array::from_fn(|_| AtomicU32::new(EMPTY)), passed_on: AtomicU32::new(0) };
        let count = |n: usize| u32::try_from(n).expect("slots are 23 bits");
        Self {
            buckets: (0..per_shard * shards).map(|_| bucket()).collect(),
            per_shard: count(per_shard),
            shards: count(shards),
        }
    }

    /// Returns the bytes that it takes.
    pub(in crate::tables) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    /// Returns where a key with this hash belongs, and asks the processor for it.
    #[inline]
    pub(in crate::tables) fn place(&self, hash: u64) -> Place {
        let scale = |part: u64, count: u32| (((part & 0xffff_ffff) * u64::from(count)) >> 32) as u32;
        let shard = scale(hash >> 32, self.shards);
        // The shard has used up the high half's first bits; its last ones make the tag.
        let bucket = shard * self.per_shard + scale(hash, self.per_shard);
        prefetch(&self.buckets[bucket as usize]);
        let end = (shard + 1) * self.per_shard;
        Place { shard: shard as usize, bucket, end, tag: (hash >> 32) as u32 & 0xff }
    }

    /// Returns the first answer of `check` among the slots that may be known by the key.
    #[inline]
    pub(in crate::tables) fn find<R>(
        &self,
        place: Place,
        mut check: impl FnMut(u32, Side) -> Option<R>,
    ) -> Option<R> {
        for step in 0..self.per_shard {
            let bucket = &self.buckets[self.at(place, step)];
            for word in &bucket.words {
                let word = word.load(Ordering::Relaxed);
                if word >> 24 == place.tag && word != EMPTY {
                    let found = check(word & ((1 << SLOT_BITS) - 1), word >> SLOT_BITS & 1 != 0);
                    if found.is_some() {
                        return found;
                    }
                }
            }
            if bucket.passed_on.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        None
    }

    /// Adds a word; false when its shard has no room. The caller holds the shard's lock.
    pub(in crate::tables) fn insert(&self, place: Place, slot: u32, side: Side) -> bool {
        let Some((step, word)) = self.search(place, EMPTY) else { return false };
        for bucket in self.before(place, step) {
            bucket.passed_on.fetch_add(1, Ordering::Relaxed);
        }
        word.store(Self::word(place, slot, side), Ordering::Relaxed);
        true
    }

    /// Removes a word. The caller holds the shard's lock.
    pub(in crate::tables) fn remove(&self, place: Place, slot: u32, side: Side) {
        let found = self.search(place, Self::word(place, slot, side));
        debug_assert!(found.is_some(), "slot {slot} is not where its key says");
        let Some((step, word)) = found else { return };
        word.store(EMPTY, Ordering::Relaxed);
        for bucket in self.before(place, step) {
            bucket.passed_on.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn search(&self, place: Place, wanted: u32) -> Option<(u32, &AtomicU32)> {
        (0..self.per_shard).find_map(|step| {
            let words = &self.buckets[self.at(place, step)].words;
            Some((step, words.iter().find(|word| word.load(Ordering::Relaxed) == wanted)?))
        })
    }

    fn before(&self, place: Place, step: u32) -> impl Iterator<Item = &Bucket> {
        (0..step).map(move |step| &self.buckets[self.at(place, step)])
    }

    #[inline]
    fn at(&self, place: Place, step: u32) -> usize {
        // PERF: nearly all look-ups end with step 0; a division would cost each of them.
        let (at, end) = (place.bucket + step, place.end);
        (if at < end { at } else { at - self.per_shard }) as usize
    }

    fn word(place: Place, slot: u32, side: Side) -> u32 {
        place.tag << 24 | u32::from(side) << SLOT_BITS | slot
    }
}

/// Mixes two words into one. A folded multiplication, as in foldhash: quick, and with a secret in one factor its
/// collisions cannot be made on purpose.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
pub(in crate::tables) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Hashes two addresses and what else is in a key.
#[inline(always)]
pub(in crate::tables) fn hash([a, b, c, d]: [u64; 4], rest: u64, seed: [u64; 2]) -> u64 {
    let [s, t] = seed;
    let high = mix(a ^ s, c ^ t);
    let low = mix(b ^ s.rotate_left(23), d ^ t.rotate_left(41));
    mix(high ^ low.rotate_left(32) ^ s.rotate_left(47), rest ^ t.rotate_left(11))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_set(steps in prop::collection::vec((0u32..40, any::<bool>(), any::<bool>()), 0..400)) {
            // All hashes are nearly alike, so that words pass on from bucket to bucket, around the end.
            let index = Index::new(40, 2);
            let place = |slot: u32| index.place(u64::from(slot % 3) << 32 | 0xffff_ff00);
            let mut model = BTreeSet::new();
            for (slot, side, add) in steps {
                if !add && model.remove(&(slot, side)) {
                    index.remove(place(slot), slot, side);
                } else if add && !model.contains(&(slot, side)) && index.insert(place(slot), slot, side) {
                    model.insert((slot, side));
                }
                for slot in 0..40 {
                    let mut seen = Vec::new();
                    let _ = index.find(place(slot), |other, side| {
                        if other == slot { seen.push(side) }
                        None::<()>
                    });
                    seen.sort_unstable();
                    let expected: Vec<_> = [false, true].into_iter().filter(|side| model.contains(&(slot, *side))).collect();
                    prop_assert_eq!(seen, expected);
                }
            }
        }
    }
}

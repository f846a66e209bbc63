//! An index from hashed keys to slots, for tables that keep what they know elsewhere.
//!
//! Open addressing in buckets of one cache line: twelve words, a tag of eight bits of the hash for each, and a count of
//! the words that belong here but found no room and are in a later bucket. A look-up compares all tags at once; one
//! that finds nothing therefore reads one line and no word, nearly always. A word is a slot, and which of its two keys it
//! is known by. The caller compares keys.
//!
//! Buckets belong to shards. Whoever inserts or removes holds the shard's lock, which is the table's own; a reader
//! takes none and may meet a word that is just coming or going, so what it names has to be checked behind
//! the slot's lock.
//!
//! Made for at most [`MAX_SLOTS`]; at three quarters full when all slots are in use.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use packet::prefetch;

/// Most slots that a word can name.
pub(in crate::tables) const MAX_SLOTS: usize = (1 << SLOT_BITS) - 1;

const SLOT_BITS: u32 = 23;
const WORDS: usize = 12;
/// Words in a bucket when all slots are in use. One bucket in eight overflows then.
const LOAD: usize = 9;
const EMPTY: u32 = u32::MAX;

/// A byte for each of eight.
const ONES: u64 = 0x0101_0101_0101_0101;

#[repr(C, align(64))]
struct Bucket {
    /// Tags of the first eight words, a byte each; 0: no word.
    low: AtomicU64,
    /// Tags of the last four, and in the upper half how many words passed this bucket because it was full.
    high: AtomicU64,
    words: [AtomicU32; WORDS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// What a word passed on counts for in [`Bucket::high`].
const PASSED_ON: u64 = 1 << 32;

impl Bucket {
    fn empty() -> Self {
        let words = std::array::from_fn(|_| AtomicU32::new(EMPTY));
        Self { low: AtomicU64::new(0), high: AtomicU64::new(0), words }
    }

    /// Returns bits for the places whose tag may be `tag`, and whether words were passed on. Seldom a place next to one
    /// that has it is among them.
    #[inline(always)]
    fn places(&self, tag: u8) -> (Places, bool) {
        let wanted = ONES * u64::from(tag);
        // A byte that is zero turns its highest bit on.
        let zeros = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes & (ONES << 7);
        let high = self.high.load(Ordering::Relaxed);
        let low = zeros(self.low.load(Ordering::Relaxed) ^ wanted);
        (Places { low, high: zeros(high ^ wanted) & (PASSED_ON - 1) }, high >= PASSED_ON)
    }

    /// Finds the place of a word that has this tag.
    #[inline(always)]
    fn find(&self, tag: u8, wanted: u32) -> Option<usize> {
        let (mut places, _) = self.places(tag);
        places.find(|at| self.words[*at].load(Ordering::Relaxed) == wanted)
    }

    /// Puts a word where there is none. Only behind the shard's lock.
    #[inline(always)]
    fn put(&self, at: usize, word: u32, tag: u8) {
        self.words[at].store(word, Ordering::Relaxed);
        self.tag(at, tag);
    }

    /// Sets or clears the tag of a place. Only behind the shard's lock.
    #[inline(always)]
    fn tag(&self, place: usize, tag: u8) {
        let (tags, place) = if place < 8 { (&self.low, place) } else { (&self.high, place - 8) };
        let rest = tags.load(Ordering::Relaxed) & !(0xff << (8 * place));
        tags.store(rest | u64::from(tag) << (8 * place), Ordering::Relaxed);
    }

    fn pass_on(&self, change: impl Fn(u64, u64) -> u64) {
        self.high.store(change(self.high.load(Ordering::Relaxed), PASSED_ON), Ordering::Relaxed);
    }
}

/// Places in a bucket, as the highest bits of their bytes.
struct Places {
    low: u64,
    high: u64,
}

impl Iterator for Places {
    type Item = usize;
    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let (bits, first) = if self.low != 0 { (&mut self.low, 0) } else { (&mut self.high, 8) };
        let place = first + bits.trailing_zeros() as usize / 8;
        (*bits != 0).then(|| *bits &= *bits - 1)?;
        Some(place)
    }
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
    /// Never 0.
    tag: u8,
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
        let count = |n: usize| u32::try_from(n).expect("slots are 23 bits");
        Self {
            buckets: (0..per_shard * shards).map(|_| Bucket::empty()).collect(),
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
        let [_, _, _, tag, ..] = hash.to_be_bytes();
        Place { shard: shard as usize, bucket, end, tag: tag.max(1) }
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
            let (places, passed_on) = bucket.places(place.tag);
            for at in places {
                let word = bucket.words[at].load(Ordering::Relaxed);
                if word != EMPTY {
                    let found = check(word & ((1 << SLOT_BITS) - 1), word >> SLOT_BITS != 0);
                    if found.is_some() {
                        return found;
                    }
                }
            }
            if !passed_on {
                break;
            }
        }
        None
    }

    /// Adds a word; false when its shard has no room. The caller holds the shard's lock.
    pub(in crate::tables) fn insert(&self, place: Place, slot: u32, side: Side) -> bool {
        // PERF: the home bucket has room nearly always.
        let home = &self.buckets[place.bucket as usize];
        if let Some(at) = home.find(0, EMPTY) {
            home.put(at, Self::word(slot, side), place.tag);
            return true;
        }
        self.insert_elsewhere(place, slot, side)
    }

    #[cold]
    fn insert_elsewhere(&self, place: Place, slot: u32, side: Side) -> bool {
        let Some((step, at)) = self.search(place, 0, EMPTY) else { return false };
        for bucket in self.before(place, step) {
            bucket.pass_on(u64::wrapping_add);
        }
        self.buckets[self.at(place, step)].put(at, Self::word(slot, side), place.tag);
        true
    }

    /// Removes a word. The caller holds the shard's lock.
    pub(in crate::tables) fn remove(&self, place: Place, slot: u32, side: Side) {
        let found = self.search(place, place.tag, Self::word(slot, side));
        debug_assert!(found.is_some(), "slot {slot} is not where its key says");
        let Some((step, at)) = found else { return };
        let bucket = &self.buckets[self.at(place, step)];
        bucket.tag(at, 0);
        bucket.words[at].store(EMPTY, Ordering::Relaxed);
        for bucket in self.before(place, step) {
            bucket.pass_on(u64::wrapping_sub);
        }
    }

    /// Finds a word with its tag: in which bucket from its home, and where in it.
    fn search(&self, place: Place, tag: u8, wanted: u32) -> Option<(u32, usize)> {
        (0..self.per_shard).find_map(|step| {
            let bucket = &self.buckets[self.at(place, step)];
            Some((step, bucket.find(tag, wanted)?))
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

    fn word(slot: u32, side: Side) -> u32 {
        u32::from(side) << SLOT_BITS | slot
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

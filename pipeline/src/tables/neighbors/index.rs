//! Finds a neighbour's slot by its key, without a lock.
//!
//! A key can be in either of two buckets of eight slots and is put into the emptier one, so that a bucket is as good as
//! never full. Slots are added and taken out by one thread at a time, which the caller sees to.
//!
//! A slot's key is guarded by a sequence number that is odd while the slot is in no bucket (a seqlock): who reads the
//! key of a slot that is given to another neighbour meanwhile notices.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use packet::VtepId;

use super::{NeighborKey, Target};

const WAYS: usize = 8;

#[derive(Debug, Default)]
#[repr(align(32))]
struct Bucket(
    /// Slots plus one; 0 is none.
    [AtomicU32; WAYS],
);

#[derive(Debug)]
struct Guarded {
    sequence: AtomicU32,
    place: AtomicU32,
    high: AtomicU64,
    low: AtomicU64,
}

/// A key as three numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed {
    place: u32,
    high: u64,
    low: u64,
}

impl Packed {
    #[expect(clippy::cast_possible_truncation, reason = "halves of an address")]
    fn new(key: NeighborKey) -> Self {
        let port = key.port.map_or(0, |port| u32::from(port.0) + 1);
        let bits = key.address.to_bits();
        Self { place: u32::from(key.network.0) << 16 | port, high: (bits >> 64) as u64, low: bits as u64 }
    }
}

/// The index. See the module header.
#[derive(Debug)]
pub(in crate::tables) struct Index {
    buckets: Box<[Bucket]>,
    keys: Box<[Guarded]>,
    /// What the fast path reads, by slot.
    pub(in crate::tables) words: Box<[AtomicU64]>,
    /// The number of the endpoint that the neighbour in each slot is behind, 0 for none.
    pub(in crate::tables) vteps: Box<[AtomicU16]>,
    seed: [u64; 2],
}

impl Index {
    /// Makes an empty index of `slots` slots.
    pub(in crate::tables) fn new(slots: usize, seed: [u64; 2]) -> Self {
        let key = || Guarded {
            sequence: AtomicU32::new(1),
            place: AtomicU32::new(0),
            high: AtomicU64::new(0),
            low: AtomicU64::new(0),
        };
        Self {
            // One or two of eight taken, in the mean.
            buckets: (0..(slots / 2).next_power_of_two()).map(|_| Bucket::default()).collect(),
            keys: (0..slots).map(|_| key()).collect(),
            words: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            vteps: (0..slots).map(|_| AtomicU16::new(0)).collect(),
            seed,
        }
    }

    /// Returns the slot of a key and what its word says.
    pub(in crate::tables) fn find(&self, key: NeighborKey) -> Option<(u32, Option<Target>)> {
        let key = Packed::new(key);
        for way in self.buckets(key).into_iter().flat_map(|bucket| &self.buckets[bucket].0) {
            let Some(slot) = way.load(Ordering::Acquire).checked_sub(1) else { continue };
            let guarded = &self.keys[slot as usize];
            let sequence = guarded.sequence.load(Ordering::Acquire);
            let found = Packed {
                place: guarded.place.load(Ordering::Relaxed),
                high: guarded.high.load(Ordering::Relaxed),
                low: guarded.low.load(Ordering::Relaxed),
            };
            // Read before the sequence number is, again: it is the word of this key.
            let target = self.target(slot);
            fence(Ordering::Acquire);
            let whole = sequence.is_multiple_of(2) && guarded.sequence.load(Ordering::Relaxed) == sequence;
            if whole && found == key {
                return Some((slot, target));
            }
        }
        None
    }

    /// Returns what a slot's word says, with the endpoint.
    pub(in crate::tables) fn target(&self, slot: u32) -> Option<Target> {
        let target = Target::from_word(self.words.get(slot as usize)?.load(Ordering::Acquire))?;
        let vtep = VtepId::new(self.vteps[slot as usize].load(Ordering::Relaxed));
        Some(Target { vtep, ..target })
    }

    /// Gives a slot that is in no bucket to `key`; false when both its buckets are full. One thread at a time.
    pub(in crate::tables) fn insert(&self, key: NeighborKey, slot: u32) -> bool {
        let key = Packed::new(key);
        let taken = |bucket: &usize| {
            self.buckets[*bucket].0.iter().filter(|way| way.load(Ordering::Relaxed) != 0).count()
        };
        let [a, b] = self.buckets(key);
        let bucket = if taken(&b) < taken(&a) { b } else { a };
        let mut ways = self.buckets[bucket].0.iter();
        let Some(way) = ways.find(|way| way.load(Ordering::Relaxed) == 0) else { return false };
        let guarded = &self.keys[slot as usize];
        guarded.place.store(key.place, Ordering::Relaxed);
        guarded.high.store(key.high, Ordering::Relaxed);
        guarded.low.store(key.low, Ordering::Relaxed);
        let sequence = guarded.sequence.load(Ordering::Relaxed);
        guarded.sequence.store(sequence.wrapping_add(1), Ordering::Release);
        way.store(slot + 1, Ordering::Release);
        true
    }

    /// Takes the slot of `key` out, and empties its word. One thread at a time.
    pub(in crate::tables) fn remove(&self, key: NeighborKey, slot: u32) {
        let key = Packed::new(key);
        for way in self.buckets(key).into_iter().flat_map(|bucket| &self.buckets[bucket].0) {
            if way.load(Ordering::Relaxed) == slot + 1 {
                way.store(0, Ordering::Release);
            }
        }
        self.words[slot as usize].store(0, Ordering::Release);
        let guarded = &self.keys[slot as usize];
        let sequence = guarded.sequence.load(Ordering::Relaxed);
        guarded.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees the next key sees this number too.
        fence(Ordering::Release);
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves are used, and masked")]
    fn buckets(&self, key: Packed) -> [usize; 2] {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let place = u64::from(key.place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = fold(key.high ^ place ^ self.seed[0], key.low ^ self.seed[1]);
        let hash = fold(hash ^ self.seed[1], place ^ self.seed[0] | 1);
        let mask = self.buckets.len() - 1;
        [hash as usize & mask, (hash >> 32) as usize & mask]
    }
}

//! What is new in the table: for whoever keeps a copy of it.
//!
//! Each shard notes the slots of its latest connections in a ring, behind the lock that it holds then anyway. A reader
//! remembers how many each shard had created when it last looked ([`Marks`]), and is shown what came since. When more
//! came than the ring holds, the reader is shown all slots of the shard: it may look at too much, and misses nothing.

use super::{Connections, Shard};

/// Most slots that a shard remembers.
const LATEST: usize = 128;

/// Makes the ring of a shard.
pub(super) fn ring(slots_per_shard: usize) -> Box<[u32]> {
    vec![0; (slots_per_shard / 8).next_power_of_two().clamp(16, LATEST)].into()
}

/// How far a reader has come.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Connections created, by shard.
    created: Vec<u64>,
    slots: Vec<u32>,
}

impl Shard {
    /// Counts a new connection and notes its slot.
    #[inline]
    pub(super) fn tell(&mut self, slot: u32) {
        let place = self.place(self.created);
        if let Some(place) = self.latest.get_mut(place) {
            *place = slot;
        }
        self.created += 1;
    }

    #[expect(clippy::cast_possible_truncation, reason = "the ring is shorter")]
    fn place(&self, number: u64) -> usize {
        number as usize & (self.latest.len() - 1)
    }
}

impl Connections {
    /// Returns how many slots there are.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.entries.len()).expect("slots are 23 bits")
    }

    /// Shows the slots of the connections that were made since the reader last looked; some may be dead, and some shown
    /// twice or for nothing. Takes one shard's lock at a time, and none while it calls.
    pub fn news(&self, marks: &mut Marks, mut show: impl FnMut(u32)) {
        marks.created.resize(self.shards.len(), 0);
        for number in 0..self.shards.len() {
            let all = {
                let shard = self.lock_shard(number);
                let before = std::mem::replace(&mut marks.created[number], shard.created);
                marks.slots.clear();
                let all = shard.created - before > shard.latest.len() as u64;
                if !all {
                    marks.slots.extend((before..shard.created).map(|n| shard.latest[shard.place(n)]));
                }
                all
            };
            if all {
                let first = u32::try_from(number).expect("shards are few") * self.slots_per_shard;
                marks.slots.extend(first..first + self.slots_per_shard);
            }
            marks.slots.drain(..).for_each(&mut show);
        }
    }

    pub(super) fn news_bytes(&self) -> usize {
        (0..self.shards.len()).map(|number| size_of_val(&*self.lock_shard(number).latest)).sum()
    }
}

//! How connections end: death, limbo, and the slot free again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use packet::{Instant, PortId};

use super::entry::{Entry, between, coarse};
use super::owners::NONE;
use super::{ConnectionId, Connections, Details, End, Guarded, Key, Shard, State};

/// How often a full table looks for one that can make room.
const EVICTION_TRIES: usize = 4;
/// How many of a port's oldest expendable connections are looked at for one that is over.
const LOOKED_AT: usize = 32;

/// A connection that has ended, when its slot is freed.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What named it.
    pub id: ConnectionId,
    /// As its first packet came.
    pub original: Key,
    /// As answers came.
    pub reply: Key,
    /// The port that it counted for.
    pub owner: PortId,
    /// How far it came.
    pub state: State,
    /// What was decided; the NAT port in it is to be given back.
    pub details: Details,
    /// Packets, indexed by direction.
    pub packets: [u64; 2],
    /// Bytes, indexed by direction.
    pub bytes: [u64; 2],
    /// The time from its first packet to its last.
    pub lasted: Duration,
    /// Why it ended.
    pub why: End,
}

/// Where a worker's sweep goes on.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    shard: usize,
    slot: u32,
}

impl Connections {
    /// Says that worker number `worker` holds no cached decision that it validated (by [`Connections::track`] or
    /// [`Connections::fold`], which say at what time) before `at`. A worker that holds none at all says
    /// `Instant::from_nanos(u64::MAX)`, as does one that never began; it takes that back before it looks up a
    /// connection in order to cache what it finds.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn passed(&self, worker: usize, at: Instant) {
        self.passed[worker].store(coarse(at), Ordering::Release);
    }

    /// Ends what was idle for too long, looking at no more than `budget` slots, and frees as many that have left
    /// limbo, in the shards of worker number `worker`. `ended` is told of each that is freed.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn sweep(&self, worker: usize, now: Instant, budget: usize, ended: &mut impl FnMut(&Ended)) {
        let at = self.show(now);
        // Nobody else sweeps for this worker: the lock is a formality.
        let Ok(mut cursor) = self.cursors[worker].try_lock() else { return };
        let workers = self.cursors.len();
        let mut left = budget;
        for shard in (worker..self.shards.len()).step_by(workers) {
            while left > 0 && self.shards[shard].limbo.load(Ordering::Relaxed) > 0 {
                let Some(slot) = self.leave_limbo(shard) else { break };
                ended(&self.free(shard, slot));
                left -= 1;
            }
        }
        if worker >= self.shards.len() {
            return;
        }
        let own = (self.shards.len() - worker).div_ceil(workers);
        for _ in 0..budget.min(own * self.slots_per_shard as usize) {
            if cursor.slot == self.slots_per_shard {
                *cursor = Cursor { shard: (cursor.shard + 1) % own, slot: 0 };
            }
            let shard = worker + cursor.shard * workers;
            let shard = u32::try_from(shard).expect("at most 64");
            let slot = shard * self.slots_per_shard + cursor.slot;
            cursor.slot += 1;
            let (is_over, state) = {
                let entry = self.lock(slot);
                (self.is_over(&entry, at), entry.state)
            };
            if is_over {
                let why = if matches!(state, State::Closed | State::Reset) { End::Closed } else { End::Idle };
                self.end(slot, why, |entry| self.is_over(entry, at));
            }
        }
    }

    fn is_over(&self, entry: &Entry, at: u32) -> bool {
        // Rounding may make the time since too long by a unit; a timeout is a promise.
        let limit = self.timeouts.of(entry.state, entry.protocol()) + between(0, 1);
        entry.is_alive() && between(entry.seen, at) > limit
    }

    /// Makes one connection dead, if it is alive and `really` is true of it.
    pub(super) fn end(&self, slot: u32, why: End, really: impl Fn(&Entry) -> bool) -> bool {
        let number = (slot / self.slots_per_shard) as usize;
        let mut shard = self.lock_shard(number);
        let mut entry = self.lock(slot);
        if !entry.is_alive() || !really(&entry) {
            return false;
        }
        entry.ended = Some(why);
        self.owners.change(&self.links, entry.owner, slot, Some(entry.state), None);
        // Read behind the entry's lock: whoever found it alive before has shown his time before.
        #[expect(clippy::cast_possible_truncation, reason = "coarse time wraps")]
        let died = self.totals.latest.load(Ordering::Relaxed) as u32;
        drop(entry);
        let link = &self.links[slot as usize];
        link.next.store(NONE, Ordering::Relaxed);
        link.prev.store(died, Ordering::Relaxed);
        match shard.limbo_tail {
            NONE => shard.limbo_head = slot,
            tail => self.links[tail as usize].next.store(slot, Ordering::Relaxed),
        }
        shard.limbo_tail = slot;
        shard.ended[why as usize] += 1;
        let guarded = &self.shards[number];
        self.count(number, &mut shard, -1);
        guarded.limbo.store(guarded.limbo.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        true
    }

    /// Says whether the table is full, as far as a connection at home in this shard is concerned.
    #[inline]
    pub(super) fn is_full(&self, home: &Guarded) -> bool {
        self.totals.live.load(Ordering::Relaxed) >= self.capacity
            || home.live.load(Ordering::Relaxed) >= self.live_limit
    }

    /// Has an expendable connection make room for one of `newcomer`; false when there is none. The dead do not leave at
    /// once: the port that has most keeps half of the spare slots free for others.
    #[cold]
    pub(super) fn make_room(&self, newcomer: PortId, home: &Guarded) -> bool {
        let scarce = home.limbo.load(Ordering::Relaxed) * 2 >= self.slots_per_shard - self.live_limit;
        for _ in 0..EVICTION_TRIES {
            let most = self.owners.heaviest().filter(|most| !scarce || *most != newcomer);
            let Some(slot) = most.and_then(|most| self.owners.pop(&self.links, most)) else { return false };
            if self.end(slot, End::Evicted, |entry| entry.state.is_expendable()) {
                return true;
            }
        }
        false
    }

    /// Ends the oldest connection of a port that is over, so that it may have another; false when there is none among
    /// the oldest expendable ones. What is over waits four minutes (RFC 5382, REQ-5) only as long as nobody needs the place.
    #[cold]
    pub(super) fn replace_closed(&self, port: PortId) -> bool {
        let mut slots = [NONE; LOOKED_AT];
        let count = self.owners.oldest(&self.links, port, &mut slots);
        slots[..count].iter().any(|slot| {
            let is_over = |entry: &Entry| {
                entry.owner == port && entry.state.is_expendable() && !entry.state.is_half_open()
            };
            self.end(*slot, End::Evicted, is_over)
        })
    }

    /// Counts a connection more or less in a shard, and in the table now and then.
    pub(super) fn count(&self, number: usize, shard: &mut Shard, change: i32) {
        let live = &self.shards[number].live;
        let now = live.load(Ordering::Relaxed).wrapping_add_signed(change);
        live.store(now, Ordering::Relaxed);
        let untold = i64::from(now) - i64::from(shard.told);
        if untold.unsigned_abs() >= u64::from(self.told_every) {
            shard.told = now;
            self.totals.live.fetch_add(untold, Ordering::Relaxed);
        }
    }

    /// Takes the slot that has been in limbo longest out of it, if every worker has passed its death.
    fn leave_limbo(&self, number: usize) -> Option<u32> {
        let mut shard = self.lock_shard(number);
        let slot = shard.limbo_head;
        let link = self.links.get(slot as usize)?;
        // Acquire: what a worker looked up before it said so, it has looked up.
        let passed = self.passed.iter().map(|at| at.load(Ordering::Acquire)).min().unwrap_or(u64::MAX);
        let latest = self.totals.latest.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "coarse time wraps")]
        let since = (latest as u32).wrapping_sub(link.prev.load(Ordering::Relaxed));
        if passed <= latest - u64::from(since) {
            return None;
        }
        shard.limbo_head = link.next.load(Ordering::Relaxed);
        if shard.limbo_head == NONE {
            shard.limbo_tail = NONE;
        }
        let limbo = &self.shards[number].limbo;
        limbo.store(limbo.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        Some(slot)
    }

    /// Frees a slot that is dead and in no list.
    fn free(&self, number: usize, slot: u32) -> Ended {
        let (ended, [original, reply]) = {
            let entry = self.lock(slot);
            (ended(&entry, slot), entry.keys.map(|key| self.place(&key)))
        };
        let (mut shard, _other) = self.lock_both(number, reply.shard);
        self.index.remove(original, slot, false);
        self.index.remove(reply, slot, true);
        self.links[slot as usize].next.store(shard.free, Ordering::Relaxed);
        shard.free = slot;
        ended
    }
}

fn ended(entry: &Entry, slot: u32) -> Ended {
    Ended {
        id: ConnectionId { slot, stamp: entry.stamp },
        original: Key::from(&entry.keys[0]),
        reply: Key::from(&entry.keys[1]),
        owner: entry.owner,
        state: entry.state,
        details: entry.details,
        packets: entry.counts.map(|count| count.packets()),
        bytes: entry.counts.map(|count| count.bytes()),
        lasted: between(entry.born, entry.seen),
        why: entry.ended.unwrap_or(End::Flushed),
    }
}

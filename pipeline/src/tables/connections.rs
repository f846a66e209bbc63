//! Connections: which two flows belong together, how far they have come, and what was decided about them.
//!
//! A connection is known by two keys, each a 5-tuple in a network: as its first packet looked where it came from, and as
//! answers look where they come from. NAT is nothing else than the difference between the two.
//!
//! **Threads.** All workers share the table. Looking up takes no lock but the connection's own. Making, ending and
//! freeing lock the shards of the keys, in ascending order; a port's list ([`owners`]) is locked last. The fast path
//! never comes here: it brings home what it counted ([`Connections::fold`]) from time to time.
//!
//! **Ending.** A connection ends when it was idle for too long, is killed, or makes room. It is dead then and not found any
//! more, and its keys may be used anew. But workers may still have cached decisions about it, which send
//! packets with its NAT port. So its slot and what it holds stay in *limbo* until every worker has said
//! ([`Connections::passed`]) that it has no decision left that it validated before the death. Only then does
//! [`Connections::sweep`] report the end, so that the NAT port can be given back, and free the slot. A slot alone
//! therefore names a connection safely for as long as a worker keeps a decision about it.
//!
//! Time of death is the latest instant that anyone has shown the table, never earlier than any validation that
//! found the connection alive: workers' clocks are those of their turns and differ a little.
//!
//! **Full.** Capacity is fixed; some spare slots serve the limbo. A port has no more connections, and no more
//! half-open ones, than its quotas say; that is looked at first and costs least, so a flood that is refused is no
//! burden to others. Of a port that has all it may have, the oldest that is over makes room. When the table is full, the oldest expendable connection (half-open, or over) of the port that
//! has most of them makes room. An established connection never does; if there is nothing else, the newcomer is
//! refused. So is one of the very port that has most, when half of the spare slots are in limbo: the rest is for others.
//!
//! **Memory.** 168 bytes a slot with its lock, 8 for lists, and about 15 for the index; with the spare slots
//! [`Connections::bytes`] is just under 200 for each connection of the capacity. Of packets 40 bits are counted, of
//! bytes 56.

mod entry;
mod listing;
mod news;
mod owners;
mod sweep;
mod tcp;
mod timeouts;
mod types;

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use packet::{Instant, PortId, prefetch_at};

pub use listing::{Saved, Stats, View};
pub use news::Marks;
pub use owners::PortConnections;
pub use packet::header::tcp_flags as flags;
pub use sweep::Ended;
pub use tcp::{Invalid, State};
pub use timeouts::Timeouts;
pub use types::{ConnectionId, Details, Direction, End, Found, Key, NewConnection, Refused, Seen};

use super::index::{Index, MAX_SLOTS, Place};
use entry::{Count, Entry, PackedKey, coarse, units_between};
use owners::{Link, NONE, Owners};
use sweep::Cursor;
use tcp::Numbers;

/// Most shards. More of them would be locked by two workers at once less often, and fill less evenly.
const SHARDS: usize = 32;
/// How long after its last packet the fast path may still have something to bring home, in coarse units (2 s).
const SETTLED: u32 = 120;

/// What is guarded by a shard's lock, besides its part of the index.
#[derive(Debug)]
struct Shard {
    free: u32,
    /// Connections alive that the table's count contains.
    told: u32,
    limbo_head: u32,
    limbo_tail: u32,
    created: u64,
    /// The slots of the latest connections, each at the place that its number among all created ones says.
    latest: Box<[u32]>,
    /// Indexed by [`End`].
    ended: [u64; 5],
}

#[derive(Debug)]
#[repr(align(128))]
struct Guarded {
    shard: Mutex<Shard>,
    /// Connections alive, and slots in limbo; changed behind the lock, read without it.
    live: AtomicU32,
    limbo: AtomicU32,
}

/// What all workers write now and then, apart from what they only read.
#[derive(Debug)]
#[repr(align(128))]
struct Totals {
    /// Connections alive, as far as shards have told.
    live: AtomicI64,
    /// The latest instant shown; coarse.
    latest: AtomicU64,
    /// Connections refused because the table was full.
    full: AtomicU64,
}

/// The table. See the module header.
pub struct Connections {
    index: Index,
    entries: Box<[Mutex<Entry>]>,
    links: Box<[Link]>,
    shards: Box<[Guarded]>,
    slots_per_shard: u32,
    /// Most connections alive in a shard.
    live_limit: u32,
    capacity: i64,
    told_every: u32,
    owners: Owners,
    timeouts: Timeouts,
    /// Indexed by worker; coarse.
    passed: Box<[AtomicU64]>,
    cursors: Box<[Mutex<Cursor>]>,
    totals: Totals,
    seed: [u64; 2],
}

impl Connections {
    /// Makes an empty table for `capacity` connections of `ports` ports.
    ///
    /// # Panics
    /// When the capacity is beyond about 7.8 million, which a slot's 23 bits can name.
    pub fn new(capacity: usize, workers: usize, ports: usize, timeouts: Timeouts, seed: [u64; 2]) -> Self {
        let capacity = capacity.max(1);
        let shards = (capacity / 1024).next_power_of_two().clamp(1, SHARDS);
        let even = capacity.div_ceil(shards);
        // Hashes fill shards unevenly: three standard deviations above the mean each, and a reserve for the limbo.
        let live_limit = if shards == 1 { even } else { even + 3 * even.isqrt() };
        let slots_per_shard = live_limit + even / 64 + 8;
        let slots = slots_per_shard * shards;
        assert!(slots <= MAX_SLOTS, "{capacity} connections are more than a slot number can name");
        let count = |n: usize| u32::try_from(n).expect("slots are 23 bits");
        let links: Box<[Link]> = (0..slots).map(|_| Link::new()).collect();
        let shard = |number: usize| {
            let range = number * slots_per_shard..(number + 1) * slots_per_shard;
            for slot in range.start..range.end - 1 {
                links[slot].next.store(count(slot + 1), Ordering::Relaxed);
            }
            let shard = Shard {
                free: count(range.start),
                told: 0,
                limbo_head: NONE,
                limbo_tail: NONE,
                created: 0,
                latest: news::ring(slots_per_shard),
                ended: [0; 5],
            };
            Guarded { shard: Mutex::new(shard), live: AtomicU32::new(0), limbo: AtomicU32::new(0) }
        };
        Self {
            index: Index::new(slots, shards),
            entries: (0..slots).map(|_| Mutex::new(Entry::unused())).collect(),
            shards: (0..shards).map(shard).collect(),
            links,
            slots_per_shard: count(slots_per_shard),
            live_limit: count(live_limit),
            capacity: i64::from(count(capacity)),
            told_every: count(even / 256).max(1),
            owners: Owners::new(ports),
            timeouts,
            passed: (0..workers).map(|_| AtomicU64::new(u64::MAX)).collect(),
            cursors: (0..workers).map(|_| Mutex::new(Cursor::default())).collect(),
            totals: Totals { live: AtomicI64::new(0), latest: AtomicU64::new(0), full: AtomicU64::new(0) },
            seed,
        }
    }

    /// Asks the processor for what a look-up of the key reads first. PERF: benches/connections; in a table beyond
    /// the cache a look-up mostly waits for memory, so a batch does well to ask for all its keys before.
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        let _ = self.place(&PackedKey::from(key));
    }

    /// Looks a packet's connection up. A dead one is not found.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<Found> {
        let key = PackedKey::from(key);
        self.lookup(self.place(&key), &key)
    }

    /// Returns a connection as its original direction finds it; `None` when it is dead.
    pub fn get(&self, id: ConnectionId) -> Option<Found> {
        let entry = self.entries.get(id.slot as usize)?.lock().unwrap_or_else(|p| p.into_inner());
        (entry.is_alive() && entry.stamp == id.stamp).then(|| found(&entry, id.slot, Direction::Original))
    }

    /// Makes a connection: both its keys are found from now on, or neither. Its packets count when they are tracked, the
    /// first one too, unless [`NewConnection::counted`] says that it has been seen.
    ///
    /// # Errors
    /// When a key is in use, a quota is reached or the table is full. Quotas are looked at first and cost least, so
    /// that a flood that is refused is no burden to others.
    pub fn create(&self, new: &NewConnection, now: Instant) -> Result<ConnectionId, Refused> {
        let admit = || self.owners.admit(new.owner, new.quota, new.half_open_quota);
        let admitted = match admit() {
            Err(Refused::Quota) if self.replace_closed(new.owner) => admit(),
            admitted => admitted,
        };
        if let Err(why) = admitted {
            self.owners.refused(new.owner, why);
            return Err(why);
        }
        let (state, numbers) = match &new.tcp {
            Some(segment) => Numbers::begin(segment),
            None => (State::Unreplied, Numbers::default()),
        };
        self.insert([&new.original, &new.reply], new.owner, (state, numbers, new.counted), &new.details, now)
    }

    fn insert(
        &self,
        keys: [&Key; 2],
        owner: PortId,
        (state, numbers, counted): (State, Numbers, u32),
        details: &Details,
        now: Instant,
    ) -> Result<ConnectionId, Refused> {
        let keys = keys.map(PackedKey::from);
        let places = [self.place(&keys[0]), self.place(&keys[1])];
        let [original, reply] = places;
        let at = self.show(now);
        let home = &self.shards[original.shard];
        if self.is_full(home) && !self.make_room(owner, home) {
            self.totals.full.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        let (mut shard, _other) = self.lock_both(original.shard, reply.shard);
        if self.lookup(original, &keys[0]).is_some() {
            return Err(Refused::Exists);
        }
        if keys[0] == keys[1] || self.lookup(reply, &keys[1]).is_some() {
            return Err(Refused::ReplyTaken);
        }
        let slot = shard.free;
        if slot == NONE || !self.insert_words(places, slot) {
            self.totals.full.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        shard.free = self.links[slot as usize].next.load(Ordering::Relaxed);
        // PERF: the next one of this shard finds its slot close.
        prefetch_at(&self.entries, shard.free as usize);
        prefetch_at(&self.links, shard.free as usize);
        shard.tell(slot);
        self.count(original.shard, &mut shard, 1);
        let mut entry = self.lock(slot);
        let stamp = entry.stamp.wrapping_add(1);
        // Alive only now that both words are there: whoever sees one sees the other.
        *entry = Entry {
            stamp,
            ended: None,
            state,
            owner,
            keys,
            details: *details,
            born: at,
            seen: at,
            numbers,
            counts: [Count::first(counted), Count::default()],
        };
        self.owners.change(&self.links, owner, slot, None, Some(state));
        Ok(ConnectionId { slot, stamp })
    }

    fn insert_words(&self, [original, reply]: [Place; 2], slot: u32) -> bool {
        if !self.index.insert(original, slot, false) {
            return false;
        }
        let both = self.index.insert(reply, slot, true);
        if !both {
            self.index.remove(original, slot, false);
        }
        both
    }

    /// Takes note of a packet of the slow path: counts it, keeps the connection alive, and follows its TCP state.
    ///
    /// # Errors
    /// When the connection has ended, or the segment is not one that the receiver can expect; the packet is to be dropped. After
    /// [`Invalid::Ended`] it may begin a connection of its own: the old one is dead.
    pub fn track(
        &self,
        id: ConnectionId,
        direction: Direction,
        packet: Seen,
        now: Instant,
    ) -> Result<State, Invalid> {
        let at = self.show(now);
        let mut entry = self.lock(id.slot);
        if !entry.is_alive() || entry.stamp != id.stamp {
            return Err(Invalid::Gone);
        }
        let before = entry.state;
        let after = match (&packet.tcp, before, direction) {
            (Some(segment), _, _) => {
                let quiet = units_between(entry.seen, at) > SETTLED;
                match entry.numbers.step(before, direction, segment, quiet) {
                    Ok(state) => state,
                    Err(why) => {
                        drop(entry);
                        if why == Invalid::Ended {
                            self.kill(id, End::Closed);
                        }
                        return Err(why);
                    }
                }
            }
            (None, State::Unreplied, Direction::Reply) => State::Replied,
            _ => before,
        };
        // A connection that a RST ended does not live on by packets that are still under way.
        let at = if (before, after) == (State::Reset, State::Reset) { entry.seen } else { at };
        entry.count(direction, 1, u64::from(packet.bytes), at);
        self.settle(&mut entry, id.slot, after);
        Ok(after)
    }

    /// Brings home what the fast path counted, and says whether the connection is still alive: when not, the
    /// decision is to be forgotten. For slots of decisions that the worker has vouched for, see
    /// [`Connections::passed`].
    pub fn fold(&self, slot: u32, direction: Direction, packets: u32, bytes: u64, now: Instant) -> bool {
        let at = self.show(now);
        let Some(entry) = self.entries.get(slot as usize) else { return false };
        let mut entry = entry.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !entry.is_alive() {
            return false;
        }
        if packets == 0 {
            return true;
        }
        // What was counted before a doubtful RST says nothing about it, and a connection that a genuine one ended does
        // not live on by packets that are still under way.
        let doubted = entry.state == State::Doubted && units_between(entry.seen, at) <= SETTLED;
        if doubted || entry.state == State::Reset {
            entry.counts[direction as usize].add(packets, bytes);
            return true;
        }
        entry.count(direction, packets, bytes, at);
        entry.numbers.outdate(direction);
        let after = match (entry.state, direction) {
            (State::Unreplied, Direction::Reply) => State::Replied,
            (State::PickedUp, Direction::Reply) => State::Established,
            (State::SynReceived, Direction::Original) => State::Established,
            (State::Doubted, _) => entry.numbers.established(),
            (state, _) => state,
        };
        self.settle(&mut entry, slot, after);
        true
    }

    /// Keeps what the stages decided about a connection after a change of the configuration.
    pub fn revalidated(&self, id: ConnectionId, details: Details) {
        let mut entry = self.lock(id.slot);
        if entry.is_alive() && entry.stamp == id.stamp {
            entry.details = details;
        }
    }

    /// Ends a connection now; nothing happens when it has ended before.
    pub fn kill(&self, id: ConnectionId, why: End) {
        self.end(id.slot, why, |entry| entry.stamp == id.stamp);
    }

    fn settle(&self, entry: &mut Entry, slot: u32, after: State) {
        let before = std::mem::replace(&mut entry.state, after);
        if (before.is_half_open(), before.is_expendable()) != (after.is_half_open(), after.is_expendable()) {
            self.owners.change(&self.links, entry.owner, slot, Some(before), Some(after));
        }
    }

    #[inline]
    fn lookup(&self, place: Place, key: &PackedKey) -> Option<Found> {
        self.index.find(place, |slot, side| {
            let entry = self.lock(slot);
            let is_it = entry.is_alive() && entry.keys[usize::from(side)] == *key;
            is_it.then(|| found(&entry, slot, Direction::of(side)))
        })
    }

    #[inline]
    fn place(&self, key: &PackedKey) -> Place {
        self.index.place(key.hash(self.seed))
    }

    /// Takes note of the time and returns it in coarse units.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "coarse time wraps")]
    fn show(&self, now: Instant) -> u32 {
        let at = coarse(now);
        if self.totals.latest.load(Ordering::Relaxed) < at {
            self.totals.latest.fetch_max(at, Ordering::Relaxed);
        }
        at as u32
    }

    #[inline]
    fn lock(&self, slot: u32) -> MutexGuard<'_, Entry> {
        // A panic ends the process in release builds, so poison cannot be seen there; see `Fdb`.
        self.entries[slot as usize].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lock_shard(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number].shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Locks two shards in ascending order; the first returned is `one`'s.
    fn lock_both(&self, one: usize, two: usize) -> (MutexGuard<'_, Shard>, Option<MutexGuard<'_, Shard>>) {
        let before = (two < one).then(|| self.lock_shard(two));
        let first = self.lock_shard(one);
        let second = before.or_else(|| (two > one).then(|| self.lock_shard(two)));
        (first, second)
    }
}

#[inline]
fn found(entry: &Entry, slot: u32, direction: Direction) -> Found {
    Found {
        id: ConnectionId { slot, stamp: entry.stamp },
        direction,
        original: Key::from(&entry.keys[0]),
        reply: Key::from(&entry.keys[1]),
        state: entry.state,
        details: entry.details,
        owner: entry.owner,
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

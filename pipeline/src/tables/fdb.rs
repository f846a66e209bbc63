//! The forwarding database: which port a station (network, VLAN, MAC) is behind.
//!
//! Shared by all workers and the manager. Stations live in 64 shards, each behind its own lock, and only the
//! slow path takes one, briefly: a flow's later packets check the station's *version* instead, a number in an
//! array of its own that grows whenever the station moves or goes. A cached decision that holds an old version
//! is made again.
//!
//! Behind the port of an overlay's tunnel are stations of many hosts. For those, *behind* names the endpoint too: a station
//! that comes by another one has moved. The endpoints are in an array beside the versions, for the fast path.
//!
//! A station is learned from the source of a frame, or is fixed: set by the manager for a port's own address or
//! by the user. A fixed station never moves, ages or makes room.
//!
//! Capacity: as many stations as the limits say, spread over the shards; nothing grows later. A port may learn as
//! many as its own limit, a network as many as its; beyond that a new source is not learned (its frames still
//! pass, and frames to it are flooded), so a port that invents sources harms no one else. When a shard itself
//! is full, the station seen least recently among those of the port with the most learned stations makes room,
//! if that port has more than the newcomer's.
//!
//! A station that moves more than [`MOVES_A_SECOND`] times a second stays where it is until a second has passed
//! without: two ports that are wired together would otherwise throw it to and fro at line rate.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use packet::{Instant, NetworkId, PortId, VtepId};

mod types;

use crate::flow_cache::{SLOT_BITS, StationRef};
use crate::snapshot::MAX_PORTS;
pub use types::{At, Found, LearnLimits, Learned, Station, StationKey, StationKind};

const SHARDS: usize = 64;
/// How often a station may change its port within a second; Linux has no such limit, and a VM that migrates
/// moves once.
pub const MOVES_A_SECOND: u32 = 5;
const MOVE_WINDOW: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct Slot {
    station: Station,
    window: Instant,
    window_moves: u32,
}

struct Shard {
    index: HashTable<u32>,
    slots: Box<[Option<Slot>]>,
    free: Vec<u32>,
    sweep: usize,
}

/// The table. See the module header.
pub struct Fdb {
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: u32,
    versions: Box<[AtomicU32]>,
    vteps: Box<[AtomicU16]>,
    by_port: Box<[AtomicU32]>,
    by_network: Box<[AtomicU32]>,
    by_vtep: Box<[AtomicU32]>,
    refused: AtomicU64,
    evicted: AtomicU64,
    seed: [u64; 2],
}

impl Fdb {
    /// Makes an empty table for `stations` stations in `networks` networks, and behind `vteps` endpoints.
    ///
    /// # Panics
    /// When there are more stations than a cache entry can name (4 million).
    pub fn new(stations: usize, networks: usize, vteps: usize, seed: [u64; 2]) -> Self {
        // A quarter and eight more than the mean, so that a shard is full only when the table nearly is.
        let shard_capacity = (stations.div_ceil(SHARDS) * 5 / 4 + 8).max(8);
        let slots = shard_capacity * SHARDS;
        assert!(slots <= 1 << SLOT_BITS, "at most {} stations", 1 << SLOT_BITS);
        let count = u32::try_from(shard_capacity).expect("checked above");
        let shard = || {
            Mutex::new(Shard {
                // Twice the room: hashbrown then always reclaims deleted places in place, without allocating.
                index: HashTable::with_capacity(2 * shard_capacity),
                slots: vec![None; shard_capacity].into_boxed_slice(),
                free: (0..count).rev().collect(),
                sweep: 0,
            })
        };
        let zeros = |n: usize| (0..n).map(|_| AtomicU32::new(0)).collect();
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            shard_capacity: count,
            versions: zeros(slots),
            vteps: (0..slots).map(|_| AtomicU16::new(0)).collect(),
            by_port: zeros(MAX_PORTS),
            by_network: zeros(networks),
            by_vtep: zeros(vteps + 1),
            refused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            seed,
        }
    }

    /// Returns the present versions of all slots.
    #[inline(always)]
    pub(crate) fn versions(&self) -> &[AtomicU32] {
        &self.versions
    }

    /// Returns the number of the endpoint that the station in each slot is behind, 0 for none; read after the version.
    #[inline(always)]
    pub fn vteps(&self) -> &[AtomicU16] {
        &self.vteps
    }

    /// Returns how many stations were learned behind an endpoint.
    pub fn learned_behind(&self, vtep: VtepId) -> u32 {
        self.by_vtep.get(vtep.index()).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// Returns how many stations a port has learned.
    pub fn learned_by(&self, port: PortId) -> u32 {
        self.by_port[port.index()].load(Ordering::Relaxed)
    }

    /// Returns how many sources were not learned because of a limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns how many learned stations made room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Returns how many stations the table was made for, spare room included.
    pub fn capacity(&self) -> usize {
        self.versions.len()
    }

    /// Looks a station up.
    pub fn find(&self, key: StationKey) -> Option<Found> {
        let (number, hash, shard) = self.shard(key);
        let slot = shard.lookup(key, hash)?;
        let station = shard.slots[slot as usize].as_ref()?.station;
        let Station { port, vtep, kind, .. } = station;
        Some(Found { port, vtep, kind, station: self.reference(number, slot) })
    }

    /// Learns where a station is, or that it still is there.
    pub fn learn(&self, key: StationKey, at: impl Into<At>, limits: LearnLimits, now: Instant) -> Learned {
        let at = at.into();
        let (number, hash, mut shard) = self.shard(key);
        if let Some(slot) = shard.lookup(key, hash) {
            let Some(entry) = &mut shard.slots[slot as usize] else { return Learned::Full };
            let from = entry.station.at();
            if from == at {
                entry.station.seen = now;
                return Learned::Known(self.reference(number, slot));
            }
            if entry.station.kind == StationKind::Fixed {
                return Learned::Held(from);
            }
            if now.since(entry.window) > MOVE_WINDOW {
                entry.window = now;
                entry.window_moves = 0;
            }
            entry.window_moves += 1;
            if entry.window_moves > MOVES_A_SECOND {
                // The window slides on: it ends a second after the last attempt.
                entry.window = now;
                return Learned::Held(from);
            }
            if from.port != at.port && self.learned_by(at.port) >= limits.port {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Learned::Held(from);
            }
            self.count(&entry.station, |n| {
                n.fetch_sub(1, Ordering::Relaxed);
            });
            (entry.station.port, entry.station.vtep) = (at.port, at.vtep);
            entry.station.seen = now;
            entry.station.moves = entry.station.moves.saturating_add(1);
            self.count(&entry.station, |n| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            self.outdate(number, slot, at.vtep);
            return Learned::Moved { station: self.reference(number, slot), from };
        }
        let within = self.learned_by(at.port) < limits.port
            && self.network_count(key.network).is_some_and(|n| n.load(Ordering::Relaxed) < limits.network)
            && (!shard.free.is_empty() || self.make_room(number, &mut shard, at.port));
        if !within {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Learned::Full;
        }
        let At { port, vtep } = at;
        let station = Station { key, port, vtep, kind: StationKind::Learned, seen: now, moves: 0 };
        match self.insert(number, hash, &mut shard, station) {
            Some(slot) => Learned::New(self.reference(number, slot)),
            None => Learned::Full,
        }
    }

    /// Sets a fixed station, in place of what was known of that address. Returns false when its shard is full of
    /// fixed stations.
    pub fn fix(&self, key: StationKey, at: impl Into<At>, now: Instant) -> bool {
        let (number, hash, mut shard) = self.shard(key);
        if let Some(slot) = shard.lookup(key, hash) {
            self.take(number, slot, hash, &mut shard);
        }
        if shard.free.is_empty() && !self.make_room(number, &mut shard, PortId(u16::MAX)) {
            return false;
        }
        let At { port, vtep } = at.into();
        let station = Station { key, port, vtep, kind: StationKind::Fixed, seen: now, moves: 0 };
        self.insert(number, hash, &mut shard, station).is_some()
    }

    /// Removes the stations that `matches` picks and returns how many. Takes one shard's lock at a time.
    pub fn remove(&self, mut matches: impl FnMut(&Station) -> bool) -> usize {
        let mut count = 0;
        for number in 0..SHARDS {
            let mut shard = self.lock(number);
            for slot in 0..self.shard_capacity {
                count += usize::from(self.remove_slot(number, slot, &mut shard, &mut matches));
            }
        }
        count
    }

    /// Removes learned stations whose age is beyond what `ageing` says for their network (`None`: the network is
    /// gone), looking at no more than `budget` places a shard. Returns how many went. For the manager, about once
    /// a second.
    pub fn sweep(
        &self,
        now: Instant,
        budget: usize,
        mut ageing: impl FnMut(NetworkId) -> Option<Duration>,
    ) -> usize {
        let mut count = 0;
        for number in 0..SHARDS {
            let mut shard = self.lock(number);
            for _ in 0..budget.min(shard.slots.len()) {
                let slot = shard.sweep;
                shard.sweep = (slot + 1) % shard.slots.len();
                let slot = u32::try_from(slot).expect("capacities are 22 bits");
                count += usize::from(self.remove_slot(number, slot, &mut shard, &mut |station| {
                    station.kind == StationKind::Learned
                        && ageing(station.key.network).is_none_or(|limit| now.since(station.seen) > limit)
                }));
            }
        }
        count
    }

    /// Returns all stations, in no order. Takes one shard's lock at a time.
    pub fn list(&self) -> Vec<Station> {
        (0..SHARDS)
            .flat_map(|number| {
                let shard = self.lock(number);
                shard.slots.iter().flatten().map(|slot| slot.station).collect::<Vec<_>>()
            })
            .collect()
    }

    fn insert(&self, number: usize, hash: u64, shard: &mut Shard, station: Station) -> Option<u32> {
        let slot = shard.free.pop()?;
        let slots = &mut shard.slots;
        slots[slot as usize] = Some(Slot { station, window: Instant::ZERO, window_moves: 0 });
        shard.index.insert_unique(hash, slot, |other| match &slots[*other as usize] {
            Some(entry) => self.hash(entry.station.key),
            None => 0,
        });
        self.count(&station, |n| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        self.outdate(number, slot, station.vtep);
        Some(slot)
    }

    fn take(&self, number: usize, slot: u32, hash: u64, shard: &mut Shard) {
        let Some(entry) = shard.slots[slot as usize].take() else { return };
        if let Entry::Occupied(place) = shard.index.entry(hash, |other| *other == slot, |_| 0) {
            place.remove();
        }
        shard.free.push(slot);
        self.count(&entry.station, |n| {
            n.fetch_sub(1, Ordering::Relaxed);
        });
        self.outdate(number, slot, None);
    }

    fn remove_slot(
        &self,
        number: usize,
        slot: u32,
        shard: &mut Shard,
        matches: &mut impl FnMut(&Station) -> bool,
    ) -> bool {
        match &shard.slots[slot as usize] {
            Some(entry) if matches(&entry.station) => {
                let hash = self.hash(entry.station.key);
                self.take(number, slot, hash, shard);
                true
            }
            _ => false,
        }
    }

    /// Makes one place free in a full shard, at the cost of the port with the most learned stations.
    fn make_room(&self, number: usize, shard: &mut Shard, newcomer: PortId) -> bool {
        let count = |port: PortId| self.by_port.get(port.index()).map_or(0, |n| n.load(Ordering::Relaxed));
        let victim = shard
            .slots
            .iter()
            .flatten()
            .map(|slot| &slot.station)
            .filter(|station| station.kind == StationKind::Learned)
            .max_by_key(|station| (count(station.port), std::cmp::Reverse(station.seen)))
            .copied();
        let Some(victim) = victim.filter(|victim| count(victim.port) > count(newcomer)) else { return false };
        let hash = self.hash(victim.key);
        let Some(slot) = shard.lookup(victim.key, hash) else { return false };
        self.take(number, slot, hash, shard);
        self.evicted.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn count(&self, station: &Station, change: impl Fn(&AtomicU32)) {
        if station.kind == StationKind::Learned {
            change(&self.by_port[station.port.index()]);
            if let Some(count) = station.vtep.and_then(|vtep| self.by_vtep.get(vtep.index())) {
                change(count);
            }
            if let Some(count) = self.network_count(station.key.network) {
                change(count);
            }
        }
    }

    fn network_count(&self, network: NetworkId) -> Option<&AtomicU32> {
        self.by_network.get(network.index())
    }

    /// Raises a slot's version, after saying which endpoint its station is behind now.
    fn outdate(&self, number: usize, slot: u32, vtep: Option<VtepId>) {
        let at = number * self.shard_capacity as usize + slot as usize;
        self.vteps[at].store(VtepId::raw(vtep), Ordering::Relaxed);
        self.versions[at].fetch_add(1, Ordering::Release);
    }

    fn reference(&self, number: usize, slot: u32) -> StationRef {
        let slot = u32::try_from(number).expect("64 shards") * self.shard_capacity + slot;
        StationRef { slot, version: self.versions[slot as usize].load(Ordering::Acquire) }
    }

    fn hash(&self, key: StationKey) -> u64 {
        let [a, b, c, d, e, f] = key.mac.0;
        let mac = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let place = u64::from(key.network.0) << 16 | u64::from(key.vlan.0);
        let product = u128::from(mac ^ self.seed[0]) * u128::from(place ^ self.seed[1]);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let folded = product as u64 ^ (product >> 64) as u64;
        // The index takes its bits from both ends, the shard from the middle: mix once more.
        folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (folded >> 32)
    }

    fn shard(&self, key: StationKey) -> (usize, u64, MutexGuard<'_, Shard>) {
        let hash = self.hash(key);
        let number = usize::try_from(hash >> 24).unwrap_or(0) % SHARDS;
        (number, hash, self.lock(number))
    }

    fn lock(&self, number: usize) -> MutexGuard<'_, Shard> {
        // A panic with a shard locked ends the process (panic policy), so poison cannot be seen there; in tests
        // the state is still consistent between statements.
        self.shards[number].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Shard {
    fn lookup(&self, key: StationKey, hash: u64) -> Option<u32> {
        self.index
            .find(hash, |slot| self.slots[*slot as usize].as_ref().is_some_and(|s| s.station.key == key))
            .copied()
    }
}

impl std::fmt::Debug for Fdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fdb").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

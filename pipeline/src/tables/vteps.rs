//! Tunnel endpoints of other hosts: which address has which number.
//!
//! A frame, a station and a flow's key have 16 bits for the endpoint that something came from or goes to; this table says
//! which address that is. An endpoint is *fixed* when the manager set it (a configured peer, the home of a remote
//! endpoint), for every network or for one; or it is *learned* in one network, from a packet that came from an address which
//! is none of these, where the network allows that. A learned one is never fixed's equal: it is gone when a fixed one
//! of its address comes.
//!
//! Looking an address up takes no lock (the index of the neighbour table); whatever changes the table, and the list of
//! those that a flooded frame goes to, takes one. Workers keep what they know of an endpoint under its number, so a number
//! rests for [`REST`] before another endpoint gets it, and the [`epoch`](Vteps::epoch) tells workers that endpoints came or went.
//!
//! Capacity: fixed. A network learns as many as its limit says, and those behind which no station was learned for
//! [`UNUSED_FOR`] go. When the table is full, or the limit is reached, a new one is refused, and its packets are dropped
//! as `unknown_vtep`: nobody who invents addresses displaces an endpoint that is used.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use packet::{Address, Instant, NetworkId, VtepId};

use super::lists::{Link, List};
use super::neighbors::NeighborKey;
use super::neighbors::index::Index;

/// For how long a number is not given to another endpoint: longer than any worker keeps a decision about packets
/// of the one before, or a packet that waits.
const REST: Duration = Duration::from_secs(10);
/// For how long an endpoint is kept behind which no station is learned.
const UNUSED_FOR: Duration = Duration::from_secs(60);
/// Stands for every network.
const EVERY: NetworkId = NetworkId(u16::MAX);

/// What an endpoint is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepKey {
    /// The network it belongs to; `None`: every network.
    pub network: Option<NetworkId>,
    /// Its address in the underlay.
    pub address: Address,
}

impl VtepKey {
    fn packed(self) -> NeighborKey {
        NeighborKey { network: self.network.unwrap_or(EVERY), port: None, address: self.address }
    }
}

/// How an endpoint came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VtepKind {
    /// Set by the manager; stays until it is removed.
    Fixed,
    /// From a packet.
    Learned,
}

/// An endpoint as [`Vteps::for_each`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// Its number.
    pub id: VtepId,
    /// What it is known by.
    pub key: VtepKey,
    /// How it came to be known.
    pub kind: VtepKind,
    /// When it was set, learned, or last found to be used.
    pub seen: Instant,
}

struct State {
    entries: Box<[Option<Vtep>]>,
    links: Box<[Link]>,
    every: List,
    networks: Box<[List]>,
    free: VecDeque<u32>,
    resting: VecDeque<(u32, Instant)>,
    place: usize,
}

/// The table. See the module header.
pub struct Vteps {
    index: Index,
    epoch: AtomicU32,
    refused: AtomicU64,
    /// How many endpoints each network has learned.
    learned: Box<[AtomicU32]>,
    state: Mutex<State>,
}

impl Vteps {
    /// Makes an empty table for `capacity` endpoints, at most [`VtepId::MAX`], in `networks` networks.
    pub fn new(capacity: usize, networks: usize, seed: [u64; 2]) -> Self {
        let capacity = capacity.min(VtepId::MAX.into());
        let count = u32::try_from(capacity).expect("15 bits");
        Self {
            index: Index::new(capacity.max(4), seed),
            epoch: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            learned: (0..networks).map(|_| AtomicU32::new(0)).collect(),
            state: Mutex::new(State {
                entries: vec![None; capacity].into(),
                links: vec![Link::default(); capacity].into(),
                every: List::default(),
                networks: vec![List::default(); networks].into(),
                free: (0..count).collect(),
                resting: VecDeque::with_capacity(capacity),
                place: 0,
            }),
        }
    }

    /// Returns how many endpoints the table was made for.
    pub fn capacity(&self) -> usize {
        self.lock().entries.len()
    }

    /// Returns a number that grows whenever an endpoint goes or is fixed: what was found before may not hold any more.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns how many endpoints were not learned because of a limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns the endpoint that has an address, as far as `network` is concerned. Takes no lock.
    #[inline]
    pub fn find(&self, network: NetworkId, address: Address) -> Option<VtepId> {
        self.exact(VtepKey { network: None, address })
            .or_else(|| self.exact(VtepKey { network: Some(network), address }))
    }

    fn exact(&self, key: VtepKey) -> Option<VtepId> {
        let (slot, _) = self.index.find(key.packed())?;
        number(slot)
    }

    /// Returns what is known of an endpoint.
    pub fn get(&self, id: VtepId) -> Option<Vtep> {
        *self.lock().entries.get(id.index() - 1)?
    }

    /// Sets a fixed endpoint and returns its number; learned ones of its address go. `None` when the table is full.
    pub fn fix(&self, key: VtepKey, now: Instant) -> Option<VtepId> {
        let mut state = self.lock();
        let known = self.exact(key).and_then(|id| state.entries[id.index() - 1].as_mut());
        if let Some(entry) = known.filter(|entry| entry.kind == VtepKind::Fixed) {
            return Some(entry.id);
        }
        for slot in 0..state.entries.len() {
            let concerned = state.entries[slot].is_some_and(|entry| {
                entry.kind == VtepKind::Learned
                    && entry.key.address == key.address
                    && (key.network.is_none() || entry.key.network == key.network)
            });
            if concerned {
                self.free(&mut state, slot, now);
            }
        }
        let id = self.add(&mut state, key, VtepKind::Fixed, now)?;
        self.epoch.fetch_add(1, Ordering::Release);
        Some(id)
    }

    /// Returns the endpoint that has an address, and learns it if need be for a network that may have learned `limit`.
    /// `None` when it may have no more, or the table is full.
    pub fn learn(&self, network: NetworkId, address: Address, limit: u32, now: Instant) -> Option<VtepId> {
        if let Some(id) = self.find(network, address) {
            return Some(id);
        }
        let learned = self.learned.get(network.index())?;
        if limit == 0 {
            return None;
        }
        // Asked before the lock is taken: whoever invents addresses finds the limit reached.
        if learned.load(Ordering::Relaxed) < limit {
            let mut state = self.lock();
            if let Some(id) = self.find(network, address) {
                return Some(id);
            }
            let key = VtepKey { network: Some(network), address };
            if learned.load(Ordering::Relaxed) < limit
                && let Some(id) = self.add(&mut state, key, VtepKind::Learned, now)
            {
                learned.fetch_add(1, Ordering::Relaxed);
                return Some(id);
            }
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Removes an endpoint, and says whether it was there. See [`Tables::forget_vtep`](super::Tables::forget_vtep).
    pub fn remove(&self, id: VtepId, now: Instant) -> bool {
        let mut state = self.lock();
        let slot = id.index() - 1;
        let there = state.entries.get(slot).is_some_and(Option::is_some);
        if there {
            self.free(&mut state, slot, now);
        }
        there
    }

    /// Calls `each` for the endpoints that get a copy of what is flooded in a network: the fixed ones of every network,
    /// then its own. It must not call the table.
    pub fn for_each_of(&self, network: NetworkId, mut each: impl FnMut(VtepId)) {
        let state = self.lock();
        let own = state.networks.get(network.index()).copied().unwrap_or_default();
        let slots = state.every.iter(&state.links).chain(own.iter(&state.links));
        slots.filter_map(number).for_each(&mut each);
    }

    /// Calls `each` for every endpoint, in the order of their numbers. It must not call the table.
    pub fn for_each(&self, each: impl FnMut(&Vtep)) {
        self.lock().entries.iter().flatten().for_each(each);
    }

    /// Looks at the next `budget` places: a learned endpoint that `is_used` says no station is behind goes, when that is so
    /// for [`UNUSED_FOR`]. For one worker, so that all places have their turn about once a second.
    pub fn expire(&self, now: Instant, budget: usize, mut is_used: impl FnMut(VtepId) -> bool) {
        let mut state = self.lock();
        for _ in 0..budget.min(state.entries.len()) {
            let place = state.place;
            state.place = (place + 1) % state.entries.len();
            let Some(entry) = &mut state.entries[place] else { continue };
            if entry.kind == VtepKind::Fixed {
                continue;
            }
            if is_used(entry.id) {
                entry.seen = now;
            } else if now.since(entry.seen) > UNUSED_FOR {
                self.free(&mut state, place, now);
            }
        }
    }

    fn add(&self, state: &mut State, key: VtepKey, kind: VtepKind, now: Instant) -> Option<VtepId> {
        if key.network.is_some_and(|network| network.index() >= state.networks.len()) {
            return None;
        }
        while let Some((slot, since)) = state.resting.front().copied()
            && now.since(since) >= REST
        {
            state.resting.pop_front();
            state.free.push_back(slot);
        }
        let slot = state.free.pop_front()?;
        if !self.index.insert(key.packed(), slot) {
            state.free.push_back(slot);
            return None;
        }
        let id = number(slot)?;
        state.entries[slot as usize] = Some(Vtep { id, key, kind, seen: now });
        let State { every, networks, links, .. } = state;
        let list = key.network.map_or(every, |network| &mut networks[network.index()]);
        list.push(links, slot);
        Some(id)
    }

    fn free(&self, state: &mut State, slot: usize, now: Instant) {
        let Some(Vtep { key, kind, id, .. }) = state.entries[slot].take() else { return };
        let slot = u32::from(id.get()) - 1;
        self.index.remove(key.packed(), slot);
        let State { every, networks, links, .. } = &mut *state;
        let list = key.network.map_or(every, |network| &mut networks[network.index()]);
        list.remove(links, slot);
        state.resting.push_back((slot, now));
        if let (VtepKind::Learned, Some(network)) = (kind, key.network) {
            self.learned[network.index()].fetch_sub(1, Ordering::Relaxed);
        }
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic with the table locked ends the process (panic policy); see `Fdb`.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn number(slot: u32) -> Option<VtepId> {
    u16::try_from(slot + 1).ok().and_then(VtepId::new)
}

impl std::fmt::Debug for Vteps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vteps").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

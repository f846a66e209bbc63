//! The neighbour table: which MAC address and port an IP next hop is at.
//!
//! Shared. Looking up takes no lock ([`index`]); whatever changes the table takes one, which the packet path does only
//! for a neighbour that is not resolved. Written by the manager, which knows every endpoint it made (`Fixed`), and by
//! the slow path, which learns from answers, and from requests to us.
//!
//! A flow keeps the *slot* of its next hop and reads that slot's word for every packet, one atomic number: MAC, port,
//! and whether they are valid. A neighbour that moves changes its word, and flows follow at their next packet. A slot
//! that had a target rests for [`REST`] before another neighbour gets it: a flow that is used sees the empty word
//! meanwhile and walks again, and one that is not used must be dropped from the cache sooner. A slot that
//! never had a target is given away at once, so a flow may keep a slot only together with a target.
//!
//! A neighbour behind an overlay's tunnel has its endpoint in an array beside the words.
//!
//! States (RFC 4861, 7.3; RFC 826 and RFC 1122, 2.3.2 for ARP):
//!
//! ```text
//! resolve -> Incomplete -- 3 requests, 1 s apart --> Failed -- 5 s --> gone, or asked anew
//!                | answer                              | answer
//!                v                                     v
//!            Reachable -- 5 min, used --> Probed -- 3 requests --> gone
//!                | 5 min, not used          | answer: Reachable
//!                v gone
//! ```
//!
//! Capacity: fixed, and a quarter more slots for those that rest. A network has at most a quarter of the table, fixed
//! neighbours aside; who scans its addresses displaces what it asked for first. When all is full, the network with
//! the most unresolved neighbours loses the oldest of those, and where there are none, the one with the most
//! learned the least recently heard, if it has more than the newcomer's. Fixed ones never make room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use packet::{Address, Instant, MacAddr, NetworkId, PortId, VtepId};

use super::fdb::At;

pub(in crate::tables) mod index;
mod state;
#[cfg(test)]
mod tests;

use index::Index;
use state::State;

/// Between two requests for a neighbour (RFC 4861, 10: RETRANS_TIMER; RFC 1122, 2.3.2.1: at most one a second).
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a neighbour is asked (RFC 4861, 10: MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT).
const ASKS: u8 = 3;
/// For how long a neighbour that did not answer counts as unreachable.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// For how long an answer is believed. RFC 4861 has 30 s, as it hears from no one else; on our networks the
/// FDB notices first when a station goes.
const REACHABLE_FOR: Duration = Duration::from_secs(300);
/// For how long a slot is not given to another neighbour.
const REST: Duration = Duration::from_secs(10);

/// What a neighbour is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighborKey {
    /// The network it is in.
    pub network: NetworkId,
    /// On the uplink network, the device: link-local next hops repeat. `None` elsewhere.
    pub port: Option<PortId>,
    /// Its IP address.
    pub address: Address,
}

/// A place whose word the fast path reads. Only to be kept together with a target: see the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adjacency {
    /// The index of the word.
    pub slot: u32,
}

/// Where a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its MAC address.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
    /// The endpoint it is behind, when the port is a tunnel. It is not in the word: see [`Neighbors::vteps`].
    pub vtep: Option<VtepId>,
}

impl Target {
    const PORT_SHIFT: u32 = 48;
    const PORT_MASK: u64 = 0xfff;
    const VALID: u64 = 1 << 63;

    /// Reads a word of [`Neighbors::words`]: `None` when nobody is known to be there.
    #[inline(always)]
    pub fn from_word(word: u64) -> Option<Self> {
        let [_, _, mac @ ..] = word.to_be_bytes();
        let port = PortId((word >> Self::PORT_SHIFT & Self::PORT_MASK) as u16);
        (word & Self::VALID != 0).then_some(Self { mac: MacAddr(mac), port, vtep: None })
    }

    /// Returns the MAC that a word of [`Neighbors::words`] says, if it is one at `port`, as a number whose low six bytes
    /// are those on the wire, the first lowest.
    #[inline(always)]
    pub(crate) fn mac_at(word: u64, port: PortId) -> Option<u64> {
        let expected = Self::VALID >> Self::PORT_SHIFT | u64::from(port.0);
        (word >> Self::PORT_SHIFT == expected).then_some(word.swap_bytes() >> 16)
    }

    fn to_word(self) -> u64 {
        let [a, b, c, d, e, f] = self.mac.0;
        let port = u64::from(self.port.0) & Self::PORT_MASK;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | port << Self::PORT_SHIFT | Self::VALID
    }
}

/// How a neighbour came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The manager knows it. It does not age, is never asked for, and nothing that is learned changes it.
    Fixed,
    /// From an answer. Only what is known or being resolved is updated; nothing is created.
    Learned,
    /// From a request that asked for us: whoever asks is about to be answered, so it is created if need be.
    Asker,
}

/// What the caller of [`Neighbors::resolve`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send a request now.
    Now,
    /// One is on its way: wait.
    Wait,
    /// Nobody answered: the neighbour counts as unreachable for a while.
    Failed,
    /// Nothing: it has a target, perhaps since a moment ago.
    Known,
}

/// The table has no room for another neighbour of that network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A neighbour as [`Neighbors::for_each`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// What it is known by.
    pub key: NeighborKey,
    /// Its place.
    pub adjacency: Adjacency,
    /// Where it is, when that is known.
    pub target: Option<Target>,
    /// How it stands.
    pub state: NeighborState,
    /// When it last told us where it is, or was first asked for.
    pub seen: Instant,
}

/// How a neighbour stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborState {
    /// Set by the manager.
    Fixed,
    /// It has told us where it is.
    Reachable,
    /// It is used, and has not told us for long: it is asked again.
    Probed,
    /// It is being asked for.
    Incomplete,
    /// It does not answer.
    Failed,
}

/// The table. See the module header.
#[derive(Debug)]
pub struct Neighbors {
    index: Index,
    /// Whether a slot was used since it was last asked about.
    used: Box<[AtomicBool]>,
    state: Mutex<State>,
}

impl Neighbors {
    /// Makes an empty table for `capacity` neighbours in `networks` networks.
    pub fn new(capacity: usize, networks: usize, seed: [u64; 2]) -> Self {
        let capacity = capacity.max(4);
        let slots = capacity + capacity / 4;
        Self {
            index: Index::new(slots, seed),
            used: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            state: Mutex::new(State::new(capacity, slots, networks)),
        }
    }

    /// Looks a neighbour up. A `None` for its target means that it is being resolved, or does not answer:
    /// [`resolve`](Neighbors::resolve) knows. Takes no lock.
    #[inline]
    pub fn find(&self, key: NeighborKey) -> Option<(Adjacency, Option<Target>)> {
        let (slot, target) = self.index.find(key)?;
        Some((Adjacency { slot }, target))
    }

    /// Returns the number of the endpoint that the neighbour in each slot is behind, 0 for none; read after the word.
    #[inline(always)]
    pub fn vteps(&self) -> &[AtomicU16] {
        &self.index.vteps
    }

    /// Returns the words that the fast path reads, by slot; [`Target::from_word`] says what they mean.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU64] {
        &self.index.words
    }

    /// Returns where the neighbour of a place is, when that is known.
    #[inline(always)]
    pub fn target(&self, adjacency: Adjacency) -> Option<Target> {
        self.index.target(adjacency.slot)
    }

    /// Makes sure that the neighbour is known or being resolved, and says whether to send a request for it.
    ///
    /// # Errors
    /// When there is no room.
    pub fn resolve(&self, key: NeighborKey, now: Instant) -> Result<(Adjacency, Ask), Full> {
        let mut state = self.lock();
        if let Some((slot, _)) = self.index.find(key) {
            return Ok((Adjacency { slot }, state.ask(slot, now)));
        }
        let slot = state.create(&self.index, key, NeighborState::Incomplete, now).ok_or(Full)?;
        Ok((Adjacency { slot }, Ask::Now))
    }

    /// Notes where a neighbour is, and returns its place. `None` when nothing was noted: there is no room, it is fixed
    /// and this is not, it is unknown and `kind` does not create it, or `mac` is no station's (RFC 1812, 3.3.2).
    pub fn set(
        &self,
        key: NeighborKey,
        mac: MacAddr,
        at: impl Into<At>,
        kind: Kind,
        now: Instant,
    ) -> Option<Adjacency> {
        if !mac.is_station() {
            return None;
        }
        let mut state = self.lock();
        let new = if kind == Kind::Fixed { NeighborState::Fixed } else { NeighborState::Reachable };
        let slot = match self.index.find(key) {
            Some((slot, _)) => state.confirm(slot, new, now).then_some(slot)?,
            None if kind == Kind::Learned => return None,
            None => {
                let slot = state.create(&self.index, key, new, now)?;
                self.used[slot as usize].store(false, Ordering::Relaxed);
                slot
            }
        };
        let At { port, vtep } = at.into();
        self.index.vteps[slot as usize].store(VtepId::raw(vtep), Ordering::Relaxed);
        self.words()[slot as usize].store(Target { mac, port, vtep }.to_word(), Ordering::Release);
        Some(Adjacency { slot })
    }

    /// Forgets a neighbour, and says whether it was known.
    pub fn remove(&self, key: NeighborKey, now: Instant) -> bool {
        let mut state = self.lock();
        let Some((slot, _)) = self.index.find(key) else { return false };
        state.free(&self.index, slot, now);
        true
    }

    /// Forgets the neighbours that `matches` picks, and returns how many: those of a network or port that goes.
    pub fn remove_all(&self, now: Instant, mut matches: impl FnMut(&Neighbor) -> bool) -> usize {
        let mut state = self.lock();
        let slots = 0..u32::try_from(self.words().len()).expect("State counts slots in 32 bits");
        slots
            .filter(|slot| {
                let found = state.neighbor(&self.index, *slot).is_some_and(|neighbor| matches(&neighbor));
                if found {
                    state.free(&self.index, *slot, now);
                }
                found
            })
            .count()
    }

    /// Notes that a neighbour was used, so that it is asked again instead of forgotten when it is stale.
    #[inline]
    pub fn mark_used(&self, slot: u32) {
        if let Some(used) = self.used.get(slot as usize)
            && !used.load(Ordering::Relaxed)
        {
            used.store(true, Ordering::Relaxed);
        }
    }

    /// Ages the neighbours in the next `budget` places. `ask` is called for each that is to be sent a request now: by
    /// broadcast or multicast, or, when a target is given, to that. It must not call the table.
    ///
    /// For the manager or one worker, so that all places have their turn about once a second.
    pub fn expire(&self, now: Instant, budget: usize, ask: &mut impl FnMut(NeighborKey, Option<Target>)) {
        let mut state = self.lock();
        for _ in 0..budget.min(self.words().len()) {
            let slot = state.next_place();
            let used = &self.used[slot as usize];
            if let Some((key, target)) = state.age(&self.index, slot, used, now) {
                ask(key, target);
            }
        }
    }

    /// Calls `each` for every neighbour, in no order. It must not call the table.
    pub fn for_each(&self, mut each: impl FnMut(&Neighbor)) {
        let state = self.lock();
        for slot in 0..u32::try_from(self.words().len()).expect("State counts slots in 32 bits") {
            if let Some(neighbor) = state.neighbor(&self.index, slot) {
                each(&neighbor);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic with the table locked ends the process (panic policy); see `Fdb`.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

//! The neighbour table: which MAC address and port an IP next hop is at.

use std::sync::atomic::AtomicU64;

use packet::{Address, Instant, MacAddr, NetworkId, PortId};

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

/// A place whose word the fast path reads.
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
}

impl Target {
    /// Reads a word of [`Neighbors::words`]: `None` when there is no usable address behind it.
    #[inline(always)]
    pub fn from_word(_word: u64) -> Option<Self> {
        None
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
    words: Box<[AtomicU64]>,
}

impl Neighbors {
    /// Makes an empty table for `capacity` neighbours in `networks` networks.
    pub fn new(_capacity: usize, _networks: usize, _seed: [u64; 2]) -> Self {
        Self { words: Box::new([]) }
    }

    /// Looks a neighbour up. A `None` for its target means that it is being resolved.
    pub fn find(&self, _key: NeighborKey) -> Option<(Adjacency, Option<Target>)> {
        None
    }

    /// Returns the words that the fast path reads, by slot; [`Target::from_word`] says what they mean.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// Returns where the neighbour of a place is, when that is known.
    #[inline(always)]
    pub fn target(&self, _adjacency: Adjacency) -> Option<Target> {
        None
    }

    /// Makes sure that the neighbour is known or being resolved, and says whether to send a request for it.
    ///
    /// # Errors
    /// When there is no room.
    pub fn resolve(&self, _key: NeighborKey, _now: Instant) -> Result<(Adjacency, Ask), Full> {
        Err(Full)
    }

    /// Notes where a neighbour is, and returns its place; `None` when nothing was noted.
    pub fn set(
        &self,
        _key: NeighborKey,
        _mac: MacAddr,
        _port: PortId,
        _kind: Kind,
        _now: Instant,
    ) -> Option<Adjacency> {
        None
    }

    /// Forgets a neighbour, and says whether it was known.
    pub fn remove(&self, _key: NeighborKey) -> bool {
        false
    }

    /// Notes that a neighbour was used, so that it is asked again instead of forgotten when it is stale.
    #[inline]
    pub fn mark_used(&self, _slot: u32) {}

    /// Ages the neighbours in the next `budget` places. `ask` is called for each that is to be sent a request now:
    /// by broadcast or multicast, or, when a target is given, to that.
    pub fn expire(&self, _now: Instant, _budget: usize, _ask: &mut impl FnMut(NeighborKey, Option<Target>)) {}

    /// Calls `each` for every neighbour, in no order.
    pub fn for_each(&self, _each: impl FnMut(&Neighbor)) {}
}

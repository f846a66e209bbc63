//! NAT ports: which external port an inside endpoint has.
//!
//! A *mapping* joins an inside endpoint (network, address, port) with a port of an external address, for one protocol. It
//! lives as long as a connection holds a lease of it. What is required of it, and how it is met:
//!
//! | requirement | here |
//! |---|---|
//! | RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1: endpoint-independent mapping | an inside endpoint has one external port, whatever its destinations |
//! | RFC 4787 REQ-2: paired pooling | a pool has one address |
//! | RFC 4787 REQ-3, RFC 5382 REQ-7: no port overloading | UDP and queries never share; TCP shares only when more than 80 % of the pool is in use, nothing is found free, and destinations differ |
//! | RFC 4787 REQ-3 a, b: ports below 1024 stay there | by the range of the pool: a source port is preserved when it lies in it |
//! | RFC 4787 REQ-4: parity | not kept: it would halve the pool for RTP without RTCP multiplexing, which signals its ports (RFC 3605) |
//! | RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2: lifetimes | those of the connections, see [`Timeouts`](super::Timeouts) |
//!
//! Filtering (RFC 4787 REQ-8) and hairpinning (REQ-9) are the connection table's and the stages' matter.
//! TCP, UDP and SCTP ports and identifiers of ICMP and ICMPv6 queries are separate spaces. Other protocols have none.
//!
//! A walk only looks ([`NatPorts::candidate`]); whoever carries it out takes ([`NatPorts::take`]), and walks again
//! with the next attempt when somebody was faster or the connection table says that the answers' key is taken.
//!
//! **Threads.** As in [`connections`](super::connections): looking takes no lock but a mapping's own, changes lock
//! the shards of both keys in ascending order. **Capacity** is fixed; pools cost nothing but a count each.
//! **Full**: a search probes at most [`PROBES`] ports, so that a busy pool may refuse while a few ports of it are free.

mod mapping;
mod usage;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use packet::header::protocol;
use packet::{Address, NetworkId, prefetch_at};

pub use usage::PoolUsage;

use super::index::{self, Index, MAX_SLOTS, Place};
use mapping::{Mapping, Slot};
use usage::Usages;

/// Most ports that one search looks at. With 94 % of a pool in use, one search in four million finds none.
pub const PROBES: u32 = 248;
/// TCP may share ports from here on, in hundredths of the pool.
const SHARING_FROM: u64 = 80;
/// No slot.
const NONE: u32 = u32::MAX;

/// The external ports that connections may leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// The address.
    pub address: Address,
    /// The first port,
    pub first: u16,
    /// and the last.
    pub last: u16,
}

impl Pool {
    /// Returns how many ports it has.
    pub const fn len(self) -> u32 {
        if self.is_empty() { 0 } else { self.last as u32 - self.first as u32 + 1 }
    }

    /// Says whether it has none.
    pub const fn is_empty(self) -> bool {
        self.last < self.first
    }

    const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Who needs an external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inside {
    /// The network that it is in.
    pub network: NetworkId,
    /// Its address there.
    pub address: Address,
    /// Its port or identifier.
    pub port: u16,
}

/// A port that could be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The external port.
    pub port: u16,
    /// Another inside endpoint has it too: it serves for destinations that the other one does not use.
    pub shared: bool,
    /// The endpoint has another port already, which this connection cannot use.
    second: bool,
    /// Where the mapping is or would be found by the endpoint, and by the port.
    places: [Place; 2],
}

/// What a connection holds of a mapping. Given back once, when the connection's end is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortLease(NonZeroU32);

impl PortLease {
    const fn slot(self) -> u32 {
        self.0.get() - 1
    }
}

/// Says whether a protocol has ports, or identifiers in their place.
pub const fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6)
}

/// A line each, so that two workers do not wait for each other's locks.
#[derive(Debug)]
#[repr(align(64))]
struct Guarded(Mutex<Shard>);

#[derive(Debug)]
struct Shard {
    free: u32,
}

/// The table. See the module header.
pub struct NatPorts {
    index: Index,
    mappings: Box<[Slot]>,
    /// The next free slot, for slots that are free.
    links: Box<[AtomicU32]>,
    shards: Box<[Guarded]>,
    slots_per_shard: u32,
    usages: Usages,
    seed: [u64; 2],
}

impl NatPorts {
    /// Makes an empty table for `capacity` mappings.
    ///
    /// # Panics
    /// When the capacity is beyond about 8 million.
    pub fn new(capacity: usize, seed: [u64; 2]) -> Self {
        let shards = (capacity / 256).next_power_of_two().clamp(1, 64);
        let even = capacity.max(1).div_ceil(shards);
        // Hashes fill shards unevenly.
        let slots_per_shard = if shards == 1 { even } else { even + even / 32 + 8 };
        let slots = slots_per_shard * shards;
        assert!(slots <= MAX_SLOTS, "{capacity} mappings are more than a slot number can name");
        let count = |n: usize| u32::try_from(n).expect("slots are 23 bits");
        let unused = Mapping {
            inside: Address::UNSPECIFIED,
            address: Address::UNSPECIFIED,
            pool: 0,
            leases: 0,
            network: NetworkId(0),
            inside_port: 0,
            port: 0,
            protocol: 0,
        };
        let next =
            |slot: usize| if (slot + 1).is_multiple_of(slots_per_shard) { NONE } else { count(slot + 1) };
        Self {
            index: Index::new(slots, shards),
            mappings: (0..slots).map(|_| Slot(Mutex::new(unused))).collect(),
            links: (0..slots).map(|slot| AtomicU32::new(next(slot))).collect(),
            shards: (0..shards)
                .map(|n| Guarded(Mutex::new(Shard { free: count(n * slots_per_shard) })))
                .collect(),
            slots_per_shard: count(slots_per_shard),
            usages: Usages::new(),
            seed,
        }
    }

    /// Returns the port that a new connection of `inside` to `to` would leave by, changing nothing: the one that the
    /// endpoint has; or its own, when it is in the pool and free; or another free one. `attempt` counts how often
    /// what was returned before could not be used. `None` when nothing is found, or the protocol has no ports.
    pub fn candidate(
        &self,
        pool: Pool,
        inside: &Inside,
        protocol: u8,
        to: (Address, u16),
        attempt: u32,
    ) -> Option<Candidate> {
        if !has_ports(protocol) || pool.is_empty() {
            return None;
        }
        let by_inside = self.inside_place(inside, pool.address, protocol);
        let known = self.find_inside(by_inside, inside, pool, protocol);
        let seed = self.pool_seed(pool.address, protocol);
        match known {
            // Only TCP shares ports, and only then can one port do for some destinations and not for others.
            Some(port) if attempt == 0 || protocol != protocol::TCP => {
                let places = [by_inside, self.port_place(seed, port)];
                return Some(Candidate { port, shared: false, second: false, places });
            }
            _ => {}
        }
        let free = |port: u16| {
            let place = self.port_place(seed, port);
            self.find_external(place, pool.address, port, protocol).is_none().then_some((port, place))
        };
        let candidate = |(port, place), shared| Candidate {
            port,
            shared,
            second: known.is_some(),
            places: [by_inside, place],
        };
        if attempt == 0
            && pool.contains(inside.port)
            && let Some(own) = free(inside.port)
        {
            return Some(candidate(own, false));
        }
        let [a, b] = [inside.address, to.0].map(Address::to_bits);
        let own = self.hash(a, u128::from(attempt), [inside.network.0, inside.port, 0], protocol);
        let found = (0..PROBES.min(pool.len())).find_map(|n| free(probe(pool, own, n)));
        if let Some(found) = found {
            return Some(candidate(found, false));
        }
        let used = u64::from(self.usage(pool, protocol).used);
        if protocol != protocol::TCP || used * 100 < u64::from(pool.len()) * SHARING_FROM {
            return None;
        }
        // Any will do whose other users go elsewhere, which only the connection table knows: attempts tell.
        let there = self.hash(b, a, [to.1, inside.port, inside.network.0], protocol);
        let port = probe(pool, there, attempt);
        Some(candidate((port, self.port_place(seed, port)), true))
    }

    /// Takes a candidate, or one lease more of a mapping that is there already. `None` when somebody was faster, so
    /// that it no longer holds, or when the table is full.
    pub fn take(&self, pool: Pool, inside: &Inside, protocol: u8, candidate: Candidate) -> Option<PortLease> {
        let [by_inside, by_port] = candidate.places;
        let (mut shard, _other) = self.lock_both(by_inside.shard, by_port.shard);
        let known = self.index.find(by_inside, |slot, side| {
            let mut mapping = self.lock(slot);
            let is_own = !side && mapping.is_of(inside, pool.address, protocol);
            let is_it = is_own && (mapping.port == candidate.port || !candidate.second);
            is_it.then(|| {
                let holds = mapping.port == candidate.port;
                mapping.leases += u32::from(holds);
                holds.then(|| lease(slot))
            })
        });
        if let Some(lease) = known {
            return lease;
        }
        let is_used = self.find_external(by_port, pool.address, candidate.port, protocol).is_some();
        if is_used && !candidate.shared {
            return None;
        }
        let slot = shard.free;
        if slot == NONE || !self.index.insert(by_inside, slot, false) {
            return None;
        }
        if !self.index.insert(by_port, slot, true) {
            self.index.remove(by_inside, slot, false);
            return None;
        }
        shard.free = self.links[slot as usize].load(Ordering::Relaxed);
        // PERF: as in the connection table.
        prefetch_at(&self.mappings, shard.free as usize);
        prefetch_at(&self.links, shard.free as usize);
        let pool_hash = self.pool_hash(pool, protocol);
        *self.lock(slot) = Mapping {
            inside: inside.address,
            address: pool.address,
            pool: pool_hash,
            leases: 1,
            network: inside.network,
            inside_port: inside.port,
            port: candidate.port,
            protocol,
        };
        if !is_used {
            self.usages.add(pool_hash);
        }
        Some(lease(slot))
    }

    /// Takes the very port that a connection had before the switch was restarted, or one lease more of it. `None` when
    /// it is not of the pool, when another endpoint has it and the protocol does not share, or when the table is full.
    pub fn take_again(&self, pool: Pool, inside: &Inside, protocol: u8, port: u16) -> Option<PortLease> {
        if !has_ports(protocol) || !pool.contains(port) {
            return None;
        }
        // Whether it was shared before is not known; the connection table has the last word about that.
        let places = [
            self.inside_place(inside, pool.address, protocol),
            self.port_place(self.pool_seed(pool.address, protocol), port),
        ];
        let candidate = Candidate { port, shared: protocol == protocol::TCP, second: true, places };
        self.take(pool, inside, protocol, candidate)
    }

    /// Gives back what a connection held. The last one frees the port.
    pub fn give_back(&self, lease: PortLease) {
        let slot = lease.slot();
        // The shards have to be locked before the mapping; what they are does not change while it is held.
        let mapping = {
            let mut mapping = self.lock(slot);
            if mapping.leases > 1 {
                mapping.leases -= 1;
                return;
            }
            *mapping
        };
        let by_inside = self.inside_place(&mapping.inside(), mapping.address, mapping.protocol);
        let seed = self.pool_seed(mapping.address, mapping.protocol);
        let by_port = self.port_place(seed, mapping.port);
        let (mut shard, _other) = self.lock_both(by_inside.shard, by_port.shard);
        {
            let mut mapping = self.lock(slot);
            debug_assert!(mapping.leases > 0, "a lease was given back twice");
            mapping.leases = mapping.leases.saturating_sub(1);
            if mapping.leases > 0 {
                return;
            }
        }
        self.index.remove(by_inside, slot, false);
        self.index.remove(by_port, slot, true);
        self.links[slot as usize].store(shard.free, Ordering::Relaxed);
        shard.free = slot;
        if self.find_external(by_port, mapping.address, mapping.port, mapping.protocol).is_none() {
            self.usages.remove(mapping.pool);
        }
    }

    /// Returns how much of a pool is in use.
    pub fn usage(&self, pool: Pool, protocol: u8) -> PoolUsage {
        self.usages.read(self.pool_hash(pool, protocol), pool.len())
    }

    /// Counts that a connection found no port in the pool. For whoever carries a walk out: looking counts nothing.
    pub fn count_refused(&self, pool: Pool, protocol: u8) {
        self.usages.refuse(self.pool_hash(pool, protocol));
    }

    fn find_inside(&self, place: Place, inside: &Inside, pool: Pool, protocol: u8) -> Option<u16> {
        self.index.find(place, |slot, side| {
            if side {
                return None;
            }
            let mapping = self.lock(slot);
            mapping.is_of(inside, pool.address, protocol).then_some(mapping.port)
        })
    }

    fn find_external(&self, place: Place, address: Address, port: u16, protocol: u8) -> Option<u32> {
        self.index.find(place, |slot, side| {
            if !side {
                return None;
            }
            let mapping = self.lock(slot);
            let is_it = (mapping.address, mapping.port, mapping.protocol) == (address, port, protocol);
            (mapping.leases > 0 && is_it).then_some(slot)
        })
    }

    fn inside_place(&self, inside: &Inside, external: Address, protocol: u8) -> Place {
        let rest = [inside.network.0, inside.port, 1];
        self.index.place(self.hash(inside.address.to_bits(), external.to_bits(), rest, protocol))
    }

    /// Returns what all ports of an external address have in common in their hashes. PERF: a search looks at many ports of
    /// one address, and each costs one multiplication more.
    fn pool_seed(&self, address: Address, protocol: u8) -> u64 {
        self.hash(address.to_bits(), 0, [2, 0, 0], protocol)
    }

    #[inline]
    fn port_place(&self, seed: u64, port: u16) -> Place {
        self.index.place(index::mix(seed ^ self.seed[0], self.seed[1] ^ u64::from(port) << 16))
    }

    fn pool_hash(&self, pool: Pool, protocol: u8) -> u64 {
        self.hash(pool.address.to_bits(), 0, [pool.first, pool.last, 3], protocol)
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    fn hash(&self, a: u128, b: u128, [x, y, z]: [u16; 3], protocol: u8) -> u64 {
        let rest = u64::from(x) << 48 | u64::from(y) << 32 | u64::from(z) << 16 | u64::from(protocol);
        index::hash([(a >> 64) as u64, a as u64, (b >> 64) as u64, b as u64], rest, self.seed)
    }

    fn lock(&self, slot: u32) -> MutexGuard<'_, Mapping> {
        // See `Fdb` for poison.
        self.mappings[slot as usize].0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lock_shard(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number].0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Locks two shards in ascending order; the first returned is `one`'s.
    fn lock_both(&self, one: usize, two: usize) -> (MutexGuard<'_, Shard>, Option<MutexGuard<'_, Shard>>) {
        let before = (two < one).then(|| self.lock_shard(two));
        let first = self.lock_shard(one);
        let second = before.or_else(|| (two > one).then(|| self.lock_shard(two)));
        (first, second)
    }

    /// Returns the bytes that the table takes.
    pub fn bytes(&self) -> usize {
        self.index.bytes() + size_of_val(&*self.mappings) + size_of_val(&*self.links) + self.usages.bytes()
    }

    /// Returns how many mappings there can be.
    pub fn capacity(&self) -> usize {
        self.slots_per_shard as usize * self.shards.len()
    }
}

fn lease(slot: u32) -> PortLease {
    PortLease(NonZeroU32::MIN.saturating_add(slot))
}

/// Returns the `n`th port to try in the order that the hash chooses. In a pool that one search can exhaust, no two are
/// the same.
#[expect(clippy::cast_possible_truncation, reason = "below the pool's size, which is at most 2^16")]
fn probe(pool: Pool, hash: u64, n: u32) -> u16 {
    let (size, n) = (u64::from(pool.len().max(1)), u64::from(n));
    // Not one after the other in a large pool: neighbours of a port in use are likely to be in use.
    let scattered =
        if size <= u64::from(PROBES) { n } else { index::mix(hash | 1, n ^ hash.rotate_left(32)) };
    pool.first + ((hash >> 32).wrapping_add(scattered) % size) as u16
}

impl std::fmt::Debug for NatPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatPorts").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

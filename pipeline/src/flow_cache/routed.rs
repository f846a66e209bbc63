//! The flow cache of what is routed or tracked: one entry for one direction of a connection.
//!
//! The key holds all that the stages read and a hit does not check: the input port, both MACs, addresses, protocol,
//! and ports or ICMP identifier. An IPv4 entry is one cache line of 64 bytes, key and decision; an IPv6 entry
//! takes two. A key can be in any of 16 entries ([`super::tags`] says in which it may be); when all are taken, the
//! least used of the eight in its own group goes.
//!
//! An entry is good while the sum of the generations of its two ports is what it was (everything configured), its
//! neighbour has a MAC at that port, and the packet fits. It keeps the packets and bytes that it served
//! itself; a sweep brings them home to the connection, twice a second, and forgets entries that served none since the last
//! sweep or whose connection is dead. So no entry that survives two sweeps belongs to a connection that died before
//! them, and connections whose slots may be used again need no look from the fast path (see
//! [`Connections`](crate::tables::connections)).

use packet::{Instant, PortId, Table, prefetch_at};

use super::tags::{GROUP, Tags};
use super::{Decided, Tick};
use crate::hit::ICMP;
use crate::tables::connections::{Connections, Direction};

/// What a cached decision is found by.
pub(crate) trait Key: Copy + Eq {
    /// What the addresses and ports become.
    type Rewrite: Copy + Default + std::fmt::Debug;
    /// The same as an entry keeps it.
    type Patch: Copy + Default + std::fmt::Debug;
    /// No key: an entry that has it is free.
    const NONE: Self;
    /// Says whether the keys are equal. PERF: word by word; the comparison that is derived puts the words of a key just read
    /// on the stack, and loads them two at a time before they are there (benches/flows).
    fn is(&self, other: &Self) -> bool;
    /// Returns its hash. The MACs are not in it: packets that differ in nothing else are few.
    fn hash(&self, seed: [u64; 2]) -> u64;
    /// Returns what an entry keeps of `rewrite`, of the side that the flags name.
    fn patch(&self, flags: u8, rewrite: Self::Rewrite) -> Self::Patch;
}

/// The key of an IPv4 packet, 32 bytes: addresses; ports, protocol and input port; MACs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Key4(pub(crate) [u64; 4]);

/// The key of an IPv6 packet, 56 bytes: addresses; ports, protocol and input port; MACs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Key6(pub(crate) [u64; 7]);

/// What one side of an IPv4 packet becomes: the side that the entry's flags name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Rewrite4 {
    pub(crate) address: [u8; 4],
    pub(crate) port: [u8; 2],
}

/// What the two sides of an IPv6 packet become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Rewrite6 {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
}

/// By what the address and the port of one side differ from those of the key, in the order of the wire.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Patch4 {
    address: [u8; 4],
    pub(crate) port: u16,
}

impl Patch4 {
    /// Returns the difference of both addresses, the source's first; `is_destination` is 0, or the flag.
    #[inline(always)]
    pub(crate) fn address(&self, is_destination: u32) -> u64 {
        u64::from(u32::from_le_bytes(self.address)) << (is_destination * (32 / DESTINATION))
    }

    /// Returns the difference of both ports.
    #[inline(always)]
    pub(crate) fn ports(&self, is_destination: u32) -> u32 {
        u32::from(self.port) << (is_destination * (16 / DESTINATION))
    }
}

const DESTINATION: u32 = flag::DESTINATION as u32;

/// The new addresses and ports of both sides.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Patch6 {
    pub(crate) addresses: [u8; 32],
    pub(crate) ports: [u8; 4],
}

impl Key for Key4 {
    type Rewrite = Rewrite4;
    type Patch = Patch4;
    const NONE: Self = Self([0; 4]);

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    #[inline(always)]
    fn hash(&self, seed: [u64; 2]) -> u64 {
        let [a, b, ..] = self.0;
        fold(a ^ seed[0], b ^ seed[1])
    }

    fn patch(&self, flags: u8, rewrite: Rewrite4) -> Patch4 {
        let [a, b, ..] = self.0.map(u64::to_le_bytes);
        let is_query = b[4] == ICMP;
        let (address, port) = match flags & (flag::SOURCE | flag::DESTINATION) {
            0 => return Patch4::default(),
            flag::SOURCE => ([a[0], a[1], a[2], a[3]], if is_query { [b[2], b[3]] } else { [b[0], b[1]] }),
            _ => ([a[4], a[5], a[6], a[7]], [b[2], b[3]]),
        };
        Patch4 {
            address: (u32::from_ne_bytes(address) ^ u32::from_ne_bytes(rewrite.address)).to_ne_bytes(),
            port: u16::from_le_bytes(port) ^ u16::from_le_bytes(rewrite.port),
        }
    }
}

impl Key for Key6 {
    type Rewrite = Rewrite6;
    type Patch = Patch6;
    const NONE: Self = Self([0; 7]);

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d, e, f, g], [h, i, j, k, l, m, n]) = (self.0, other.0);
        (a ^ h) | (b ^ i) | (c ^ j) | (d ^ k) | (e ^ l) | (f ^ m) | (g ^ n) == 0
    }

    #[inline(always)]
    fn hash(&self, seed: [u64; 2]) -> u64 {
        let [a, b, c, d, e, ..] = self.0;
        let addresses = fold(a ^ seed[0], b ^ seed[1]) ^ fold(c ^ seed[1].rotate_left(23), d ^ seed[0]);
        fold(addresses ^ e, seed[0].rotate_left(23))
    }

    fn patch(&self, _: u8, rewrite: Rewrite6) -> Patch6 {
        let mut patch = Patch6::default();
        patch.addresses[..16].copy_from_slice(&rewrite.source);
        patch.addresses[16..].copy_from_slice(&rewrite.destination);
        patch.ports[..2].copy_from_slice(&rewrite.source_port);
        patch.ports[2..].copy_from_slice(&rewrite.destination_port);
        patch
    }
}

/// Folded multiplication: one instruction, and a secret seed against made-up keys.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    product as u64 ^ (product >> 64) as u64
}

/// What is done to a flow's packets, beside the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The connection's slot and the direction.
    pub(crate) connection: u32,
    pub(crate) direction: Direction,
    /// The neighbour's place; of a bridged flow, the station's.
    pub(crate) next: u32,
    /// The output port.
    pub(crate) to: PortId,
    /// See [`flag`].
    pub(crate) flags: u8,
    /// The sum of the generations of both ports.
    pub(crate) generation: u32,
    /// What is added to a checksum, in the order of the wire: of the IPv4 header, one hop included; of IPv6's pseudo header.
    pub(crate) addresses_change: u16,
    /// The same for the transport header.
    pub(crate) transport_change: u16,
}

/// What an entry is like.
pub(crate) mod flag {
    /// The source is rewritten.
    pub(crate) const SOURCE: u8 = 1;
    /// The destination is rewritten.
    pub(crate) const DESTINATION: u8 = 2;
    /// It is bridged: nothing is rewritten, MACs and time to live neither.
    pub(crate) const BRIDGED: u8 = 4;
    /// It served no packet since the last sweep.
    pub(crate) const IDLE: u8 = 8;
}

const CONNECTION_BITS: u32 = 24;
const NEXT_BITS: u32 = 22;
const PORT_BITS: u32 = 12;
const DIRECTION_AT: u32 = CONNECTION_BITS;
const NEXT_AT: u32 = DIRECTION_AT + 1;
const PORT_AT: u32 = NEXT_AT + NEXT_BITS;
const FLAGS_AT: u32 = PORT_AT + PORT_BITS;

/// The most connections that an entry can tell apart.
pub(crate) const MAX_CONNECTIONS: usize = 1 << CONNECTION_BITS;

/// Where a decision says that packets go, as one word.
#[derive(Clone, Copy)]
pub(crate) struct Names(u64);

impl Names {
    /// Those of a decision about stations.
    #[inline(always)]
    pub(crate) fn of(decided: &Decided) -> Self {
        let to = u64::from(decided.transform().to.0) << PORT_AT;
        Self(u64::from(decided.destination()) << NEXT_AT | to | u64::from(flag::BRIDGED) << FLAGS_AT)
    }

    /// Returns the place of the neighbour; of a bridged flow, of the station.
    #[inline(always)]
    pub(crate) fn next(self) -> usize {
        (self.0 >> NEXT_AT) as usize & ((1 << NEXT_BITS) - 1)
    }

    /// Returns the output port.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(crate) fn to(self) -> PortId {
        PortId((self.0 >> PORT_AT) as u16 & ((1 << PORT_BITS) - 1))
    }

    #[inline(always)]
    fn flags(self) -> u8 {
        (self.0 >> FLAGS_AT) as u8
    }

    /// Says whether the flow is bridged.
    #[inline(always)]
    pub(crate) fn is_bridged(self) -> bool {
        self.flags() & flag::BRIDGED != 0
    }
}

/// One decision: 64 bytes for IPv4, 128 for IPv6.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry<K: Key> {
    key: K,
    /// Connection (24 bits), direction (1), next hop (22), output port (12), flags (5).
    names: u64,
    generation: u32,
    packets: u32,
    bytes: u32,
    pub(crate) addresses_change: u16,
    pub(crate) transport_change: u16,
    made: Tick,
    pub(crate) patch: K::Patch,
}

const _: () = assert!(size_of::<Entry<Key4>>() == 64);
const _: () = assert!(size_of::<Entry<Key6>>() == 128);

impl<K: Key> Entry<K> {
    fn empty() -> Self {
        Self {
            key: K::NONE,
            names: 0,
            generation: 0,
            packets: 0,
            bytes: 0,
            addresses_change: 0,
            transport_change: 0,
            made: Tick::default(),
            patch: K::Patch::default(),
        }
    }

    /// Returns where packets go.
    #[inline(always)]
    pub(crate) fn names(&self) -> Names {
        Names(self.names)
    }

    #[inline(always)]
    pub(crate) fn next(&self) -> usize {
        self.names().next()
    }

    #[inline(always)]
    pub(crate) fn to(&self) -> PortId {
        self.names().to()
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> u8 {
        self.names().flags()
    }

    #[inline(always)]
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the version that the station of a bridged flow had, which has no rewrite: kept in its place.
    #[inline(always)]
    pub(crate) fn station_version(&self) -> u32 {
        u32::from(self.addresses_change) | u32::from(self.transport_change) << 16
    }

    #[inline(always)]
    pub(crate) fn is_fresh(&self, now: Tick, refresh: Tick) -> bool {
        self.made.is_within(now, refresh)
    }

    /// Counts a packet of `len` bytes.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a frame is shorter than 4 GiB")]
    pub(crate) fn count(&mut self, len: usize) {
        self.packets += 1;
        self.bytes = self.bytes.wrapping_add(len as u32);
    }

    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    fn connection(&self) -> (u32, Direction) {
        let slot = self.names as u32 & ((1 << CONNECTION_BITS) - 1);
        let reply = self.names >> DIRECTION_AT & 1 != 0;
        (slot, if reply { Direction::Reply } else { Direction::Original })
    }
}

/// Where a packet's decision is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    /// The hash of its key.
    hash: u64,
    /// The entry that may have it.
    at: u32,
}

/// No entry.
const NOWHERE: u32 = u32::MAX;

/// One worker's decisions of one family. See the module header.
#[derive(Debug)]
pub(crate) struct RoutedCache<K: Key> {
    entries: Table<Entry<K>>,
    tags: Tags,
    seed: [u64; 2],
    used: usize,
    cursor: usize,
}

impl<K: Key> RoutedCache<K> {
    /// Makes a cache for about `flows` decisions (rounded up to a power of two).
    pub(crate) fn new(flows: usize, seed: [u64; 2]) -> Self {
        let count = flows.max(2 * GROUP).next_power_of_two();
        assert!(count < NOWHERE as usize, "Limits keep flows far below 2^32");
        let entries = Table::new(count, |_| Entry::empty());
        Self { entries, tags: Tags::new(count), seed, used: 0, cursor: 0 }
    }

    /// Begins to look a key up: asks the processor for the word that says which entry may have it.
    #[inline(always)]
    pub(crate) fn locate(&self, key: &K) -> Spot {
        let hash = key.hash(self.seed);
        self.tags.prefetch(hash);
        Spot { hash, at: NOWHERE }
    }

    /// Goes on: finds the entry that may have the key, and asks for its lines.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "`new` checked the count")]
    pub(crate) fn aim(&self, spot: &mut Spot) {
        spot.at = self.tags.first(spot.hash).map_or(NOWHERE, |at| at as u32);
        prefetch_at(&self.entries, spot.at as usize);
    }

    /// Returns what looks keys up that `locate` and `aim` were told of: by value, so that a loop over a batch keeps it in
    /// registers.
    #[inline(always)]
    pub(crate) fn finder(&mut self) -> Finder<'_, K> {
        Finder { entries: &mut self.entries, tags: &self.tags }
    }

    /// Keeps a decision. When its places are full, the one that served fewest packets goes, and what it counted is
    /// brought home.
    pub(crate) fn insert(
        &mut self,
        key: &K,
        plan: Plan,
        rewrite: K::Rewrite,
        connections: &Connections,
        now: Instant,
    ) {
        let hash = key.hash(self.seed);
        let has_key = |at: &usize| self.entries[*at].key.is(key);
        let own = self.tags.all(hash).find(has_key).or_else(|| self.tags.free(hash));
        let least = || self.tags.group(hash).min_by_key(|at| self.entries[*at].packets);
        let Some(at) = own.or_else(least) else { return };
        if self.tags.is_taken(at) {
            self.bring_home(at, connections, now);
        } else {
            self.used += 1;
        }
        self.tags.take(at, hash);
        self.entries[at] = Entry {
            key: *key,
            names: u64::from(plan.connection)
                | u64::from(plan.direction == Direction::Reply) << DIRECTION_AT
                | u64::from(plan.next) << NEXT_AT
                | u64::from(plan.to.0) << PORT_AT
                | u64::from(plan.flags) << FLAGS_AT,
            generation: plan.generation,
            packets: 0,
            bytes: 0,
            addresses_change: plan.addresses_change,
            transport_change: plan.transport_change,
            made: Tick::at(now),
            patch: key.patch(plan.flags, rewrite),
        };
    }

    /// Forgets everything; what it counted is brought home.
    pub(crate) fn clear(&mut self, connections: &Connections, now: Instant) {
        for at in 0..self.entries.len() {
            if self.tags.is_taken(at) {
                self.bring_home(at, connections, now);
                self.forget(at);
            }
        }
    }

    fn forget(&mut self, at: usize) {
        self.tags.release(at);
        self.entries[at] = Entry::empty();
        self.used -= 1;
    }

    /// Says whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Returns how many decisions are kept.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Returns how many there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Looks at the next `count` places; says whether the last was among them.
    pub(crate) fn sweep(&mut self, count: usize, connections: &Connections, now: Instant) -> bool {
        let end = (self.cursor + count).min(self.entries.len());
        for at in self.cursor..end {
            if !self.tags.is_taken(at) {
                continue;
            }
            let was_idle = self.entries[at].flags() & flag::IDLE != 0;
            let is_idle = self.entries[at].packets == 0;
            let alive = if is_idle { !was_idle } else { self.bring_home(at, connections, now) };
            if !alive {
                self.forget(at);
                continue;
            }
            let idle = u64::from(flag::IDLE) << FLAGS_AT;
            let names = &mut self.entries[at].names;
            *names = if is_idle { *names | idle } else { *names & !idle };
        }
        self.cursor = if end == self.entries.len() { 0 } else { end };
        self.cursor == 0
    }

    /// Adds what an entry counted to its connection, and says whether that lives.
    fn bring_home(&mut self, at: usize, connections: &Connections, now: Instant) -> bool {
        let entry = &mut self.entries[at];
        let (slot, direction) = entry.connection();
        let (packets, bytes) = (std::mem::take(&mut entry.packets), std::mem::take(&mut entry.bytes));
        connections.fold(slot, direction, packets, u64::from(bytes), now)
    }
}

/// A cache in which a batch is looked up.
pub(crate) struct Finder<'a, K: Key> {
    entries: &'a mut [Entry<K>],
    tags: &'a Tags,
}

impl<K: Key> Finder<'_, K> {
    /// Returns the entry that a spot names, if it has `key`.
    #[inline(always)]
    pub(crate) fn aimed(&mut self, spot: Spot, key: &K) -> Option<&mut Entry<K>> {
        self.entries.get_mut(spot.at as usize).filter(|entry| entry.key.is(key))
    }

    /// Returns the entry of `key` when the spot names none or another's: their bytes were the same, or the decision is
    /// younger than the spot.
    pub(crate) fn anywhere(&mut self, spot: Spot, key: &K) -> Option<&mut Entry<K>> {
        let at = self.tags.all(spot.hash).find(|at| self.entries[*at].key.is(key))?;
        self.entries.get_mut(at)
    }
}

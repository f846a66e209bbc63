//! The flow cache: what was decided about a flow, found again by one look-up.
//!
//! Each worker has its own, so nothing here is shared or locked. On a network that only bridges, the flow is
//! the pair of stations: the key is input port, VLAN tag and both MACs, 16 bytes, and an entry is 32 bytes, two
//! to a cache line. A key can be in any of four entries, two neighbouring lines; when all are taken the oldest
//! goes.
//!
//! An entry is good while four things hold, and each is checked at every hit:
//! * the generation of the network it was decided under is still the same (anything configured),
//! * the versions of both stations are (a station that moved, aged or was flushed raises its own). Versions
//!   only grow, so their sum tells;
//! * it is not older than the network's refresh time, because the walk that renews it is what tells the FDB that
//!   the source is still alive.
//!
//! Capacity is fixed; a full cache forgets, and a forgotten flow walks the stages again.

pub(crate) mod routed;
mod tags;

use std::time::Duration;

use packet::{Instant, PortId, Table, VtepId, prefetch};

/// Bits of a network's generation that an entry keeps.
pub(crate) const GENERATION_MASK: u32 = (1 << 20) - 1;
/// Bits of a station's slot that an entry keeps.
pub(crate) const SLOT_BITS: u32 = 22;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// Coarse time: units of 2^28 ns (0.27 s), wrapping after about 4.9 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tick(u16);

impl Tick {
    const SHIFT: u32 = 28;

    /// Returns the tick of an instant.
    #[expect(clippy::cast_possible_truncation, reason = "ticks wrap")]
    pub(crate) fn at(now: Instant) -> Self {
        Self((now.as_nanos() >> Self::SHIFT) as u16)
    }

    /// Returns how long a decision may be used in a network whose stations live for `ageing`: an eighth of it, at
    /// least one tick and at most two hours.
    pub(crate) fn refresh(ageing: Duration) -> Self {
        let ticks = u64::try_from(ageing.as_nanos() / 8).unwrap_or(u64::MAX) >> Self::SHIFT;
        Self(u16::try_from(ticks.clamp(1, 26_000)).expect("clamped"))
    }

    fn is_within(self, now: Tick, refresh: Tick) -> bool {
        now.0.wrapping_sub(self.0) < refresh.0
    }
}

/// What identifies a flow: the frame's first 12 bytes (both MACs), the VLAN tag, and the input port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey {
    /// Destination, and the first two bytes of the source.
    low: u64,
    /// The rest of the source, the tag, the port: 16 bits each but for the first.
    high: u64,
}

impl Default for FlowKey {
    fn default() -> Self {
        Self::NONE
    }
}

impl FlowKey {
    /// No key: its destination is a group, and no decision is ever found under it.
    pub(crate) const NONE: FlowKey = FlowKey { low: u64::MAX, high: u64::MAX };
    /// "A tag", so that one with VLAN 0 differs from none.
    const TAGGED: u64 = 1 << 47;

    /// Makes the key of a frame that begins with `head`: both MACs, type, and what follows it. `vtep` is the number of the
    /// endpoint that it came from, when `from` is a tunnel, else 0: where others have the tag, which is nothing to be in a tunnel.
    /// [`FlowKey::NONE`] when a decision about it cannot be kept: it goes to a group, or is ARP, which has to be read every time.
    #[inline(always)]
    pub(crate) fn new(head: &[u8; 16], from: PortId, vtep: u16) -> Self {
        const VLAN: u64 = u16::from_le_bytes(0x8100u16.to_be_bytes()) as u64;
        const ARP: u64 = u16::from_le_bytes(0x0806u16.to_be_bytes()) as u64;
        let [low, high] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(word)
        });
        let kind = high >> 32 & 0xffff;
        if low & 1 != 0 || kind == ARP || vtep != 0 && kind == VLAN {
            return Self::NONE;
        }
        let mut high = high & 0xffff_ffff | u64::from(vtep) << 32 | u64::from(from.0) << 48;
        if kind == VLAN {
            high |= u64::from(u16::from_be_bytes([head[14], head[15]]) & 0x0fff) << 32 | Self::TAGGED;
        }
        Self { low, high }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    fn hash(self, seed: [u64; 2]) -> u64 {
        // Folded multiplication, as in foldhash: one multiplication, and a secret seed against made-up keys.
        let product = u128::from(self.low ^ seed[0]).wrapping_mul(u128::from(self.high ^ seed[1]));
        product as u64 ^ (product >> 64) as u64
    }
}

/// How the VLAN tag changes on the way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TagAction {
    /// As it came.
    #[default]
    Keep = 0,
    /// The tag is removed.
    Pop = 1,
    /// A tag with the input port's untagged VLAN is put in.
    Push = 2,
    /// The tag carried only a priority and gets the input port's untagged VLAN.
    Set = 3,
}

impl TagAction {
    fn from_bits(bits: u16) -> Self {
        match bits & 3 {
            0 => TagAction::Keep,
            1 => TagAction::Pop,
            2 => TagAction::Push,
            _ => TagAction::Set,
        }
    }
}

/// A place in the FDB, and the version that the station there had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationRef {
    /// Index of the station's version.
    pub slot: u32,
    /// The version when it was looked up.
    pub version: u32,
}

/// What a flow's packets need: where to send, and what to do to the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transform {
    /// The output port.
    pub to: PortId,
    /// What happens to the VLAN tag.
    pub tag: TagAction,
    /// When the port is a tunnel, the endpoint; `None`: all of the network's.
    pub vtep: Option<VtepId>,
}

/// One decision: 32 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Decided {
    key: FlowKey,
    /// Slot of the source (22 bits), slot of the destination (22), generation (20).
    names: u64,
    /// Sum of both stations' versions.
    versions: u32,
    /// Output port (12 bits), tag action (2).
    action: u16,
    made: Tick,
}

const ACTION_SHIFT: u32 = 12;

const _: () = assert!(size_of::<Decided>() == 32);

/// The entries that a key can be in: two neighbouring cache lines, which the processor likes to fetch together.
/// A key looks first in the line that is its home, so most look-ups touch one line only.
const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
struct Set([Decided; WAYS]);

/// Where a decision is or would be: the set, and the entry in it to look at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    set: u32,
    home: u8,
}

impl Decided {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(crate) fn source(&self) -> u32 {
        self.names as u32 & SLOT_MASK
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(crate) fn destination(&self) -> u32 {
        (self.names >> SLOT_BITS) as u32 & SLOT_MASK
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        (self.names >> (2 * SLOT_BITS)) as u32
    }

    #[inline(always)]
    pub(crate) fn versions(&self) -> u32 {
        self.versions
    }

    #[inline(always)]
    pub(crate) fn transform(&self) -> Transform {
        Transform {
            to: PortId(self.action & ((1 << ACTION_SHIFT) - 1)),
            tag: TagAction::from_bits(self.action >> ACTION_SHIFT),
            vtep: None,
        }
    }

    /// No decision: its generation is one that no port has.
    const EMPTY: Decided = Decided { key: FlowKey::NONE, names: 0, versions: 0, action: 0, made: Tick(0) };
}

/// A cache as the fast path reads it: by value, so that a loop over a batch keeps it in registers.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    sets: &'a [Set],
    mask: u32,
    seed: [u64; 2],
}

/// One worker's decisions. See the module header.
#[derive(Debug)]
pub(crate) struct FlowCache {
    sets: Table<Set>,
    mask: u32,
    seed: [u64; 2],
}

impl FlowCache {
    /// Makes a cache for about `flows` decisions (rounded up to a power of two).
    pub(crate) fn new(flows: usize, seed: [u64; 2]) -> Self {
        let sets = flows.div_ceil(WAYS).next_power_of_two();
        let mask = u32::try_from(sets - 1).expect("Limits keep flows far below 2^32");
        Self { sets: Table::new(sets, |_| Set([Decided::EMPTY; WAYS])), mask, seed }
    }

    /// Returns the cache for reading.
    #[inline(always)]
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { sets: &self.sets, mask: self.mask, seed: self.seed }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.sets.fill(Set([Decided::EMPTY; WAYS]));
    }

    /// Keeps a decision, and says whether it took a place that was free. When its set is full, the oldest goes.
    pub(crate) fn insert(
        &mut self,
        key: FlowKey,
        generation: u32,
        source: StationRef,
        destination: StationRef,
        transform: Transform,
        now: Tick,
    ) -> bool {
        let place = self.reader().locate(key);
        let (set, home) = (&mut self.sets[place.set as usize].0, usize::from(place.home));
        let age = |entry: &Decided| {
            if entry.key == FlowKey::NONE { u16::MAX } else { now.0.wrapping_sub(entry.made.0) }
        };
        // Ways in the order in which `find` looks at them; among the oldest, the first.
        let ways = (0..WAYS).map(|step| home ^ step);
        let own = ways.clone().find(|way| set[*way].key == key);
        let way = own.or_else(|| ways.rev().max_by_key(|way| age(&set[*way]))).unwrap_or(home);
        let was_free = set[way].key == FlowKey::NONE;
        set[way] = Decided {
            key,
            names: u64::from(source.slot)
                | u64::from(destination.slot) << SLOT_BITS
                | u64::from(generation & GENERATION_MASK) << (2 * SLOT_BITS),
            versions: source.version.wrapping_add(destination.version),
            action: transform.to.0 | (transform.tag as u16) << ACTION_SHIFT,
            made: now,
        };
        was_free
    }
}

impl<'a> Reader<'a> {
    /// Returns the set that the key belongs to, and asks the processor for the line to look in first.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    pub(crate) fn locate(self, key: FlowKey) -> Place {
        let hash = key.hash(self.seed);
        let set = hash as u32 & self.mask;
        // The highest bits say which entry is home: its line is the one to fetch.
        let home = (hash >> 62) as u8;
        prefetch(&self.sets[set as usize].0[usize::from(home) % WAYS]);
        Place { set, home }
    }

    /// Returns the decision for `key`, when it was made under `generation` and is fresh; `place` is what
    /// `locate` said.
    #[inline(always)]
    pub(crate) fn find(
        self,
        place: Place,
        key: FlowKey,
        generation: u32,
        now: Tick,
        refresh: Tick,
    ) -> Option<&'a Decided> {
        let set = self.sets.get(place.set as usize)?;
        let home = &set.0[usize::from(place.home) % WAYS];
        let decided = if home.key == key { home } else { Self::find_elsewhere(set, place.home, key)? };
        (decided.generation() == generation && decided.made.is_within(now, refresh)).then_some(decided)
    }

    #[inline(never)]
    fn find_elsewhere(set: &Set, home: u8, key: FlowKey) -> Option<&Decided> {
        (1..WAYS).map(|step| &set.0[usize::from(home) ^ step]).find(|entry| entry.key == key)
    }
}

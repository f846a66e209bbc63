//! The flow cache: what was decided about a flow, found again by one look-up.
//!
//! Each worker has its own, so nothing here is shared or locked. On a network that only bridges, the flow is
//! the pair of stations: the key is input port, VLAN tag and both MACs, 16 bytes, and an entry is 32 bytes, two
//! to a cache line. A key has one line it can be in; when both places are taken the older entry goes.
//!
//! An entry is good while four things hold, and each is checked at every hit:
//! * the generation of the network it was decided under is still the same (anything configured),
//! * the versions of both stations are (a station that moved, aged or was flushed raises its own). Versions
//!   only grow, so their sum tells;
//! * it is not older than the network's refresh time, because the walk that renews it is what tells the FDB that
//!   the source is still alive.
//!
//! Capacity is fixed; a full cache forgets, and a forgotten flow walks the stages again.

use std::time::Duration;

use packet::{Instant, PortId, prefetch};

/// Bits of a network's generation that an entry keeps.
pub(crate) const GENERATION_MASK: u32 = (1 << 20) - 1;
/// Bits of a station's slot that an entry keeps.
pub(crate) const SLOT_BITS: u32 = 22;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowKey(u128);

impl FlowKey {
    /// Makes the key of a frame that begins with `head` (16 bytes: both MACs, type, and what follows it).
    /// Returns the ethertype behind a tag, too, when there is one, else the ethertype at hand.
    #[inline(always)]
    pub(crate) fn new(head: &[u8; 16], from: PortId) -> Self {
        const MACS: u128 = (1 << 96) - 1;
        let bits = u128::from_le_bytes(*head);
        let tag = if head[12..14] == [0x81, 0x00] {
            // The identifier, and a bit that tells "no tag" from "tag with VLAN 0".
            (u16::from_be_bytes([head[14], head[15]]) & 0x0fff) | 0x8000
        } else {
            0
        };
        Self((bits & MACS) | u128::from(tag) << 96 | u128::from(from.0) << 112)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    fn hash(self, seed: [u64; 2]) -> u64 {
        // Folded multiplication, as in foldhash: one multiplication, and a secret seed against made-up keys.
        let product =
            u128::from(self.0 as u64 ^ seed[0]).wrapping_mul(u128::from((self.0 >> 64) as u64 ^ seed[1]));
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
}

/// One decision: 32 bytes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Entry {
    key: FlowKey,
    /// Slot of the source (22 bits), slot of the destination (22), generation (20).
    names: u64,
    /// Sum of both stations' versions.
    versions: u32,
    /// Output port (12 bits), tag action (2), in use (1).
    action: u16,
    made: Tick,
}

const IN_USE: u16 = 1 << 15;
const ACTION_SHIFT: u32 = 12;

const _: () = assert!(size_of::<Entry>() == 32);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Line([Entry; 2]);

/// A hit that still has to be checked against the stations' versions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hit {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) versions: u32,
    pub(crate) transform: Transform,
}

/// One worker's decisions. See the module header.
#[derive(Debug)]
pub(crate) struct FlowCache {
    lines: Box<[Line]>,
    mask: usize,
    seed: [u64; 2],
}

impl FlowCache {
    /// Makes a cache for about `flows` decisions (rounded up to a power of two).
    pub(crate) fn new(flows: usize, seed: [u64; 2]) -> Self {
        let lines = (flows / 2).next_power_of_two().max(1);
        Self { lines: vec![Line::default(); lines].into_boxed_slice(), mask: lines - 1, seed }
    }

    /// Returns where the key's decision would be, and asks the processor for that line.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    pub(crate) fn locate(&self, key: FlowKey) -> u32 {
        let line = key.hash(self.seed) as usize & self.mask;
        prefetch(&self.lines[line]);
        line as u32
    }

    /// Returns the decision for `key` at the line that [`FlowCache::locate`] named, when it was made under
    /// `generation` and is fresh.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(crate) fn find(
        &self,
        line: u32,
        key: FlowKey,
        generation: u32,
        now: Tick,
        refresh: Tick,
    ) -> Option<Hit> {
        let Line([first, second]) = &self.lines[line as usize & self.mask];
        let entry = if first.key == key {
            first
        } else if second.key == key {
            second
        } else {
            return None;
        };
        let fresh = entry.made.is_within(now, refresh)
            && (entry.names >> (2 * SLOT_BITS)) as u32 == generation
            && entry.action & IN_USE != 0;
        fresh.then_some(Hit {
            source: entry.names as u32 & ((1 << SLOT_BITS) - 1),
            destination: (entry.names >> SLOT_BITS) as u32 & ((1 << SLOT_BITS) - 1),
            versions: entry.versions,
            transform: Transform {
                to: PortId(entry.action & ((1 << ACTION_SHIFT) - 1)),
                tag: TagAction::from_bits(entry.action >> ACTION_SHIFT),
            },
        })
    }

    /// Keeps a decision; the older of the two in its line goes when both places are taken.
    pub(crate) fn insert(
        &mut self,
        key: FlowKey,
        generation: u32,
        source: StationRef,
        destination: StationRef,
        transform: Transform,
        now: Tick,
    ) {
        let line = self.locate(key) as usize;
        let Line([first, second]) = &mut self.lines[line];
        let age = |entry: &Entry| match entry.action & IN_USE {
            0 => u16::MAX,
            _ => now.0.wrapping_sub(entry.made.0),
        };
        // With equal ages the key decides: always the same place would make two flows that share it with
        // a third push one another out while the third stays.
        let place = if first.key == key {
            first
        } else if second.key == key {
            second
        } else if age(first) > age(second) || (age(first) == age(second) && key.0 >> 40 & 1 == 0) {
            first
        } else {
            second
        };
        *place = Entry {
            key,
            names: u64::from(source.slot)
                | u64::from(destination.slot) << SLOT_BITS
                | u64::from(generation & GENERATION_MASK) << (2 * SLOT_BITS),
            versions: source.version.wrapping_add(destination.version),
            action: transform.to.0 | (transform.tag as u16) << ACTION_SHIFT | IN_USE,
            made: now,
        };
    }
}

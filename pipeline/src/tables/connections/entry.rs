//! One connection as the table keeps it: 160 bytes, and 8 for its lock.

use std::time::Duration;

use packet::{Address, Instant, NetworkId, PortId, Tuple};

use super::tcp::Numbers;
use super::{Details, Direction, End, Key, State};
use crate::tables::index;

/// Coarse time: units of 2^24 ns (17 ms). As 32 bits they wrap after 2.3 years, far beyond every timeout.
const UNIT: u32 = 24;

/// Returns an instant in coarse units.
pub(super) const fn coarse(now: Instant) -> u64 {
    now.as_nanos() >> UNIT
}

/// Returns the units between two coarse instants; none when `from` is later, as another worker's clock may be.
#[inline]
pub(super) fn units_between(from: u32, to: u32) -> u32 {
    let units = to.wrapping_sub(from);
    if units > u32::MAX / 2 { 0 } else { units }
}

/// Returns the time between two coarse instants; none when `from` is later.
pub(super) fn between(from: u32, to: u32) -> Duration {
    Duration::from_nanos(u64::from(units_between(from, to)) << UNIT)
}

/// A key in 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackedKey {
    addresses: [u64; 4],
    /// Network, source port, destination port (16 bits each), protocol (8).
    rest: u64,
}

impl PackedKey {
    #[inline]
    pub(super) fn hash(&self, seed: [u64; 2]) -> u64 {
        index::hash(self.addresses, self.rest, seed)
    }

    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(super) fn protocol(&self) -> u8 {
        self.rest as u8
    }
}

impl From<&Key> for PackedKey {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are kept")]
    fn from(key: &Key) -> Self {
        let Tuple { source, destination, source_port, destination_port, protocol } = key.tuple;
        let [from, to] = [source.to_bits(), destination.to_bits()];
        Self {
            addresses: [(from >> 64) as u64, from as u64, (to >> 64) as u64, to as u64],
            rest: u64::from(key.network.0) << 48
                | u64::from(source_port) << 32
                | u64::from(destination_port) << 16
                | u64::from(protocol),
        }
    }
}

impl From<&PackedKey> for Key {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    fn from(key: &PackedKey) -> Self {
        let [a, b, c, d] = key.addresses.map(u128::from);
        Key {
            network: NetworkId((key.rest >> 48) as u16),
            tuple: Tuple {
                source: Address::from_bits(a << 64 | b),
                destination: Address::from_bits(c << 64 | d),
                source_port: (key.rest >> 32) as u16,
                destination_port: (key.rest >> 16) as u16,
                protocol: key.rest as u8,
            },
        }
    }
}

/// Packets (40 bits) and bytes (56 bits) of one direction in 12 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    packets: u32,
    bytes: u32,
    /// High bits of the bytes (24), then of the packets (8).
    high: u32,
}

impl Count {
    /// Counts one packet, unless it has no bytes.
    pub(super) const fn first(bytes: u32) -> Self {
        Self { packets: (bytes > 0) as u32, bytes, high: 0 }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(super) fn add(&mut self, packets: u32, bytes: u64) {
        let packets = self.packets() + u64::from(packets);
        let bytes = self.bytes().wrapping_add(bytes);
        self.packets = packets as u32;
        self.bytes = bytes as u32;
        self.high = ((bytes >> 32) as u32 & 0xff_ffff) | ((packets >> 32) as u32) << 24;
    }

    pub(super) fn packets(&self) -> u64 {
        u64::from(self.high >> 24) << 32 | u64::from(self.packets)
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.high & 0xff_ffff) << 32 | u64::from(self.bytes)
    }
}

/// A slot's contents.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Entry {
    /// Grows whenever the slot is used again.
    pub(super) stamp: u32,
    /// Why it is dead; `None` while it is alive.
    pub(super) ended: Option<End>,
    pub(super) state: State,
    pub(super) owner: PortId,
    /// Indexed by direction: what its packets look like when they come.
    pub(super) keys: [PackedKey; 2],
    pub(super) details: Details,
    /// When it was made, and last had traffic; coarse.
    pub(super) born: u32,
    pub(super) seen: u32,
    pub(super) numbers: Numbers,
    pub(super) counts: [Count; 2],
}

const _: () = assert!(size_of::<Entry>() <= 160);

impl Entry {
    /// A slot that was never used.
    pub(super) fn unused() -> Self {
        Self {
            stamp: 0,
            ended: Some(End::Flushed),
            state: State::Reset,
            owner: PortId(0),
            keys: [PackedKey::default(); 2],
            details: Details::default(),
            born: 0,
            seen: 0,
            numbers: Numbers::default(),
            counts: [Count::default(); 2],
        }
    }

    #[inline]
    pub(super) fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    pub(super) fn protocol(&self) -> u8 {
        self.keys[0].protocol()
    }

    /// Counts packets and notes when they were.
    pub(super) fn count(&mut self, direction: Direction, packets: u32, bytes: u64, at: u32) {
        self.counts[direction as usize].add(packets, bytes);
        self.seen = self.seen.wrapping_add(units_between(self.seen, at));
    }
}

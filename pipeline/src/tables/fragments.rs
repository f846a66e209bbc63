//! Virtual reassembly: gives the later fragments of a datagram the ports of the first.
//!
//! Connections, NAT and policies go by L4 ports, which only the first fragment has. Nothing is put together here:
//! the first is decided like any packet, later ones go the same way, and those that come before it wait for it.
//!
//! What the past taught (RFC 1858, RFC 3128, RFC 5722, RFC 8200 4.5, CVE-2018-5391):
//! * a first fragment that hides the ports or the TCP flags is dropped, and so is a second that could replace the
//!   flags; so nothing that follows a first can change what was decided about it;
//! * a fragment that overlaps another drops its whole datagram, what is still to come included; an exact
//!   duplicate is dropped alone;
//! * everything is bounded, and each port has its share: a quarter of the datagrams and of the frames that wait. A port
//!   that begins more loses its own oldest.
//!
//! A datagram is forgotten 15 s after its first fragment (RFC 791, 3.2), and soon once it is whole: identifications
//! of IPv4 return within seconds. A new first fragment of a whole datagram begins another one. A fragment alone (offset
//! 0, none follows: RFC 6946) leaves no trace.
//!
//! One worker's own. Capacity: as many datagrams as asked for, at 350 bytes each, and 256 frames. Frames are kept until
//! [`release`](Fragments::release), [`expire`](Fragments::expire) or [`clear`](Fragments::clear) hands them out.

use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use packet::{Address, Frame, Instant, NetworkId, PortId};

mod datagram;
mod held;
#[cfg(test)]
mod tests;

use super::lists::{Link, List};
use crate::snapshot::MAX_PORTS;
use datagram::{Datagram, State};
use held::Held;

/// For how long the rest of a datagram is awaited (RFC 791, 3.2; RFC 8200 allows 60 s, which serves attackers).
const AWAITED: Duration = Duration::from_secs(15);
/// For how long a whole datagram is remembered, so that its duplicates are known.
const REMEMBERED: Duration = Duration::from_secs(2);
/// How often datagrams whose time is over are looked for.
const SWEEP: Duration = Duration::from_millis(250);
/// Nothing to forget.
const NEVER: Instant = Instant::from_nanos(u64::MAX);
/// The longest payload of a datagram.
const LONGEST: u32 = 65_535;
const TCP: u8 = 6;
/// A TCP header without options.
const TCP_HEADER: u32 = 20;
/// A second fragment that begins before this could bring other TCP flags (RFC 3128, 3).
const TCP_FLAGS_END: u32 = 16;

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The network they came from.
    pub network: NetworkId,
    /// Where the datagram comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Its protocol: for IPv6, the next header that the Fragment header names.
    pub protocol: u8,
    /// Its identification: 16 bits for IPv4, 32 for IPv6.
    pub id: u32,
}

/// One fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where its payload belongs in the datagram's, in bytes.
    pub offset: u32,
    /// Bytes of its payload.
    pub len: u32,
    /// Whether more fragments follow.
    pub more: bool,
    /// The L4 ports of a first fragment (`offset` 0): source, destination; zeros for a protocol without. `None`
    /// when the L4 header is not all there.
    pub ports: Option<(u16, u16)>,
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The first: decide it, then [`release`](Fragments::release) what waits for it.
    First {
        /// How many fragments wait.
        held: usize,
    },
    /// A later one: it goes the way of the first, whose L4 ports (source, destination) these are.
    Follows((u16, u16)),
    /// A later one that came before the first: [`hold`](Fragments::hold) it.
    Hold,
    /// Drop it, and count why.
    Drop(FragmentDrop),
}

/// Why a fragment is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentDrop {
    /// It overlaps another of its datagram, or one did: none of it passes any more (RFC 8200, 4.5; RFC 5722).
    Overlap,
    /// It came before.
    Duplicate,
    /// Its datagram has too many fragments.
    TooMany,
    /// It is so short that it hides the ports or TCP flags (RFC 1858, RFC 3128), or no multiple of 8 bytes.
    Tiny,
    /// It ends beyond the 65 535 bytes of the longest datagram.
    TooLong,
}

/// One worker's datagrams in pieces. See the module header.
#[derive(Debug)]
pub struct Fragments {
    datagrams: Box<[Datagram]>,
    /// When each is forgotten; apart, because the sweep reads nothing else.
    until: Box<[Instant]>,
    index: HashTable<u32>,
    free: Vec<u32>,
    /// The datagrams that a port began: those that are whole, then from the oldest.
    by_port: Box<[List]>,
    links: Box<[Link]>,
    share: usize,
    held: Held,
    swept: Instant,
    seed: [u64; 2],
}

impl Fragments {
    /// Makes an empty table for `capacity` datagrams at a time.
    pub fn new(capacity: usize, seed: [u64; 2]) -> Self {
        let capacity = capacity.max(4);
        let count = u32::try_from(capacity).expect("fewer datagrams than 2^32");
        Self {
            datagrams: vec![Datagram::default(); capacity].into(),
            until: vec![NEVER; capacity].into(),
            // Twice the room: hashbrown then reclaims deleted places without allocating.
            index: HashTable::with_capacity(2 * capacity),
            free: (0..count).rev().collect(),
            by_port: vec![List::default(); MAX_PORTS].into(),
            links: vec![Link::default(); capacity].into(),
            share: capacity / 4,
            held: Held::new(),
            swept: Instant::ZERO,
            seed,
        }
    }

    /// Notes a fragment that came from `from`, and says what becomes of it.
    pub fn see(&mut self, key: FragmentKey, from: PortId, piece: Piece, now: Instant) -> Sighting {
        let (start, end) = match Self::check(key, &piece) {
            Ok(range) => range,
            Err(why) => return Sighting::Drop(why),
        };
        if start == 0 && !piece.more {
            return Sighting::First { held: 0 };
        }
        let slot = match self.find(key) {
            Some(slot) => slot,
            None => match self.begin(key, from, now) {
                Some(slot) => slot,
                None => return Sighting::Drop(FragmentDrop::TooMany),
            },
        };
        let datagram = &mut self.datagrams[slot as usize];
        if datagram.state == State::Whole && !datagram.has(start, end) | (start == 0) {
            // Its identification was used again.
            self.restart(slot, now);
        }
        let datagram = &mut self.datagrams[slot as usize];
        if let Err(why) = datagram.add(start, end, piece.more) {
            if datagram.state == State::Refused(why) {
                self.held.doom(&mut self.datagrams[slot as usize].held);
            }
            return Sighting::Drop(why);
        }
        if start == 0 {
            datagram.ports = piece.ports;
        }
        let (ports, held, whole) = (datagram.ports, datagram.held.len(), datagram.state == State::Whole);
        if whole {
            self.until[slot as usize] = now + REMEMBERED;
            let list = &mut self.by_port[datagram.from.index()];
            list.remove(&mut self.links, slot);
            list.push_first(&mut self.links, slot);
        }
        match ports {
            Some(_) if start == 0 => Sighting::First { held },
            Some(ports) => Sighting::Follows(ports),
            None => Sighting::Hold,
        }
    }

    /// Returns where the payload begins and ends, when nothing is wrong with the fragment by itself.
    fn check(key: FragmentKey, piece: &Piece) -> Result<(u16, u16), FragmentDrop> {
        let Piece { offset, len, more, ports } = *piece;
        let end = offset.saturating_add(len);
        if end > LONGEST {
            return Err(FragmentDrop::TooLong);
        }
        let uneven = more && !len.is_multiple_of(8);
        let hides = match offset {
            0 => ports.is_none() || key.protocol == TCP && len < TCP_HEADER,
            offset => key.protocol == TCP && offset < TCP_FLAGS_END,
        };
        if len == 0 || uneven || hides {
            return Err(FragmentDrop::Tiny);
        }
        let short = |n| u16::try_from(n).map_err(|_| FragmentDrop::TooLong);
        Ok((short(offset)?, short(end)?))
    }

    /// Keeps a fragment that [`see`](Fragments::see) said to hold.
    ///
    /// # Errors
    /// The frame, when there is no room, or nothing to wait for. Without it the datagram will never be whole, so the
    /// rest of it is refused.
    pub fn hold(&mut self, key: FragmentKey, frame: Frame, from: PortId) -> Result<(), Frame> {
        let Some(slot) = self.find(key) else { return Err(frame) };
        let datagram = &mut self.datagrams[slot as usize];
        if datagram.state != State::Open || datagram.ports.is_some() {
            return Err(frame);
        }
        self.held.keep(&mut datagram.held, frame, from).inspect_err(|_| {
            datagram.state = State::Refused(FragmentDrop::TooMany);
            self.held.doom(&mut datagram.held);
        })
    }

    /// Takes the next fragment that waited for the first one of its datagram, in order of arrival. It has been seen,
    /// and goes the way of the first.
    pub fn release(&mut self, key: FragmentKey) -> Option<(Frame, PortId)> {
        let slot = self.find(key)?;
        let datagram = &mut self.datagrams[slot as usize];
        datagram.ports?;
        self.held.take(&mut datagram.held)
    }

    /// Forgets datagrams whose time is over and hands the frames of those that will not pass to `dropped`. Cheap when
    /// there is nothing to do: for every turn.
    pub fn expire(&mut self, now: Instant, dropped: &mut impl FnMut(Frame, PortId)) {
        if now.since(self.swept) >= SWEEP {
            self.swept = now;
            for slot in 0..self.until.len() {
                if self.until[slot] <= now {
                    self.forget(u32::try_from(slot).expect("checked by new"));
                }
            }
        }
        self.held.drop_doomed(dropped);
    }

    /// Forgets everything, and hands all frames to `dropped`.
    pub fn clear(&mut self, dropped: &mut impl FnMut(Frame, PortId)) {
        for slot in 0..self.until.len() {
            self.forget(u32::try_from(slot).expect("checked by new"));
        }
        self.held.drop_doomed(dropped);
    }

    /// Returns how many frames are kept, those that the next [`expire`](Fragments::expire) drops included.
    pub fn held_frames(&self) -> usize {
        self.held.len()
    }

    /// Returns how many datagrams are known.
    pub fn datagrams(&self) -> usize {
        self.index.len()
    }

    /// Begins a datagram, at the cost of another if need be.
    fn begin(&mut self, key: FragmentKey, from: PortId, now: Instant) -> Option<u32> {
        let list = self.by_port.get(from.index())?;
        if list.len() >= self.share {
            self.forget(list.first()?);
        } else if self.free.is_empty() {
            let most = self.by_port.iter().max_by_key(|list| list.len())?;
            self.forget(most.first()?);
        }
        let slot = self.free.pop()?;
        self.datagrams[slot as usize].begin(key, from);
        self.until[slot as usize] = now + AWAITED;
        self.by_port[from.index()].push(&mut self.links, slot);
        let hash = self.hash(key);
        let (datagrams, seed) = (&self.datagrams, self.seed);
        self.index.insert_unique(hash, slot, |slot| hash_of(datagrams[*slot as usize].key, seed));
        Some(slot)
    }

    /// Begins another datagram in the place of one with the same key.
    fn restart(&mut self, slot: u32, now: Instant) {
        let datagram = &mut self.datagrams[slot as usize];
        self.held.doom(&mut datagram.held);
        let (key, from) = (datagram.key, datagram.from);
        datagram.begin(key, from);
        self.until[slot as usize] = now + AWAITED;
        let list = &mut self.by_port[from.index()];
        list.remove(&mut self.links, slot);
        list.push(&mut self.links, slot);
    }

    /// Forgets a datagram, if there is one in the slot.
    fn forget(&mut self, slot: u32) {
        let datagram = &mut self.datagrams[slot as usize];
        if datagram.state == State::None {
            return;
        }
        datagram.state = State::None;
        self.held.doom(&mut datagram.held);
        let (key, from) = (datagram.key, datagram.from);
        if let Entry::Occupied(place) = self.index.entry(self.hash(key), |other| *other == slot, |_| 0) {
            place.remove();
        }
        self.by_port[from.index()].remove(&mut self.links, slot);
        self.until[slot as usize] = NEVER;
        self.free.push(slot);
    }

    fn find(&self, key: FragmentKey) -> Option<u32> {
        self.index.find(self.hash(key), |slot| self.datagrams[*slot as usize].key == key).copied()
    }

    fn hash(&self, key: FragmentKey) -> u64 {
        hash_of(key, self.seed)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "all parts are used")]
fn hash_of(key: FragmentKey, seed: [u64; 2]) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let halves = |address: Address| ((address.to_bits() >> 64) as u64, address.to_bits() as u64);
    let (a, b) = halves(key.source);
    let (c, d) = halves(key.destination);
    let rest = u64::from(key.id) << 32 | u64::from(key.network.0) << 8 | u64::from(key.protocol);
    let hash = fold(b ^ seed[0], d ^ rest.rotate_left(23) ^ seed[1]);
    fold(hash ^ a.rotate_left(9) ^ seed[1], c ^ rest ^ seed[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

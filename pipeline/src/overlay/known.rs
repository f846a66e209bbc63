//! Opens packets whose outer headers are known: which tunnel and endpoint they mean was found out before, by one of the same
//! headers.
//!
//! What is unusual about a packet is left to [`outer::fate`]: options, fragments, tags, a frame that is to be cut, a checksum
//! that nobody looked at, a mark that was made on the way, and an inner packet that could be one of the overlay itself.
//!
//! Capacity: fixed, and each worker's own. An entry is found by both outer addresses, UDP port and identifier; whoever comes
//! later takes its place. It is good while configuration and endpoints are what they were.

use packet::header::{EthernetHeader, Header, VxlanHeader, ethertype, protocol};
use packet::{Batch, Checksum, Frame, PortId, VtepId, ecn};

use super::encap::{L4_V4, L4_V6};
use super::outer::{self, Fate};
use crate::Pipeline;
use crate::snapshot::{OVERHEAD_V4, OVERHEAD_V6, Overlay, Snapshot};
use crate::tables::Tables;

/// The most entries of a family. PERF: a thousand identifiers, each with its endpoint, and few in one place
/// (benches/overlay).
const ENTRIES: usize = 4096;

/// One pair of outer headers.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
struct Entry<K> {
    key: K,
    /// 0, which is never in use, when nothing is known.
    generation: u64,
    to: PortId,
    vtep: u16,
}

const _: () = assert!(size_of::<Entry<KeyV4>>() == 32 && size_of::<Entry<KeyV6>>() == 64);

/// What one worker knows. See the module header.
#[derive(Debug)]
pub(crate) struct Known {
    v4: Box<[Entry<KeyV4>]>,
    v6: Box<[Entry<KeyV6>]>,
    /// How many configurations there were.
    adopted: u32,
}

/// What is known by a packet's outer headers.
trait Key: Copy + Default {
    /// Where the UDP header and the inner frame are.
    const L4: usize;
    const INNER: usize;
    /// Reads the outer headers, when nothing is unusual about them.
    fn read(bytes: &[u8]) -> Option<Headers<Self>>;
    fn is(&self, other: &Self) -> bool;
    fn place(&self) -> usize;
}

/// Outer headers that nothing is unusual about.
struct Headers<K> {
    key: K,
    tos: u8,
    /// Where the datagram ends.
    end: usize,
}

/// Both addresses; UDP port and identifier.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct KeyV4([u64; 2]);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct KeyV6([u64; 5]);

/// Type, version and length of an IPv4 header without options, as [`word`] reads them from byte 12; type and version of
/// IPv6.
const IPV4: u64 = 0x45_0008;
const IPV4_MASK: u64 = 0xff_ffff;
const IPV6: u64 = 0x60_dd86;
const IPV6_MASK: u64 = 0xf0_ffff;

impl Key for KeyV4 {
    const L4: usize = L4_V4;
    const INNER: usize = OVERHEAD_V4;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Option<Headers<Self>> {
        let head = bytes.first_chunk::<{ OVERHEAD_V4 + EthernetHeader::LEN }>()?;
        let is_plain = head[23] == protocol::UDP && (head[20] & 0x3f | head[21]) == 0;
        if word(head, 12) & IPV4_MASK != IPV4 || !is_plain {
            return None;
        }
        let (end, names) = vxlan(head, L4_V4, 14 + half(head, 16), bytes.len())?;
        Some(Headers { key: Self([word(head, 26), names]), tos: head[15], end })
    }

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        let ([a, b], [c, d]) = (self.0, other.0);
        (a ^ c) | (b ^ d) == 0
    }

    #[inline(always)]
    fn place(&self) -> usize {
        fold(self.0[0], self.0[1])
    }
}

impl Key for KeyV6 {
    const L4: usize = L4_V6;
    const INNER: usize = OVERHEAD_V6;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Option<Headers<Self>> {
        let head = bytes.first_chunk::<{ OVERHEAD_V6 + EthernetHeader::LEN }>()?;
        if word(head, 12) & IPV6_MASK != IPV6 || head[20] != protocol::UDP {
            return None;
        }
        let (end, names) = vxlan(head, L4_V6, L4_V6 + half(head, 18), bytes.len())?;
        let key = Self([word(head, 22), word(head, 30), word(head, 38), word(head, 46), names]);
        Some(Headers { key, tos: head[15] >> 4, end })
    }

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d, e], [f, g, h, i, j]) = (self.0, other.0);
        (a ^ f) | (b ^ g) | (c ^ h) | (d ^ i) | (e ^ j) == 0
    }

    #[inline(always)]
    fn place(&self) -> usize {
        let [a, b, c, d, names] = self.0;
        fold(a ^ b.rotate_left(13) ^ c.rotate_left(29) ^ d.rotate_left(43), names)
    }
}

/// Who makes up addresses so that they meet in one place makes his own packets slower.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn fold(a: u64, b: u64) -> usize {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
    (product as u64 ^ (product >> 64) as u64) as usize
}

#[inline(always)]
fn word<const N: usize>(head: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&head[at..at + 8]);
    u64::from_le_bytes(word)
}

#[inline(always)]
fn half<const N: usize>(head: &[u8; N], at: usize) -> usize {
    usize::from(u16::from_be_bytes([head[at], head[at + 1]]))
}

/// Returns where the datagram ends, and UDP port and identifier as part of a key: when it is whole, says that it has an
/// identifier, and has an Ethernet header in it. `end` is the IP packet's.
#[inline(always)]
fn vxlan<const N: usize>(head: &[u8; N], l4: usize, end: usize, len: usize) -> Option<(usize, u64)> {
    let end_of_udp = l4 + half(head, l4 + 4);
    // The first byte of the flags, and the identifier.
    let vxlan = word(head, l4 + 8);
    let has_identifier = vxlan & u64::from(VxlanHeader::VALID) != 0;
    let port = u64::from(u16::from_le_bytes([head[l4 + 2], head[l4 + 3]]));
    let is_whole = end_of_udp <= end && end <= len && end_of_udp >= l4 + 16 + EthernetHeader::LEN;
    (is_whole && has_identifier).then_some((end_of_udp, vxlan & 0x00ff_ffff_0000_0000 | port))
}

/// Says whether an inner packet could be one of the overlay to ourselves.
#[inline(always)]
fn may_be_nested(inner: &[u8], overlay: &Overlay) -> bool {
    let Some(head) = inner.first_chunk::<42>() else { return false };
    let kind = word(head, 12);
    let to_us = |at: usize| {
        let port = inner.get(at..at + 2);
        port.is_some_and(|port| overlay.listens_on(u16::from_be_bytes([port[0], port[1]])))
    };
    if kind & IPV4_MASK == IPV4 {
        return head[23] == protocol::UDP && to_us(L4_V4 + 2);
    }
    if kind & IPV6_MASK == IPV6 {
        return match head[20] {
            protocol::TCP | protocol::ICMPV6 => false,
            protocol::UDP => to_us(L4_V6 + 2),
            // It may be an extension header.
            _ => true,
        };
    }
    matches!(u16::from_be_bytes([head[12], head[13]]), ethertype::IPV4 | ethertype::IPV6)
}

/// Opens a frame whose outer headers are known, and returns the tunnel that it came by. `None`, and nothing changed, when
/// they are not, or something about it is unusual.
#[inline(always)]
fn open<K: Key>(
    entries: &[Entry<K>],
    generation: u64,
    overlay: &Overlay,
    frame: &mut Frame,
) -> Option<PortId> {
    let bytes = frame.bytes();
    let headers = K::read(bytes)?;
    let entry = entries.get(headers.key.place() & entries.len().wrapping_sub(1))?;
    if entry.generation != generation || !entry.key.is(&headers.key) {
        return None;
    }
    let inner = bytes.get(K::INNER..)?;
    let is_marked = headers.tos & ecn::MASK != 0
        && ecn::tos(inner).is_some_and(|tos| ecn::decapsulated(tos, headers.tos) != Some(tos));
    if is_marked || may_be_nested(inner, overlay) || !has_right_checksum::<K>(frame) {
        return None;
    }
    frame.uncover(K::INNER..headers.end, VtepId::new(entry.vtep)?)?;
    Some(entry.to)
}

/// Says whether the outer checksum was looked at, or is none, and nothing is left to do.
#[inline(always)]
fn has_right_checksum<K: Key>(frame: &Frame) -> bool {
    let field = K::L4 + 6;
    let has_none = || frame.bytes().get(field..field + 2) == Some(&[0, 0]);
    frame.is_finished() || !frame.is_gso() && frame.checksum() == Checksum::Unknown && has_none()
}

/// Keeps what was found out about a frame that has not been opened yet.
fn keep<K: Key>(entries: &mut [Entry<K>], frame: &Frame, generation: u64, (to, vtep): (PortId, VtepId)) {
    if let Some(Headers { key, .. }) = K::read(frame.bytes()) {
        let place = key.place() & (entries.len() - 1);
        entries[place] = Entry { key, generation, to, vtep: vtep.get() };
    }
}

impl Known {
    /// Makes room for what `vteps` endpoints send in a few networks.
    pub(crate) fn new(vteps: usize) -> Self {
        let count = (4 * vteps).next_power_of_two().min(ENTRIES);
        Self {
            v4: vec![Entry::default(); count].into(),
            v6: vec![Entry::default(); count].into(),
            adopted: 1,
        }
    }

    /// Another configuration is in use.
    pub(crate) fn adopt(&mut self) {
        self.adopted = self.adopted.wrapping_add(1).max(1);
    }

    /// Returns the number that entries are good for.
    fn generation(&self, tables: &Tables) -> u64 {
        u64::from(self.adopted) << 32 | u64::from(tables.vteps.epoch())
    }

    /// Finds out about a frame, and opens it if that can be done here.
    #[inline(never)]
    fn find_out(
        &mut self,
        frame: &mut Frame,
        generation: u64,
        snapshot: &Snapshot,
        tables: &Tables,
    ) -> Option<PortId> {
        let Fate::Open { to, vtep, outer, tos } = outer::fate(frame, snapshot, tables) else { return None };
        keep(&mut self.v4, frame, generation, (to, vtep));
        keep(&mut self.v6, frame, generation, (to, vtep));
        outer::strip(frame, &outer, tos, vtep);
        Some(to)
    }
}

impl Pipeline {
    /// Opens the frames of a batch. Both ports count them.
    pub(crate) fn open(&mut self, batch: &mut Batch) {
        let Self { snapshot, tables, worker, known, .. } = self;
        let (counters, overlay) = (tables.counters(*worker), snapshot.overlay());
        let generation = known.generation(tables);
        let (frames, from) = batch.parts_mut();
        let mut start = 0;
        while let Some(port) = from.get(start).copied() {
            let count = from[start..].iter().take_while(|other| **other == port).count();
            let run = start..start + count;
            start = run.end;
            if !snapshot.ingress(port).is_underlay {
                continue;
            }
            let (mut opened, mut bytes) = (0, 0);
            for (frame, from) in frames[run.clone()].iter_mut().zip(&mut from[run]) {
                let len = frame.len() as u64;
                let to = open(&known.v4, generation, overlay, frame)
                    .or_else(|| open(&known.v6, generation, overlay, frame))
                    .or_else(|| known.find_out(frame, generation, snapshot, tables));
                if let Some(to) = to {
                    *from = to;
                    opened += 1;
                    bytes += len;
                }
            }
            counters.port(port).rx_frames.add(opened);
            counters.port(port).rx_bytes.add(bytes);
        }
    }
}

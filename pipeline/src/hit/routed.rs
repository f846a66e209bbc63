//! The fast path of routed and tracked packets: checks an entry, and rewrites what it says.
//!
//! What is looked up here was decided by a walk, and what is done here is what the walk would have done: the property tests
//! compare them byte by byte.
//!
//! An entry of IPv4 says by what old and new addresses and ports differ, so they are put in by an exclusive or whichever
//! side it is, or none; the checksums' differences are in it too. Nothing here depends on which rules and translations
//! there are.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use packet::checksum::{self, Delta};
use packet::{Checksum, Frame, Instant, PortId, VtepId};

use crate::Snapshot;
use crate::flow_cache::Tick;
use crate::flow_cache::routed::{Entry, Finder, Key, Key4, Key6, Names, Spot, flag};
use crate::rewrite;
use crate::snapshot::{Egress, Ingress};
use crate::tables::{Tables, Target};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
/// Where the transport is, behind an Ethernet header and an IP header without options.
pub(crate) const L4_V4: usize = 34;
pub(crate) const L4_V6: usize = 54;
/// The shortest packet that qualifies: eight bytes of transport.
pub(crate) const LEN4: usize = L4_V4 + 8;
pub(crate) const LEN6: usize = L4_V6 + 8;

/// Reads eight bytes.
#[inline(always)]
pub(crate) fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Returns the ports as they are in the packet, or type and identifier of an ICMP query.
#[inline(always)]
fn ports<const N: usize>(head: &[u8; N], l4: usize, query: bool) -> u64 {
    let ports = if query {
        u32::from_le_bytes([head[l4], head[l4 + 1], head[l4 + 4], head[l4 + 5]])
    } else {
        u32::from_le_bytes([head[l4], head[l4 + 1], head[l4 + 2], head[l4 + 3]])
    };
    u64::from(ports)
}

/// Reads the key of an IPv4 packet that qualifies. `vtep` is the endpoint that it came from, 0 for none.
#[inline(always)]
pub(crate) fn key4(head: &[u8; LEN4], from: PortId, vtep: u16, query: bool) -> Key4 {
    Key4([
        word(head, 26),
        ports(head, L4_V4, query) | u64::from(head[23]) << 32 | u64::from(from.0) << 40,
        word(head, 0),
        word(head, 4) >> 32 | u64::from(vtep) << 32,
    ])
}

/// Reads the key of an IPv6 packet that qualifies.
#[inline(always)]
pub(crate) fn key6(head: &[u8; LEN6], from: PortId, vtep: u16, query: bool) -> Key6 {
    Key6([
        word(head, 22),
        word(head, 30),
        word(head, 38),
        word(head, 46),
        ports(head, L4_V6, query) | u64::from(head[20]) << 32 | u64::from(from.0) << 40,
        word(head, 0),
        word(head, 4) >> 32 | u64::from(vtep) << 32,
    ])
}

/// What a hit is checked against, for a run of frames from one port.
#[derive(Clone, Copy)]
pub(super) struct Check<'a> {
    neighbors: &'a [AtomicU64],
    stations: &'a [AtomicU32],
    egress: &'a [Egress],
    from: PortId,
    ingress: Ingress,
    tick: Tick,
}

/// The key is not in the entry that was aimed at.
struct Elsewhere;

/// How an entry rewrites a packet of its family.
pub(super) trait Family: Key {
    /// The headers, as far as all packets have them.
    type Head: AsMut<[u8]>;
    /// Takes the headers apart from what follows.
    fn split(bytes: &mut [u8]) -> Option<(&mut Self::Head, &mut [u8])>;
    /// Reads the key of a packet that qualifies.
    fn read(head: &Self::Head, from: PortId, vtep: u16, query: bool) -> Self;
    /// Says whether the packet may live on behind a router.
    fn may_pass(head: &Self::Head) -> bool;
    /// Lowers the time to live, and puts the new addresses and ports in; the transport's checksum, if it is complete.
    fn rewrite<const QUERY: bool>(
        head: &mut Self::Head,
        rest: &mut [u8],
        entry: &Entry<Self>,
        complete: bool,
    );
    /// Where the transport begins.
    const L4: usize;
}

impl<'a> Check<'a> {
    pub(super) fn new(tables: &'a Tables, snapshot: &'a Snapshot, from: PortId, now: Instant) -> Self {
        Self {
            neighbors: tables.neighbors.words(),
            stations: tables.fdb.versions(),
            egress: snapshot.egress(),
            from,
            ingress: snapshot.ingress(from),
            tick: Tick::at(now),
        }
    }

    /// Carries out what was decided about a frame that qualifies and returns where it goes; `None`, and
    /// nothing changed, when there is no decision, it does not hold, or the frame needs more. `spot` is where to look.
    #[inline(always)]
    pub(super) fn apply<K: Family, const QUERY: bool>(
        &self,
        cache: &mut Finder<'_, K>,
        spot: Spot,
        frame: &mut Frame,
    ) -> Option<Names> {
        match self.apply_aimed::<K, QUERY>(cache, spot, frame) {
            Err(Elsewhere) => self.apply_found::<K, QUERY>(cache, spot, frame),
            Ok(to) => to,
        }
    }

    /// Returns the endpoint that a frame came from, 0 for none.
    #[inline(always)]
    fn vtep(&self, frame: &Frame) -> u16 {
        if self.ingress.is_tunnel { VtepId::raw(frame.vtep()) } else { 0 }
    }

    #[inline(always)]
    fn apply_aimed<K: Family, const QUERY: bool>(
        &self,
        cache: &mut Finder<'_, K>,
        spot: Spot,
        frame: &mut Frame,
    ) -> Result<Option<Names>, Elsewhere> {
        let vtep = self.vtep(frame);
        let key = K::split(frame.bytes_mut()).map(|(head, _)| K::read(head, self.from, vtep, QUERY));
        let Some(key) = key else { return Ok(None) };
        let entry = cache.aimed(spot, &key).ok_or(Elsewhere)?;
        Ok(self.carry_out::<K, QUERY>(entry, frame))
    }

    /// PERF: not in the loop, and without the key: one that is passed on has to be put on the stack for every packet
    /// (benches/flows).
    #[cold]
    #[inline(never)]
    fn apply_found<K: Family, const QUERY: bool>(
        &self,
        cache: &mut Finder<'_, K>,
        spot: Spot,
        frame: &mut Frame,
    ) -> Option<Names> {
        let vtep = self.vtep(frame);
        let key = K::read(K::split(frame.bytes_mut())?.0, self.from, vtep, QUERY);
        self.carry_out::<K, QUERY>(cache.anywhere(spot, &key)?, frame)
    }

    #[inline(always)]
    fn carry_out<K: Family, const QUERY: bool>(
        &self,
        entry: &mut Entry<K>,
        frame: &mut Frame,
    ) -> Option<Names> {
        let (len, wire_len) = (frame.len(), frame.wire_len());
        let is_complete = frame.is_complete();
        let (head, rest) = K::split(frame.bytes_mut())?;
        let to = entry.to();
        let egress = self.egress.get(to.index())?;
        let generation = self.ingress.own_generation.wrapping_add(egress.own_generation);
        if entry.generation() != generation
            || wire_len > egress.frame_len as usize
            || !entry.is_fresh(self.tick, self.ingress.refresh)
        {
            return None;
        }
        if entry.flags() & flag::BRIDGED == 0 {
            let word = self.neighbors.get(entry.next())?.load(Ordering::Acquire);
            let target = Target::mac_at(word, to)?;
            if !K::may_pass(head) {
                return None;
            }
            if is_complete || entry.flags() & (flag::SOURCE | flag::DESTINATION) == 0 {
                put_macs(head.as_mut(), target, egress);
                K::rewrite::<QUERY>(head, rest, entry, is_complete);
            } else {
                rewrite_unfinished::<K, QUERY>(frame, target, egress, entry)?;
            }
            if QUERY && K::L4 == L4_V4 {
                settle_zero(frame);
            }
        } else if self.stations.get(entry.next())?.load(Ordering::Acquire) != entry.station_version() {
            return None;
        }
        entry.count(len);
        Some(entry.names())
    }

    /// [`Check::apply`] for ICMP queries, which are few.
    #[inline(never)]
    pub(super) fn query<K: Family>(
        &self,
        cache: &mut Finder<'_, K>,
        spot: Spot,
        frame: &mut Frame,
    ) -> Option<Names> {
        self.apply::<K, true>(cache, spot, frame)
    }
}

/// Puts the MACs in: the target's as [`Target::mac_at`] returns it.
#[inline(always)]
fn put_macs(head: &mut [u8], target: u64, egress: &Egress) {
    let [a, b, c, d, e, f] = egress.router_mac.0;
    let router = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    head[..8].copy_from_slice(&(target | router << 48).to_le_bytes());
    head[8..12].copy_from_slice(&[c, d, e, f]);
}

/// Rewrites a frame whose transport checksum nobody vouches for.
#[inline(never)]
fn rewrite_unfinished<K: Family, const QUERY: bool>(
    frame: &mut Frame,
    target: u64,
    egress: &Egress,
    entry: &Entry<K>,
) -> Option<()> {
    unfinished(frame, K::L4, entry.addresses_change, entry.transport_change);
    let (head, rest) = K::split(frame.bytes_mut())?;
    put_macs(head.as_mut(), target, egress);
    K::rewrite::<QUERY>(head, rest, entry, false);
    Some(())
}

/// Takes back what one hop changes in the sum of an IPv4 header, whose word of time to live and protocol lost 0x100.
const HOP_BACK: Delta = Delta::new().u16(0x0000, 0x0100);

impl Family for Key4 {
    type Head = [u8; LEN4];
    const L4: usize = L4_V4;

    #[inline(always)]
    fn split(bytes: &mut [u8]) -> Option<(&mut Self::Head, &mut [u8])> {
        bytes.split_first_chunk_mut()
    }

    #[inline(always)]
    fn read(head: &Self::Head, from: PortId, vtep: u16, query: bool) -> Self {
        key4(head, from, vtep, query)
    }

    #[inline(always)]
    fn may_pass(head: &Self::Head) -> bool {
        head[22] > 1
    }

    #[inline(always)]
    fn rewrite<const QUERY: bool>(
        head: &mut Self::Head,
        rest: &mut [u8],
        entry: &Entry<Self>,
        complete: bool,
    ) {
        head[22] -= 1;
        change(&mut head[24..26], entry.addresses_change);
        let is_destination = u32::from(entry.flags() & flag::DESTINATION);
        let addresses = word(head, 26) ^ entry.patch.address(is_destination);
        head[26..34].copy_from_slice(&addresses.to_le_bytes());
        if QUERY {
            let identifier = u16::from_le_bytes([head[38], head[39]]) ^ entry.patch.port;
            head[38..40].copy_from_slice(&identifier.to_le_bytes());
        } else {
            let ports = u32::from_le_bytes([head[34], head[35], head[36], head[37]]);
            let ports = ports ^ entry.patch.ports(is_destination);
            head[34..38].copy_from_slice(&ports.to_le_bytes());
        }
        if complete {
            let protocol = head[23];
            change_transport::<QUERY>(protocol, &mut head[L4_V4..], rest, entry.transport_change);
        }
    }
}

impl Family for Key6 {
    type Head = [u8; LEN6];
    const L4: usize = L4_V6;

    #[inline(always)]
    fn split(bytes: &mut [u8]) -> Option<(&mut Self::Head, &mut [u8])> {
        bytes.split_first_chunk_mut()
    }

    #[inline(always)]
    fn read(head: &Self::Head, from: PortId, vtep: u16, query: bool) -> Self {
        key6(head, from, vtep, query)
    }

    #[inline(always)]
    fn may_pass(head: &Self::Head) -> bool {
        head[21] > 1
    }

    #[inline(always)]
    fn rewrite<const QUERY: bool>(
        head: &mut Self::Head,
        rest: &mut [u8],
        entry: &Entry<Self>,
        complete: bool,
    ) {
        head[21] -= 1;
        if entry.flags() & (flag::SOURCE | flag::DESTINATION) == 0 {
            return;
        }
        head[22..54].copy_from_slice(&entry.patch.addresses);
        if QUERY {
            head[58..60].copy_from_slice(&entry.patch.ports[..2]);
        } else {
            head[54..58].copy_from_slice(&entry.patch.ports);
        }
        if complete {
            let protocol = head[20];
            change_transport::<QUERY>(protocol, &mut head[L4_V6..], rest, entry.transport_change);
        }
    }
}

/// Changes the complete checksum of a transport whose first eight bytes are `l4`, and the others `rest`.
#[inline(always)]
fn change_transport<const QUERY: bool>(protocol: u8, l4: &mut [u8], rest: &mut [u8], by: u16) {
    if QUERY {
        change(&mut l4[2..4], by);
    } else if protocol == UDP {
        change_udp(&mut l4[6..8], by);
    } else if let Some(sum) = rest.get_mut(8..10) {
        change(sum, by);
    }
}

/// Changes a checksum: RFC 1624, eqn. 3, with both complements taken out of it, which leaves a subtraction with end-around
/// borrow. Both numbers are in the order of the wire, in which the sum is as good as in any other (RFC 1071, 2 B).
#[inline(always)]
fn change(field: &mut [u8], change: u16) {
    if let Ok(field) = <&mut [u8; 2]>::try_from(field) {
        let (sum, borrow) = u16::from_ne_bytes(*field).overflowing_sub(change);
        *field = sum.wrapping_sub(u16::from(borrow)).to_ne_bytes();
    }
}

/// The same for UDP: none (0) stays none.
#[inline(always)]
fn change_udp(field: &mut [u8], by: u16) {
    if *field != [0, 0] {
        change(field, by);
        if *field == [0, 0] {
            field.fill(0xff);
        }
    }
}

/// Brings a transport checksum that nobody vouches for up to date before addresses and ports change: all of it when
/// it turns out to be complete, the pseudo header's part when the device is to finish it.
#[inline(never)]
fn unfinished(frame: &mut Frame, l4: usize, addresses: u16, transport: u16) {
    let protocol = frame.bytes()[if l4 == L4_V4 { 23 } else { 20 }];
    let at = l4
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
    checksum::resolve(frame);
    // Another start is inside a tunnel: the outer checksum is complete then, or there is none.
    let partial = matches!(frame.checksum(), Checksum::Partial { start, .. } if usize::from(start) == l4);
    let Some(field) = frame.bytes_mut().get_mut(at..at + 2) else { return };
    let sum = u16::from_be_bytes([field[0], field[1]]);
    let [addresses, transport] =
        [addresses, transport].map(|change| Delta::from_folded(u16::from_be(change)));
    let sum = match protocol {
        // Without a pseudo header.
        ICMP if partial => sum,
        _ if partial && l4 == L4_V4 => addresses.and(HOP_BACK).apply_partial(sum),
        _ if partial => addresses.apply_partial(sum),
        UDP => transport.apply_udp(sum),
        _ => transport.apply(sum),
    };
    field.copy_from_slice(&sum.to_be_bytes());
}

/// See [`rewrite::settle_zero`].
fn settle_zero(frame: &mut Frame) {
    let bytes = frame.bytes_mut();
    let end = 14 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    if let Some(icmp) = bytes.get_mut(L4_V4..end).filter(|icmp| icmp.get(2..4) == Some(&[0, 0])) {
        rewrite::settle_zero(icmp);
    }
}

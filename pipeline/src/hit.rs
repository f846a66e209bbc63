//! The fast path of routed and tracked packets: read the key, find the decision, rewrite.
//!
//! A packet qualifies when nothing about it is unusual: untagged, no IP options or extension headers, no fragment, whole
//! headers; TCP without SYN, FIN and RST; UDP; an ICMP query. All else walks. What is looked up here was decided by a walk,
//! and what is done here is what the walk would have done: the property tests compare them byte by byte.

use std::sync::atomic::Ordering;

use packet::checksum::{self, Delta};
use packet::{Checksum, Frame, MacAddr, PortId};

use crate::flow_cache::Tick;
use crate::flow_cache::routed::{Entry, Key, Key4, Key6, Place, Rewrite4, Rewrite6, RoutedCache, flag};
use crate::rewrite;
use crate::snapshot::{Egress, Ingress};
use crate::tables::{Tables, Target};

const IPV4: u16 = u16::from_le_bytes([0x08, 0x00]);
const IPV6: u16 = u16::from_le_bytes([0x86, 0xdd]);
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// SYN, FIN and RST: the connection changes its state.
const STATE_FLAGS: u8 = 0x07;
/// Ethernet header, then IPv4 header without options, then transport.
const L3: usize = 14;
const L4_V4: usize = 34;
const L4_V6: usize = 54;

/// The family of a packet that qualifies: its key is read from the frame whenever it is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It does not.
    #[default]
    None,
    V4,
    V6,
}

/// What a packet's decision is kept under.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum AnyKey {
    /// Nothing can be found or kept under it.
    #[default]
    None,
    V4(Key4),
    V6(Key6),
}

#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Says whether the frame is for the routing stages: for the router's MAC, or on a tracked network for anybody.
#[inline(always)]
pub(crate) fn concerns(bytes: &[u8], ingress: &Ingress) -> bool {
    bytes
        .first_chunk::<6>()
        .is_some_and(|to| MacAddr(*to) == ingress.router_mac || ingress.tracked && to[0] & 1 == 0)
}

/// Returns the key of a frame, when it qualifies.
#[inline(always)]
pub(crate) fn key(bytes: &[u8], from: PortId) -> AnyKey {
    let Some(head) = bytes.first_chunk::<42>() else { return AnyKey::None };
    let key = match u16::from_le_bytes([head[12], head[13]]) {
        IPV4 if qualifies4(bytes, head) => Key4::of(bytes, from).map(AnyKey::V4),
        IPV6 if qualifies6(bytes) => Key6::of(bytes, from).map(AnyKey::V6),
        _ => None,
    };
    key.unwrap_or_default()
}

#[inline(always)]
fn qualifies4(bytes: &[u8], head: &[u8; 42]) -> bool {
    let end = L3 + usize::from(u16::from_be_bytes([head[16], head[17]]));
    let fragment = u16::from_be_bytes([head[20], head[21]]) & 0x3fff;
    head[14] == 0x45 && fragment == 0 && transport_qualifies(head[23], bytes, L4_V4, end)
}

#[inline(always)]
fn qualifies6(bytes: &[u8]) -> bool {
    let Some(head) = bytes.first_chunk::<62>() else { return false };
    let end = L4_V6 + usize::from(u16::from_be_bytes([head[18], head[19]]));
    head[14] >> 4 == 6 && transport_qualifies(head[20], bytes, L4_V6, end)
}

#[inline(always)]
fn transport_qualifies(protocol: u8, bytes: &[u8], l4: usize, end: usize) -> bool {
    let Some(transport) = bytes.get(l4..end) else { return false };
    let Some(head) = transport.first_chunk::<8>() else { return false };
    match protocol {
        TCP => transport.first_chunk::<20>().is_some_and(|tcp| {
            let header_len = usize::from(tcp[12] >> 4) * 4;
            header_len >= 20 && header_len <= transport.len() && tcp[13] & STATE_FLAGS == 0
        }),
        UDP => true,
        ICMP => l4 == L4_V4 && matches!(head[0], 0 | 8),
        ICMPV6 => l4 == L4_V6 && matches!(head[0], 128 | 129),
        _ => false,
    }
}

/// Returns the ports as they are in the packet, or type and identifier of an ICMP query.
#[inline(always)]
fn ports<const N: usize>(head: &[u8; N], l4: usize, is_query: bool) -> u64 {
    let ports = if is_query {
        u32::from_le_bytes([head[l4], head[l4 + 1], head[l4 + 4], head[l4 + 5]])
    } else {
        u32::from_le_bytes([head[l4], head[l4 + 1], head[l4 + 2], head[l4 + 3]])
    };
    u64::from(ports)
}

/// What a hit is checked against, for a run of frames from one port.
#[derive(Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) from: PortId,
    pub(crate) ingress: Ingress,
    pub(crate) egress: &'a [Egress],
    pub(crate) tick: Tick,
}

/// How an entry rewrites a packet of its family.
pub(crate) trait Family: Key {
    /// Reads the key of a packet that qualifies.
    fn of(bytes: &[u8], from: PortId) -> Option<Self>;
    /// Says whether the packet may live on behind a router.
    fn may_pass(bytes: &[u8]) -> bool;
    /// Lowers the time to live, and puts the new addresses and ports in.
    fn rewrite(frame: &mut Frame, entry: &Entry<Self>);
}

impl<'a> Check<'a> {
    /// Carries out what was decided about a frame that qualifies and returns the port that it leaves by; `None`, and
    /// nothing changed, when there is no decision, it does not hold, or the frame needs more. `place` is where to look.
    #[inline(always)]
    pub(crate) fn apply<K: Family>(
        &self,
        cache: &mut RoutedCache<K>,
        place: Place,
        frame: &mut Frame,
    ) -> Option<PortId> {
        let key = K::of(frame.bytes(), self.from)?;
        let entry = cache.find(place, &key)?;
        let to = entry.to();
        let egress = self.egress.get(to.index())?;
        let generation = self.ingress.own_generation.wrapping_add(egress.own_generation);
        if entry.generation() != generation
            || frame.wire_len() > egress.frame_len as usize
            || !entry.is_fresh(self.tick, self.ingress.refresh)
        {
            return None;
        }
        if entry.flags() & flag::BRIDGED == 0 {
            let word = self.tables.neighbors.words().get(entry.next())?.load(Ordering::Acquire);
            let target = Target::from_word(word).filter(|target| target.port == to)?;
            if !K::may_pass(frame.bytes()) {
                return None;
            }
            let macs = frame.bytes_mut().first_chunk_mut::<12>()?;
            macs[..6].copy_from_slice(&target.mac.0);
            macs[6..].copy_from_slice(&egress.router_mac.0);
            K::rewrite(frame, entry);
        } else if self.tables.fdb.versions().get(entry.next())?.load(Ordering::Acquire)
            != entry.station_version()
        {
            return None;
        }
        entry.packets += 1;
        #[expect(clippy::cast_possible_truncation, reason = "a frame is shorter than 4 GiB")]
        {
            entry.bytes = entry.bytes.wrapping_add(frame.len() as u32);
        }
        Some(to)
    }
}

/// Takes back what one hop changes in the sum of an IPv4 header, whose word of time to live and protocol lost 0x100.
const HOP_BACK: Delta = Delta::new().u16(0x0000, 0x0100);

impl Family for Key4 {
    #[inline(always)]
    fn of(bytes: &[u8], from: PortId) -> Option<Self> {
        let head = bytes.first_chunk::<42>()?;
        let ports = ports(head, L4_V4, head[23] == ICMP);
        Some(Key4([
            word(head, 26),
            ports | u64::from(head[23]) << 32 | u64::from(from.0) << 40,
            word(head, 0),
            word(head, 4) >> 32,
        ]))
    }

    #[inline(always)]
    fn may_pass(bytes: &[u8]) -> bool {
        bytes.get(22).is_some_and(|ttl| *ttl > 1)
    }

    #[inline(always)]
    fn rewrite(frame: &mut Frame, entry: &Entry<Self>) {
        let flags = entry.flags() & (flag::SOURCE | flag::DESTINATION);
        let is_complete = frame.checksum() == Checksum::Complete;
        if flags != 0 && !is_complete {
            unfinished(frame, L4_V4, entry.addresses_change, entry.transport_change);
        }
        let Some((head, rest)) = frame.bytes_mut().split_first_chunk_mut::<42>() else { return };
        head[22] -= 1;
        change(&mut head[24..26], entry.addresses_change);
        let protocol = head[23];
        if flags != 0 {
            let Rewrite4 { address, port } = entry.rewrite;
            if flags == flag::SOURCE {
                head[26..30].copy_from_slice(&address);
                let at = if protocol == ICMP { 38 } else { 34 };
                head[at..at + 2].copy_from_slice(&port);
            } else {
                head[30..34].copy_from_slice(&address);
                let at = if protocol == ICMP { 38 } else { 36 };
                head[at..at + 2].copy_from_slice(&port);
            }
            if is_complete {
                match protocol {
                    TCP => rest.get_mut(8..10).map_or((), |sum| change(sum, entry.transport_change)),
                    UDP => change_udp(&mut head[40..42], entry.transport_change),
                    _ => change(&mut head[36..38], entry.transport_change),
                }
            }
        }
        if protocol == ICMP && head[36..38] == [0, 0] {
            settle_zero(frame);
        }
    }
}

impl Family for Key6 {
    #[inline(always)]
    fn of(bytes: &[u8], from: PortId) -> Option<Self> {
        let head = bytes.first_chunk::<62>()?;
        let ports = ports(head, L4_V6, head[20] == ICMPV6);
        Some(Key6([
            word(head, 22),
            word(head, 30),
            word(head, 38),
            word(head, 46),
            ports | u64::from(head[20]) << 32 | u64::from(from.0) << 40,
            word(head, 0),
            word(head, 4) >> 32,
        ]))
    }

    #[inline(always)]
    fn may_pass(bytes: &[u8]) -> bool {
        bytes.get(21).is_some_and(|hops| *hops > 1)
    }

    #[inline(always)]
    fn rewrite(frame: &mut Frame, entry: &Entry<Self>) {
        let changes = entry.flags() & (flag::SOURCE | flag::DESTINATION) != 0;
        let is_complete = frame.checksum() == Checksum::Complete;
        if changes && !is_complete {
            unfinished(frame, L4_V6, entry.addresses_change, entry.transport_change);
        }
        let Some((head, rest)) = frame.bytes_mut().split_first_chunk_mut::<62>() else { return };
        head[21] -= 1;
        if !changes {
            return;
        }
        let protocol = head[20];
        let Rewrite6 { source, destination, source_port, destination_port } = entry.rewrite;
        head[22..38].copy_from_slice(&source);
        head[38..54].copy_from_slice(&destination);
        if protocol == ICMPV6 {
            head[58..60].copy_from_slice(&source_port);
        } else {
            head[54..56].copy_from_slice(&source_port);
            head[56..58].copy_from_slice(&destination_port);
        }
        if is_complete {
            match protocol {
                TCP => rest.get_mut(8..10).map_or((), |sum| change(sum, entry.transport_change)),
                UDP => change_udp(&mut head[60..62], entry.transport_change),
                _ => change(&mut head[56..58], entry.transport_change),
            }
        }
    }
}

/// Changes a checksum (RFC 1624, eqn. 3). Both are in the order of the wire, in which the sum is as good as in any other
/// (RFC 1071, 2 B); two words are folded by one carry, where [`Delta`] folds any number of them.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a sum of two words, folded")]
fn change(field: &mut [u8], change: u16) {
    if let Ok(field) = <&mut [u8; 2]>::try_from(field) {
        let sum = u32::from(!u16::from_ne_bytes(*field)) + u32::from(change);
        *field = (!((sum & 0xffff) + (sum >> 16)) as u16).to_ne_bytes();
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
#[cold]
fn settle_zero(frame: &mut Frame) {
    let bytes = frame.bytes_mut();
    let end = L3 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    if let Some(icmp) = bytes.get_mut(L4_V4..end) {
        rewrite::settle_zero(icmp);
    }
}

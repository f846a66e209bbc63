//! The fast path of routed and tracked packets: read the key, find the decision, rewrite.
//!
//! A packet qualifies when nothing about it is unusual: untagged, no IP options or extension headers, no fragment, whole
//! headers; TCP without SYN, FIN and RST; UDP; an ICMP query. All else walks. What is looked up here was decided by a walk,
//! and what is done here is what the walk would have done: the property tests compare them byte by byte.

use std::sync::atomic::Ordering;

use packet::checksum::{self, Delta};
use packet::{Checksum, Frame, MacAddr, PortId};

use crate::flow_cache::Tick;
use crate::flow_cache::routed::{Entry, Key, Key4, Key6, Rewrite4, Rewrite6, flag};
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

/// What a packet's key is made of.
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

/// Reads the key of a frame, when it qualifies.
#[inline(always)]
pub(crate) fn key(bytes: &[u8], from: PortId) -> AnyKey {
    let Some(head) = bytes.first_chunk::<42>() else { return AnyKey::None };
    match u16::from_le_bytes([head[12], head[13]]) {
        IPV4 => key4(bytes, head, from).map_or(AnyKey::None, AnyKey::V4),
        IPV6 => key6(bytes, from).map_or(AnyKey::None, AnyKey::V6),
        _ => AnyKey::None,
    }
}

#[inline(always)]
fn key4(bytes: &[u8], head: &[u8; 42], from: PortId) -> Option<Key4> {
    let len = usize::from(u16::from_be_bytes([head[16], head[17]]));
    let fragment = u16::from_be_bytes([head[20], head[21]]) & 0x3fff;
    if head[14] != 0x45 || fragment != 0 || L3 + len > bytes.len() {
        return None;
    }
    let protocol = head[23];
    let ports = transport(protocol, bytes, L4_V4, L3 + len)?;
    Some(Key4([
        word(head, 26),
        u64::from(ports) | u64::from(protocol) << 32 | u64::from(from.0) << 40,
        word(head, 0),
        word(head, 4) >> 32,
    ]))
}

#[inline(always)]
fn key6(bytes: &[u8], from: PortId) -> Option<Key6> {
    let head = bytes.first_chunk::<62>()?;
    let len = usize::from(u16::from_be_bytes([head[18], head[19]]));
    if head[14] >> 4 != 6 || L4_V6 + len > bytes.len() {
        return None;
    }
    let protocol = head[20];
    let ports = transport(protocol, bytes, L4_V6, L4_V6 + len)?;
    Some(Key6([
        word(head, 22),
        word(head, 30),
        word(head, 38),
        word(head, 46),
        u64::from(ports) | u64::from(protocol) << 32 | u64::from(from.0) << 40,
        word(head, 0),
        word(head, 4) >> 32,
    ]))
}

/// Returns the ports as they are in the packet, or type and identifier of an ICMP query.
#[inline(always)]
fn transport(protocol: u8, bytes: &[u8], l4: usize, end: usize) -> Option<u32> {
    let transport = bytes.get(l4..end)?;
    let head = transport.first_chunk::<8>()?;
    match protocol {
        TCP => {
            let tcp = transport.first_chunk::<20>()?;
            let header_len = usize::from(tcp[12] >> 4) * 4;
            let whole = header_len >= 20 && header_len <= transport.len();
            (whole && tcp[13] & STATE_FLAGS == 0)
                .then_some(u32::from_le_bytes([tcp[0], tcp[1], tcp[2], tcp[3]]))
        }
        UDP => Some(u32::from_le_bytes([head[0], head[1], head[2], head[3]])),
        ICMP if l4 == L4_V4 && matches!(head[0], 0 | 8) => Some(query(head)),
        ICMPV6 if l4 == L4_V6 && matches!(head[0], 128 | 129) => Some(query(head)),
        _ => None,
    }
}

#[inline(always)]
fn query(head: &[u8; 8]) -> u32 {
    u32::from_le_bytes([head[0], head[1], head[4], head[5]])
}

/// What a hit is checked against, for a run of frames from one port.
#[derive(Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) ingress: Ingress,
    pub(crate) egress: &'a [Egress],
    pub(crate) tick: Tick,
}

/// How an entry rewrites a packet of its family.
pub(crate) trait Family: Key {
    /// Says whether the packet may live on behind a router.
    fn may_pass(bytes: &[u8]) -> bool;
    /// Lowers the time to live, and puts the new addresses and ports in.
    fn rewrite(frame: &mut Frame, entry: &Entry<Self>);
}

impl<'a> Check<'a> {
    /// Carries out an entry's decision on a frame and returns the port that it leaves by; `None`, and nothing changed,
    /// when the decision does not hold or the frame needs more.
    #[inline(always)]
    pub(crate) fn apply<K: Family>(&self, entry: &mut Entry<K>, frame: &mut Frame) -> Option<PortId> {
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
    fn may_pass(bytes: &[u8]) -> bool {
        bytes.get(22).is_some_and(|ttl| *ttl > 1)
    }

    #[inline(always)]
    fn rewrite(frame: &mut Frame, entry: &Entry<Self>) {
        let flags = entry.flags() & (flag::SOURCE | flag::DESTINATION);
        if flags != 0 {
            transport_checksum(frame, L4_V4, entry.addresses_delta, entry.transport_delta);
        }
        let Some(head) = frame.bytes_mut().first_chunk_mut::<42>() else { return };
        head[22] -= 1;
        let sum = u16::from_be_bytes([head[24], head[25]]);
        let sum = Delta::from_folded(entry.addresses_delta).apply(sum);
        head[24..26].copy_from_slice(&sum.to_be_bytes());
        let Rewrite4 { address, port } = entry.rewrite;
        let is_icmp = head[23] == ICMP;
        if flags == flag::SOURCE {
            head[26..30].copy_from_slice(&address);
            let at = if is_icmp { 38 } else { 34 };
            head[at..at + 2].copy_from_slice(&port);
        } else if flags == flag::DESTINATION {
            head[30..34].copy_from_slice(&address);
            let at = if is_icmp { 38 } else { 36 };
            head[at..at + 2].copy_from_slice(&port);
        }
        if is_icmp && head[36..38] == [0, 0] {
            settle_zero(frame);
        }
    }
}

impl Family for Key6 {
    #[inline(always)]
    fn may_pass(bytes: &[u8]) -> bool {
        bytes.get(21).is_some_and(|hops| *hops > 1)
    }

    #[inline(always)]
    fn rewrite(frame: &mut Frame, entry: &Entry<Self>) {
        let changes = entry.flags() & (flag::SOURCE | flag::DESTINATION) != 0;
        if changes {
            transport_checksum(frame, L4_V6, entry.addresses_delta, entry.transport_delta);
        }
        let Some(head) = frame.bytes_mut().first_chunk_mut::<62>() else { return };
        head[21] -= 1;
        if !changes {
            return;
        }
        let Rewrite6 { source, destination, source_port, destination_port } = entry.rewrite;
        head[22..38].copy_from_slice(&source);
        head[38..54].copy_from_slice(&destination);
        if head[20] == ICMPV6 {
            head[58..60].copy_from_slice(&source_port);
        } else {
            head[54..56].copy_from_slice(&source_port);
            head[56..58].copy_from_slice(&destination_port);
        }
    }
}

/// Brings the transport checksum up to date before addresses and ports change: all of it when it is complete, the
/// pseudo header's part when the device is to finish it. ICMP has no pseudo header in IPv4, and its identifier is in
/// the sum.
#[inline(always)]
fn transport_checksum(frame: &mut Frame, l4: usize, addresses: u16, transport: u16) {
    let protocol = frame.bytes()[if l4 == L4_V4 { 23 } else { 20 }];
    let at = l4
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
    if frame.checksum() == Checksum::Unknown {
        checksum::resolve(frame);
    }
    // Another start is inside a tunnel: the outer checksum is complete then, or there is none.
    let partial = matches!(frame.checksum(), Checksum::Partial { start, .. } if usize::from(start) == l4);
    let Some(field) = frame.bytes_mut().get_mut(at..at + 2) else { return };
    let sum = u16::from_be_bytes([field[0], field[1]]);
    let sum = match protocol {
        ICMP if partial => sum,
        _ if partial && l4 == L4_V4 => Delta::from_folded(addresses).and(HOP_BACK).apply_partial(sum),
        _ if partial => Delta::from_folded(addresses).apply_partial(sum),
        UDP => Delta::from_folded(transport).apply_udp(sum),
        _ => Delta::from_folded(transport).apply(sum),
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

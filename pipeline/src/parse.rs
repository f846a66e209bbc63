//! The first pass over a batch: makes the keys, and asks the memory for all cache lines at once.
//!
//! Frames come in runs of one port; what depends on the port is done once a run. A routed or tracked packet *qualifies*
//! for the fast path when nothing about it is unusual: untagged, no IP options or extension headers, no fragment, whole
//! headers; TCP without SYN, FIN and RST; UDP; an ICMP query. All else walks.
//!
//! The key of a packet that qualifies is not kept but read again in the second pass, when the frame is at hand anyway.
//! Its hash is: a second look at it says which entry may have the key (`flow_cache/tags.rs`), and asks for that.

use packet::{Batch, Frame, PortId, VtepId};

use crate::Pipeline;
use crate::flow_cache::routed::{Key4, Key6, RoutedCache, Spot};
use crate::flow_cache::{self, FlowKey, Place};
use crate::hit::{ICMP, ICMPV6, L4_V4, L4_V6, LEN4, LEN6, TCP, UDP, key4, key6, word};
use crate::snapshot::Ingress;

/// SYN, FIN and RST: the connection changes its state.
const STATE_FLAGS: u8 = 0x07;
/// The first bytes of an IPv4 header behind an Ethernet header, as [`word`] reads them from byte 12: type, version and
/// length of a header without options.
const IPV4: u64 = 0x45_0008;
const IPV4_MASK: u64 = 0xff_ffff;
/// The same of IPv6: type and version.
const IPV6: u64 = 0x60_dd86;
const IPV6_MASK: u64 = 0xf0_ffff;
/// More fragments, and the offset of one, as they are on the wire.
const FRAGMENT: u16 = u16::from_le_bytes([0x3f, 0xff]);

/// What is known of a packet between the two passes over a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flow {
    /// It is bridged by a decision about its stations; with [`FlowKey::NONE`], a decision about it can neither be found
    /// nor kept.
    Bridged { key: FlowKey, place: Place },
    /// It is routed or tracked and qualifies. ICMP queries are few, and leave the loop.
    V4 { spot: Spot, is_query: bool },
    /// The same of IPv6.
    V6 { spot: Spot, is_query: bool },
}

impl Default for Flow {
    fn default() -> Self {
        Self::Bridged { key: FlowKey::NONE, place: Place::default() }
    }
}

/// What a routed or tracked packet's decision is kept under.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum AnyKey {
    /// Nothing can be found or kept under it.
    #[default]
    None,
    V4(Key4),
    V6(Key6),
}

impl Flow {
    /// Returns what a decision about a routed or tracked packet is kept under. The frame is as it came.
    /// `vtep` is the endpoint that it came from, 0 for none.
    pub(crate) fn key_of(&self, frame: &Frame, from: PortId, vtep: u16) -> AnyKey {
        let bytes = frame.bytes();
        let key = match *self {
            Self::Bridged { .. } => None,
            Self::V4 { is_query, .. } => {
                bytes.first_chunk().map(|head| AnyKey::V4(key4(head, from, vtep, is_query)))
            }
            Self::V6 { is_query, .. } => {
                bytes.first_chunk().map(|head| AnyKey::V6(key6(head, from, vtep, is_query)))
            }
        };
        key.unwrap_or_default()
    }

    /// Returns what a decision about a bridged packet's stations is kept under.
    pub(crate) fn stations(&self) -> FlowKey {
        match self {
            Self::Bridged { key, .. } => *key,
            _ => FlowKey::NONE,
        }
    }
}

/// Says whether a frame is for the routing stages: for the router's MAC, or on a tracked network for anybody. So is what
/// comes from a tunnel and was routed on its way.
pub(crate) fn concerns(bytes: &[u8], ingress: &Ingress) -> bool {
    bytes.first_chunk().is_some_and(|first| {
        let first = u64::from_le_bytes(*first);
        Concern::new(ingress).holds(first) || ingress.is_tunnel && Concern::routed(ingress).holds(first)
    })
}

/// What is asked of the first eight bytes of a frame: the destination, and two of the source. One comparison for all
/// frames of a run.
#[derive(Clone, Copy)]
struct Concern {
    value: u64,
    mask: u64,
}

impl Concern {
    /// For the router's MAC, or on a tracked network for anybody.
    fn new(ingress: &Ingress) -> Self {
        let [a, b, c, d, e, f] = ingress.router_mac.0;
        if ingress.tracked {
            // Stations and routers have no group addresses.
            Self { value: 0, mask: 1 }
        } else {
            Self { value: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), mask: (1 << 48) - 1 }
        }
    }

    /// From a tunnel, and routed by a peer (see `TunnelInfo`): to a station, from a MAC of the block that ours is of.
    fn routed(ingress: &Ingress) -> Self {
        let [a, b, ..] = ingress.router_mac.0;
        Self { value: u64::from_le_bytes([0, 0, 0, 0, 0, 0, a, b]), mask: 0xffff << 48 | 1 }
    }

    #[inline(always)]
    fn holds(self, first: u64) -> bool {
        (first ^ self.value) & self.mask == 0
    }
}

/// A packet that qualifies: does its transport have ports, or is it a query?
#[derive(Clone, Copy)]
enum Transport {
    Ports,
    Query,
}

/// What the first pass makes of the frames of one run.
struct Parser<'a> {
    bridged: flow_cache::Reader<'a>,
    routed4: &'a RoutedCache<Key4>,
    routed6: &'a RoutedCache<Key6>,
    from: PortId,
    concern: Concern,
    /// For tunnels.
    routed: Concern,
}

impl Parser<'_> {
    #[inline(always)]
    fn bridged(&self, bytes: &[u8], vtep: u16, flow: &mut Flow) {
        let key = bytes.first_chunk::<16>().map_or(FlowKey::NONE, |head| FlowKey::new(head, self.from, vtep));
        *flow = Flow::Bridged { key, place: self.bridged.locate(key) };
    }

    /// `vtep` is 0 unless the frames come from a tunnel.
    ///
    /// PERF: each way writes into `flow` itself. A value that is returned is put together on the stack in small pieces and
    /// copied in large ones, which have to wait for the small ones (benches/flows).
    #[inline(always)]
    fn any<const TUNNEL: bool>(&self, bytes: &[u8], vtep: u16, flow: &mut Flow) {
        let Some(head) = bytes.first_chunk::<LEN4>() else { return self.short(bytes, vtep, flow) };
        let first = word(head, 0);
        if !(self.concern.holds(first) || TUNNEL && self.routed.holds(first)) {
            return self.bridged(bytes, vtep, flow);
        }
        let kind = word(head, 12);
        if kind & IPV4_MASK == IPV4 {
            match transport4(bytes, head) {
                Some(Transport::Ports) => {
                    let spot = self.routed4.locate(&key4(head, self.from, vtep, false));
                    *flow = Flow::V4 { spot, is_query: false };
                }
                Some(Transport::Query) => {
                    let spot = self.routed4.locate(&key4(head, self.from, vtep, true));
                    *flow = Flow::V4 { spot, is_query: true };
                }
                None => *flow = Flow::default(),
            }
        } else if kind & IPV6_MASK == IPV6
            && let Some(head) = bytes.first_chunk::<LEN6>()
        {
            match transport6(bytes, head) {
                Some(Transport::Ports) => {
                    let spot = self.routed6.locate(&key6(head, self.from, vtep, false));
                    *flow = Flow::V6 { spot, is_query: false };
                }
                Some(Transport::Query) => {
                    let spot = self.routed6.locate(&key6(head, self.from, vtep, true));
                    *flow = Flow::V6 { spot, is_query: true };
                }
                None => *flow = Flow::default(),
            }
        } else {
            *flow = Flow::default();
        }
    }

    /// A frame without room for the shortest packet that qualifies.
    #[cold]
    fn short(&self, bytes: &[u8], vtep: u16, flow: &mut Flow) {
        let concerned =
            bytes.first_chunk().is_some_and(|first| self.concern.holds(u64::from_le_bytes(*first)));
        if concerned || vtep != 0 {
            *flow = Flow::default();
        } else {
            self.bridged(bytes, vtep, flow);
        }
    }
}

/// Says what the transport of an IPv4 packet without options is, when the packet is whole, no fragment, and nothing
/// about it is unusual.
#[inline(always)]
fn transport4(bytes: &[u8], head: &[u8; LEN4]) -> Option<Transport> {
    let total = usize::from(u16::from_be_bytes([head[16], head[17]]));
    let fragment = u16::from_le_bytes([head[20], head[21]]) & FRAGMENT;
    // In one comparison: at least eight bytes of transport, and all of them in the frame.
    if total.wrapping_sub(LEN4 - 14) > bytes.len() - LEN4 || fragment != 0 {
        return None;
    }
    match head[23] {
        UDP => Some(Transport::Ports),
        TCP => tcp(bytes, L4_V4, total + 14),
        ICMP => matches!(head[L4_V4], 0 | 8).then_some(Transport::Query),
        _ => None,
    }
}

/// The same for IPv6.
#[inline(always)]
fn transport6(bytes: &[u8], head: &[u8; LEN6]) -> Option<Transport> {
    let payload = usize::from(u16::from_be_bytes([head[18], head[19]]));
    if payload.wrapping_sub(LEN6 - L4_V6) > bytes.len() - LEN6 {
        return None;
    }
    match head[20] {
        UDP => Some(Transport::Ports),
        TCP => tcp(bytes, L4_V6, L4_V6 + payload),
        ICMPV6 => matches!(head[L4_V6], 128 | 129).then_some(Transport::Query),
        _ => None,
    }
}

#[inline(always)]
fn tcp(bytes: &[u8], l4: usize, end: usize) -> Option<Transport> {
    let tcp = bytes.get(l4..)?.first_chunk::<20>()?;
    let header_len = usize::from(tcp[12] >> 4) * 4;
    let fits = header_len >= 20 && l4 + header_len <= end;
    (fits && tcp[13] & STATE_FLAGS == 0).then_some(Transport::Ports)
}

impl Pipeline {
    /// See the module header.
    pub(crate) fn parse(&mut self, batch: &Batch) {
        let Self { cache, routed4, routed6, flows, runs, tables, worker, snapshot, .. } = self;
        let counters = tables.counters(*worker);
        runs.clear();
        let (mut frames, mut flows) = (batch.frames(), &mut **flows);
        let mut aims = false;
        for run in batch.from().chunk_by(|a, b| a == b) {
            let from = run[0];
            let (these, places);
            (these, frames) = frames.split_at(run.len());
            (places, flows) = std::mem::take(&mut flows).split_at_mut(run.len());
            let ingress = snapshot.ingress(from);
            let (concern, routed) = (Concern::new(&ingress), Concern::routed(&ingress));
            let parser = Parser { bridged: cache.reader(), routed4, routed6, from, concern, routed };
            let mut bytes = 0;
            if ingress.is_tunnel {
                if ingress.only_bridges() {
                    for (frame, flow) in these.iter().zip(places) {
                        bytes += frame.len() as u64;
                        parser.bridged(frame.bytes(), VtepId::raw(frame.vtep()), flow);
                    }
                } else {
                    aims = true;
                    for (frame, flow) in these.iter().zip(places) {
                        bytes += frame.len() as u64;
                        parser.any::<true>(frame.bytes(), VtepId::raw(frame.vtep()), flow);
                    }
                }
            } else if ingress.only_bridges() {
                for (frame, flow) in these.iter().zip(places) {
                    bytes += frame.len() as u64;
                    parser.bridged(frame.bytes(), 0, flow);
                }
            } else {
                aims = true;
                for (frame, flow) in these.iter().zip(places) {
                    bytes += frame.len() as u64;
                    parser.any::<false>(frame.bytes(), 0, flow);
                }
            }
            runs.push((from, run.len()));
            counters.port(from).rx_frames.add(run.len() as u64);
            counters.port(from).rx_bytes.add(bytes);
        }
        counters.ledger.received.add(batch.len() as u64);
        if aims {
            self.aim(batch.len());
        }
    }

    /// Asks for the entries that may have the keys.
    fn aim(&mut self, count: usize) {
        let Self { routed4, routed6, flows, .. } = self;
        for flow in &mut flows[..count] {
            match flow {
                Flow::V4 { spot, .. } => routed4.aim(spot),
                Flow::V6 { spot, .. } => routed6.aim(spot),
                Flow::Bridged { .. } => {}
            }
        }
    }
}

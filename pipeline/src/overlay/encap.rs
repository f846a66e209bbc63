//! What goes before a packet to an endpoint: one template an endpoint, kept by each worker.
//!
//! A template is made when a packet first goes there: the endpoint's address, the route to it in the underlay's network, the
//! neighbour there, and both Ethernet addresses. It is good while the underlay's configuration, the endpoints, and the
//! word of the neighbour are what they were; each is one comparison. What differs from packet to packet is written over
//! the copy: lengths, the type of service, the IPv4 header's checksum, UDP ports, and the network's identifier.
//!
//! IPv4 packets say "don't fragment" (RFC 7348, 4.3) and so may all have the same identification (RFC 6864, 4.1).

use std::sync::atomic::{AtomicU64, Ordering};

use packet::checksum::{self, Sum};
use packet::header::{ethertype, protocol};
use packet::{Address, PortId, Tuple, VtepId};

use super::hash::Summary;
use crate::snapshot::{Dscp, Egress, OVERHEAD_V4, OVERHEAD_V6, Snapshot};
use crate::tables::{NeighborKey, Tables};

/// Where the UDP header is in a template.
pub(crate) const L4_V4: usize = 34;
pub(crate) const L4_V6: usize = 54;
/// Don't fragment, as it is on the wire.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0x00];

/// Why a packet cannot go to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoWay {
    /// There is no such endpoint (any more).
    Endpoint,
    /// No route leads to it, or we have no address of its family.
    Route,
    /// The next hop is not known (yet).
    Neighbor(NeighborKey),
    /// The port of the underlay that leads there is down.
    Port,
}

/// The outer headers of packets to one endpoint.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Template {
    /// Of the overlay and the endpoints.
    generation: u32,
    /// The neighbour's place, and the word it had. A place that is none: there is no template.
    adjacency: u32,
    word: u64,
    /// Sum of the IPv4 header without total length and type of service.
    sum: u32,
    /// Sum of the UDP pseudo header without the length.
    pseudo: Sum,
    /// The port of the underlay.
    pub(crate) to: PortId,
    /// First UDP source port, and how many there are less one.
    first_port: u16,
    ports: u16,
    /// What the type of service keeps of the inner one, and what it adds.
    tos_mask: u8,
    tos: u8,
    pub(crate) v6: bool,
    /// The outer UDP checksum is filled in.
    pub(crate) has_checksum: bool,
    head: [u8; OVERHEAD_V6],
}

const _: () = assert!(size_of::<Template>() == 128);

/// The way to an endpoint: what a template is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) local: Address,
    pub(crate) remote: Address,
    pub(crate) to: PortId,
    pub(crate) via: Address,
    adjacency: u32,
    word: u64,
}

/// Finds the way to an endpoint.
///
/// # Errors
/// Why there is none.
pub(crate) fn way(vtep: VtepId, snapshot: &Snapshot, tables: &Tables) -> Result<Way, NoWay> {
    let remote = tables.vteps.get(vtep).ok_or(NoWay::Endpoint)?.key.address;
    let info = snapshot.overlay_info().ok_or(NoWay::Route)?;
    let local = info.local_for(remote).ok_or(NoWay::Route)?;
    let (_, route) =
        snapshot.domain(info.network).and_then(|domain| domain.lookup(remote)).ok_or(NoWay::Route)?;
    let udp_port = packet::header::VxlanHeader::PORT;
    let tuple = Tuple {
        source: local,
        destination: remote,
        protocol: protocol::UDP,
        source_port: udp_port,
        destination_port: udp_port,
    };
    let hop = route.choose(&tuple).ok_or(NoWay::Route)?;
    let via = if hop.via == Address::UNSPECIFIED { remote } else { hop.via };
    let key = NeighborKey { network: info.network, port: hop.port, address: via };
    let (adjacency, target) = tables.neighbors.find(key).ok_or(NoWay::Neighbor(key))?;
    let target = target.ok_or(NoWay::Neighbor(key))?;
    let word =
        tables.neighbors.words().get(adjacency.slot as usize).map_or(0, |word| word.load(Ordering::Acquire));
    Ok(Way { local, remote, to: target.port, via, adjacency: adjacency.slot, word })
}

impl Template {
    const EMPTY: Self = Self {
        generation: 0,
        adjacency: u32::MAX,
        word: 0,
        sum: 0,
        pseudo: Sum::new(),
        to: PortId(0),
        first_port: 0,
        ports: 0,
        tos_mask: 0,
        tos: 0,
        v6: false,
        has_checksum: false,
        head: [0; OVERHEAD_V6],
    };

    fn new(way: &Way, generation: u32, snapshot: &Snapshot) -> Result<Self, NoWay> {
        let info = snapshot.overlay_info().ok_or(NoWay::Route)?;
        if !snapshot.port(way.to).is_some_and(|port| port.up) {
            return Err(NoWay::Port);
        }
        let source = snapshot.router_mac(way.to).ok_or(NoWay::Port)?;
        let target = crate::tables::Target::from_word(way.word).ok_or(NoWay::Endpoint)?;
        let v6 = !way.remote.is_v4();
        let mut head = [0; OVERHEAD_V6];
        head[..6].copy_from_slice(&target.mac.0);
        head[6..12].copy_from_slice(&source.0);
        let mut sum = 0;
        if v6 {
            head[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
            head[14] = 0x60;
            (head[20], head[21]) = (protocol::UDP, info.ttl);
            head[22..38].copy_from_slice(&way.local.octets());
            head[38..54].copy_from_slice(&way.remote.octets());
        } else {
            head[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
            head[14] = 0x45;
            head[20..22].copy_from_slice(&DONT_FRAGMENT);
            (head[22], head[23]) = (info.ttl, protocol::UDP);
            head[26..30].copy_from_slice(&way.local.octets_v4());
            head[30..34].copy_from_slice(&way.remote.octets_v4());
            sum =
                head[14..34].as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
        }
        let pseudo = if v6 {
            checksum::pseudo_v6(&way.local.octets(), &way.remote.octets(), protocol::UDP, 0)
        } else {
            checksum::pseudo_v4(way.local.octets_v4(), way.remote.octets_v4(), protocol::UDP, 0)
        };
        let l4 = if v6 { L4_V6 } else { L4_V4 };
        head[l4 + 8] = packet::header::VxlanHeader::VALID;
        let (tos_mask, tos) = match info.dscp {
            Dscp::Inherit => (0xff, 0),
            Dscp::Fixed(dscp) => (packet::ecn::MASK, dscp << 2),
        };
        let (first, last) = info.source_ports;
        Ok(Self {
            generation,
            adjacency: way.adjacency,
            word: way.word,
            sum,
            pseudo,
            to: way.to,
            first_port: first,
            ports: last.saturating_sub(first),
            tos_mask,
            tos,
            v6,
            has_checksum: if v6 { info.checksum_v6 } else { info.checksum_v4 },
            head,
        })
    }

    /// Returns how many bytes go before a packet.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        if self.v6 { OVERHEAD_V6 } else { OVERHEAD_V4 }
    }

    /// Says whether the template is good under `generation`, and the neighbour is where it was.
    #[inline(always)]
    pub(crate) fn is_good(&self, generation: u32, words: &[AtomicU64]) -> bool {
        // A template that is none names no neighbour.
        words
            .get(self.adjacency as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) == self.word && self.generation == generation)
    }

    /// Says whether it is of the usual kind: IPv4, without a checksum.
    #[inline(always)]
    pub(crate) fn is_simple(&self) -> bool {
        !self.v6 & !self.has_checksum
    }

    /// Writes the outer headers, whose length is `N`, of a packet for the tunnel `egress` before it. `inner` is what is known
    /// of the inner frame, `packed` the whole, whose first bytes are written. The outer UDP checksum is left 0.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the caller checks that it is below 64 KiB")]
    pub(crate) fn write<const N: usize>(&self, packed: &mut [u8], inner: Summary, egress: &Egress) {
        let len = packed.len();
        let Some(head) = packed.first_chunk_mut::<N>() else { return };
        let Some(template) = self.head.first_chunk::<N>() else { return };
        *head = *template;
        let tos = inner.tos & self.tos_mask | self.tos;
        if N == OVERHEAD_V6 {
            (head[14], head[15]) = (0x60 | tos >> 4, tos << 4);
            head[18..20].copy_from_slice(&((len - L4_V6) as u16).to_be_bytes());
        } else {
            head[15] = tos;
            let total = (len - 14) as u16;
            head[16..18].copy_from_slice(&total.to_be_bytes());
            let sum = self.sum + u32::from(tos) + u32::from(total);
            let sum = (sum & 0xffff) + (sum >> 16);
            head[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        }
        let l4 = if N == OVERHEAD_V6 { L4_V6 } else { L4_V4 };
        let chosen = u32::from(inner.hash) * (u32::from(self.ports) + 1);
        let source = u64::from(self.first_port.wrapping_add((chosen >> 16) as u16));
        let udp_len = u64::from((len - l4) as u16);
        let udp = source << 48 | u64::from(egress.udp_port) << 32 | udp_len << 16;
        head[l4..l4 + 8].copy_from_slice(&udp.to_be_bytes());
        head[N - 4..].copy_from_slice(&egress.vni);
    }

    /// Fills in the outer UDP checksum of a packet that is complete otherwise.
    #[inline(always)]
    pub(crate) fn fill_checksum(&self, packed: &mut [u8]) {
        let l4 = if self.v6 { L4_V6 } else { L4_V4 };
        let Some((udp, inner)) = packed.get_mut(l4..).and_then(|udp| udp.split_first_chunk_mut::<16>())
        else {
            return;
        };
        let [_, _, _, _, c, d, ..] = *udp;
        let len = u16::from_be_bytes([c, d]);
        let sum = self.pseudo.u16(len).bytes(udp).bytes(inner).udp_checksum();
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
    }
}

/// One worker's templates, by number of the endpoint.
#[derive(Debug)]
pub(crate) struct Templates(Box<[Template]>);

impl Templates {
    /// Makes room for endpoints up to number `vteps`.
    pub(crate) fn new(vteps: usize) -> Self {
        Self(vec![Template::EMPTY; vteps + 1].into_boxed_slice())
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.fill(Template::EMPTY);
    }

    /// Returns the generation under which templates are good now.
    #[inline]
    pub(crate) fn generation(snapshot: &Snapshot, tables: &Tables) -> u32 {
        snapshot.overlay().generation.wrapping_add(tables.vteps.epoch())
    }

    /// Returns all, by number of the endpoint.
    #[inline(always)]
    pub(crate) fn all(&self) -> &[Template] {
        &self.0
    }

    /// Returns the template of an endpoint, made anew if need be.
    ///
    /// # Errors
    /// Why there is no way to it.
    pub(crate) fn get(
        &mut self,
        vtep: VtepId,
        snapshot: &Snapshot,
        tables: &Tables,
    ) -> Result<(Template, u32), NoWay> {
        let generation = Self::generation(snapshot, tables);
        if let Some(template) = self.0.get(vtep.index())
            && template.is_good(generation, tables.neighbors.words())
        {
            return Ok((*template, template.adjacency));
        }
        let way = way(vtep, snapshot, tables)?;
        let template = Template::new(&way, generation, snapshot)?;
        *self.0.get_mut(vtep.index()).ok_or(NoWay::Endpoint)? = template;
        Ok((template, template.adjacency))
    }
}

//! Reads the outer headers of a packet that may be the overlay's, and says what is to become of it.
//!
//! Nothing is changed here: a worker's first pass, the slow path and a trace ask the same question.

use packet::header::{
    EthernetHeader, Fragment, Header, Ipv4Header, Ipv6Header, Layout, UdpHeader, VxlanHeader, ethertype,
    protocol,
};
use packet::{Address, Checksum, Frame, PortId, Vni, VtepId, checksum, ecn};

use crate::DropReason;
use crate::snapshot::{Overlay, Snapshot};
use crate::tables::Tables;

/// The outer headers of a packet to our own endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outer {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) udp_port: u16,
    pub(crate) vni: Vni,
    pub(crate) tos: u8,
    /// Where the outer UDP header, the inner frame, and the datagram's end are.
    pub(crate) l4: u16,
    pub(crate) inner: u16,
    pub(crate) end: u32,
    /// It has an outer UDP checksum.
    pub(crate) has_checksum: bool,
}

/// What the outer headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// A packet to our endpoint.
    Ours(Outer),
    /// To our endpoint, but cut off or inconsistent, or without a valid identifier.
    Malformed,
    /// Something else.
    Other,
}

/// What is to become of a packet to our endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is opened: it came by this tunnel, from this endpoint, and this is the inner packet's type of service.
    Open { to: PortId, vtep: VtepId, outer: Outer, tos: Option<u8> },
    /// The same, once the endpoint is learned.
    Learn { to: PortId, limit: u32, outer: Outer, tos: Option<u8> },
    /// Several datagrams that arrived as one: it is cut first.
    Cut,
    /// None of our tunnels has that identifier.
    Foreign(Outer),
    /// It dies.
    Drop(DropReason),
    /// It is not the overlay's.
    Other,
}

/// Reads the outer headers. Tagged frames, fragments and whatever is not UDP to one of our addresses and ports are not
/// the overlay's.
#[inline]
pub(crate) fn read(bytes: &[u8], overlay: &Overlay) -> Read {
    let Some(head) = bytes.first_chunk::<42>() else { return Read::Other };
    let plain_v4 = head[12..15] == [0x08, 0x00, 0x45] && head[23] == protocol::UDP;
    if plain_v4 && u16::from_be_bytes([head[20], head[21]]) & 0x3fff == 0 {
        let destination = Address::v4([head[30], head[31], head[32], head[33]]);
        if !overlay.listens_on(u16::from_be_bytes([head[36], head[37]])) || !overlay.is_local(destination) {
            return Read::Other;
        }
        let source = Address::v4([head[26], head[27], head[28], head[29]]);
        let end = 14 + usize::from(u16::from_be_bytes([head[16], head[17]]));
        return vxlan(bytes, (source, destination), head[15], 34, end);
    }
    read_any(bytes, overlay)
}

/// As [`read`], for IPv6, and IPv4 with options.
fn read_any(bytes: &[u8], overlay: &Overlay) -> Read {
    let Ok(layout) = Layout::of(bytes) else { return Read::Other };
    if layout.vlans > 0
        || layout.fragment != Fragment::No
        || !layout.is_ip()
        || layout.protocol != protocol::UDP
    {
        return Read::Other;
    }
    let (l3, l4) = (usize::from(layout.l3), usize::from(layout.l4));
    let Some(udp) = UdpHeader::at(bytes, l4) else { return Read::Other };
    let headers = if layout.ethertype == ethertype::IPV4 {
        Ipv4Header::at(bytes, l3).map(|ip| (Address::v4(ip.src), Address::v4(ip.dst), ip.tos))
    } else {
        Ipv6Header::at(bytes, l3).map(|ip| (Address::v6(ip.src), Address::v6(ip.dst), ip.traffic_class()))
    };
    let Some((source, destination, tos)) = headers else { return Read::Other };
    if !overlay.listens_on(udp.dst_port.get()) || !overlay.is_local(destination) {
        return Read::Other;
    }
    vxlan(bytes, (source, destination), tos, l4, layout.end as usize)
}

/// Reads UDP and VXLAN headers, and sees that an Ethernet header follows.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "offsets in the first 64 KiB, and an end that is in the frame"
)]
fn vxlan(bytes: &[u8], (source, destination): (Address, Address), tos: u8, l4: usize, end: usize) -> Read {
    const HEADERS: usize = UdpHeader::LEN + VxlanHeader::LEN;
    let inner = l4 + HEADERS;
    let Some(head) = bytes.get(l4..).and_then(<[u8]>::first_chunk::<HEADERS>) else { return Read::Malformed };
    let [_, _, port_a, port_b, len_a, len_b, sum_a, sum_b, flags, _, _, _, a, b, c, _] = *head;
    // Reserved bits are ignored (RFC 7348, 5).
    let end_of_udp = l4 + usize::from(u16::from_be_bytes([len_a, len_b]));
    if flags & VxlanHeader::VALID == 0
        || end_of_udp > end
        || end > bytes.len()
        || end_of_udp < inner + EthernetHeader::LEN
    {
        return Read::Malformed;
    }
    Read::Ours(Outer {
        source,
        destination,
        udp_port: u16::from_be_bytes([port_a, port_b]),
        vni: Vni(u32::from_be_bytes([0, a, b, c])),
        tos,
        l4: l4 as u16,
        inner: inner as u16,
        end: end_of_udp as u32,
        has_checksum: [sum_a, sum_b] != [0, 0],
    })
}

/// Says what is to become of a frame that came by a port of the underlay.
#[inline]
pub(crate) fn fate(frame: &Frame, snapshot: &Snapshot, tables: &Tables) -> Fate {
    let fate = fate_of(frame.bytes(), snapshot, tables);
    if let Fate::Open { outer, .. } | Fate::Learn { outer, .. } = &fate
        && !frame.is_finished()
    {
        if frame.gso().is_some_and(|gso| gso.tunnel.is_none()) {
            return Fate::Cut;
        }
        if frame.checksum() == Checksum::Unknown && outer.has_checksum && is_wrong(frame.bytes(), outer) {
            return Fate::Drop(DropReason::VxlanMalformed);
        }
    }
    fate
}

/// As [`fate`], for the bytes of an ordinary packet.
#[inline]
pub(crate) fn fate_of(bytes: &[u8], snapshot: &Snapshot, tables: &Tables) -> Fate {
    let overlay = snapshot.overlay();
    let outer = match read(bytes, overlay) {
        Read::Ours(outer) => outer,
        Read::Malformed => return Fate::Drop(DropReason::VxlanMalformed),
        Read::Other => return Fate::Other,
    };
    let Some(to) = overlay.tunnel(outer.udp_port, outer.vni) else { return Fate::Foreign(outer) };
    let inner = &bytes[usize::from(outer.inner)..];
    if !matches!(read(inner, overlay), Read::Other) {
        return Fate::Drop(DropReason::Nested);
    }
    let tos = match ecn::tos(inner) {
        Some(tos) => match ecn::decapsulated(tos, outer.tos) {
            Some(combined) => (combined != tos).then_some(combined),
            None => return Fate::Drop(DropReason::Ecn),
        },
        None => None,
    };
    let Some(port) = snapshot.port(to) else { return Fate::Foreign(outer) };
    if let Some(vtep) = tables.vteps.find(port.network, outer.source) {
        return Fate::Open { to, vtep, outer, tos };
    }
    match port.tunnel {
        Some(tunnel) if tunnel.learned_vteps > 0 && may_be_learned(outer.source, overlay) => {
            Fate::Learn { to, limit: tunnel.learned_vteps, outer, tos }
        }
        _ => Fate::Drop(DropReason::UnknownVtep),
    }
}

/// Says whether an address may be another host's: it is one host's, and not ours.
fn may_be_learned(source: Address, overlay: &Overlay) -> bool {
    let ip = source.ip();
    let is_host = match ip {
        std::net::IpAddr::V4(v4) => !v4.is_broadcast(),
        std::net::IpAddr::V6(_) => true,
    };
    is_host && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !overlay.is_local(source)
}

/// Says whether the outer UDP checksum is wrong. One that the sender left to its device is not: then nothing came off
/// a wire.
#[cold]
fn is_wrong(bytes: &[u8], outer: &Outer) -> bool {
    let Ok(layout) = Layout::of(bytes) else { return true };
    let field = usize::from(outer.l4) + usize::from(UdpHeader::CHECKSUM_AT);
    let partial = checksum::pseudo(bytes, &layout)
        .is_some_and(|sum| sum.fold().to_be_bytes() == bytes[field..field + 2]);
    !partial && checksum::is_valid(bytes) == Some(false)
}

/// Takes the outer headers off, and notes which endpoint the frame came from.
#[inline]
pub(crate) fn strip(frame: &mut Frame, outer: &Outer, tos: Option<u8>, vtep: VtepId) {
    if !frame.is_finished() {
        settle(frame, outer);
    }
    if !frame.is_gso() && frame.len() > outer.end as usize {
        frame.set_len(outer.end as usize);
    }
    // OK because an inner Ethernet header was found behind the outer ones.
    let trimmed = frame.trim_front(usize::from(outer.inner));
    debug_assert!(trimmed.is_some(), "the packet is longer than its outer headers");
    frame.set_vtep(Some(vtep));
    if let Some(tos) = tos {
        ecn::set_tos(frame.bytes_mut(), tos);
    }
}

/// Leaves of the offload state what concerns the inner packet.
fn settle(frame: &mut Frame, outer: &Outer) {
    if let Checksum::Partial { start, .. } = frame.checksum()
        && start < outer.inner
    {
        // The sender's device had only the outer checksum to finish, which nobody needs now.
        frame.set_checksum(Checksum::Complete);
    }
    if let Some(gso) = frame.gso() {
        frame.set_gso(Some(packet::Gso { tunnel: None, ..gso }));
    }
}

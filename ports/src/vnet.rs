//! `virtio_net_hdr`: how taps and packet sockets tell the offload state of a frame.
//!
//! The header stands before the Ethernet header. Three sizes are in use: 10 bytes, 12 with the count of merged
//! buffers (always 0 here), and 24 with the hash (always 0) and the offsets of a UDP tunnel, which Linux 6.17
//! brought to taps (`struct virtio_net_hdr_v1_hash_tunnel` in Linux `uapi/linux/virtio_net.h`; virtio 1.3,
//! 5.1.6). The 16-bit fields of the 10 bytes are in the host's order (legacy), the rest is little-endian.
//!
//! Nothing in a header is believed: it may come from a program with a packet socket of its own. What does not
//! fit the packet is a [`BadHeader`], which the port counts in `rx_errors`. `hdr_len` is a hint that senders
//! get wrong, so the length of the headers is always taken from the packet.
//!
//! A packet socket has only 10 bytes and shows a large frame inside a UDP tunnel as if there were no tunnel.
//! The tunnel's offsets are then found from the inner transport header backwards.

use packet::{Checksum, Frame, Gso, GsoKind, Tunnel};

/// Bytes of the plain header, the only one that packet sockets know on every kernel.
pub const LEN: usize = 10;
/// Bytes of the header with the count of merged buffers.
pub const MERGED_LEN: usize = 12;
/// Bytes of the header with hash and UDP tunnel offsets.
pub const TUNNEL_LEN: usize = 24;

// Linux uapi/linux/virtio_net.h: `flags`.
const NEEDS_CSUM: u8 = 1;
const UDP_TUNNEL_CSUM: u8 = 8;
// `gso_type`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_TUNNEL_IPV4: u8 = 0x20;
const GSO_TUNNEL_IPV6: u8 = 0x40;
const GSO_TUNNEL: u8 = GSO_TUNNEL_IPV4 | GSO_TUNNEL_IPV6;
const GSO_ECN: u8 = 0x80;
// Offsets of the fields.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
const OUTER_TH_OFFSET: usize = 20;
const INNER_NH_OFFSET: usize = 22;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A header that does not fit its packet, or asks for what we do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// The checksum lies outside the packet.
    #[error("checksum outside the packet")]
    Checksum,
    /// `gso_type` is no known value, or not what the packet is.
    #[error("GSO type unknown or not that of the packet")]
    GsoType,
    /// `gso_size` is zero.
    #[error("GSO size zero")]
    GsoSize,
    /// The headers of a large frame leave the packet.
    #[error("headers of a large frame leave the packet")]
    HeaderLen,
    /// The tunnel's offsets are out of order or outside the packet.
    #[error("tunnel offsets out of order")]
    Tunnel,
}

/// Reads `header` (10, 12 or 24 bytes) into the offload state of `frame`, which holds the packet.
///
/// A large frame that comes without a partial checksum (a network card merged it) gets one: the sum of the
/// whole is of no use to anybody.
///
/// # Errors
/// When the header does not fit the packet; the frame's offload state is then undefined.
///
/// # Panics
/// When `header` is shorter than [`LEN`].
#[inline]
pub fn decode(header: &[u8], frame: &mut Frame) -> Result<(), BadHeader> {
    if header[GSO_TYPE] == GSO_NONE && header[FLAGS] & NEEDS_CSUM == 0 {
        frame.set_checksum(Checksum::Complete);
        frame.set_gso(None);
        return Ok(());
    }
    decode_offloads(header, frame)
}

fn decode_offloads(header: &[u8], frame: &mut Frame) -> Result<(), BadHeader> {
    let partial = header[FLAGS] & NEEDS_CSUM != 0;
    if partial {
        let (start, offset) = (native(header, CSUM_START), native(header, CSUM_OFFSET));
        if usize::from(start) < ETHERNET_LEN || usize::from(start) + usize::from(offset) + 2 > frame.len() {
            return Err(BadHeader::Checksum);
        }
        frame.set_checksum(Checksum::Partial { start, offset });
    } else {
        frame.set_checksum(Checksum::Complete);
    }
    if header[GSO_TYPE] == GSO_NONE {
        frame.set_gso(None);
        return Ok(());
    }
    let kind = match header[GSO_TYPE] & !(GSO_ECN | GSO_TUNNEL) {
        GSO_TCPV4 => GsoKind::Tcp4,
        GSO_TCPV6 => GsoKind::Tcp6,
        GSO_UDP_L4 => GsoKind::Udp,
        _ => return Err(BadHeader::GsoType),
    };
    let size = native(header, GSO_SIZE);
    if size == 0 {
        return Err(BadHeader::GsoSize);
    }
    let outer = Layer3::at_front(frame.bytes()).ok_or(BadHeader::GsoType)?;
    let declared = header[GSO_TYPE] & GSO_TUNNEL;
    let (inner, tunnel) = if declared != 0 {
        if !partial {
            return Err(BadHeader::Tunnel);
        }
        let (inner, tunnel) = declared_tunnel(header, frame.bytes(), &outer)?;
        (inner, Some(tunnel))
    } else {
        hidden_tunnel(frame, &outer, kind, partial)?
    };
    let l4 = if partial { usize::from(native(header, CSUM_START)) } else { inner.l4 };
    let header_len = check_transport(frame.bytes(), &inner, kind, l4)?;
    if !partial {
        make_partial(frame, &inner, kind)?;
    }
    let payload = frame.len() - usize::from(header_len);
    // The kernel, too, takes such a frame for an ordinary packet. Not so in a tunnel, whose outer checksum is
    // only finished when the frame is cut.
    let fits_one = payload <= usize::from(size) && tunnel.is_none();
    let ecn = header[GSO_TYPE] & GSO_ECN != 0;
    frame.set_gso((!fits_one).then_some(Gso { kind, size, header_len, ecn, tunnel }));
    Ok(())
}

/// An IP header: where it is and what follows it.
#[derive(Clone, Copy)]
struct Layer3 {
    offset: usize,
    v6: bool,
    /// Where the transport header starts; for IPv6 the end of the fixed header.
    l4: usize,
    /// Protocol or next header.
    protocol: u8,
}

impl Layer3 {
    /// Finds the IP header behind the Ethernet header and its VLAN tags.
    fn at_front(packet: &[u8]) -> Option<Self> {
        let mut at = 12;
        for _ in 0..3 {
            match be16(packet, at)? {
                0x8100 | 0x88a8 => at += 4,
                0x0800 | 0x86dd => return Self::at(packet, at + 2),
                _ => return None,
            }
        }
        None
    }

    fn at(packet: &[u8], offset: usize) -> Option<Self> {
        let first = *packet.get(offset)?;
        match first >> 4 {
            4 => {
                let l4 = offset + usize::from(first & 0xf) * 4;
                let long_enough = l4 >= offset + IPV4_LEN && l4 <= packet.len();
                long_enough.then(|| Self { offset, v6: false, l4, protocol: packet[offset + 9] })
            }
            6 => {
                let l4 = offset + IPV6_LEN;
                (l4 <= packet.len()).then(|| Self { offset, v6: true, l4, protocol: packet[offset + 6] })
            }
            _ => None,
        }
    }
}

/// Checks that a transport header of `kind` starts at `l4` behind `inner`, and returns where it ends.
fn check_transport(packet: &[u8], inner: &Layer3, kind: GsoKind, l4: usize) -> Result<u16, BadHeader> {
    let (protocol, v6) = match kind {
        GsoKind::Tcp4 => (TCP, Some(false)),
        GsoKind::Tcp6 => (TCP, Some(true)),
        GsoKind::Udp => (UDP, None),
    };
    if v6.is_some_and(|v6| v6 != inner.v6) {
        return Err(BadHeader::GsoType);
    }
    // Behind extension headers the protocol is not looked for here: who cuts the frame checks it.
    let extended = inner.v6 && l4 > inner.l4;
    if !extended && (l4 != inner.l4 || inner.protocol != protocol) {
        return Err(BadHeader::GsoType);
    }
    let end = match protocol {
        TCP => {
            let words = usize::from(packet.get(l4 + 12).ok_or(BadHeader::HeaderLen)? >> 4);
            if words < 5 {
                return Err(BadHeader::HeaderLen);
            }
            l4 + words * 4
        }
        _ => l4 + UDP_LEN,
    };
    if end > packet.len() {
        return Err(BadHeader::HeaderLen);
    }
    u16::try_from(end).map_err(|_| BadHeader::HeaderLen)
}

/// Reads the tunnel that a 24-byte header tells of, and the inner IP header.
fn declared_tunnel(header: &[u8], packet: &[u8], outer: &Layer3) -> Result<(Layer3, Tunnel), BadHeader> {
    let v6 = header[GSO_TYPE] & GSO_TUNNEL == GSO_TUNNEL_IPV6;
    if header.len() < TUNNEL_LEN || header[GSO_TYPE] & GSO_TUNNEL == GSO_TUNNEL || v6 != outer.v6 {
        return Err(BadHeader::Tunnel);
    }
    let (outer_l4, inner_l3) = (little(header, OUTER_TH_OFFSET), little(header, INNER_NH_OFFSET));
    if usize::from(outer_l4) < outer.l4 || usize::from(inner_l3) < usize::from(outer_l4) + UDP_LEN {
        return Err(BadHeader::Tunnel);
    }
    let inner = Layer3::at(packet, usize::from(inner_l3)).ok_or(BadHeader::Tunnel)?;
    let outer_checksum = header[FLAGS] & UDP_TUNNEL_CSUM != 0;
    Ok((inner, Tunnel { outer_l4, inner_l3, outer_checksum }))
}

/// Finds the tunnel that a header without room for it does not tell of: the outer protocol is UDP, and the
/// checksum starts behind it. Returns the IP header before the transport header that counts.
fn hidden_tunnel(
    frame: &Frame,
    outer: &Layer3,
    kind: GsoKind,
    partial: bool,
) -> Result<(Layer3, Option<Tunnel>), BadHeader> {
    let Checksum::Partial { start, .. } = frame.checksum() else { return Ok((*outer, None)) };
    debug_assert!(partial);
    let start = usize::from(start);
    if outer.protocol != UDP || start < outer.l4 + UDP_LEN + IPV4_LEN {
        return Ok((*outer, None));
    }
    let packet = frame.bytes();
    let protocol = if kind == GsoKind::Udp { UDP } else { TCP };
    let candidate = |len: usize, v6: bool| {
        let at = start.checked_sub(len).filter(|at| *at >= outer.l4 + UDP_LEN)?;
        Layer3::at(packet, at).filter(|l3| l3.v6 == v6 && l3.l4 == start && l3.protocol == protocol)
    };
    let inner = match kind {
        GsoKind::Tcp4 => candidate(IPV4_LEN, false),
        GsoKind::Tcp6 => candidate(IPV6_LEN, true),
        GsoKind::Udp => candidate(IPV4_LEN, false).or_else(|| candidate(IPV6_LEN, true)),
    };
    let inner = inner.ok_or(BadHeader::Tunnel)?;
    let outer_l4 = u16::try_from(outer.l4).map_err(|_| BadHeader::Tunnel)?;
    let inner_l3 = u16::try_from(inner.offset).map_err(|_| BadHeader::Tunnel)?;
    let outer_checksum = be16(packet, outer.l4 + 6).is_some_and(|sum| sum != 0);
    Ok((inner, Some(Tunnel { outer_l4, inner_l3, outer_checksum })))
}

/// Replaces the complete checksum of a large frame by the sum of its pseudo-header.
fn make_partial(frame: &mut Frame, l3: &Layer3, kind: GsoKind) -> Result<(), BadHeader> {
    let (protocol, offset) = if kind == GsoKind::Udp { (UDP, 6_u16) } else { (TCP, 16) };
    let (start, l4) = (u16::try_from(l3.l4).map_err(|_| BadHeader::HeaderLen)?, l3.l4);
    let packet = frame.bytes_mut();
    let addresses = if l3.v6 { l3.offset + 8..l3.offset + 40 } else { l3.offset + 12..l3.offset + 20 };
    let mut sum = u32::from(protocol);
    for pair in packet[addresses].chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    let len = u32::try_from(packet.len() - l4).map_err(|_| BadHeader::HeaderLen)?;
    sum += (len >> 16) + (len & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    let field = l4 + usize::from(offset);
    let bytes = packet.get_mut(field..field + 2).ok_or(BadHeader::HeaderLen)?;
    bytes.copy_from_slice(&sum.to_be_bytes()[2..]);
    frame.set_checksum(Checksum::Partial { start, offset });
    Ok(())
}

/// Writes the offload state of `frame` to `header` (10, 12 or 24 bytes).
///
/// The caller has finished what the device cannot take (see `finish`): no [`Checksum::Unknown`], and a tunnel
/// only for a header of [`TUNNEL_LEN`].
///
/// # Panics
/// When `header` is shorter than [`LEN`].
#[inline]
pub fn encode(frame: &Frame, header: &mut [u8]) {
    header.fill(0);
    debug_assert!(frame.checksum() != Checksum::Unknown, "resolved before");
    if frame.is_finished() {
        return;
    }
    if let Checksum::Partial { start, offset } = frame.checksum() {
        header[FLAGS] = NEEDS_CSUM;
        put_native(header, CSUM_START, start);
        put_native(header, CSUM_OFFSET, offset);
    }
    let Some(gso) = frame.gso() else { return };
    header[GSO_TYPE] = match gso.kind {
        GsoKind::Tcp4 => GSO_TCPV4,
        GsoKind::Tcp6 => GSO_TCPV6,
        GsoKind::Udp => GSO_UDP_L4,
    };
    if gso.ecn {
        header[GSO_TYPE] |= GSO_ECN;
    }
    put_native(header, GSO_SIZE, gso.size);
    put_native(header, HDR_LEN, gso.header_len);
    if let Some(tunnel) = gso.tunnel {
        debug_assert!(header.len() >= TUNNEL_LEN, "cut before");
        if header.len() < TUNNEL_LEN {
            return;
        }
        let v6 = Layer3::at_front(frame.bytes()).is_some_and(|l3| l3.v6);
        header[GSO_TYPE] |= if v6 { GSO_TUNNEL_IPV6 } else { GSO_TUNNEL_IPV4 };
        if tunnel.outer_checksum {
            header[FLAGS] |= UDP_TUNNEL_CSUM;
        }
        header[OUTER_TH_OFFSET..][..2].copy_from_slice(&tunnel.outer_l4.to_le_bytes());
        header[INNER_NH_OFFSET..][..2].copy_from_slice(&tunnel.inner_l3.to_le_bytes());
    }
}

/// Writes the header of a large frame of plain TCP: where its TCP header is, where its payload, and how much of that is a
/// packet's.
pub(crate) fn encode_tcp(kind: GsoKind, [l4, header_len, size]: [u16; 3], header: &mut [u8]) {
    header.fill(0);
    header[FLAGS] = NEEDS_CSUM;
    header[GSO_TYPE] = if kind == GsoKind::Tcp6 { GSO_TCPV6 } else { GSO_TCPV4 };
    put_native(header, HDR_LEN, header_len);
    put_native(header, GSO_SIZE, size);
    put_native(header, CSUM_START, l4);
    put_native(header, CSUM_OFFSET, 16);
}

fn native(header: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

fn little(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

fn put_native(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

fn be16(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

#[cfg(test)]
mod tests;

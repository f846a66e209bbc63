//! What all answers over IP share: room, the two lower headers, the checksum, and the head of a large frame.

use packet::checksum::{self, Sum};
use packet::header::{
    EthernetHeader, Header, Ipv4Header, Ipv6Header, Layout, TcpHeader, UdpHeader, protocol,
};
use packet::{Address, Checksum, Frame, GsoKind, MacAddr};

use crate::headers::Headers;
use crate::rewrite::checksum_at;

/// Hops that an answer may go; what the kernel uses, and IANA recommends.
pub(crate) const HOPS: u8 = 64;

/// Returns the bytes of an IP header without options.
pub(crate) const fn header_len(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

/// Makes the frame at least `len` bytes long. `None`, and nothing changed, when its chunk is too small.
pub(crate) fn room(frame: &mut Frame, len: usize) -> Option<()> {
    if len > frame.len() + frame.tailroom() {
        return None;
    }
    if len > frame.len() {
        frame.set_len(len);
    }
    Some(())
}

/// What an IP header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) protocol: u8,
    pub(crate) hops: u8,
    pub(crate) tos: u8,
}

impl Envelope {
    /// Writes the header at `l3` for the `len` bytes behind it, and cuts the frame there. Not to be fragmented, which
    /// makes the identification meaningless (RFC 6864).
    pub(crate) fn write(&self, frame: &mut Frame, l3: usize, len: usize) -> Option<()> {
        let v6 = !self.source.is_v4();
        let end = l3 + header_len(v6) + len;
        room(frame, end)?;
        frame.set_len(end);
        let bytes = frame.bytes_mut();
        if v6 {
            *Ipv6Header::at_mut(bytes, l3)? = Ipv6Header {
                version_flow: (6 << 28 | u32::from(self.tos) << 20).into(),
                payload_len: u16::try_from(len).ok()?.into(),
                next_header: self.protocol,
                hop_limit: self.hops,
                src: self.source.octets(),
                dst: self.destination.octets(),
            };
            return Some(());
        }
        *Ipv4Header::at_mut(bytes, l3)? = Ipv4Header {
            version_ihl: 0x45,
            tos: self.tos,
            total_len: u16::try_from(header_len(false) + len).ok()?.into(),
            flags_fragment: Ipv4Header::DONT_FRAGMENT.into(),
            ttl: self.hops,
            protocol: self.protocol,
            src: self.source.octets_v4(),
            dst: self.destination.octets_v4(),
            ..Ipv4Header::default()
        };
        Ipv4Header::fill_checksum(&mut bytes[l3..])
    }
}

/// Computes the transport checksum of the frame and writes it.
pub(crate) fn seal(frame: &mut Frame) -> Option<()> {
    let layout = Layout::of(frame.bytes()).ok()?;
    let bytes = frame.bytes_mut();
    let v6 = bytes.get(usize::from(layout.l3))? >> 4 == 6;
    let pseudo =
        if layout.protocol == protocol::ICMP { Sum::new() } else { checksum::pseudo(bytes, &layout)? };
    let l4 = bytes.get_mut(usize::from(layout.l4)..layout.end as usize)?;
    let at = checksum_at(v6, layout.protocol)?;
    l4.get_mut(at..at + 2)?.fill(0);
    let sum = pseudo.bytes(l4);
    let sum = if layout.protocol == protocol::UDP { sum.udp_checksum() } else { sum.checksum() };
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    frame.set_checksum(Checksum::Complete);
    Some(())
}

/// Writes the stations of the Ethernet header.
pub(crate) fn address(frame: &mut Frame, from: MacAddr, to: MacAddr) -> Option<()> {
    let ethernet = EthernetHeader::at_mut(frame.bytes_mut(), 0)?;
    ethernet.src = from;
    ethernet.dst = to;
    Some(())
}

/// Returns the stations of the Ethernet header: who sent the frame, and to whom.
pub(crate) fn stations(frame: &Frame) -> Option<(MacAddr, MacAddr)> {
    EthernetHeader::at(frame.bytes(), 0).map(|ethernet| (ethernet.src, ethernet.dst))
}

/// Makes the frame the first packet that it would put on the wire, with a complete checksum. What is inside a tunnel
/// is cut, and otherwise left as it is.
pub(crate) fn head(frame: &mut Frame, headers: &Headers) -> Option<()> {
    let Some(gso) = frame.gso() else {
        // A checksum whose place is outside the packet cannot be finished, and need not be.
        let _ = checksum::complete(frame);
        return Some(());
    };
    let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
    let bytes = frame.bytes();
    let transport_len = match (gso.tunnel, gso.kind) {
        (Some(_), _) => usize::from(gso.header_len).saturating_sub(l4).max(UdpHeader::LEN),
        (None, GsoKind::Udp) => UdpHeader::LEN,
        (None, _) => TcpHeader::at(bytes, l4)?.header_len(),
    };
    let end = (l4 + transport_len + usize::from(gso.size)).min(headers.end as usize);
    frame.set_len(end);
    frame.set_gso(None);
    frame.set_checksum(Checksum::Complete);
    let bytes = frame.bytes_mut();
    if headers.v6 {
        let len = u16::try_from(end - l3 - header_len(true)).ok()?;
        Ipv6Header::at_mut(bytes, l3)?.payload_len.set(len);
    } else {
        Ipv4Header::at_mut(bytes, l3)?.total_len.set(u16::try_from(end - l3).ok()?);
        Ipv4Header::fill_checksum(&mut bytes[l3..])?;
    }
    if headers.protocol == protocol::UDP {
        UdpHeader::at_mut(bytes, l4)?.len.set(u16::try_from(end - l4).ok()?);
    }
    if gso.tunnel.is_none() { seal(frame) } else { Some(()) }
}

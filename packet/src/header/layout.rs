//! Where the headers of a frame are, found in one pass, without an allocation.

use super::Ipv6Fragment;
use super::{EthernetHeader, Header, Ipv4Header, Ipv6Header, VlanTag, ethertype, protocol, walk_extensions};

/// A header claims more than there is, or an IPv6 packet has too many extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a header is cut off or claims more bytes than there are")]
pub struct Malformed;

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole (or an atomic fragment, RFC 6946).
    #[default]
    No,
    /// The first fragment: it has the transport header, and not all of the payload.
    First,
    /// A later fragment: it has no transport header.
    Later,
}

/// Where the headers of a frame are. Offsets count from the first byte of the Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// What follows the Ethernet header and up to two VLAN tags.
    pub ethertype: u16,
    /// Where that is: 14, 18 or 22.
    pub l3: u16,
    /// Where the transport header is (in a later fragment: what the fragment carries); `l3` when the frame
    /// is not IP. The transport header itself was not looked at and may be short.
    pub l4: u16,
    /// Where the IP packet ends and Ethernet padding begins; the frame's length when it is not IP.
    pub end: u32,
    /// What is at `l4`; meaningless when the frame is not IP.
    pub protocol: u8,
    /// Number of VLAN tags, 0 to 2.
    pub vlans: u8,
    /// Control information of the tags, outer first; 0 where there is none.
    pub tci: [u16; 2],
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// IPv4 options or IPv6 extension headers are there.
    pub options: bool,
}

impl Layout {
    /// Finds the headers of `frame`.
    ///
    /// # Errors
    /// When the Ethernet header, a VLAN tag, or an IP header is cut off or inconsistent. Anything that is not
    /// IP is well-formed from its EtherType on.
    #[inline]
    pub fn of(frame: &[u8]) -> Result<Self, Malformed> {
        let ethernet = EthernetHeader::at(frame, 0).ok_or(Malformed)?;
        let mut layout = Self { ethertype: ethernet.ethertype.get(), l3: 14, ..Self::default() };
        while layout.vlans < 2 && matches!(layout.ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN) {
            let tag = VlanTag::at(frame, usize::from(layout.l3)).ok_or(Malformed)?;
            layout.tci[usize::from(layout.vlans)] = tag.tci.get();
            layout.ethertype = tag.ethertype.get();
            layout.l3 += 4;
            layout.vlans += 1;
        }
        layout.network(frame)
    }

    /// Finds the headers of the IP packet at `l3` within `frame`, as behind a tunnel header.
    ///
    /// # Errors
    /// When it is not IP, or as [`Layout::of`].
    pub fn of_ip(frame: &[u8], l3: u16) -> Result<Self, Malformed> {
        let version = frame.get(usize::from(l3)).ok_or(Malformed)? >> 4;
        let ethertype = match version {
            4 => ethertype::IPV4,
            6 => ethertype::IPV6,
            _ => return Err(Malformed),
        };
        Self { ethertype, l3, ..Self::default() }.network(frame)
    }

    /// Fills in what the network header says.
    #[inline]
    fn network(mut self, frame: &[u8]) -> Result<Self, Malformed> {
        match self.ethertype {
            ethertype::IPV4 => self.ipv4(frame),
            ethertype::IPV6 => self.ipv6(frame),
            _ => {
                self.l4 = self.l3;
                self.end = u32::try_from(frame.len()).map_err(|_| Malformed)?;
                Ok(self)
            }
        }
    }

    #[inline]
    fn ipv4(mut self, frame: &[u8]) -> Result<Self, Malformed> {
        let header = Ipv4Header::at(frame, usize::from(self.l3)).ok_or(Malformed)?;
        let header_len = u16::from(header.version_ihl & 0x0f) * 4;
        let total_len = header.total_len.get();
        self.end = u32::from(self.l3) + u32::from(total_len);
        if header.version_ihl >> 4 != 4
            || header_len < 20
            || total_len < header_len
            || self.end as usize > frame.len()
        {
            return Err(Malformed);
        }
        self.l4 = self.l3.checked_add(header_len).ok_or(Malformed)?;
        self.protocol = header.protocol;
        self.options = header_len > 20;
        if header.is_fragment() {
            let first = header.fragment_offset() == 0;
            self.fragment = if first { Fragment::First } else { Fragment::Later };
        }
        Ok(self)
    }

    #[inline]
    fn ipv6(mut self, frame: &[u8]) -> Result<Self, Malformed> {
        let at = usize::from(self.l3);
        let header = Ipv6Header::at(frame, at).ok_or(Malformed)?;
        if header.version_flow.to_bytes()[0] >> 4 != 6 {
            return Err(Malformed);
        }
        let start = at + Ipv6Header::LEN;
        let end = start + usize::from(header.payload_len.get());
        let rest = frame.get(start..end).ok_or(Malformed)?;
        let walk = walk_extensions(rest, header.next_header).ok_or(Malformed)?;
        self.l4 = u16::try_from(start + walk.len).map_err(|_| Malformed)?;
        self.end = u32::try_from(end).map_err(|_| Malformed)?;
        self.protocol = walk.protocol;
        self.options = walk.len > 0;
        if let Some(fragment) = walk.fragment.and_then(|at| Ipv6Fragment::at(rest, at)) {
            self.fragment = match (fragment.offset(), fragment.more()) {
                (0, false) => Fragment::No,
                (0, true) => Fragment::First,
                _ => Fragment::Later,
            };
        }
        Ok(self)
    }

    /// Says whether the frame carries IPv4 or IPv6.
    #[inline]
    pub fn is_ip(&self) -> bool {
        matches!(self.ethertype, ethertype::IPV4 | ethertype::IPV6)
    }

    /// Returns where the checksum is from `l4` on, when this is a whole TCP or UDP packet.
    #[inline]
    pub fn checksum_at(&self) -> Option<u16> {
        match self.protocol {
            _ if self.fragment != Fragment::No || !self.is_ip() => None,
            protocol::TCP => Some(super::TcpHeader::CHECKSUM_AT),
            protocol::UDP => Some(super::UdpHeader::CHECKSUM_AT),
            _ => None,
        }
    }
}

//! What the router wants to know of an IP packet: where its headers are, its 5-tuple, and what is unusual.
//!
//! One pass over the headers, made once for each packet that walks. Whoever has a [`Headers`] knows: the IP header
//! is whole, so is the transport header (unless the packet is a later fragment or of a protocol that we do not
//! know), and the source may be a source. What fails that is [`Malformed`] and belongs nowhere:
//!
//! * sources that are groups, broadcast or loopback (RFC 1812, 5.3.7), and IPv4-mapped addresses in an IPv6 header
//!   (RFC 4942, 2.2), which would be taken for IPv4;
//! * first fragments without a whole transport header (RFC 7112; RFC 1858, 3.1), and second fragments of TCP that
//!   would overwrite it (RFC 3128).

use packet::header::{
    Fragment, Header, IcmpHeader, Ipv4Header, Ipv6Fragment, Ipv6Header, Layout, Malformed, TcpHeader,
    UdpHeader, ethertype, icmp4, icmp6, protocol, walk_extensions,
};
use packet::{Address, Tuple};

/// The bytes of SCTP's common header (RFC 9260, 3.1).
const SCTP_LEN: usize = 12;
/// The bytes of DCCP's shortest header (RFC 4340, 5.1).
const DCCP_LEN: usize = 12;

/// An IP packet's headers. Offsets count from the first byte of the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Where the IP header is.
    pub l3: u16,
    /// Where the transport header is; in a later fragment, what it carries.
    pub l4: u16,
    /// Where the packet ends, and padding begins.
    pub end: u32,
    /// It is IPv6.
    pub v6: bool,
    /// The protocol of IPv4, or what IPv6's extension headers lead to.
    pub protocol: u8,
    /// Who speaks to whom. No ports in a later fragment.
    pub tuple: Tuple,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// IPv4 options or IPv6 extension headers are there.
    pub options: bool,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// The flags of TCP, else 0.
    pub tcp_flags: u8,
    /// Routers must not fragment it: always so for IPv6.
    pub dont_fragment: bool,
    /// ICMP's type and code, of either family.
    pub icmp: Option<(u8, u8)>,
    /// What the fragments of a packet have in common; 0 in an IPv6 packet without a fragment header.
    pub fragment_id: u32,
    /// Where in the packet the fragment belongs, in bytes.
    pub fragment_offset: u32,
    /// It is not the last fragment.
    pub more_fragments: bool,
}

impl Headers {
    /// Reads the headers of the frame `bytes`, or returns `None` when it is not IP.
    ///
    /// # Errors
    /// When a header is cut off or inconsistent, or the addresses belong on no wire: see the module header.
    #[inline]
    pub fn of(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let layout = Layout::of(bytes)?;
        let mut headers = match layout.ethertype {
            ethertype::IPV4 => Self::v4(bytes, &layout)?,
            ethertype::IPV6 => Self::v6(bytes, &layout)?,
            _ => return Ok(None),
        };
        if headers.fragment != Fragment::Later {
            let l4 = bytes.get(usize::from(layout.l4)..layout.end as usize).ok_or(Malformed)?;
            headers.transport(l4).ok_or(Malformed)?;
        } else if headers.protocol == protocol::TCP && (headers.fragment_offset as usize) < TcpHeader::LEN {
            return Err(Malformed);
        }
        Ok(Some(headers))
    }

    fn v4(bytes: &[u8], layout: &Layout) -> Result<Self, Malformed> {
        let header = Ipv4Header::at(bytes, usize::from(layout.l3)).ok_or(Malformed)?;
        let source = header.src();
        if source.is_loopback() || source.is_multicast() || source.is_broadcast() {
            return Err(Malformed);
        }
        Ok(Self {
            v6: false,
            tuple: Self::addresses(source.into(), header.dst().into(), layout),
            ttl: header.ttl,
            tos: header.tos,
            dont_fragment: header.dont_fragment(),
            fragment_id: u32::from(header.id.get()),
            fragment_offset: u32::from(header.fragment_offset()),
            more_fragments: header.more_fragments(),
            ..Self::blank(layout)
        })
    }

    fn v6(bytes: &[u8], layout: &Layout) -> Result<Self, Malformed> {
        let header = Ipv6Header::at(bytes, usize::from(layout.l3)).ok_or(Malformed)?;
        let (source, destination) = (Address::v6(header.src), Address::v6(header.dst));
        let mapped = source.is_v4() || destination.is_v4();
        if mapped || header.src().is_loopback() || header.src().is_multicast() {
            return Err(Malformed);
        }
        let mut headers = Self {
            v6: true,
            tuple: Self::addresses(source, destination, layout),
            ttl: header.hop_limit,
            tos: header.traffic_class(),
            dont_fragment: true,
            ..Self::blank(layout)
        };
        if layout.options {
            let start = usize::from(layout.l3) + Ipv6Header::LEN;
            let rest = bytes.get(start..layout.end as usize).ok_or(Malformed)?;
            let walk = walk_extensions(rest, header.next_header).ok_or(Malformed)?;
            if let Some(fragment) = walk.fragment.and_then(|at| Ipv6Fragment::at(rest, at)) {
                headers.fragment_id = fragment.id.get();
                headers.fragment_offset = u32::from(fragment.offset());
                headers.more_fragments = fragment.more();
            }
        }
        Ok(headers)
    }

    fn addresses(source: Address, destination: Address, layout: &Layout) -> Tuple {
        Tuple { source, destination, protocol: layout.protocol, ..Tuple::default() }
    }

    fn blank(layout: &Layout) -> Self {
        Self {
            l3: layout.l3,
            l4: layout.l4,
            end: layout.end,
            v6: false,
            protocol: layout.protocol,
            tuple: Tuple::default(),
            fragment: layout.fragment,
            options: layout.options,
            ttl: 0,
            tos: 0,
            tcp_flags: 0,
            dont_fragment: false,
            icmp: None,
            fragment_id: 0,
            fragment_offset: 0,
            more_fragments: false,
        }
    }

    /// Reads the transport header, `l4` and all that follows. `None` when it is not whole.
    fn transport(&mut self, l4: &[u8]) -> Option<()> {
        let len = match self.protocol {
            protocol::TCP => {
                let tcp = TcpHeader::at(l4, 0)?;
                self.tcp_flags = tcp.flags;
                tcp.header_len()
            }
            protocol::ICMP if !self.v6 => self.icmp(l4)?,
            protocol::ICMPV6 if self.v6 => self.icmp(l4)?,
            protocol => least_len(protocol),
        };
        if len < least_len(self.protocol) || l4.len() < len {
            return None;
        }
        if let Some((source, destination)) = ports(self.v6, self.protocol, l4) {
            self.tuple.source_port = source;
            self.tuple.destination_port = destination;
        }
        Some(())
    }

    fn icmp(&mut self, l4: &[u8]) -> Option<usize> {
        let header = IcmpHeader::at(l4, 0)?;
        self.icmp = Some((header.kind, header.code));
        Some(IcmpHeader::LEN)
    }

    /// Says whether it is a fragment: not all of a packet.
    pub fn is_fragment(&self) -> bool {
        self.fragment != Fragment::No
    }

    /// Says whether it is of neighbour discovery or multicast listeners: a matter of its link, that no router passes on
    /// (RFC 4861, 4; RFC 3810, 5).
    pub fn is_of_link(&self) -> bool {
        self.v6 && self.icmp.is_some_and(|(kind, _)| matches!(kind, 130..=137 | 143))
    }

    /// Says whether it is an ICMP message that reports an error and so carries the packet that caused it.
    pub fn is_icmp_error(&self) -> bool {
        match self.icmp {
            Some((kind, _)) if self.v6 => kind < 128,
            Some((icmp4::UNREACHABLE | icmp4::TIME_EXCEEDED | icmp4::PARAMETER_PROBLEM, _)) => true,
            // Source quench (RFC 6633: deprecated) and redirect.
            Some((4 | icmp4::REDIRECT, _)) => true,
            _ => false,
        }
    }
}

/// Returns the bytes without which a transport header does not do.
fn least_len(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => TcpHeader::LEN,
        protocol::UDP | protocol::UDP_LITE => UdpHeader::LEN,
        protocol::SCTP => SCTP_LEN,
        protocol::DCCP => DCCP_LEN,
        _ => 0,
    }
}

/// Says whether the protocol's header begins with two ports.
pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::UDP_LITE | protocol::DCCP)
}

/// Says whether an ICMP message of type `kind` is a query or its reply, which have an identifier.
pub(crate) fn is_query(v6: bool, kind: u8) -> bool {
    if v6 {
        matches!(kind, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY)
    } else {
        matches!(
            kind,
            icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY | icmp4::TIMESTAMP_REQUEST | icmp4::TIMESTAMP_REPLY
        )
    }
}

/// Returns the ports at the front of a transport header, as [`Tuple`] has them: the identifier twice for an ICMP
/// query. `None` when there are none, or the bytes are too few.
pub(crate) fn ports(v6: bool, protocol: u8, l4: &[u8]) -> Option<(u16, u16)> {
    let word = |at: usize| Some(u16::from_be_bytes([*l4.get(at)?, *l4.get(at + 1)?]));
    let icmp = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
    if has_ports(protocol) {
        Some((word(0)?, word(2)?))
    } else if protocol == icmp && is_query(v6, *l4.first()?) {
        Some((word(4)?, word(4)?))
    } else {
        None
    }
}

/// What connection tracking wants to know of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// See [`tcp_flags`](packet::header::tcp_flags).
    pub flags: u8,
    /// The first byte's number.
    pub sequence: u32,
    /// The next byte that is expected.
    pub acknowledgment: u32,
    /// The receive window as it is in the header, not scaled.
    pub window: u16,
    /// Bytes of data; of all segments together in a large frame.
    pub payload_len: u32,
}

impl Segment {
    /// Reads the TCP segment that `headers` found in the frame `bytes`. `None` when it is none, or a later fragment.
    #[inline]
    pub fn of(bytes: &[u8], headers: &Headers) -> Option<Self> {
        if headers.protocol != protocol::TCP || headers.fragment == Fragment::Later {
            return None;
        }
        let tcp = TcpHeader::at(bytes, usize::from(headers.l4))?;
        let data = u32::from(headers.l4) + u32::from(tcp.offset_reserved >> 4) * 4;
        Some(Self {
            flags: tcp.flags,
            sequence: tcp.seq.get(),
            acknowledgment: tcp.ack.get(),
            window: tcp.window.get(),
            payload_len: headers.end.checked_sub(data)?,
        })
    }
}

#[cfg(test)]
mod tests;

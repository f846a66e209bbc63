//! The IP layer of the builders, with neighbour discovery, which is IPv6's own.

use std::marker::PhantomData;
use std::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32};

use super::Packet;
use super::transport::{Echo, Tcp, Udp};
use crate::addr::MacAddr;
use crate::checksum::{self, Sum};
use crate::header::{
    Fragment, Header, IcmpHeader, Ipv4Header, Ipv6Fragment, Ipv6Header, Layout, TcpHeader, UdpHeader, icmp4,
    icmp6, nd_option, protocol, tcp_flags,
};

/// Marks a header as IPv4's.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// Marks a header as IPv6's.
#[derive(Clone, Copy, Debug)]
pub struct V6;

/// Marks a header that may be either's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Either;

#[derive(Clone, Debug)]
pub(super) enum Version {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

/// An IP header; `V` is [`V4`] or [`V6`].
#[derive(Clone, Debug)]
pub struct Ip<V> {
    version: PhantomData<V>,
    before: Vec<u8>,
    pub(super) header: Version,
    /// IPv4 options, or IPv6 extension headers.
    extra: Vec<u8>,
    /// First extension header, and where in `extra` the type of what follows goes.
    extension: Option<(u8, usize)>,
}

impl Ip<V4> {
    pub(super) fn v4(before: Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        let header = Ipv4Header {
            version_ihl: 0x45,
            flags_fragment: U16::new(Ipv4Header::DONT_FRAGMENT),
            ttl: 64,
            src: src.octets(),
            dst: dst.octets(),
            ..Ipv4Header::default()
        };
        let header = Version::V4(header);
        Self { version: PhantomData, before, header, extra: Vec::new(), extension: None }
    }
}

impl Ip<V6> {
    pub(super) fn v6(before: Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        let header = Ipv6Header {
            version_flow: U32::new(6 << 28),
            hop_limit: 64,
            src: src.octets(),
            dst: dst.octets(),
            ..Ipv6Header::default()
        };
        let header = Version::V6(header);
        Self { version: PhantomData, before, header, extra: Vec::new(), extension: None }
    }

    /// Asks for the station of `target`; `from` is the sender's own, absent in duplicate address detection.
    /// Sets the hop limit to 255.
    pub fn neighbor_solicit(self, target: impl Into<Ipv6Addr>, from: Option<MacAddr>) -> Packet {
        let option = from.map(|mac| (nd_option::SOURCE_LINK, mac));
        self.nd(icmp6::NEIGHBOR_SOLICIT, 0, target.into(), option)
    }

    /// Says that `target` is at station `mac`; `flags` are router (0x80), solicited (0x40) and override
    /// (0x20). Sets the hop limit to 255.
    pub fn neighbor_advert(self, target: impl Into<Ipv6Addr>, mac: MacAddr, flags: u8) -> Packet {
        self.nd(icmp6::NEIGHBOR_ADVERT, flags, target.into(), Some((nd_option::TARGET_LINK, mac)))
    }

    fn nd(self, kind: u8, flags: u8, target: Ipv6Addr, option: Option<(u8, MacAddr)>) -> Packet {
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        if let Some((kind, mac)) = option {
            message.extend([kind, 1]);
            message.extend(mac.0);
        }
        self.ttl(255).raw(protocol::ICMPV6, &message)
    }
}

impl<V> Ip<V> {
    /// Sets the time to live or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.header {
            Version::V4(header) => header.ttl = ttl,
            Version::V6(header) => header.hop_limit = ttl,
        }
        self
    }

    /// Sets DSCP (6 bits) and ECN (2 bits).
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        match &mut self.header {
            Version::V4(header) => header.tos = tos,
            Version::V6(header) => {
                header.version_flow.set(header.version_flow.get() & 0xf00f_ffff | u32::from(tos) << 20);
            }
        }
        self
    }

    /// Adds options (IPv4), padded with "end of options" to whole words, at most 40 bytes; over IPv6 a
    /// destination options header with these bytes as its options.
    ///
    /// # Panics
    /// When they are too long.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        match &mut self.header {
            Version::V4(header) => {
                self.extra = options.to_vec();
                self.extra.resize(options.len().next_multiple_of(4), 0);
                let words = u8::try_from(self.extra.len() / 4).expect("at most 40 bytes of options");
                assert!(words <= 10, "at most 40 bytes of options");
                header.version_ihl = 0x45 + words;
            }
            Version::V6(_) => {
                let len = (options.len() + 2).next_multiple_of(8);
                let units = u8::try_from(len / 8 - 1).expect("at most 2046 bytes of options");
                let mut extension = vec![0, units];
                extension.extend(options);
                extension.resize(len, 0);
                self.extend(protocol::DESTINATION_OPTIONS, &extension);
            }
        }
        self
    }

    /// Makes the packet a fragment: its payload is what is at `offset` (a multiple of eight) of the whole one.
    /// Over IPv6 this adds the fragment header.
    #[must_use]
    pub fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        match &mut self.header {
            Version::V4(header) => {
                header.id.set(u16::try_from(id & 0xffff).expect("masked"));
                let more = if more { Ipv4Header::MORE_FRAGMENTS } else { 0 };
                header.flags_fragment.set(more | offset >> 3);
            }
            Version::V6(_) => {
                let offset_more = U16::new(offset & !7 | u16::from(more));
                let header = Ipv6Fragment { next_header: 0, reserved: 0, offset_more, id: U32::new(id) };
                self.extend(protocol::FRAGMENT, header.as_bytes());
            }
        }
        self
    }

    /// Adds an extension header of type `kind`.
    fn extend(&mut self, kind: u8, header: &[u8]) {
        let at = self.extra.len();
        self.extra.extend(header);
        self.extension = match self.extension {
            None => Some((kind, at)),
            Some((first, next)) => {
                self.extra[next] = kind;
                Some((first, at))
            }
        };
    }

    fn either(self) -> Ip<Either> {
        let Self { version: _, before, header, extra, extension } = self;
        Ip { version: PhantomData, before, header, extra, extension }
    }

    /// Adds a UDP header.
    pub fn udp(self, src_port: u16, dst_port: u16) -> Udp {
        let (src_port, dst_port) = (U16::new(src_port), U16::new(dst_port));
        Udp {
            ip: self.either(),
            header: UdpHeader { src_port, dst_port, ..UdpHeader::default() },
            has_checksum: true,
        }
    }

    /// Adds a TCP header: ACK set, sequence and acknowledgment 0, window 65535.
    pub fn tcp(self, src_port: u16, dst_port: u16) -> Tcp {
        let header = TcpHeader {
            src_port: U16::new(src_port),
            dst_port: U16::new(dst_port),
            flags: tcp_flags::ACK,
            window: U16::new(u16::MAX),
            ..TcpHeader::default()
        };
        Tcp { ip: self.either(), header, options: Vec::new() }
    }

    /// Adds an ICMP echo request, of the version of the IP header.
    pub fn icmp_echo(self, id: u16, seq: u16) -> Echo {
        self.echo(icmp4::ECHO_REQUEST, icmp6::ECHO_REQUEST, id, seq)
    }

    /// Adds an ICMP echo reply, of the version of the IP header.
    pub fn icmp_echo_reply(self, id: u16, seq: u16) -> Echo {
        self.echo(icmp4::ECHO_REPLY, icmp6::ECHO_REPLY, id, seq)
    }

    fn echo(self, v4: u8, v6: u8, id: u16, seq: u16) -> Echo {
        let kind = if matches!(self.header, Version::V4(_)) { v4 } else { v6 };
        let header = IcmpHeader { kind, id: U16::new(id), seq: U16::new(seq), ..IcmpHeader::default() };
        Echo { ip: self.either(), header }
    }

    /// Carries `payload` as protocol `protocol`. The checksum of TCP, UDP, ICMP and ICMPv6 is filled in when
    /// the payload is a whole message with a zero in its place.
    ///
    /// # Panics
    /// When the packet would be longer than IP allows.
    pub fn raw(self, protocol: u8, payload: &[u8]) -> Packet {
        let Self { version: _, before: mut bytes, header, mut extra, extension } = self;
        let l3 = bytes.len();
        let first = match extension {
            None => protocol,
            Some((first, next)) => {
                extra[next] = protocol;
                first
            }
        };
        let len = extra.len() + payload.len();
        let length = |len| U16::new(u16::try_from(len).expect("an IP packet is shorter than 64 KiB"));
        match header {
            Version::V4(header) => {
                let total_len = length(Ipv4Header::LEN + len);
                bytes.extend(Ipv4Header { total_len, protocol, ..header }.as_bytes());
            }
            Version::V6(header) => {
                let payload_len = length(len);
                bytes.extend(Ipv6Header { payload_len, next_header: first, ..header }.as_bytes());
            }
        }
        bytes.extend(extra);
        bytes.extend(payload);
        if bytes[l3] >> 4 == 4 {
            Ipv4Header::fill_checksum(&mut bytes[l3..]).expect("the header was just written");
        }
        fill_transport_checksum(&mut bytes, l3);
        Packet::new(bytes)
    }
}

/// Fills in the transport checksum of the IP packet at `l3` where there is a zero. A fragment has none of its
/// own.
fn fill_transport_checksum(bytes: &mut [u8], l3: usize) -> Option<()> {
    let layout = Layout::of_ip(bytes, u16::try_from(l3).ok()?).ok()?;
    let (at, has_pseudo) = match layout.protocol {
        protocol::TCP => (16, true),
        protocol::UDP => (6, true),
        protocol::ICMP => (2, false),
        protocol::ICMPV6 => (2, true),
        _ => return None,
    };
    let l4 = usize::from(layout.l4);
    if layout.fragment != Fragment::No || checksum::word_at(bytes, l4 + at)? != 0 {
        return None;
    }
    let pseudo = if has_pseudo { checksum::pseudo(bytes, &layout)? } else { Sum::new() };
    let sum = pseudo.bytes(bytes.get(l4..)?);
    let sum = if layout.protocol == protocol::UDP { sum.udp_checksum() } else { sum.checksum() };
    bytes.get_mut(l4 + at..l4 + at + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

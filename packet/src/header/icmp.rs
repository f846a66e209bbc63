//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443): the same eight bytes, other numbers.

use zerocopy::big_endian::U16;

use super::{Header, header};

/// ICMP types for IPv4.
pub mod icmp4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable; code 4 is "fragmentation needed".
    pub const UNREACHABLE: u8 = 3;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp request.
    pub const TIMESTAMP_REQUEST: u8 = 13;
    /// Timestamp reply.
    pub const TIMESTAMP_REPLY: u8 = 14;
}

/// ICMPv6 types.
pub mod icmp6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICIT: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOR_SOLICIT: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOR_ADVERT: u8 = 136;
    /// A better first hop (RFC 4861, 4.5).
    pub const REDIRECT: u8 = 137;
}

header! {
    /// The first eight bytes.
    pub struct IcmpHeader {
        /// See [`icmp4`] and [`icmp6`].
        pub kind: u8,
        /// Refines the type.
        pub code: u8,
        /// Over the message; for IPv6 with the pseudo header.
        pub checksum: U16,
        /// Echo: the identifier. Errors: unused, or the first half of a pointer.
        pub id: U16,
        /// Echo: the sequence number. "Fragmentation needed": the MTU.
        pub seq: U16,
    }
}

/// An ICMP message of either family.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a> {
    /// The first eight bytes.
    pub header: &'a IcmpHeader,
    /// Echo: the data. Errors: the front of the packet that caused it.
    pub payload: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// Returns the message in `bytes`, the payload of an IP packet; `None` when it is short.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, payload) = IcmpHeader::split(bytes)?;
        Some(Self { header, payload })
    }

    /// Says whether this ICMP-for-IPv4 message reports an error and so carries a packet.
    pub fn is_error4(&self) -> bool {
        matches!(
            self.header.kind,
            icmp4::UNREACHABLE | 4 | icmp4::REDIRECT | icmp4::TIME_EXCEEDED | icmp4::PARAMETER_PROBLEM
        )
    }

    /// Says whether this ICMPv6 message reports an error and so carries a packet (RFC 4443, 2.1).
    pub fn is_error6(&self) -> bool {
        self.header.kind < 128
    }
}

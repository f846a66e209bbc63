//! TCP (RFC 9293), UDP (RFC 768) and the VXLAN header in UDP (RFC 7348).

use zerocopy::big_endian::{U16, U32};

use super::{Header, header};
use crate::addr::Vni;

/// TCP flags, in [`TcpHeader::flags`].
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

header! {
    /// The 20 bytes without options.
    pub struct TcpHeader {
        /// Source port.
        pub src_port: U16,
        /// Destination port.
        pub dst_port: U16,
        /// Sequence number of the first byte.
        pub seq: U32,
        /// Next byte that is expected.
        pub ack: U32,
        /// Length of the header in words of four bytes (4 bits), reserved (3 bits), accurate ECN (1 bit).
        pub offset_reserved: u8,
        /// See [`tcp_flags`].
        pub flags: u8,
        /// Receive window.
        pub window: U16,
        /// With the pseudo header.
        pub checksum: U16,
        /// Urgent pointer.
        pub urgent: U16,
    }
}

impl TcpHeader {
    /// Where the checksum is, from the start of the header.
    pub const CHECKSUM_AT: u16 = 16;

    /// Returns the bytes that the header says it has, options included: 0 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.offset_reserved >> 4) * 4
    }
}

/// A TCP segment with consistent lengths.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    /// The fixed header.
    pub header: &'a TcpHeader,
    /// The options, 0 to 40 bytes.
    pub options: &'a [u8],
    /// The data.
    pub payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Returns the segment in `bytes`, the payload of an IP packet; `None` when the header is not all there.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = TcpHeader::split(bytes)?;
        let (head, payload) = bytes.split_at_checked(header.header_len())?;
        Some(Self { header, options: head.get(TcpHeader::LEN..)?, payload })
    }
}

header! {
    /// The eight bytes of UDP.
    pub struct UdpHeader {
        /// Source port.
        pub src_port: U16,
        /// Destination port.
        pub dst_port: U16,
        /// Bytes of header and data.
        pub len: U16,
        /// With the pseudo header; 0 for none (IPv4, and tunnels over IPv6).
        pub checksum: U16,
    }
}

impl UdpHeader {
    /// Where the checksum is, from the start of the header.
    pub const CHECKSUM_AT: u16 = 6;
}

/// A UDP datagram with consistent lengths.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    /// The header.
    pub header: &'a UdpHeader,
    /// The data.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Returns the datagram in `bytes`, the payload of an IP packet; `None` when the length field says less
    /// than a header or more than there is.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = UdpHeader::split(bytes)?;
        let payload = bytes.get(UdpHeader::LEN..usize::from(header.len.get()))?;
        Some(Self { header, payload })
    }
}

header! {
    /// The eight bytes of VXLAN.
    pub struct VxlanHeader {
        /// 0x08: the network identifier is valid.
        pub flags: u8,
        /// Zero.
        pub reserved: [u8; 3],
        /// The network identifier.
        pub vni: [u8; 3],
        /// Zero.
        pub reserved2: u8,
    }
}

impl VxlanHeader {
    /// The UDP port that IANA gave to VXLAN.
    pub const PORT: u16 = 4789;
    /// The flag that says that the identifier is valid.
    pub const VALID: u8 = 0x08;

    /// Makes the header for a network.
    pub fn make(vni: Vni) -> Self {
        let [_, a, b, c] = vni.0.to_be_bytes();
        Self { flags: Self::VALID, vni: [a, b, c], ..Self::default() }
    }

    /// Returns the network identifier.
    #[inline]
    pub fn vni(&self) -> Vni {
        let [a, b, c] = self.vni;
        Vni(u32::from_be_bytes([0, a, b, c]))
    }
}

/// A VXLAN packet.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// The header.
    pub header: &'a VxlanHeader,
    /// The frame inside.
    pub frame: &'a [u8],
}

impl<'a> Vxlan<'a> {
    /// Returns the packet in `bytes`, the payload of a UDP datagram; `None` when it is short or the identifier
    /// is not valid. Reserved bits are ignored, as RFC 7348 asks.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, frame) = VxlanHeader::split(bytes)?;
        (header.flags & VxlanHeader::VALID != 0).then_some(Self { header, frame })
    }
}

//! IPv4 (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::big_endian::U16;

use super::{Header, header};
use crate::checksum::{self, Delta, Sum};

header! {
    /// The 20 bytes without options.
    pub struct Ipv4Header {
        /// Version 4 and the header's length in words of four bytes.
        pub version_ihl: u8,
        /// DSCP (6 bits) and ECN (2 bits).
        pub tos: u8,
        /// Bytes of header and payload.
        pub total_len: U16,
        /// Identification, for reassembly.
        pub id: U16,
        /// Reserved, don't fragment, more fragments, and the offset in units of eight bytes (13 bits).
        pub flags_fragment: U16,
        /// Time to live.
        pub ttl: u8,
        /// See [`protocol`](super::protocol).
        pub protocol: u8,
        /// Over the header with its options.
        pub checksum: U16,
        /// Source address.
        pub src: [u8; 4],
        /// Destination address.
        pub dst: [u8; 4],
    }
}

impl Ipv4Header {
    /// Don't fragment, in `flags_fragment`.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// More fragments, in `flags_fragment`.
    pub const MORE_FRAGMENTS: u16 = 0x2000;

    /// Returns the bytes that the header says it has, options included: 0 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Returns the source address.
    #[inline]
    pub fn src(&self) -> Ipv4Addr {
        self.src.into()
    }

    /// Returns the destination address.
    #[inline]
    pub fn dst(&self) -> Ipv4Addr {
        self.dst.into()
    }

    /// Returns the fragment offset in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        (self.flags_fragment.get() & 0x1fff) << 3
    }

    /// Says whether another fragment follows this one.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags_fragment.get() & Self::MORE_FRAGMENTS != 0
    }

    /// Says whether this is a fragment: first, middle or last.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_fragment.get() & (Self::MORE_FRAGMENTS | 0x1fff) != 0
    }

    /// Says whether routers must not fragment it.
    pub fn dont_fragment(&self) -> bool {
        self.flags_fragment.get() & Self::DONT_FRAGMENT != 0
    }

    /// Takes one off the time to live (not below 0) and keeps the checksum right.
    #[inline]
    pub fn decrement_ttl(&mut self) {
        let ttl = self.ttl.saturating_sub(1);
        let delta = Delta::new().u16(u16::from(self.ttl) << 8, u16::from(ttl) << 8);
        self.ttl = ttl;
        self.checksum.set(delta.apply(self.checksum.get()));
    }

    /// Changes the source address and keeps the header's checksum right. The transport checksum is the
    /// caller's: the returned change is to be applied to it.
    #[inline]
    pub fn set_src(&mut self, src: Ipv4Addr) -> Delta {
        let delta = Delta::new().ipv4(self.src, src.octets());
        self.src = src.octets();
        self.checksum.set(delta.apply(self.checksum.get()));
        delta
    }

    /// Changes the destination address, as [`Ipv4Header::set_src`] does.
    #[inline]
    pub fn set_dst(&mut self, dst: Ipv4Addr) -> Delta {
        let delta = Delta::new().ipv4(self.dst, dst.octets());
        self.dst = dst.octets();
        self.checksum.set(delta.apply(self.checksum.get()));
        delta
    }

    /// Computes the checksum of the header at the front of `bytes`, options included, and writes it. `None`,
    /// and nothing changed, when the header is not all there.
    pub fn fill_checksum(bytes: &mut [u8]) -> Option<()> {
        let len = Self::split(bytes)?.0.header_len();
        if len < Self::LEN {
            return None;
        }
        let sum = Sum::new().bytes(bytes.get(..len)?);
        let (header, _) = Self::split_mut(bytes)?;
        // The old checksum is in the sum: taking it out is adding its complement.
        header.checksum.set(sum.u16(!header.checksum.get()).checksum());
        Some(())
    }
}

/// A whole IPv4 packet with consistent lengths.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    /// The fixed header.
    pub header: &'a Ipv4Header,
    /// The options, 0 to 40 bytes.
    pub options: &'a [u8],
    /// What the packet carries, without Ethernet padding.
    pub payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Returns the packet at the front of `bytes`, or `None` when the version is not 4 or a length says more
    /// than there is. The checksum is not looked at.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = Ipv4Header::split(bytes)?;
        let header_len = header.header_len();
        if header.version_ihl >> 4 != 4 || header_len < Ipv4Header::LEN {
            return None;
        }
        let packet = bytes.get(..usize::from(header.total_len.get()))?;
        let (head, payload) = packet.split_at_checked(header_len)?;
        Some(Self { header, options: head.get(Ipv4Header::LEN..)?, payload })
    }

    /// Says whether the header's checksum is right.
    pub fn checksum_is_valid(&self) -> bool {
        use zerocopy::IntoBytes;
        Sum::new().bytes(self.header.as_bytes()).bytes(self.options).fold() == 0xffff
    }

    /// Returns the pseudo-header sum for the payload.
    pub fn pseudo(&self) -> Sum {
        // The payload of an IPv4 packet is shorter than 64 KiB.
        let len = u32::try_from(self.payload.len()).unwrap_or(0);
        checksum::pseudo_v4(self.header.src, self.header.dst, self.header.protocol, len)
    }
}

//! IPv6 (RFC 8200) and the walk over its extension headers.
//!
//! The walk is bounded: a packet with more than [`MAX_EXTENSIONS`] extension headers is malformed to us.
//! RFC 8200 names six kinds and asks for each at most once (destination options twice), so no honest packet
//! comes near, and a hostile one cannot make the walk long.

use std::net::Ipv6Addr;

use zerocopy::big_endian::{U16, U32};

use super::{Header, header, protocol};
use crate::checksum::{self, Delta, Sum};

/// The most extension headers that are walked.
pub const MAX_EXTENSIONS: usize = 8;

header! {
    /// The fixed 40 bytes.
    pub struct Ipv6Header {
        /// Version 6 (4 bits), traffic class (8), flow label (20).
        pub version_flow: U32,
        /// Bytes after this header, extension headers included.
        pub payload_len: U16,
        /// See [`protocol`].
        pub next_header: u8,
        /// Hops left.
        pub hop_limit: u8,
        /// Source address.
        pub src: [u8; 16],
        /// Destination address.
        pub dst: [u8; 16],
    }
}

impl Ipv6Header {
    /// Returns the traffic class: DSCP (6 bits) and ECN (2 bits).
    pub fn traffic_class(&self) -> u8 {
        let bytes = self.version_flow.to_bytes();
        bytes[0] << 4 | bytes[1] >> 4
    }

    /// Returns the flow label.
    pub fn flow_label(&self) -> u32 {
        self.version_flow.get() & 0xf_ffff
    }

    /// Returns the source address.
    #[inline]
    pub fn src(&self) -> Ipv6Addr {
        self.src.into()
    }

    /// Returns the destination address.
    #[inline]
    pub fn dst(&self) -> Ipv6Addr {
        self.dst.into()
    }

    /// Takes one off the hop limit, not below 0.
    #[inline]
    pub fn decrement_hop_limit(&mut self) {
        self.hop_limit = self.hop_limit.saturating_sub(1);
    }

    /// Changes the source address; the returned change is to be applied to the transport checksum.
    #[inline]
    pub fn set_src(&mut self, src: Ipv6Addr) -> Delta {
        let delta = Delta::new().ipv6(&self.src, &src.octets());
        self.src = src.octets();
        delta
    }

    /// Changes the destination address, as [`Ipv6Header::set_src`] does.
    #[inline]
    pub fn set_dst(&mut self, dst: Ipv6Addr) -> Delta {
        let delta = Delta::new().ipv6(&self.dst, &dst.octets());
        self.dst = dst.octets();
        delta
    }
}

header! {
    /// The fragment extension header.
    pub struct Ipv6Fragment {
        /// What the reassembled packet goes on with.
        pub next_header: u8,
        /// Zero.
        pub reserved: u8,
        /// Offset in units of eight bytes (13 bits), reserved (2), more fragments (1).
        pub offset_more: U16,
        /// For reassembly.
        pub id: U32,
    }
}

impl Ipv6Fragment {
    /// Returns the fragment offset in bytes.
    #[inline]
    pub fn offset(&self) -> u16 {
        self.offset_more.get() & !7
    }

    /// Says whether another fragment follows this one.
    #[inline]
    pub fn more(&self) -> bool {
        self.offset_more.get() & 1 != 0
    }
}

/// Where the extension headers led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionWalk {
    /// The first header that is none of the extensions walked: TCP, UDP, ICMPv6, ESP, nothing...
    pub protocol: u8,
    /// Bytes of extension headers.
    pub len: usize,
    /// Where the fragment header is, from the first extension header. A packet that is whole has none, or an
    /// atomic one (RFC 6946).
    pub fragment: Option<usize>,
}

/// Walks the extension headers that start with `next_header` at the front of `bytes`; stops after a fragment
/// header whose offset is not 0, since other headers are in the first fragment. `None` when one is cut off or
/// there are more than [`MAX_EXTENSIONS`].
#[inline]
pub fn walk_extensions(bytes: &[u8], next_header: u8) -> Option<ExtensionWalk> {
    let mut walk = ExtensionWalk { protocol: next_header, len: 0, fragment: None };
    for _ in 0..=MAX_EXTENSIONS {
        let unit = match walk.protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => 8,
            protocol::AH => 4,
            protocol::FRAGMENT => {
                let fragment = Ipv6Fragment::at(bytes, walk.len)?;
                walk.fragment = walk.fragment.or(Some(walk.len));
                walk.protocol = fragment.next_header;
                walk.len += Ipv6Fragment::LEN;
                if fragment.offset() != 0 {
                    return Some(walk);
                }
                continue;
            }
            _ => return Some(walk),
        };
        let (next, words) = (*bytes.get(walk.len)?, usize::from(*bytes.get(walk.len + 1)?));
        // RFC 8200 counts units of 8 bytes after the first 8; RFC 4302 words of 4 bytes less two.
        walk.len += if unit == 8 { (words + 1) * 8 } else { (words + 2) * 4 };
        if walk.len > bytes.len() {
            return None;
        }
        walk.protocol = next;
    }
    None
}

/// A whole IPv6 packet with consistent lengths.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    /// The fixed header.
    pub header: &'a Ipv6Header,
    /// All extension headers.
    pub extensions: &'a [u8],
    /// What they led to.
    pub protocol: u8,
    /// The fragment header, if there is one.
    pub fragment: Option<&'a Ipv6Fragment>,
    /// What follows the extension headers, without Ethernet padding.
    pub payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Returns the packet at the front of `bytes`, or `None` when the version is not 6, a length says more
    /// than there is, or the extension headers are too many.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = Ipv6Header::split(bytes)?;
        if header.version_flow.to_bytes()[0] >> 4 != 6 {
            return None;
        }
        let rest = rest.get(..usize::from(header.payload_len.get()))?;
        let walk = walk_extensions(rest, header.next_header)?;
        let (extensions, payload) = rest.split_at_checked(walk.len)?;
        let fragment = walk.fragment.and_then(|at| Ipv6Fragment::at(extensions, at));
        Some(Self { header, extensions, protocol: walk.protocol, fragment, payload })
    }

    /// Returns the pseudo-header sum for the payload.
    pub fn pseudo(&self) -> Sum {
        // The payload of an IPv6 packet without jumbo option is shorter than 64 KiB.
        let len = u32::try_from(self.payload.len()).unwrap_or(0);
        checksum::pseudo_v6(&self.header.src, &self.header.dst, self.protocol, len)
    }
}

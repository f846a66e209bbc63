//! Header views: packet bytes seen as structs, without a copy.
//!
//! Two layers. A *header* (`Ipv4Header`, [`UdpHeader`]) is the fixed part, a struct of big-endian fields that
//! lies over the bytes; its fields are public, and writing one writes the packet. A *view* (`Ipv4`, [`Udp`])
//! checks all lengths that the header claims when it is made, and splits the bytes into header, options and
//! payload. Nothing that is made from bytes can panic afterwards, and a malformed packet is `None`.
//!
//! [`Layout`] finds the headers of a whole frame in one pass and is what the packet path uses.

#![expect(
    missing_debug_implementations,
    unreachable_pub,
    reason = "zerocopy's derives make helper types that have neither Debug nor a narrow visibility"
)]

mod arp;
mod ethernet;
mod icmp;
mod ipv4;
mod ipv6;
mod layout;
mod nd;
mod transport;

pub use arp::{Arp, ArpOperation};
pub use ethernet::{EthernetHeader, VlanTag};
pub use icmp::{Icmp, IcmpHeader, icmp4, icmp6};
pub use ipv4::{Ipv4, Ipv4Header};
pub use ipv6::{ExtensionWalk, Ipv6, Ipv6Fragment, Ipv6Header, MAX_EXTENSIONS, walk_extensions};
pub use layout::{Fragment, Layout, Malformed};
pub use nd::{NdOptions, NeighborAdvert, NeighborSolicit, RouterSolicit, nd_option};
pub use transport::{Tcp, TcpHeader, Udp, UdpHeader, Vxlan, VxlanHeader, tcp_flags};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherTypes (IEEE 802 numbers, IANA registry).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A customer VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// A service VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers and IPv6 next headers (IANA registry).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows (IPv6).
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}

/// A fixed-size header that lies over packet bytes.
pub trait Header: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + Sized {
    /// Bytes of the header.
    const LEN: usize = size_of::<Self>();

    /// Returns the header at the front and what follows it; `None` when the bytes are too few.
    #[inline]
    fn split(bytes: &[u8]) -> Option<(&Self, &[u8])> {
        Self::ref_from_prefix(bytes).ok()
    }

    /// Returns the header at the front and what follows it, to be changed.
    #[inline]
    fn split_mut(bytes: &mut [u8]) -> Option<(&mut Self, &mut [u8])> {
        Self::mut_from_prefix(bytes).ok()
    }

    /// Returns the header at `offset`; `None` when it is not all there.
    #[inline]
    fn at(bytes: &[u8], offset: usize) -> Option<&Self> {
        Some(Self::split(bytes.get(offset..)?)?.0)
    }

    /// Returns the header at `offset`, to be changed.
    #[inline]
    fn at_mut(bytes: &mut [u8], offset: usize) -> Option<&mut Self> {
        Some(Self::split_mut(bytes.get_mut(offset..)?)?.0)
    }
}

/// Derives what a header needs, so that the structs read like the RFC's pictures.
macro_rules! header {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)]
        #[derive(zerocopy::Immutable, zerocopy::Unaligned)]
        #[repr(C)]
        $vis struct $name { $($(#[$fmeta])* pub $field: $type,)* }

        impl $crate::header::Header for $name {}
    };
}
use header;

#[cfg(test)]
mod tests;

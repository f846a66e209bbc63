//! Neighbour discovery (RFC 4861): solicitations, advertisements, and their options.
//!
//! The views check what RFC 4861 6.1.1, 7.1.1 and 7.1.2 ask a receiver to check, except the checksum: a frame from
//! a local sender may carry a partial one.

use std::net::Ipv6Addr;

use super::{Header, IcmpHeader, Ipv6, header, icmp6, protocol};
use crate::addr::MacAddr;

/// Option types.
pub mod nd_option {
    /// The sender's link address.
    pub const SOURCE_LINK: u8 = 1;
    /// The target's link address.
    pub const TARGET_LINK: u8 = 2;
    /// A prefix that is on the link, or from which hosts make their addresses.
    pub const PREFIX: u8 = 3;
    /// The link's MTU.
    pub const MTU: u8 = 5;
    /// Name servers (RFC 8106).
    pub const RDNSS: u8 = 25;
}

header! {
    /// The body of a solicitation or advertisement, after the four bytes that all ICMPv6 shares.
    pub(super) struct NdBody {
        /// Advertisement: router, solicited, override, and 29 reserved bits.
        pub flags: [u8; 4],
        /// The address in question.
        pub target: [u8; 16],
    }
}

/// The options of an ND message. Stops at the first that is malformed.
#[derive(Clone, Copy, Debug)]
pub struct NdOptions<'a>(&'a [u8]);

impl<'a> NdOptions<'a> {
    /// Returns the options in `bytes`, or `None` when one has length 0 or is cut off: RFC 4861 wants such a
    /// message dropped.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = usize::from(*rest.get(1)?) * 8;
            if len == 0 {
                return None;
            }
            rest = rest.get(len..)?;
        }
        Some(Self(bytes))
    }

    /// Returns the link address in the first option of type `kind`.
    pub fn link_address(self, kind: u8) -> Option<MacAddr> {
        self.into_iter().find(|(k, _)| *k == kind).and_then(|(_, body)| MacAddr::split(body).map(|(m, _)| *m))
    }
}

impl Header for MacAddr {}

impl<'a> Iterator for NdOptions<'a> {
    type Item = (u8, &'a [u8]);

    /// Returns the next option: its type, and its body without type and length.
    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(*self.0.get(1)?) * 8;
        let (option, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((*option.first()?, option.get(2..)?))
    }
}

/// Who has the target address?
#[derive(Clone, Copy, Debug)]
pub struct NeighborSolicit<'a> {
    /// Who asks; unspecified in duplicate address detection.
    pub src: Ipv6Addr,
    /// Who is asked: the target, or its solicited-node group.
    pub dst: Ipv6Addr,
    /// The address that is asked for.
    pub target: Ipv6Addr,
    /// The options.
    pub options: NdOptions<'a>,
}

/// The sender (or somebody for it) says where the target address is.
#[derive(Clone, Copy, Debug)]
pub struct NeighborAdvert<'a> {
    /// Who says so.
    pub src: Ipv6Addr,
    /// Who is told.
    pub dst: Ipv6Addr,
    /// The target is a router.
    pub router: bool,
    /// It answers a solicitation.
    pub solicited: bool,
    /// It replaces what is known.
    pub overrides: bool,
    /// The address in question.
    pub target: Ipv6Addr,
    /// The options.
    pub options: NdOptions<'a>,
}

/// Checks what both messages share.
fn body<'a>(packet: &Ipv6<'a>, kind: u8) -> Option<(&'a NdBody, NdOptions<'a>)> {
    let whole = packet.protocol == protocol::ICMPV6 && packet.fragment.is_none();
    if !whole || packet.header.hop_limit != 255 {
        return None;
    }
    let (icmp, _) = IcmpHeader::split(packet.payload)?;
    let (body, options) = NdBody::split(packet.payload.get(4..)?)?;
    let target = Ipv6Addr::from(body.target);
    if icmp.kind != kind || icmp.code != 0 || target.is_multicast() {
        return None;
    }
    Some((body, NdOptions::new(options)?))
}

impl<'a> NeighborSolicit<'a> {
    /// Returns the solicitation that `packet` carries; `None` when it is none, or not a valid one.
    pub fn new(packet: &Ipv6<'a>) -> Option<Self> {
        let (body, options) = body(packet, icmp6::NEIGHBOR_SOLICIT)?;
        let (src, dst) = (packet.header.src(), packet.header.dst());
        if src.is_unspecified()
            && (!is_solicited_node(dst) || options.link_address(nd_option::SOURCE_LINK).is_some())
        {
            return None;
        }
        Some(Self { src, dst, target: body.target.into(), options })
    }
}

impl<'a> NeighborAdvert<'a> {
    /// Returns the advertisement that `packet` carries; `None` when it is none, or not a valid one.
    pub fn new(packet: &Ipv6<'a>) -> Option<Self> {
        let (body, options) = body(packet, icmp6::NEIGHBOR_ADVERT)?;
        let (src, dst) = (packet.header.src(), packet.header.dst());
        let flags = body.flags[0];
        let solicited = flags & 0x40 != 0;
        if solicited && dst.is_multicast() {
            return None;
        }
        let (router, overrides) = (flags & 0x80 != 0, flags & 0x20 != 0);
        Some(Self { src, dst, router, solicited, overrides, target: body.target.into(), options })
    }
}

/// Is there a router?
#[derive(Clone, Copy, Debug)]
pub struct RouterSolicit<'a> {
    /// Who asks; unspecified while it has no address.
    pub src: Ipv6Addr,
    /// The options.
    pub options: NdOptions<'a>,
}

impl<'a> RouterSolicit<'a> {
    /// Returns the solicitation that `packet` carries; `None` when it is none, or not a valid one.
    pub fn new(packet: &Ipv6<'a>) -> Option<Self> {
        let whole = packet.protocol == protocol::ICMPV6 && packet.fragment.is_none();
        let (icmp, options) = IcmpHeader::split(packet.payload)?;
        let solicits = icmp.kind == icmp6::ROUTER_SOLICIT && icmp.code == 0;
        if !whole || !solicits || packet.header.hop_limit != 255 {
            return None;
        }
        let (src, options) = (packet.header.src(), NdOptions::new(options)?);
        if src.is_unspecified() && options.link_address(nd_option::SOURCE_LINK).is_some() {
            return None;
        }
        Some(Self { src, options })
    }
}

/// Says whether `address` is in ff02::1:ff00:0/104.
fn is_solicited_node(address: Ipv6Addr) -> bool {
    address.octets()[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
}

//! Where a neighbour is: answers to ARP requests and neighbour solicitations.

use packet::header::{
    Arp, ArpOperation, Header, IcmpHeader, Ipv6, NeighborSolicit, icmp6, nd_option, protocol,
};
use packet::{Address, Frame, MacAddr, PortId};

use super::ip::{Envelope, address, header_len, room, seal};
use crate::walk::Packet;

/// All nodes of a link, and the station address of that group (RFC 4861, 2.3; RFC 2464, 7).
pub(crate) const ALL_NODES: (MacAddr, Address) =
    (MacAddr([0x33, 0x33, 0, 0, 0, 1]), Address::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));

pub(super) fn arp(frame: &mut Frame, mac: MacAddr) -> Option<()> {
    let packet = Packet::new(frame, PortId::default())?;
    let at = packet.payload_offset();
    let request = *Arp::new(packet.payload())?;
    let sender = (mac, request.target_ip());
    let target = (request.sender_mac, request.sender_ip());
    *Arp::at_mut(frame.bytes_mut(), at)? = Arp::make(ArpOperation::Reply, sender, target);
    address(frame, mac, request.sender_mac)
}

pub(super) fn advert(frame: &mut Frame, mac: MacAddr, router: bool) -> Option<()> {
    let packet = Packet::new(frame, PortId::default())?;
    let at = packet.payload_offset();
    let ip = Ipv6::new(packet.payload())?;
    let solicit = NeighborSolicit::new(&ip)?;
    let (asker, target) = (solicit.src, solicit.target);
    let probing = asker.is_unspecified();
    // Who has no address yet hears it with all others (RFC 4861, 7.2.4).
    let (to_mac, to) = if probing { ALL_NODES } else { (packet.source(), asker.into()) };
    // Router, solicited, override.
    let flags = if router { 0x80 } else { 0 } | if probing { 0 } else { 0x40 } | 0x20;
    let message = Message {
        kind: icmp6::NEIGHBOR_ADVERT,
        flags,
        target: target.into(),
        option: Some((nd_option::TARGET_LINK, mac)),
    };
    message.write(frame, at, target.into(), to)?;
    address(frame, mac, to_mac)
}

/// A neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) target: Address,
    /// A link address option, and its type.
    pub(crate) option: Option<(u8, MacAddr)>,
}

impl Message {
    /// Returns the bytes of the message in its IPv6 packet.
    pub(crate) fn len(&self) -> usize {
        header_len(true) + IcmpHeader::LEN + 16 + if self.option.is_some() { 8 } else { 0 }
    }

    /// Writes the packet at `l3`, where the frame ends afterwards.
    pub(crate) fn write(
        &self,
        frame: &mut Frame,
        l3: usize,
        source: Address,
        destination: Address,
    ) -> Option<()> {
        let len = self.len() - header_len(true);
        room(frame, l3 + self.len())?;
        let envelope = Envelope { source, destination, protocol: protocol::ICMPV6, hops: 255, tos: 0 };
        envelope.write(frame, l3, len)?;
        let icmp = frame.bytes_mut().get_mut(l3 + header_len(true)..)?;
        icmp[..8].copy_from_slice(&[self.kind, 0, 0, 0, self.flags, 0, 0, 0]);
        icmp[8..24].copy_from_slice(&self.target.octets());
        if let Some((kind, mac)) = self.option {
            icmp[24..26].copy_from_slice(&[kind, 1]);
            icmp[26..32].copy_from_slice(&mac.0);
        }
        seal(frame)
    }
}

//! Turns a question into its answer, in the frame that asked.
//!
//! The question's chunk is at hand and large enough, so an answer costs no allocation. Tag and priority stay as
//! they came: the answer leaves by the port that the question came in by.

use std::net::Ipv6Addr;

use packet::checksum;
use packet::header::{
    Arp, ArpOperation, EthernetHeader, Header, Ipv6, NeighborSolicit, icmp6, nd_option, protocol,
};
use packet::{Checksum, Frame, MacAddr, PortId};

use crate::walk::{Answer, Packet};

const IPV6_LEN: usize = 40;
/// A neighbour advertisement with one link address option (RFC 4861, 4.4).
const ADVERT_LEN: u8 = 32;
/// Where an advertisement to an unspecified asker goes: all nodes (RFC 4861, 7.2.4).
const ALL_NODES: (MacAddr, Ipv6Addr) =
    (MacAddr([0x33, 0x33, 0, 0, 0, 1]), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));

/// Writes `answer` over the question in `frame`. `None`, and nothing changed, when it is not such a question or
/// there is no room.
pub(crate) fn write(frame: &mut Frame, answer: Answer) -> Option<()> {
    match answer {
        Answer::Arp(mac) => arp(frame, mac)?,
        Answer::NeighborAdvert { mac, router } => neighbor_advert(frame, mac, router)?,
    }
    frame.set_checksum(Checksum::Complete);
    frame.set_gso(None);
    Some(())
}

fn arp(frame: &mut Frame, mac: MacAddr) -> Option<()> {
    let packet = Packet::new(frame, PortId::default())?;
    let at = packet.payload_offset();
    let request = *Arp::new(packet.payload())?;
    let sender = (mac, request.target_ip());
    let target = (request.sender_mac, request.sender_ip());
    *Arp::at_mut(frame.bytes_mut(), at)? = Arp::make(ArpOperation::Reply, sender, target);
    address(frame, mac, request.sender_mac)
}

fn neighbor_advert(frame: &mut Frame, mac: MacAddr, router: bool) -> Option<()> {
    let packet = Packet::new(frame, PortId::default())?;
    let at = packet.payload_offset();
    let ip = Ipv6::new(packet.payload())?;
    let solicit = NeighborSolicit::new(&ip)?;
    let (asker, target) = (solicit.src, solicit.target);
    let probing = asker.is_unspecified();
    let (to_mac, to) = if probing { ALL_NODES } else { (packet.source(), asker) };

    let len = at + IPV6_LEN + usize::from(ADVERT_LEN);
    if frame.len() + frame.tailroom() < len {
        return None;
    }
    frame.set_len(len);
    let (ip, icmp) = frame.bytes_mut()[at..].split_at_mut(IPV6_LEN);
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, ADVERT_LEN, protocol::ICMPV6, 255]);
    ip[8..24].copy_from_slice(&target.octets());
    ip[24..40].copy_from_slice(&to.octets());
    // Router, solicited, override.
    let flags = if router { 0x80 } else { 0 } | if probing { 0 } else { 0x40 } | 0x20;
    icmp[..8].copy_from_slice(&[icmp6::NEIGHBOR_ADVERT, 0, 0, 0, flags, 0, 0, 0]);
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24..26].copy_from_slice(&[nd_option::TARGET_LINK, 1]);
    icmp[26..32].copy_from_slice(&mac.0);
    let sum = checksum::pseudo_v6(&target.octets(), &to.octets(), protocol::ICMPV6, u32::from(ADVERT_LEN));
    let sum = sum.bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    address(frame, mac, to_mac)
}

fn address(frame: &mut Frame, from: MacAddr, to: MacAddr) -> Option<()> {
    let ethernet = EthernetHeader::at_mut(frame.bytes_mut(), 0)?;
    ethernet.src = from;
    ethernet.dst = to;
    Some(())
}

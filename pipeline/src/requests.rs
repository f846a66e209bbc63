//! Frames that the switch makes unasked: who has this address, I have this address, I am a router.
//!
//! Each is written into a fresh frame of the pool, untagged, and goes where the caller sends it; `None` when the pool
//! has no chunk. ARP and neighbour discovery say the same things in two ways (RFC 826 and 5227; RFC 4861 and 4862), so
//! the family of the address decides which it is.

use std::net::Ipv4Addr;

use packet::header::{Arp, ArpOperation, EthernetHeader, Header, ethertype, icmp6, nd_option};
use packet::{Address, Frame, FramePool, MacAddr};

use crate::answer::{ALL_NODES, Message, RouterAdvert, address, advertise};

/// How IPv4 neighbours are told: some update their tables by requests only, some by replies only, and to do both is
/// the custom. IPv6 knows one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An ARP announcement (RFC 5227, 2.3): a request for the own address.
    Request,
    /// The same as an ARP reply to all.
    Reply,
}

/// Asks who has `target`, as the station and address `sender`: all stations that may have it (over IPv6 its
/// solicited-node group, RFC 4861, 7.2.2), or only `to`, to see whether it still has it.
pub fn solicit(
    pool: &mut FramePool,
    sender: (MacAddr, Address),
    target: Address,
    to: Option<MacAddr>,
) -> Option<Frame> {
    let (mac, ip) = sender;
    if target.is_v4() {
        let arp = Arp::make(ArpOperation::Request, (mac, v4(ip)), (MacAddr::ZERO, v4(target)));
        return arp_frame(pool, mac, to.unwrap_or(MacAddr::BROADCAST), arp);
    }
    let option = Some((nd_option::SOURCE_LINK, mac));
    let message = Message { kind: icmp6::NEIGHBOR_SOLICIT, flags: 0, target, option };
    let (group_mac, group) = solicited_node(target);
    match to {
        Some(to) => nd_frame(pool, (mac, ip), (to, target), &message),
        None => nd_frame(pool, (mac, ip), (group_mac, group), &message),
    }
}

/// Asks whether anybody has `ip` already, before the station `mac` takes it: an ARP probe (RFC 5227, 2.1.1), or the
/// solicitation of duplicate address detection (RFC 4862, 5.4.2).
pub fn probe(pool: &mut FramePool, mac: MacAddr, ip: Address) -> Option<Frame> {
    if ip.is_v4() {
        let nobody = Address::v4([0; 4]);
        return solicit(pool, (mac, nobody), ip, None);
    }
    let message = Message { kind: icmp6::NEIGHBOR_SOLICIT, flags: 0, target: ip, option: None };
    nd_frame(pool, (mac, Address::UNSPECIFIED), solicited_node(ip), &message)
}

/// Tells all that `ip` is at the station `mac` now: a gratuitous ARP in `form`, or an unsolicited neighbour advertisement
/// that overrides what is known (RFC 4861, 7.2.6). `router` says what IPv6 neighbours may use it for.
pub fn announce(pool: &mut FramePool, mac: MacAddr, ip: Address, form: Form, router: bool) -> Option<Frame> {
    if ip.is_v4() {
        let arp = match form {
            Form::Request => Arp::make(ArpOperation::Request, (mac, v4(ip)), (MacAddr::ZERO, v4(ip))),
            Form::Reply => Arp::make(ArpOperation::Reply, (mac, v4(ip)), (mac, v4(ip))),
        };
        return arp_frame(pool, mac, MacAddr::BROADCAST, arp);
    }
    let flags = if router { 0x80 } else { 0 } | 0x20;
    let option = Some((nd_option::TARGET_LINK, mac));
    let message = Message { kind: icmp6::NEIGHBOR_ADVERT, flags, target: ip, option };
    nd_frame(pool, (mac, ip), ALL_NODES, &message)
}

/// Tells all what the router at the station `mac` offers.
pub fn router_advert(pool: &mut FramePool, mac: MacAddr, advert: &RouterAdvert) -> Option<Frame> {
    let mut frame = fresh(pool, ethertype::IPV6, advert.len())?;
    let (to_mac, to) = ALL_NODES;
    let done = advertise(&mut frame, EthernetHeader::LEN, to, mac, advert);
    finish(pool, frame, done, mac, to_mac)
}

/// Returns the group in which whoever has `target` listens, and its station address (RFC 4291, 2.7.1; RFC 2464, 7).
pub fn solicited_node(target: Address) -> (MacAddr, Address) {
    let [.., a, b, c] = target.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    (MacAddr([0x33, 0x33, 0xff, a, b, c]), Address::v6(group))
}

fn v4(address: Address) -> Ipv4Addr {
    address.octets_v4().into()
}

fn arp_frame(pool: &mut FramePool, from: MacAddr, to: MacAddr, arp: Arp) -> Option<Frame> {
    let mut frame = fresh(pool, ethertype::ARP, Arp::LEN)?;
    let done = Arp::at_mut(frame.bytes_mut(), EthernetHeader::LEN).map(|place| *place = arp);
    finish(pool, frame, done, from, to)
}

fn nd_frame(
    pool: &mut FramePool,
    from: (MacAddr, Address),
    to: (MacAddr, Address),
    message: &Message,
) -> Option<Frame> {
    let mut frame = fresh(pool, ethertype::IPV6, message.len())?;
    let done = message.write(&mut frame, EthernetHeader::LEN, from.1, to.1);
    finish(pool, frame, done, from.0, to.0)
}

/// Returns a frame with room for `len` bytes behind its Ethernet header.
fn fresh(pool: &mut FramePool, ethertype: u16, len: usize) -> Option<Frame> {
    let mut frame = pool.alloc(EthernetHeader::LEN + len)?;
    frame.set_len(EthernetHeader::LEN + len);
    let bytes = frame.bytes_mut();
    bytes[EthernetHeader::LEN - 2..EthernetHeader::LEN].copy_from_slice(&ethertype.to_be_bytes());
    Some(frame)
}

/// Addresses the frame when its contents were `done`, else gives it back.
fn finish(
    pool: &mut FramePool,
    mut frame: Frame,
    done: Option<()>,
    from: MacAddr,
    to: MacAddr,
) -> Option<Frame> {
    if done.and_then(|()| address(&mut frame, from, to)).is_none() {
        pool.free(frame);
        return None;
    }
    Some(frame)
}

#[cfg(test)]
mod tests;

//! Guard: lets in only what the port may send.
//!
//! The bouncer at the door of the switch. A frame must have a source that is a station's address, must not be
//! one of the link-local protocols that end at a bridge (IEEE 802.1Q-2022, table 8-1), and must belong to a VLAN
//! that the port carries. On a port with fixed addresses, its source MAC and IP addresses (in ARP and neighbour
//! discovery too) must be the port's own.
//!
//! The IP check is the one that a cached decision does not cover, since the flow key ends at layer 2:
//! [`source_is_allowed`] is asked again at every hit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use packet::MacAddr;
use packet::header::{Ipv6, ethertype, icmp6, protocol};

use crate::drop_reason::DropReason;
use crate::snapshot::Guard;
use crate::walk::{Packet, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let source = packet.source();
    if !source.is_station() {
        return Step::Drop(DropReason::Malformed);
    }
    if is_reserved(packet.destination()) {
        return Step::Drop(DropReason::Reserved);
    }
    let Some(vlan) = view.port.vlan.classify(packet.tag()) else { return Step::Drop(DropReason::Vlan) };
    walk.vlan = vlan;
    let is_gateway = view.network.gateway.as_ref().is_some_and(|gateway| gateway.mac == source);
    if is_gateway && view.port.tunnel.is_some() {
        return Step::Drop(DropReason::VtepSpoof);
    }
    let guard = &view.port.guard;
    if is_gateway || guard.mac.is_some_and(|mac| mac != source) || !source_is_allowed(guard, packet) {
        return Step::Drop(DropReason::Spoof);
    }
    Step::Next
}

/// 01:80:c2:00:00:00 to 0f.
fn is_reserved(destination: MacAddr) -> bool {
    let [a, b, c, d, e, last] = destination.0;
    [a, b, c, d, e] == [0x01, 0x80, 0xc2, 0, 0] && last < 0x10
}

/// Says whether the source IP address of a packet is one that the port may use: in the IP header, as the sender
/// of ARP, or in neighbour discovery. What is neither IP nor ARP has none and is allowed.
#[inline]
pub fn source_is_allowed(guard: &Guard, packet: &Packet<'_>) -> bool {
    if guard.addresses.is_empty() {
        return true;
    }
    let payload = packet.payload();
    match packet.ethertype() {
        ethertype::IPV4 => payload.get(12..16).is_some_and(|bytes| v4_is_allowed(guard, bytes)),
        ethertype::ARP => arp_is_allowed(guard, payload),
        ethertype::IPV6 => {
            payload.get(8..24).is_some_and(|bytes| v6_is_allowed(guard, bytes))
                && nd_is_allowed(guard, payload)
        }
        // A second tag would hide what is behind it.
        ethertype::VLAN | ethertype::SERVICE_VLAN => false,
        _ => true,
    }
}

/// The unspecified address is allowed: DHCP (RFC 2131, 4.1).
fn v4_is_allowed(guard: &Guard, bytes: &[u8]) -> bool {
    let Ok(bytes) = <[u8; 4]>::try_from(bytes) else { return false };
    let address = Ipv4Addr::from(bytes);
    address.is_unspecified() || guard.addresses.contains(&IpAddr::V4(address))
}

/// The unspecified address (DAD, RFC 4862, 5.4.2) and link-local ones are allowed.
fn v6_is_allowed(guard: &Guard, bytes: &[u8]) -> bool {
    let Ok(bytes) = <[u8; 16]>::try_from(bytes) else { return false };
    let address = Ipv6Addr::from(bytes);
    address.is_unspecified()
        || address.is_unicast_link_local()
        || guard.addresses.contains(&IpAddr::V6(address))
}

/// The sender's protocol address is the port's own, or unspecified (a probe, RFC 5227); its hardware address is
/// the port's own, else others would learn a wrong one.
fn arp_is_allowed(guard: &Guard, arp: &[u8]) -> bool {
    let (Some(hardware), Some(address)) = (arp.get(8..14), arp.get(14..18)) else { return false };
    guard.mac.is_none_or(|mac| mac.0 == hardware) && v4_is_allowed(guard, address)
}

/// What a neighbour advertisement claims (its target, RFC 4861, 4.4) is the port's own. Routers are what the
/// switch says they are: a port with fixed addresses advertises no router (RFC 6105), behind extension
/// headers neither (RFC 7113).
fn nd_is_allowed(guard: &Guard, bytes: &[u8]) -> bool {
    if matches!(bytes.get(6), Some(&(protocol::TCP | protocol::UDP))) {
        return true;
    }
    let Some(ip) = Ipv6::new(bytes) else { return true };
    if ip.protocol != protocol::ICMPV6 {
        return true;
    }
    match ip.payload.first() {
        Some(&(icmp6::ROUTER_ADVERT | icmp6::REDIRECT)) => false,
        Some(&icmp6::NEIGHBOR_ADVERT) => {
            ip.payload.get(8..24).is_some_and(|target| v6_is_allowed(guard, target))
        }
        _ => true,
    }
}

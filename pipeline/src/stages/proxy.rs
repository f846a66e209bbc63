//! Proxy: answers ARP and neighbour solicitations for addresses that the switch knows.
//!
//! The concierge: who asks for a known resident is told at the desk, and nobody is woken. Known are the
//! addresses of the network's ports, of its gateway, and of the host (the gateway answers for it). A question
//! for an unknown address is flooded like any broadcast. A station that asks for its own address is probing
//! for a duplicate (RFC 5227, RFC 4862) and gets no answer from us.
//!
//! A question that was sent to one station's MAC is that station's to answer, unless it is the gateway's.

use std::net::IpAddr;

use packet::header::{Arp, ArpOperation, Ipv6, NeighborSolicit, ethertype};
use packet::{MacAddr, PortId};

use crate::walk::{Answer, Decision, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let to = packet.destination();
    if !view.network.neighbor_proxy || !(to.is_multicast() || is_gateway_mac(view, to)) {
        return Step::Next;
    }
    let answer = match packet.ethertype() {
        ethertype::ARP => arp(packet, view),
        ethertype::IPV6 => solicitation(packet, view),
        _ => None,
    };
    match answer {
        Some(answer) => {
            walk.decision = Decision::Answer(answer);
            Step::Done
        }
        None => Step::Next,
    }
}

fn arp(packet: &Packet<'_>, view: &View<'_>) -> Option<Answer> {
    let request = Arp::new(packet.payload())?;
    if request.operation() != ArpOperation::Request || request.sender_ip() == request.target_ip() {
        return None;
    }
    let (mac, _) = owner(view, packet.from, IpAddr::V4(request.target_ip()))?;
    Some(Answer::Arp(mac))
}

fn solicitation(packet: &Packet<'_>, view: &View<'_>) -> Option<Answer> {
    let ip = Ipv6::new(packet.payload())?;
    let solicit = NeighborSolicit::new(&ip)?;
    let (mac, router) = owner(view, packet.from, IpAddr::V6(solicit.target))?;
    Some(Answer::NeighborAdvert { mac, router })
}

/// Returns who owns `address`, as far as somebody behind `asker` is to know, and whether it is the gateway.
fn owner(view: &View<'_>, asker: PortId, address: IpAddr) -> Option<(MacAddr, bool)> {
    if let Some(gateway) = &view.network.gateway
        && gateway.addresses.contains(&address)
    {
        return Some((gateway.mac, true));
    }
    if let Some(neighbor) = view.network.neighbors.get(&address) {
        let apart = view.port.isolated && view.snapshot.port(neighbor.port).is_some_and(|port| port.isolated);
        return (neighbor.port != asker && !apart).then_some((neighbor.mac, false));
    }
    let gateway = view.network.gateway.as_ref()?;
    view.snapshot.is_host_address(&address).then_some((gateway.mac, true))
}

fn is_gateway_mac(view: &View<'_>, mac: MacAddr) -> bool {
    view.network.gateway.as_ref().is_some_and(|gateway| gateway.mac == mac)
}

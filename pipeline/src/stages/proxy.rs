//! Proxy: answers ARP and neighbour solicitations for addresses that the switch knows.
//!
//! The concierge: who asks for a known resident is told at the desk, and nobody is woken. Known are the
//! addresses of the network's ports, of its gateway, and of the host (the gateway answers for it). A question
//! for an unknown address is flooded like any broadcast. A station that asks for its own address is probing
//! for a duplicate (RFC 5227, RFC 4862) and gets no answer from us.
//!
//! A question that was sent to one station's MAC is that station's to answer, unless it is the gateway's.
//!
//! Through a tunnel the gateway is as good as absent: every host has it. A question from a peer's router, which speaks for
//! the gateway's address from a MAC of its own, goes no further than this host, whose stations would take that MAC
//! for their gateway's: it is answered for those that this host knows, and else this host finds out, so
//! that it can answer the next time. A station behind a tunnel that asks for the gateway gets an answer only
//! from a host that itself routes packets to it; that is one that the station's answers have to go back to.
//!
//! What somebody says about his own address is remembered, for those that are routed to him. Who looks for
//! a router gets its advertisement.

use packet::header::{Arp, ArpOperation, Ipv6, NeighborSolicit, ethertype, icmp6, protocol};
use packet::{Address, MacAddr, PortId};

use crate::snapshot::{DomainKind, Route};
use crate::tables::NeighborKey;
use crate::walk::{Answer, Decision, Effect, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let to = packet.destination();
    let for_us = view.snapshot.router_mac(packet.from) == Some(to) || is_gateway_mac(view, to);
    let is_tunnel = view.port.tunnel.is_some();
    if !(to.is_multicast() || for_us || is_tunnel) {
        return Step::Next;
    }
    let spoken = match packet.ethertype() {
        ethertype::ARP => arp(packet, view),
        ethertype::IPV6 => discovery(packet, view),
        _ => None,
    };
    let Some(Spoken { says, wants, answer, ends }) = spoken else { return Step::Next };
    let speaker = says.map(|(address, _)| address);
    if is_tunnel && answer.is_none() && speaker.is_some_and(|speaker| is_gateway_address(view, speaker)) {
        walk.note(|| "spoken by a peer's router, and for no one else here".to_owned());
        let wanted = wants.filter(|wanted| !is_gateway_address(view, *wanted));
        let key = |address| NeighborKey { network: walk.network, port: None, address };
        walk.decision = wanted.map_or(Decision::Consume, |wanted| Decision::Seek(key(wanted)));
        return Step::Done;
    }
    let says = says.filter(|(address, _)| !is_tunnel || !is_gateway_address(view, *address));
    if let (Some((address, mac)), true) = (says, view.network.domain.is_some()) {
        let kind = view.snapshot.kind(walk.network);
        let port = (kind == DomainKind::Uplink).then_some(packet.from);
        let neighbor = NeighborKey { network: walk.network, port, address };
        walk.then(Effect::Meet { neighbor, mac, asks: answer.is_some() });
    }
    match answer {
        Some(answer) if view.network.neighbor_proxy || for_us => {
            walk.note(|| "answered by the switch".to_owned());
            walk.decision = Decision::Answer(answer);
            Step::Done
        }
        _ if ends && for_us => {
            walk.decision = Decision::Consume;
            Step::Done
        }
        _ if is_tunnel && wants.is_some_and(|wanted| is_gateway_address(view, wanted)) => {
            walk.note(|| "the gateway is for the stations of each host".to_owned());
            walk.decision = Decision::Consume;
            Step::Done
        }
        _ => Step::Next,
    }
}

/// What somebody says about addresses.
struct Spoken {
    /// An address, and the MAC that he says has it.
    says: Option<(Address, MacAddr)>,
    /// The address that he asks for.
    wants: Option<Address>,
    /// What the switch has to say to it.
    answer: Option<Answer>,
    /// It is an answer: when it was for us, it ends here.
    ends: bool,
}

fn arp(packet: &Packet<'_>, view: &View<'_>) -> Option<Spoken> {
    let arp = Arp::new(packet.payload())?;
    let says = (!arp.sender_ip().is_unspecified() && arp.sender_mac == packet.source())
        .then(|| (arp.sender_ip().into(), arp.sender_mac));
    if arp.operation() != ArpOperation::Request {
        return Some(Spoken { says, wants: None, answer: None, ends: true });
    }
    let probes = arp.sender_ip() == arp.target_ip();
    let wants = Address::from(arp.target_ip());
    let speaker = arp.sender_ip().into();
    let owner = if probes { None } else { owner(view, packet.from, speaker, wants) };
    let answer = owner.map(|(mac, _)| Answer::Arp(mac));
    Some(Spoken { says, wants: Some(wants).filter(|_| !probes), answer, ends: false })
}

fn discovery(packet: &Packet<'_>, view: &View<'_>) -> Option<Spoken> {
    let ip = Ipv6::new(packet.payload())?;
    if ip.protocol != protocol::ICMPV6 || ip.header.hop_limit != 255 {
        return None;
    }
    if let Some(solicit) = NeighborSolicit::new(&ip) {
        let says = (!solicit.src.is_unspecified()).then(|| (solicit.src.into(), packet.source()));
        let wants = solicit.target.into();
        let owner = owner(view, packet.from, solicit.src.into(), wants);
        let answer = owner.map(|(mac, router)| Answer::NeighborAdvert { mac, router });
        return Some(Spoken { says, wants: Some(wants), answer, ends: false });
    }
    match ip.payload.first() {
        Some(&icmp6::NEIGHBOR_ADVERT) => {
            let target: [u8; 16] = ip.payload.get(8..24)?.try_into().ok()?;
            let says = Some((Address::v6(target), packet.source()));
            Some(Spoken { says, wants: None, answer: None, ends: true })
        }
        Some(&icmp6::ROUTER_SOLICIT)
            if view.port.tunnel.is_none() && view.snapshot.kind(view.port.network) == DomainKind::Inside =>
        {
            let advert = view.network.router_advert?;
            let answer = Answer::RouterAdvert { mac: view.router_mac(), advert };
            Some(Spoken { says: None, wants: None, answer: Some(answer), ends: false })
        }
        _ => None,
    }
}

/// Returns who owns `address`, as far as `speaker` behind the port `asker` is to know, and whether it is the gateway.
fn owner(view: &View<'_>, asker: PortId, speaker: Address, address: Address) -> Option<(MacAddr, bool)> {
    if view.port.tunnel.is_some() {
        return owner_here(view, asker, speaker, address);
    }
    let router =
        view.snapshot.router_mac(asker).or_else(|| view.network.gateway.as_ref().map(|gateway| gateway.mac));
    let ip = address.ip();
    if let Some(gateway) = &view.network.gateway
        && gateway.addresses.contains(&ip)
    {
        return Some((router?, true));
    }
    match view.snapshot.kind(view.port.network) {
        // The device's own addresses are the host's to answer for.
        DomainKind::Uplink => None,
        // The host reaches every network through us, and has no neighbour there but us.
        DomainKind::Host => {
            let shared = view.snapshot.router();
            let domain = view.network.domain.as_ref().and_then(|domain| domain.lookup(address));
            let known = shared.network_of(address).is_some()
                || shared.translations.find(address, 0, 0, false).is_some()
                || domain.is_some_and(|(_, route)| *route == Route::Local);
            known.then_some((router?, true))
        }
        DomainKind::Inside => {
            if let Some(neighbor) = view.network.neighbors.get(&ip) {
                let there = view.snapshot.port(neighbor.port);
                let apart = view.port.isolated && there.is_some_and(|port| port.isolated);
                return (neighbor.port != asker && !apart).then_some((neighbor.mac, false));
            }
            view.snapshot.is_host_address(&ip).then_some((router?, true))
        }
    }
}

/// The same for somebody on another host.
fn owner_here(view: &View<'_>, asker: PortId, speaker: Address, address: Address) -> Option<(MacAddr, bool)> {
    let known = |address| {
        let key = NeighborKey { network: view.port.network, port: None, address };
        view.tables.neighbors.find(key).and_then(|(_, target)| target)
    };
    if is_gateway_address(view, address) {
        known(speaker)?;
        return Some((view.snapshot.router_mac(asker)?, true));
    }
    if let Some(neighbor) = view.network.neighbors.get(&address.ip()) {
        return (neighbor.port != asker).then_some((neighbor.mac, false));
    }
    let found = known(address).filter(|target| target.port != asker && is_gateway_address(view, speaker))?;
    Some((found.mac, false))
}

fn is_gateway_address(view: &View<'_>, address: Address) -> bool {
    view.network.gateway.as_ref().is_some_and(|gateway| gateway.addresses.contains(&address.ip()))
}

fn is_gateway_mac(view: &View<'_>, mac: MacAddr) -> bool {
    view.network.gateway.as_ref().is_some_and(|gateway| gateway.mac == mac)
}

//! L2 learning bridge: picks the output port by destination MAC.
//!
//! A destination that is known goes to its port; broadcast, multicast and unknown ones are flooded to the other
//! ports of the network and VLAN, within the port's storm limit. Isolated ports reach the others and never one
//! another. What is for the router's MAC goes on to the routing stages; a network that is only bridged has no router.
//! On the uplink and towards the host nothing is bridged: the device is the host's, and so is what is not for us.

use packet::header::ethertype;

use crate::drop_reason::DropReason;
use crate::flow_cache::{TagAction, Transform};
use crate::snapshot::DomainKind;
use crate::tables::StationKey;
use crate::walk::{Decision, Effect, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let mac = packet.destination();
    if view.snapshot.router_mac(packet.from) == Some(mac) {
        return route(packet, view, walk);
    }
    if view.network.gateway.as_ref().is_some_and(|gateway| gateway.mac == mac) {
        return Step::Drop(DropReason::NoRoute);
    }
    match view.snapshot.kind(walk.network) {
        DomainKind::Inside => {}
        DomainKind::Uplink => return walk.hand_back(view),
        DomainKind::Host => return Step::Drop(DropReason::NoListener),
    }
    let known = if mac.is_multicast() {
        None
    } else {
        view.tables.fdb.find(StationKey { network: walk.network, vlan: walk.vlan, mac })
    };
    // A port's number may belong to another network by now, and the station not be forgotten yet.
    let is_here = |port| view.snapshot.port(port).is_none_or(|port| port.network == walk.network);
    let Some(found) = known.filter(|found| is_here(found.port)) else { return flood(packet, view, walk) };
    let there = view.snapshot.port(found.port);
    if view.port.tunnel.is_some() && there.is_some_and(|port| port.tunnel.is_some()) {
        return Step::Drop(DropReason::SplitHorizon);
    }
    if found.port == packet.from {
        return Step::Drop(DropReason::SamePort);
    }
    if view.port.isolated && there.is_some_and(|port| port.isolated) {
        return Step::Drop(DropReason::Isolated);
    }
    let transform = Transform { to: found.port, tag: TagAction::Keep, vtep: found.vtep };
    walk.decision = Decision::Forward { transform, station: found.station };
    Step::Next
}

/// The frame is for the router: the next stages decide.
fn route(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    if packet.is_tagged() || view.port.vlan.untagged() != Some(walk.vlan) {
        walk.note(|| "only untagged frames are routed".to_owned());
        return Step::Drop(DropReason::Vlan);
    }
    match walk.headers {
        Some(_) => {
            walk.routed = true;
            walk.note(|| "for the router".to_owned());
            Step::Next
        }
        // An answer to our own question: `proxy` has read it.
        None if packet.ethertype() == ethertype::ARP => {
            walk.decision = Decision::Consume;
            Step::Done
        }
        None => Step::Drop(DropReason::Malformed),
    }
}

fn flood(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    if let Some(rate) = view.port.storm {
        if !view.tables.storm(packet.from).has_token(rate, view.now) {
            return Step::Drop(DropReason::Storm);
        }
        walk.then(Effect::StormToken { rate });
    }
    walk.decision = Decision::Flood;
    Step::Done
}

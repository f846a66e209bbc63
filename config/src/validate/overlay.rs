//! `[overlay]`, `[[peer]]`, `[[remote]]`, and what makes a network one of several hosts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use packet::MacAddr;

use super::network::{overlap, special, unusable};
use super::{At, Checker};
use crate::document::Network;
use crate::overlay::{OverlayPeer, PeerMode, Remote};

/// Identifiers have 24 bits (RFC 7348, 5).
const VNI_MAX: u32 = (1 << 24) - 1;
/// Prefixes behind a peer; each is compared with the network's subnets.
const SUBNETS_MAX: usize = 256;

pub(super) fn check(checker: &mut Checker<'_>) {
    overlay(checker);
    networks(checker);
    let document = checker.document;
    let known: HashMap<&str, &Network> =
        document.networks.iter().map(|network| (network.name.as_str(), network)).collect();
    checker.unique_objects(&document.peers, "address", "one peer an address and network");
    for (index, peer) in document.peers.iter().enumerate() {
        self::peer(checker, &At::item("peer", index), peer, &known);
    }
    remotes(checker, &known);
    room(checker);
}

fn overlay(checker: &mut Checker<'_>) {
    let overlay = &checker.document.overlay;
    let at = |key| At::of("overlay", key);
    for (index, local) in overlay.local.iter().enumerate() {
        let at = if overlay.local.len() == 1 { at("local") } else { at("local").index(index) };
        if overlay.local[..index].iter().any(|other| other.is_ipv4() == local.is_ipv4()) {
            checker.wrong(&at, format!("{local} is the second of its family"));
        }
        host(checker, &at, *local, false);
    }
    for (index, peer) in overlay.peers.iter().enumerate() {
        let at = if overlay.peers.len() == 1 { at("peers") } else { at("peers").index(index) };
        host(checker, &at, *peer, true);
    }
    let mut seen = HashSet::new();
    if let Some(index) = overlay.peers.iter().position(|peer| !seen.insert(peer)) {
        checker.wrong(&at("peers").index(index), format!("{} is given twice", overlay.peers[index]));
    }
    checker.range(&at("port"), overlay.port, 1..=u16::MAX);
    checker.range(&at("learn"), overlay.learn, 0..=checker.document.limits.vteps);
    checker.range(&at("ttl"), overlay.ttl, 1..=u8::MAX);
    if overlay.source_ports.first < 1024 {
        checker.wrong(&at("source_ports"), format!("{} does not fit", overlay.source_ports));
    }
}

/// Checks the address of a host in the underlay.
fn host(checker: &mut Checker<'_>, at: &At, address: IpAddr, is_other: bool) {
    if let Some(what) = special(&IpNet::from(address)) {
        checker.wrong(at, format!("{address} {what}"));
    } else if is_other && checker.document.overlay.local.contains(&address) {
        checker.wrong(at, format!("{address} is this host's own, `[overlay] local`"));
    }
}

fn networks(checker: &mut Checker<'_>) {
    let document = checker.document;
    let mut seen = HashMap::new();
    for (index, network) in document.networks.iter().enumerate() {
        let at = At::item("network", index);
        if let Some(port) = network.vxlan_port {
            checker.range(&at.key("vxlan_port"), port, 1..=u16::MAX);
            if network.vni.is_none() {
                checker.wrong(&at.key("vxlan_port"), "a network without `vni` has no tunnels");
            }
        }
        let Some(vni) = network.vni else { continue };
        checker.range(&at.key("vni"), vni, 0..=VNI_MAX);
        if let Some(other) = seen.insert((document.overlay.port_of(network), vni), &network.name) {
            checker.wrong(&at.key("vni"), format!("{vni} is that of network '{other}'"));
        }
    }
}

/// Returns the network of that name, which has tunnels; reports when it is none.
fn tunnelled<'n>(
    checker: &mut Checker<'_>,
    at: &At,
    name: &str,
    known: &HashMap<&str, &'n Network>,
) -> Option<&'n Network> {
    let Some(network) = known.get(name).copied() else {
        checker.dangling(at, "network", name, checker.document.networks.iter().map(|n| n.name.as_str()));
        return None;
    };
    if network.vni.is_none() {
        checker.wrong(at, format!("network '{name}' has no `vni`: it stays on this host"));
        return None;
    }
    Some(network)
}

fn peer(checker: &mut Checker<'_>, at: &At, peer: &OverlayPeer, known: &HashMap<&str, &Network>) {
    host(checker, &at.key("address"), peer.address, true);
    let listed = checker.document.overlay.peers.contains(&peer.address);
    if listed && peer.network.is_none() && peer.mode == PeerMode::Vxlan {
        checker.wrong(&at.key("address"), format!("{} is in `[overlay] peers` already", peer.address));
    }
    if peer.mac.is_some_and(|mac| !mac.is_station()) {
        checker.wrong(&at.key("mac"), "it is no address of one station");
    }
    let subnets = at.key("subnets");
    if !checker.few(&subnets, &peer.subnets, SUBNETS_MAX) {
        return;
    }
    let mut clean = true;
    for (index, subnet) in peer.subnets.iter().enumerate() {
        clean &= checker.host_bits(&subnets.index(index), subnet);
    }
    match peer.mode {
        PeerMode::Vxlan => {
            let network = match &peer.network {
                Some(name) => tunnelled(checker, &at.key("network"), name, known),
                None if peer.subnets.is_empty() => None,
                None => {
                    let message = "it is not said in which network they are";
                    return checker.wrong_but(&subnets, message, Some("none, or `network`".to_owned()));
                }
            };
            let own = network.map_or(&[][..], |network| &network.subnets);
            for (index, subnet) in peer.subnets.iter().enumerate().filter(|_| clean) {
                if let Some(near) = own.iter().find(|near| near.contains(subnet)) {
                    checker.wrong(
                        &subnets.index(index),
                        format!("{subnet} is in {near}, whose stations are on the link: they need no route"),
                    );
                }
            }
        }
        PeerMode::Routed => {
            let none = |what: &str| Some(format!("no `{what}`, or mode \"vxlan\""));
            if peer.subnets.is_empty() {
                checker.wrong_but(
                    &at.key("mode"),
                    "nothing is behind it",
                    Some("`subnets`, or mode \"vxlan\"".to_owned()),
                );
            }
            if peer.network.is_some() {
                checker.wrong_but(&at.key("network"), "a router is every network's", none("network"));
            }
            if peer.mac.is_some() {
                checker.wrong_but(&at.key("mac"), "a router is asked for its own", none("mac"));
            }
            let family = peer.address.is_ipv4();
            let all = &checker.document.networks;
            for (index, subnet) in peer.subnets.iter().enumerate().filter(|_| clean) {
                let at = subnets.index(index);
                if subnet.addr().is_ipv4() != family {
                    checker.wrong(&at, format!("{subnet} is not of the family of {}", peer.address));
                } else if let Some(here) =
                    all.iter().find(|n| n.subnets.iter().any(|own| overlap(own, subnet)))
                {
                    checker.wrong(&at, format!("{subnet} overlaps with network '{}'", here.name));
                }
            }
        }
    }
}

fn remotes(checker: &mut Checker<'_>, known: &HashMap<&str, &Network>) {
    let document = checker.document;
    checker.unique_objects(&document.remotes, "address", "one remote a network and address");
    let ports = document.ports.iter();
    let macs: HashMap<(&str, MacAddr), &str> = ports
        .clone()
        .filter_map(|port| Some(((port.network.as_str(), port.mac?), port.name.as_str())))
        .collect();
    let addresses: HashMap<(&str, IpAddr), &str> = ports
        .flat_map(|port| port.addresses.iter().map(|a| ((port.network.as_str(), *a), port.name.as_str())))
        .collect();
    let mut places: HashMap<(&str, MacAddr), IpAddr> = HashMap::new();
    for (index, remote) in document.remotes.iter().enumerate() {
        let at = At::item("remote", index);
        let Remote { network, address, mac, vtep } = remote;
        host(checker, &at.key("vtep"), *vtep, true);
        if !mac.is_station() {
            checker.wrong(&at.key("mac"), format!("{mac} is no address of one station"));
        }
        let Some(network) = tunnelled(checker, &at.key("network"), network, known) else { continue };
        let name = network.name.as_str();
        if let Some(port) = macs.get(&(name, *mac)) {
            checker.wrong(&at.key("mac"), format!("{mac} is the address of port '{port}' of this host"));
        }
        if let Some(port) = addresses.get(&(name, *address)) {
            checker
                .wrong(&at.key("address"), format!("{address} is the address of port '{port}' of this host"));
        }
        let at_address = at.key("address");
        match network.subnet_of(*address) {
            None => checker.wrong_but(
                &at_address,
                format!("{address} is in no subnet of the network"),
                super::network::list(network),
            ),
            Some(subnet) => {
                if let Some(why) = unusable(*address, &subnet) {
                    checker.wrong(&at_address, why);
                } else if network.gateway_addresses().contains(address) {
                    checker.wrong(&at_address, format!("{address} is the gateway, which is on every host"));
                }
            }
        }
        let place = places.entry((name, *mac)).or_insert(*vtep);
        if place != vtep {
            checker.wrong_but(
                &at.key("vtep"),
                format!("{mac} is behind {place} by another [[remote]]"),
                Some("one host a station".to_owned()),
            );
        }
    }
}

/// Checks that the table has room for all endpoints.
fn room(checker: &mut Checker<'_>) {
    let document = checker.document;
    let peers = document.every_peer().filter(|peer| peer.mode == PeerMode::Vxlan);
    let mut ends: BTreeMap<IpAddr, HashSet<Option<String>>> = BTreeMap::new();
    for peer in peers {
        ends.entry(peer.address).or_default().insert(peer.network);
    }
    for remote in &document.remotes {
        let of = ends.entry(remote.vtep).or_default();
        if !of.contains(&None) {
            of.insert(Some(remote.network.clone()));
        }
    }
    let count: usize = ends.values().map(HashSet::len).sum();
    let limit = document.limits.vteps;
    if count > usize::from(limit) {
        let message = format!("{limit} have no room for the {count} endpoints of other hosts");
        checker.wrong_but(&At::of("limits", "vteps"), message, Some(format!("{count} to 32767")));
    }
}

//! What is around the switch, as compiler and steering programs are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use packet::{Address, PortId, Prefix};
use pipeline::HandBack;
use pipeline::answer::link_local;
use ports::steer::Rules;

use super::devices::wanted;
use super::publishing::with_ports;
use super::{Device, Outside, is_link_local};
use crate::compile::overlay::{Overlay, locals};
use crate::devices::follow::{HostState, Route, RouteKind};
use crate::intent::Intent;
use crate::manager::Manager;
use crate::surroundings::{HostTap, OutsideHop, OutsideRoute, Surroundings, UplinkPort};
use crate::uplink::{Way, relay_addresses};

impl Manager {
    /// Returns the addresses that the switch itself has at a device, with their prefix lengths: none at one that is shared.
    pub(super) fn own_networks(&self, device: &Device, state: &HostState) -> Vec<IpNet> {
        let wish = &self.saved.intent.settings.uplink;
        if device.way != Way::Dedicated {
            return Vec::new();
        }
        if !wish.addresses.is_empty() {
            return wish.addresses.clone();
        }
        let kernels = state.addresses.iter().filter(|(index, _)| *index == device.link.index);
        kernels.map(|(_, net)| *net).filter(|net| !is_link_local(net.addr())).collect()
    }

    /// Returns the addresses that the switch itself has at a device, its link-local one among them.
    pub(super) fn own_addresses(&self, device: &Device, state: &HostState) -> Vec<IpAddr> {
        let mut own: Vec<IpAddr> =
            self.own_networks(device, state).iter().map(|network| network.addr()).collect();
        if own.iter().any(IpAddr::is_ipv6) {
            own.push(link_local(device.link.mac).ip());
        }
        own
    }

    /// Says what is around the switch.
    pub(super) fn look_around(&self, outside: &Outside, state: &HostState) -> Surroundings {
        let dedicated =
            |index: u32| outside.devices.get(&index).is_some_and(|device| device.way == Way::Dedicated);
        let hosts = state.addresses.iter().filter(|(index, _)| !dedicated(*index));
        let usable = |address: &IpAddr| !address.is_loopback() && !is_link_local(*address);
        let own: BTreeSet<IpAddr> = hosts.map(|(_, net)| net.addr()).filter(usable).collect();
        let mut addresses: Vec<IpAddr> = own.into_iter().collect();
        let (v4, v6) = relay_addresses(&self.name);
        let relay = [IpAddr::from(v4), v6.into()];
        let host = outside.tap.as_ref().map(|(id, link)| {
            addresses.extend(relay);
            HostTap { id: *id, mac: link.mac, mtu: link.mtu, addresses: relay.to_vec() }
        });
        let uplinks = outside.devices.values().map(|device| UplinkPort {
            id: device.id,
            name: device.link.name.clone(),
            mac: device.link.mac,
            mtu: device.link.mtu,
            up: device.link.up,
            hand_back: match (device.way, device.back) {
                (Way::Dedicated, _) => HandBack::Nowhere,
                (_, Some(back)) => HandBack::By(back),
                (_, None) => HandBack::Here,
            },
            addresses: self.own_addresses(device, state),
            mode: device.mode.clone(),
            notes: device.fell_back.iter().chain(&device.notes).cloned().collect(),
        });
        // Those that the kernel knows at a device that is the switch's alone may be from before.
        let shared = |index: u32| Some(outside.devices.get(&index).filter(|_| !dedicated(index))?.id);
        let neighbors =
            state.neighbors.iter().filter_map(|(index, ip, mac)| Some((shared(*index)?, *ip, *mac)));
        addresses.sort();
        addresses.dedup();
        Surroundings {
            addresses,
            uplinks: uplinks.collect(),
            routes: self.outside_routes(outside, state),
            taken: outside.probing.taken().collect(),
            neighbors: neighbors.collect(),
            underlay_mtu: underlay_mtu(&self.saved.intent, state),
            path_mtus: self.paths.mtus(),
            host,
        }
    }

    /// Returns the ways outside: the host's, and at a device that is the switch's alone those of its own addresses and
    /// gateways.
    fn outside_routes(&self, outside: &Outside, state: &HostState) -> Vec<OutsideRoute> {
        let wish = &self.saved.intent.settings.uplink;
        let mut routes = routes(outside, state);
        if wish.addresses.is_empty() && wish.gateway.is_empty() {
            return routes;
        }
        for device in outside.devices.values().filter(|device| device.way == Way::Dedicated) {
            let networks = self.own_networks(device, state);
            let defaults = state.routes.iter().filter(|route| route.to.prefix_len() == 0);
            let hosts = defaults.filter(|route| route.device == device.link.index);
            let gateways: Vec<IpAddr> = match wish.gateway.as_slice() {
                [] => hosts.filter_map(|route| route.via).collect(),
                given => given.to_vec(),
            };
            routes.retain(|route| route.hops.iter().all(|hop| hop.port != device.id));
            routes.extend(own_routes(device.id, &networks, &gateways));
        }
        routes
    }

    /// Returns the tunnels that end here: our addresses, UDP ports, and identifiers.
    fn tunnels(&self) -> Vec<(Address, u16, u32)> {
        let intent = &self.saved.intent;
        let locals = locals(&Overlay::of(intent), &self.surroundings);
        let networks = intent.networks.values().map(|network| &network.object);
        let ids =
            networks.filter_map(|network| Some((intent.settings.overlay.port_of(network), network.vni?)));
        ids.flat_map(|(port, vni)| locals.iter().map(move |local| ((*local).into(), port, vni))).collect()
    }

    /// Tells the programs at the devices which packets are the switch's.
    pub(super) async fn steer(&self, outside: &Outside) -> anyhow::Result<()> {
        let intent = &self.saved.intent;
        let around = &self.surroundings;
        let is_host = |address: &IpAddr| around.addresses.contains(address);
        let mut floating: BTreeSet<IpAddr> =
            intent.floating_ips.values().map(|floating| floating.object.address).collect();
        let mut snat: Vec<(Address, std::ops::RangeInclusive<u16>)> = Vec::new();
        for egress in intent.egresses.values().map(|egress| &egress.object) {
            for address in &egress.address {
                if is_host(address) {
                    snat.push(((*address).into(), egress.ports.first..=egress.ports.last));
                } else {
                    floating.insert(*address);
                }
            }
        }
        // Answers about addresses that the switch would like to have.
        floating.extend(&outside.probing.candidates);
        let range = intent.settings.uplink.ports;
        let dedicated = |device: &Device| device.way == Way::Dedicated;
        let is_shared = |port| outside.devices.values().any(|device| device.id == port && !dedicated(device));
        let hops = around.routes.iter().flat_map(|route| &route.hops).filter(|hop| is_shared(hop.port));
        let sources: BTreeSet<IpAddr> = hops.filter_map(|hop| hop.source).collect();
        snat.extend(sources.iter().map(|source| ((*source).into(), range.first..=range.last)));
        let mut published = Vec::new();
        // Not by `publishes`, which does not find the ports chosen by chance while the outside is in our hands.
        for publish in with_ports(intent, |publish| outside.chosen(&config::Object::name(publish))) {
            let ports = publish.listen.ports;
            let listens = around.addresses.iter().filter(|address| publish.listen.covers(**address));
            for address in listens.copied() {
                let range = ports.first..=ports.last;
                published.push((address.into(), publish.listen.protocol.number(), range));
            }
        }
        let routed = intent.networks.values().map(|network| &network.object);
        // Routers of the overlay send to all networks with their packets' own addresses.
        let has_routers = Overlay::of(intent).routers().next().is_some();
        let routed = routed.filter(|network| (!network.masquerade || has_routers) && !network.internal);
        let routed = routed.flat_map(|network| &network.subnets);
        let groups: Vec<std::net::Ipv6Addr> = floating
            .iter()
            .filter_map(|address| match address {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            })
            .collect();
        let rules = Rules {
            floating: floating.into_iter().map(Address::from).collect(),
            published,
            snat,
            routed: routed.filter_map(|net| Prefix::new(net.network().into(), net.prefix_len())).collect(),
            tunnels: self.tunnels(),
        };
        let reserve = rules.snat.iter().map(|(_, range)| range.clone());
        let reserve: Vec<_> =
            reserve.chain(rules.published.iter().map(|(_, _, range)| range.clone())).collect();
        if outside.devices.is_empty() {
            outside.uplink.reserve(Vec::new()).await?;
            return Ok(());
        }
        outside.uplink.set_rules(rules).await?;
        let state = outside.host.borrow().clone();
        for (index, device) in &outside.devices {
            let own = self.own_addresses(device, &state);
            let own = own.into_iter().filter_map(|address| match address {
                IpAddr::V6(v6) => Some(v6),
                IpAddr::V4(_) => None,
            });
            outside.uplink.set_groups(*index, groups.iter().copied().chain(own).collect()).await?;
        }
        outside.uplink.reserve(reserve).await?;
        Ok(())
    }
}

/// Returns the MTU of the underlay: the smallest of the devices by which the host reaches its peers, or of all that lead
/// outside when nobody is given.
pub(in crate::manager) fn underlay_mtu(intent: &Intent, state: &HostState) -> Option<u32> {
    let devices = wanted(&intent.settings.uplink, state);
    let overlay = Overlay::of(intent);
    let towards = |end: IpAddr| {
        let by_us = |route: &&Route| route.kind == RouteKind::Unicast && devices.contains(&route.device);
        state.routes.iter().filter(by_us).find(|route| route.to.contains(&end)).map(|route| route.device)
    };
    let used: BTreeSet<u32> = overlay.ends().filter_map(towards).collect();
    let used = if used.is_empty() { devices } else { used };
    used.iter().filter_map(|index| Some(state.link(*index)?.mtu)).min()
}

/// Returns the host's routes by the devices that are shared, one for each prefix: that of the smallest metric.
fn routes(outside: &Outside, state: &HostState) -> Vec<OutsideRoute> {
    let mut best: BTreeMap<IpNet, (u32, Vec<OutsideHop>)> = BTreeMap::new();
    for route in &state.routes {
        let Some(device) = outside.devices.get(&route.device) else { continue };
        if route.kind != RouteKind::Unicast || !device.link.up {
            continue;
        }
        let source = route.source.or_else(|| source(state, route.device, route.via, route.to));
        let hop = OutsideHop { port: device.id, via: route.via, source };
        let entry = best.entry(route.to).or_insert_with(|| (route.metric, Vec::new()));
        if route.metric < entry.0 {
            *entry = (route.metric, Vec::new());
        }
        if route.metric == entry.0 {
            entry.1.push(hop);
        }
    }
    best.into_iter().map(|(to, (_, hops))| OutsideRoute { to, hops }).collect()
}

/// Returns the routes of a device with these addresses and gateways.
fn own_routes(port: PortId, networks: &[IpNet], gateways: &[IpAddr]) -> Vec<OutsideRoute> {
    let on_link = networks.iter().map(|network| OutsideRoute {
        to: network.trunc(),
        hops: vec![OutsideHop { port, via: None, source: Some(network.addr()) }],
    });
    let beyond = gateways.iter().map(|gateway| {
        let mut family = networks.iter().filter(|network| network.addr().is_ipv4() == gateway.is_ipv4());
        let near = family.clone().find(|network| network.contains(gateway)).or_else(|| family.next());
        let hop = OutsideHop { port, via: Some(*gateway), source: near.map(IpNet::addr) };
        OutsideRoute { to: everything(gateway.is_ipv4()), hops: vec![hop] }
    });
    on_link.chain(beyond).collect()
}

fn everything(v4: bool) -> IpNet {
    if v4 { "0.0.0.0/0" } else { "::/0" }.parse().expect("a constant")
}

/// Returns the address that the host would send from by a device: one in the next hop's subnet, else the first of the
/// family that is no link-local one.
fn source(state: &HostState, device: u32, via: Option<IpAddr>, to: IpNet) -> Option<IpAddr> {
    let own = state.addresses.iter().filter(|(index, net)| {
        let link_local = matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        *index == device && net.addr().is_ipv4() == to.addr().is_ipv4() && !link_local
    });
    let own: Vec<IpNet> = own.map(|(_, net)| *net).collect();
    let near = via.unwrap_or_else(|| to.addr());
    own.iter().find(|net| net.contains(&near)).or_else(|| own.first()).map(IpNet::addr)
}

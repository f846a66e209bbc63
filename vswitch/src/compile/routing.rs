//! Routing domains: of the configured networks, of the outside, and of the host.

use std::collections::BTreeMap;
use std::net::IpAddr;

use config::{Network, RouteKind};
use ipnet::IpNet;
use packet::{Address, MacAddr, NetworkId, PortId, Prefix};
use pipeline::answer::link_local;
use pipeline::policy::{Identity, Peer, Rule};
use pipeline::tables::NeighborKey;
use pipeline::{
    DomainKind, DomainSpec, Gateway, Hop, NetworkInfo, PortInfo, Route, RouterSpec, Translations,
};

use super::{Neighbors, Plan, made_mac, overlay};
use crate::surroundings::OutsideHop;

/// Returns a prefix as the pipeline has it.
pub(super) fn prefix(net: IpNet) -> Option<Prefix> {
    Prefix::new(net.network().into(), net.prefix_len())
}

/// The neighbours of a route whose destinations are on the link.
fn on_link() -> Route {
    Route::Hops(vec![Hop::default()])
}

/// Returns the domains of all networks that are routed: those with a gateway, the outside, and the host.
pub(super) fn domains(
    plan: &Plan<'_>,
    rules: &[Rule],
    translations: &Translations,
) -> Vec<(NetworkId, DomainSpec)> {
    let mut domains = Vec::new();
    for (id, network) in &plan.networks {
        if network.gateway_addresses().is_empty() {
            continue;
        }
        let translated = translations.list().iter().any(|translation| translation.network == *id);
        domains.push((
            *id,
            DomainSpec {
                kind: DomainKind::Inside,
                routes: inside_routes(plan, network),
                masquerade: network.masquerade,
                internal: network.internal,
                host: joins_host(plan, network),
                tracked: translated || is_ruled(plan, *id, rules),
            },
        ));
    }
    if !plan.surroundings.uplinks.is_empty() {
        domains.push((plan.uplink(), uplink(plan)));
    }
    if plan.surroundings.host.is_some() {
        let routes = plan.surroundings.addresses.iter();
        let routes = routes.map(|address| (Prefix::host((*address).into()), on_link()));
        let routes = routes.chain(own_outside(plan)).collect();
        let spec = DomainSpec { kind: DomainKind::Host, routes, host: true, ..DomainSpec::default() };
        domains.push((plan.host(), spec));
    }
    domains
}

fn inside_routes(plan: &Plan<'_>, network: &Network) -> Vec<(Prefix, Route)> {
    let mut routes: Vec<_> =
        network.subnets.iter().filter_map(|subnet| Some((prefix(*subnet)?, on_link()))).collect();
    for route in plan.routes.iter().filter(|route| route.network == network.name) {
        for (net, hops) in route.prefixes() {
            let Some(prefix) = prefix(net) else { continue };
            let hops = hops.iter().map(|hop| Hop { via: (*hop).into(), ..Hop::default() });
            let route = match route.kind {
                RouteKind::Unicast => Route::Hops(hops.collect()),
                RouteKind::Blackhole => Route::Blackhole,
                RouteKind::Unreachable => Route::Unreachable,
                RouteKind::Prohibit => Route::Prohibit,
            };
            routes.push((prefix, route));
        }
    }
    routes.extend(overlay::routes(plan, network));
    let addresses = network.gateway_addresses();
    if addresses.iter().any(IpAddr::is_ipv6) {
        routes.push((Prefix::host(link_local(made_mac("gateway", &network.name))), Route::Local));
    }
    routes.extend(addresses.iter().map(|address| (Prefix::host((*address).into()), Route::Local)));
    if !network.internal {
        routes.extend(own_outside(plan));
    }
    routes
}

fn uplink(plan: &Plan<'_>) -> DomainSpec {
    let hop = |hop: &OutsideHop| Hop {
        port: Some(hop.port),
        via: hop.via.map_or(Address::UNSPECIFIED, Address::from),
        source: hop.source.map_or(Address::UNSPECIFIED, Address::from),
    };
    let routes = plan.surroundings.routes.iter();
    let routes = routes
        .filter_map(|route| Some((prefix(route.to)?, Route::Hops(route.hops.iter().map(hop).collect()))));
    let routes = routes.chain(overlay::outside_routes(plan)).chain(own_outside(plan)).collect();
    DomainSpec { kind: DomainKind::Uplink, routes, ..DomainSpec::default() }
}

/// Returns that the switch's own addresses outside are its own.
fn own_outside(plan: &Plan<'_>) -> impl Iterator<Item = (Prefix, Route)> {
    plan.surroundings.own_addresses().map(|own| (Prefix::host(own.into()), Route::Local))
}

/// Says whether the host and a network reach each other: it has a way to the host, and the host one to it alone.
pub fn joins_host(plan: &Plan<'_>, network: &Network) -> bool {
    network.host && !network.internal && !network.isolated && !overlaps(plan, network)
}

/// Says whether an address of the network may be one of another.
fn overlaps(plan: &Plan<'_>, network: &Network) -> bool {
    let others = plan.networks.iter().filter(|(_, other)| other.name != network.name);
    others.flat_map(|(_, other)| &other.subnets).any(|a| network.subnets.iter().any(|b| overlap(*a, *b)))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Says whether a rule may decide between two stations of the network.
fn is_ruled(plan: &Plan<'_>, id: NetworkId, rules: &[Rule]) -> bool {
    let members: Vec<Identity> = plan
        .members
        .iter()
        .filter(|member| plan.network(&member.port.network).is_some_and(|(of, _)| of == id))
        .map(|member| Identity::port(member.id))
        .chain([Identity::network(id)])
        .collect();
    let is_here = |peer: &Peer| match peer {
        Peer::Any | Peer::Prefixes(_) => true,
        Peer::Identities(named) => named.iter().any(|identity| members.contains(identity)),
    };
    rules.iter().any(|rule| is_here(&rule.from) && is_here(&rule.to))
}

/// Returns what all domains share.
pub(super) fn router(plan: &Plan<'_>) -> RouterSpec {
    let mut subnets = Vec::new();
    for (id, network) in &plan.networks {
        if !overlaps(plan, network) && !network.gateway_addresses().is_empty() {
            subnets.extend(network.subnets.iter().filter_map(|subnet| Some((prefix(*subnet)?, *id))));
        }
    }
    let host = plan.surroundings.host.as_ref();
    let own: Vec<Address> =
        host.map_or_else(Vec::new, |host| host.addresses.iter().map(|a| Address::from(*a)).collect());
    RouterSpec {
        uplink: (!plan.surroundings.uplinks.is_empty()).then(|| plan.uplink()),
        host: host.map(|_| plan.host()),
        subnets,
        relay: own.clone(),
        host_service: own,
    }
}

/// Returns the network of the outside or of the host.
pub(super) fn outer_network(plan: &Plan<'_>, id: NetworkId) -> NetworkInfo {
    let (mac, addresses) = if id == plan.uplink() {
        let floating = plan.floating_ips.iter().map(|floating| floating.address);
        let egress = plan.egresses.iter().flat_map(|egress| egress.address.iter().copied());
        let mut addresses: Vec<IpAddr> = floating.chain(egress).collect();
        // The host answers for its own.
        addresses.retain(|address| !plan.surroundings.addresses.contains(address));
        addresses.sort();
        addresses.dedup();
        // First the own ones: questions are asked from these.
        addresses.splice(0..0, plan.surroundings.own_addresses());
        addresses.retain(|address| !plan.surroundings.taken.contains(address));
        // Each device has its own MAC.
        (MacAddr::ZERO, addresses)
    } else {
        (made_mac("gateway", "host"), Vec::new())
    };
    NetworkInfo { gateway: Some(Gateway { mac, addresses }), ..NetworkInfo::new() }
}

/// Returns the ports of the outside and of the host.
pub(super) fn outer_ports(plan: &Plan<'_>) -> BTreeMap<PortId, PortInfo> {
    let uplinks = plan.surroundings.uplinks.iter().map(|uplink| {
        let info = PortInfo {
            up: uplink.up,
            mtu: uplink.mtu,
            router_mac: Some(uplink.mac),
            host_resolves: uplink.is_shared(),
            hand_back: uplink.hand_back,
            // Who comes from outside shares one port: half of the table is for everybody else.
            half_open: plan.limits.connections / 4,
            ..PortInfo::new(plan.uplink())
        };
        (uplink.id, info)
    });
    let host = plan.surroundings.host.iter().map(|host| {
        let info = PortInfo { mtu: host.mtu, ..PortInfo::new(plan.host()) };
        (host.id, info)
    });
    uplinks.chain(host).collect()
}

/// Returns who is where outside, and that the host is behind its tap.
pub(super) fn outer_neighbors(plan: &Plan<'_>) -> Neighbors {
    let around = plan.surroundings;
    let outside = around.neighbors.iter().map(|(port, address, mac)| {
        let key = NeighborKey { network: plan.uplink(), port: Some(*port), address: (*address).into() };
        (key, (*mac, (*port).into()))
    });
    let host = around.host.iter().flat_map(|host| {
        around.addresses.iter().map(|address| {
            let key = NeighborKey { network: plan.host(), port: None, address: (*address).into() };
            (key, (host.mac, host.id.into()))
        })
    });
    outside.chain(host).collect()
}

//! The overlay: tunnels of the networks that have an identifier, endpoints of other hosts, and what is behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use config::{Mtu, Network, OuterChecksum, OuterDscp, OverlayPeer, PeerMode, Remote, router_mac};
use ipnet::IpNet;
use packet::{NetworkId, PortId, Prefix, VlanId, Vni, VtepId};
use pipeline::tables::{At, NeighborKey, StationKey, VtepKey};
use pipeline::{Dscp, Hop, NetworkInfo, OverlayInfo, PortInfo, Route, TunnelInfo, mtu_within};

use super::routing::prefix;
use super::{Neighbors, Plan};
use crate::intent::Intent;
use crate::manager::outside::NUMBERS;
use crate::surroundings::{OutsideHop, Surroundings};

/// The numbers of the endpoints that are given, for the plan that needs them.
pub type Endpoints = BTreeMap<VtepKey, VtepId>;

/// The underlay's MTU while nothing is known of it: Ethernet's.
const USUAL_MTU: u32 = 1500;
/// The smallest MTU that a network gets by itself (RFC 791).
const LEAST_MTU: u32 = 68;

/// What is configured of the overlay.
#[derive(Clone, Debug)]
pub struct Overlay<'i> {
    settings: &'i config::Overlay,
    peers: Vec<OverlayPeer>,
    remotes: Vec<&'i Remote>,
}

impl<'i> Overlay<'i> {
    /// Returns that of an intent.
    pub fn of(intent: &'i Intent) -> Self {
        let settings = &intent.settings.overlay;
        let peers = settings.listed().chain(intent.peers.values().map(|peer| peer.object.clone())).collect();
        Self { settings, peers, remotes: intent.remotes.values().map(|remote| &remote.object).collect() }
    }

    /// Returns an overlay of nobody.
    pub fn empty(settings: &'i config::Overlay) -> Self {
        Self { settings, peers: Vec::new(), remotes: Vec::new() }
    }

    /// Returns the addresses of the other hosts that are reached by tunnel.
    pub fn ends(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ends_of(None)
    }

    /// Returns those that take part in one network, or in any.
    fn ends_of<'a>(&'a self, network: Option<&'a str>) -> impl Iterator<Item = IpAddr> + 'a {
        let is_meant = move |of: Option<&str>| network.is_none() || of.is_none() || of == network;
        let peers = self.peers.iter().filter(|peer| peer.mode == PeerMode::Vxlan);
        let peers = peers.filter(move |peer| is_meant(peer.network.as_deref())).map(|peer| peer.address);
        let remotes = self.remotes.iter().filter(move |remote| is_meant(Some(&remote.network)));
        peers.chain(remotes.map(|remote| remote.vtep))
    }

    /// Says of which families the underlay of a network is: IPv4, IPv6. Without peers it is that of our own ends.
    fn families(&self, network: &str) -> (bool, bool) {
        let mut ends: Vec<IpAddr> = self.ends_of(Some(network)).collect();
        if ends.is_empty() {
            ends.clone_from(&self.settings.local);
        }
        (ends.iter().any(IpAddr::is_ipv4) || ends.is_empty(), ends.iter().any(IpAddr::is_ipv6))
    }

    /// Returns the peers that are routers for what is behind them.
    pub fn routers(&self) -> impl Iterator<Item = &OverlayPeer> {
        self.peers.iter().filter(|peer| peer.mode == PeerMode::Routed)
    }

    /// Returns the largest packet in a network, over an underlay with that MTU.
    pub fn network_mtu(&self, network: &Network, underlay: Option<u32>) -> u16 {
        if network.vni.is_none() || network.mtu != Mtu::Auto {
            return network.mtu.bytes();
        }
        let mtu = self.tunnel_mtu(network, underlay).clamp(LEAST_MTU, u16::MAX.into());
        u16::try_from(mtu).expect("clamped")
    }

    /// Returns the network with its MTU as it is used.
    pub fn resolved(&self, network: &Network, underlay: Option<u32>) -> Network {
        Network { mtu: Mtu::Bytes(self.network_mtu(network, underlay)), ..network.clone() }
    }

    /// Returns the largest packet that the tunnels of a network take: what its peers' ways do.
    fn way_mtu(&self, network: &Network, around: &Surroundings) -> u32 {
        let paths = self.ends_of(Some(&network.name)).filter_map(|end| around.path_mtus.get(&end).copied());
        let least = paths.chain(around.underlay_mtu).min();
        self.tunnel_mtu(network, least)
    }

    fn tunnel_mtu(&self, network: &Network, underlay: Option<u32>) -> u32 {
        let (_, v6) = self.families(&network.name);
        mtu_within(underlay.unwrap_or(USUAL_MTU), v6)
    }
}

/// Returns the number of a network's tunnel: behind those of the outside.
pub fn tunnel(limits: &config::Limits, network: NetworkId) -> PortId {
    PortId(limits.ports + NUMBERS + network.0)
}

/// Returns the endpoints that there are to be, given the numbers of networks.
pub fn endpoints(plan: &Plan<'_>) -> BTreeSet<VtepKey> {
    let has_tunnel = |id: &NetworkId| plan.networks.iter().any(|(of, n)| of == id && n.vni.is_some());
    let key = |network: Option<&str>, address: IpAddr| {
        let network = match network {
            None => None,
            Some(name) => Some(plan.network(name).map(|(id, _)| id).filter(has_tunnel)?),
        };
        Some(VtepKey { network, address: address.into() })
    };
    let peers = plan.overlay.peers.iter().filter(|peer| peer.mode == PeerMode::Vxlan);
    let mut keys: BTreeSet<VtepKey> =
        peers.filter_map(|peer| key(peer.network.as_deref(), peer.address)).collect();
    for remote in &plan.overlay.remotes {
        // Who is a peer in every network is one in this, too.
        if !keys.contains(&VtepKey { network: None, address: remote.vtep.into() }) {
            keys.extend(key(Some(&remote.network), remote.vtep));
        }
    }
    keys
}

/// Returns our own ends: as given, or the addresses that the host has towards the peers.
pub fn locals(overlay: &Overlay<'_>, surroundings: &Surroundings) -> Vec<IpAddr> {
    if !overlay.settings.local.is_empty() {
        return overlay.settings.local.clone();
    }
    let towards = |v4: bool| {
        let mut ends = overlay.ends().filter(|end| end.is_ipv4() == v4).peekable();
        if ends.peek().is_none() {
            // Nobody is given: whoever comes is learned.
            let mut all = surroundings.routes.iter().flat_map(|route| &route.hops);
            return all.find_map(|hop| hop.source.filter(|source| source.is_ipv4() == v4));
        }
        ends.find_map(|end| way(surroundings, end)?.source)
    };
    [true, false].into_iter().filter_map(towards).collect()
}

/// Returns the next hop towards an address outside.
pub fn way(surroundings: &Surroundings, to: IpAddr) -> Option<&OutsideHop> {
    let routes = surroundings.routes.iter().filter(|route| route.to.contains(&to));
    routes.max_by_key(|route| route.to.prefix_len())?.hops.first()
}

/// Returns what all tunnels have in common; `None` without tunnels, or without an address of ours.
pub(super) fn info(plan: &Plan<'_>) -> Option<OverlayInfo> {
    let settings = plan.overlay.settings;
    if plan.surroundings.uplinks.is_empty() || plan.networks.iter().all(|(_, n)| n.vni.is_none()) {
        return None;
    }
    let locals = locals(&plan.overlay, plan.surroundings);
    if locals.is_empty() {
        return None;
    }
    let info = OverlayInfo::new(plan.uplink(), locals.into_iter().map(Into::into).collect());
    let (checksum_v4, checksum_v6) = match settings.checksum {
        OuterChecksum::Auto => (info.checksum_v4, info.checksum_v6),
        OuterChecksum::Full => (true, true),
        OuterChecksum::None => (false, false),
    };
    Some(OverlayInfo {
        ttl: settings.ttl,
        dscp: match settings.dscp {
            OuterDscp::Inherit => Dscp::Inherit,
            OuterDscp::Fixed(dscp) => Dscp::Fixed(dscp),
        },
        checksum_v4,
        checksum_v6,
        source_ports: (settings.source_ports.first, settings.source_ports.last),
        ..info
    })
}

/// Returns the tunnels of the networks that have an identifier.
pub(super) fn ports<'p>(plan: &'p Plan<'_>) -> impl Iterator<Item = (PortId, PortInfo)> + 'p {
    let locals = locals(&plan.overlay, plan.surroundings);
    let settings = plan.overlay.settings;
    plan.networks.iter().filter_map(move |(id, network)| {
        // Peers know us by our address of their family.
        let (v4, _) = plan.overlay.families(&network.name);
        let own = locals.iter().find(|local| local.is_ipv4() == v4).or_else(|| locals.first());
        let info = PortInfo {
            mtu: plan.overlay.way_mtu(network, plan.surroundings),
            router_mac: own.copied().map(router_mac),
            tunnel: Some(TunnelInfo {
                vni: Vni(network.vni?),
                udp_port: settings.port_of(network),
                learned_vteps: settings.learn.into(),
            }),
            stations: network.stations.unwrap_or(plan.limits.stations),
            ..PortInfo::new(*id)
        };
        Some((tunnel(plan.limits, *id), info))
    })
}

/// Returns the routes of a network to what is behind its peers: by way of the peer's address, which is the name of a
/// neighbour in the tunnel.
pub(super) fn routes<'p>(
    plan: &'p Plan<'_>,
    network: &'p Network,
) -> impl Iterator<Item = (Prefix, Route)> + 'p {
    let peers = plan
        .overlay
        .peers
        .iter()
        .filter(|peer| peer.mode == PeerMode::Vxlan && peer.network.as_deref() == Some(&network.name));
    peers.flat_map(|peer| {
        let hop = Hop { via: peer.address.into(), ..Hop::default() };
        let to = peer.subnets.iter().filter_map(|subnet: &IpNet| prefix(*subnet));
        to.map(move |to| (to, Route::Hops(vec![hop])))
    })
}

/// Returns the routes outside to what is behind routers: without an address that packets would be given, so that they keep
/// their own.
pub(super) fn outside_routes<'p>(plan: &'p Plan<'_>) -> impl Iterator<Item = (Prefix, Route)> + 'p {
    plan.overlay.routers().flat_map(|peer| {
        let hop = way(plan.surroundings, peer.address).map(|way| Hop {
            port: Some(way.port),
            via: way.via.unwrap_or(peer.address).into(),
            ..Hop::default()
        });
        let to = peer.subnets.iter().filter_map(|subnet| prefix(*subnet));
        to.filter_map(move |to| Some((to, Route::Hops(vec![hop?]))))
    })
}

/// Adds who is known to be behind other hosts.
pub(super) fn neighbors(
    plan: &Plan<'_>,
    networks: &mut BTreeMap<NetworkId, NetworkInfo>,
    neighbors: &mut Neighbors,
) {
    for remote in &plan.overlay.remotes {
        let Some((id, at)) = place(plan, &remote.network, remote.vtep) else { continue };
        let key = NeighborKey { network: id, port: None, address: remote.address.into() };
        neighbors.insert(key, (remote.mac, at));
        if let Some(info) = networks.get_mut(&id) {
            info.neighbors.insert(remote.address, pipeline::Neighbor { mac: remote.mac, port: at.port });
        }
    }
    for peer in plan.overlay.peers.iter().filter(|peer| !peer.subnets.is_empty()) {
        let Some(name) = &peer.network else { continue };
        let Some((id, at)) = place(plan, name, peer.address) else { continue };
        let key = NeighborKey { network: id, port: None, address: peer.address.into() };
        neighbors.insert(key, (peer.router_mac(), at));
    }
}

/// Returns the stations that are known to be behind other hosts.
pub fn stations<'p>(plan: &'p Plan<'_>) -> impl Iterator<Item = (StationKey, At)> + 'p {
    let remotes = plan.overlay.remotes.iter().map(|remote| (&remote.network, remote.mac, remote.vtep));
    remotes.filter_map(|(network, mac, vtep)| {
        let (id, at) = place(plan, network, vtep)?;
        Some((StationKey { network: id, vlan: VlanId::UNTAGGED, mac }, at))
    })
}

/// Returns where what is behind an endpoint is, in a network.
fn place(plan: &Plan<'_>, network: &str, vtep: IpAddr) -> Option<(NetworkId, At)> {
    let (id, network) = plan.network(network)?;
    network.vni?;
    let find = |network| plan.endpoints.get(&VtepKey { network, address: vtep.into() });
    let vtep = find(None).or_else(|| find(Some(id)))?;
    Some((id, At { port: tunnel(plan.limits, id), vtep: Some(*vtep) }))
}

//! From intent to snapshot: the one place where what an operator means becomes what a packet needs.
//!
//! [`Compiler`] keeps the pipeline's builder from one version to the next and sets only what differs, so a
//! change renews the decisions that it touches and no others. Defaults that span objects (a port's MTU is its
//! network's) are resolved here. The parts: routing domains, policies, and translations.

pub mod overlay;
mod policy;
mod routing;
#[cfg(test)]
mod tests;
mod translation;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use config::{Egress, FloatingIp, Limits, Network, Policy, Port, Publish, Route};
use packet::hash::fnv1a;
use packet::{MacAddr, NetworkId, PortId, VlanId};
use pipeline::answer::{RouterAdvert, link_local};
use pipeline::policy::{Hits, PolicySet};
use pipeline::tables::{At, NeighborKey};
use pipeline::{
    Domain, Gateway, Guard, Neighbor, NetworkInfo, OverlayInfo, PortInfo, Router, RouterSpec, Snapshot,
    SnapshotBuilder, Translations, VlanMode, VlanSet,
};

use crate::surroundings::Surroundings;

pub use overlay::{Endpoints, Overlay};
pub use routing::joins_host;

/// A port that has a number and queues.
#[derive(Clone, Debug)]
pub struct Member<'i> {
    /// Its number.
    pub id: PortId,
    /// What is configured.
    pub port: &'i Port,
    /// The far end's MAC.
    pub mac: MacAddr,
    /// Frames may pass.
    pub up: bool,
}

/// All that a snapshot follows from.
#[derive(Clone, Debug)]
pub struct Plan<'i> {
    /// The networks with their numbers.
    pub networks: Vec<(NetworkId, &'i Network)>,
    /// The ports that there are.
    pub members: Vec<Member<'i>>,
    /// Other hosts and what is behind them.
    pub overlay: Overlay<'i>,
    /// The numbers of their endpoints.
    pub endpoints: &'i Endpoints,
    /// Static routes.
    pub routes: Vec<&'i Route>,
    /// Floating IPs.
    pub floating_ips: Vec<&'i FloatingIp>,
    /// Published ports, each with the L4 port that was chosen for it where any would do.
    pub publishes: Vec<Publish>,
    /// Egress addresses.
    pub egresses: Vec<&'i Egress>,
    /// Policies.
    pub policies: Vec<&'i Policy>,
    /// `[daemon] publish_allow_from`.
    pub publish_allow_from: &'i [ipnet::IpNet],
    /// The L4 ports that masqueraded connections get.
    pub snat_ports: (u16, u16),
    /// The sizes of tables.
    pub limits: &'i Limits,
    /// What is around the switch.
    pub surroundings: &'i Surroundings,
}

impl<'i> Plan<'i> {
    /// Returns a plan with nothing in it.
    pub fn empty(limits: &'i Limits, surroundings: &'i Surroundings) -> Self {
        static NOBODY: LazyLock<(config::Overlay, Endpoints)> = LazyLock::new(Default::default);
        let (nobody, endpoints) = &*NOBODY;
        Self {
            networks: Vec::new(),
            members: Vec::new(),
            overlay: Overlay::empty(nobody),
            endpoints,
            routes: Vec::new(),
            floating_ips: Vec::new(),
            publishes: Vec::new(),
            egresses: Vec::new(),
            policies: Vec::new(),
            publish_allow_from: &[],
            snat_ports: (49152, 65535),
            limits,
            surroundings,
        }
    }

    /// Returns the number of the uplink's network: behind those that can be configured.
    pub fn uplink(&self) -> NetworkId {
        NetworkId(self.limits.networks)
    }

    /// Returns the number of the host's network.
    pub fn host(&self) -> NetworkId {
        NetworkId(self.limits.networks + 1)
    }

    /// Returns the largest packet in a network.
    fn mtu(&self, network: &Network) -> u16 {
        self.overlay.network_mtu(network, self.surroundings.underlay_mtu)
    }

    fn network(&self, name: &str) -> Option<(NetworkId, &'i Network)> {
        self.networks.iter().find(|(_, network)| network.name == name).copied()
    }

    fn member(&self, name: &str) -> Option<&Member<'i>> {
        self.members.iter().find(|member| member.port.name == name)
    }
}

/// Who is known to be where.
pub type Neighbors = BTreeMap<NeighborKey, (MacAddr, At)>;

/// Makes snapshots. See the module header.
#[derive(Debug, Default)]
pub struct Compiler {
    builder: SnapshotBuilder,
    networks: BTreeMap<NetworkId, NetworkInfo>,
    ports: BTreeMap<PortId, PortInfo>,
    host_addresses: HashSet<IpAddr>,
    overlay: Option<OverlayInfo>,
    router: RouterSpec,
    policy: Arc<PolicySet>,
    hits: Arc<Hits>,
    translations: Arc<Translations>,
}

impl Compiler {
    /// Makes a compiler whose last snapshot was empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the policies in use, and how often each decided.
    pub fn policy(&self) -> (&PolicySet, &Hits) {
        (&self.policy, &self.hits)
    }

    /// Makes the snapshot of a plan, and says who is known to be where.
    pub fn compile(&mut self, plan: &Plan<'_>) -> (Arc<Snapshot>, Neighbors) {
        let translations = translation::all(plan);
        let rules = policy::rules(plan);
        let mut networks = BTreeMap::new();
        for (id, network) in &plan.networks {
            networks.insert(*id, network_info(network, plan.mtu(network), plan.limits));
        }
        for (id, spec) in routing::domains(plan, &rules, &translations) {
            let before = self.networks.get(&id).and_then(|info| info.domain.clone());
            let domain = before.filter(|domain| *domain.spec() == spec);
            let info = networks.entry(id).or_insert_with(|| routing::outer_network(plan, id));
            info.domain = Some(domain.unwrap_or_else(|| Arc::new(Domain::new(spec))));
        }
        let mut ports = routing::outer_ports(plan);
        let mut neighbors = routing::outer_neighbors(plan);
        for member in &plan.members {
            let Some((id, network)) = plan.network(&member.port.network) else { continue };
            let network = plan.overlay.resolved(network, plan.surroundings.underlay_mtu);
            ports.insert(member.id, port_info(member, id, &network, plan.limits));
            for address in &member.port.addresses {
                if let Some(info) = networks.get_mut(&id) {
                    info.neighbors.insert(*address, Neighbor { mac: member.mac, port: member.id });
                }
                let key = NeighborKey { network: id, port: None, address: (*address).into() };
                neighbors.insert(key, (member.mac, member.id.into()));
            }
        }
        ports.extend(overlay::ports(plan));
        overlay::neighbors(plan, &mut networks, &mut neighbors);
        self.set_networks_and_ports(networks, ports);
        // What is published without an address is at the switch's own ones, too.
        let host = plan.surroundings.addresses.iter().copied().chain(plan.surroundings.own_addresses());
        let host: HashSet<IpAddr> = host.collect();
        if host != self.host_addresses {
            self.builder.set_host_addresses(host.iter().copied().collect());
            self.host_addresses = host;
        }
        let info = overlay::info(plan);
        if info != self.overlay {
            self.builder.set_overlay(info.clone());
            self.overlay = info;
        }
        self.set_router(routing::router(plan), rules, translations);
        (self.builder.build(), neighbors)
    }

    /// Gives the builder what differs of the networks and ports.
    fn set_networks_and_ports(
        &mut self,
        networks: BTreeMap<NetworkId, NetworkInfo>,
        ports: BTreeMap<PortId, PortInfo>,
    ) {
        for id in self.ports.keys().filter(|id| !ports.contains_key(id)) {
            self.builder.remove_port(*id);
        }
        for id in self.networks.keys().filter(|id| !networks.contains_key(id)) {
            self.builder.remove_network(*id);
        }
        for (id, info) in networks.iter().filter(|(id, info)| self.networks.get(id) != Some(*info)) {
            self.builder.set_network(*id, info.clone());
        }
        for (id, info) in ports.iter().filter(|(id, info)| self.ports.get(id) != Some(*info)) {
            self.builder.set_port(*id, info.clone());
        }
        self.networks = networks;
        self.ports = ports;
    }

    /// Gives the builder what differs of what all networks share.
    fn set_router(
        &mut self,
        spec: RouterSpec,
        rules: Vec<pipeline::policy::Rule>,
        translations: Translations,
    ) {
        let same_policy = self.policy.rules() == rules;
        let same_translations = *self.translations == translations;
        if spec == self.router && same_policy && same_translations {
            return;
        }
        if !same_policy {
            let policy = PolicySet::new(rules);
            self.hits = Arc::new(Hits::carried(&self.hits, &self.policy, &policy));
            self.policy = Arc::new(policy);
        }
        if !same_translations {
            self.translations = Arc::new(translations);
        }
        self.router = spec.clone();
        let (policy, translations) = (Arc::clone(&self.policy), Arc::clone(&self.translations));
        self.builder.set_router(Router::new(spec, policy, translations, Arc::clone(&self.hits)));
    }
}

fn network_info(network: &Network, mtu: u16, limits: &Limits) -> NetworkInfo {
    let mut addresses = network.gateway_addresses();
    let mac = made_mac("gateway", &network.name);
    let router_advert = addresses.iter().any(IpAddr::is_ipv6).then(|| {
        // Who looks for a router finds it by its link-local address (RFC 4861, 4.2).
        addresses.push(link_local(mac).ip());
        let advert = RouterAdvert::new(link_local(mac), ROUTER_LIFETIME).with_mtu(mtu.into());
        let subnets = network.subnets.iter().filter(|subnet| subnet.addr().is_ipv6());
        subnets.fold(advert, |advert, subnet| {
            let autonomous = subnet.prefix_len() == 64;
            routing::prefix(*subnet).map_or(advert, |prefix| advert.with_prefix(prefix, autonomous))
        })
    });
    let gateway = (!addresses.is_empty()).then_some(Gateway { mac, addresses });
    NetworkInfo {
        gateway,
        router_advert,
        neighbor_proxy: network.arp_proxy,
        ageing: Duration::from_secs(u64::from(network.ageing)),
        stations: network.stations.unwrap_or(limits.stations),
        ..NetworkInfo::new()
    }
}

/// Seconds that a station may use the gateway after its advertisement: the default (RFC 4861, 6.2.1).
const ROUTER_LIFETIME: u16 = 1800;

fn port_info(member: &Member<'_>, id: NetworkId, network: &Network, limits: &Limits) -> PortInfo {
    let port = member.port;
    let guard = if port.guarded() {
        Guard { mac: Some(member.mac), addresses: port.addresses.clone() }
    } else {
        Guard::default()
    };
    PortInfo {
        up: member.up,
        vlan: vlan_mode(port),
        guard,
        isolated: port.isolated || network.isolated,
        mtu: u32::from(mtu(port, network)),
        stations: port.stations.unwrap_or(limits.stations_per_port),
        storm: port.storm.or(network.storm),
        connections: port.quota.unwrap_or(limits.per_port),
        half_open: port.half_open.unwrap_or(limits.half_open),
        ..PortInfo::new(id)
    }
}

fn vlan_mode(port: &Port) -> VlanMode {
    if port.trunk.is_empty() {
        return VlanMode::Access(port.vlan.map_or(VlanId::UNTAGGED, VlanId));
    }
    let allowed: VlanSet = port.trunk.iter().flat_map(|range| range.first..=range.last).map(VlanId).collect();
    VlanMode::Trunk { allowed: Box::new(allowed), native: port.native.map(VlanId) }
}

/// Returns the VLAN that a port's own station is in, or `None` when its untagged frames are dropped.
pub fn own_vlan(port: &Port) -> Option<VlanId> {
    vlan_mode(port).untagged()
}

/// Returns the port's MTU: its own, else its network's, which is resolved ([`Overlay::resolved`]).
pub fn mtu(port: &Port, network: &Network) -> u16 {
    port.mtu.unwrap_or_else(|| network.mtu.bytes())
}

/// Returns the MAC that the switch makes for `name`: the same in every run, and for a gateway the same on every
/// host, since any of them answers for it.
pub fn made_mac(role: &str, name: &str) -> MacAddr {
    // The standard library's hasher may change between versions.
    let hash = fnv1a(role.bytes().chain([0]).chain(name.bytes()));
    // The multiplication mixes upwards: the low bits alone would hardly differ between similar names.
    MacAddr::local(hash ^ (hash >> 29))
}

//! The configuration that workers see: immutable, replaced as a whole.
//!
//! The manager builds a [`Snapshot`] from the intent and publishes it; each worker adopts it between two
//! turns. It is a tree of `Arc`s, so a change rebuilds only the part it touches. What the packet path reads of
//! every packet is also laid out flat, in [`Ingress`] and [`Egress`], indexed by port.
//!
//! A cached decision names the generation that it was made under, and is made again when that number was raised. The
//! number travels inside the snapshot, so no worker can pair an old snapshot with a new generation. What is
//! bridged names its network's generation: anything about the network or its ports raises it. What is routed names the
//! sum of the generations of the two ports it passes: a change of a port, its network, or of a policy or
//! translation that names it raises it, and disturbs no other flow.
//!
//! Limits: 4096 ports, 65 535 networks.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use packet::{Address, MacAddr, NetworkId, PortId, VlanId};

use crate::flow_cache::Tick;
use crate::policy::{Identity, PolicySet};

mod domain;
mod network;
mod port;
mod router;
mod translations;

pub use domain::{Domain, DomainKind, DomainSpec, Hop, Route};
pub use network::{Gateway, Neighbor, NetworkInfo};
pub use port::{Guard, HandBack, PortInfo, VlanMode, VlanSet};
pub use router::{Router, RouterSpec};
pub use translations::{Service as PublishedService, Source, Translation, Translations};

/// The most ports a switch can have: a cache entry has 12 bits for one.
pub const MAX_PORTS: usize = 4096;

/// What the packet path reads of the port a frame came in by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ingress {
    /// Generation of the port's network, as a cache entry keeps it: 20 bits. 0, which no entry has, for a port
    /// that is down.
    pub(crate) generation: u32,
    /// Cached decisions of the network are good for so long.
    pub(crate) refresh: Tick,
    /// VLAN of untagged frames.
    pub(crate) untagged: VlanId,
    /// The source IP address of every packet is checked.
    pub(crate) guards_ip: bool,
    /// The whole network is tracked: even what is bridged is decided by addresses and ports.
    pub(crate) tracked: bool,
    /// Frames to this MAC are routed; zero, which no frame is sent to, when there is no router.
    pub(crate) router_mac: MacAddr,
    /// Generation of the port.
    pub(crate) own_generation: u32,
}

impl Ingress {
    /// Says whether no frame from the port is routed or tracked.
    #[inline(always)]
    pub(crate) fn only_bridges(&self) -> bool {
        self.router_mac == MacAddr::ZERO && !self.tracked
    }
}

/// What the packet path reads of the port a frame leaves by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Egress {
    /// Longest frame without a tag, Ethernet header included; 0 while the port is down.
    pub(crate) frame_len: u32,
    /// Generation of the port.
    pub(crate) own_generation: u32,
    /// The source of routed frames.
    pub(crate) router_mac: MacAddr,
}

/// One version of the configuration. See the module header.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    ports: Vec<Option<Arc<PortInfo>>>,
    networks: Vec<Option<Scope>>,
    host_addresses: Arc<HashSet<IpAddr>>,
    router: Arc<Router>,
    ingress: Vec<Ingress>,
    egress: Vec<Egress>,
}

/// A network with what follows from the ports in it.
#[derive(Clone, Debug)]
struct Scope {
    generation: u32,
    info: Arc<NetworkInfo>,
    members: Arc<[PortId]>,
}

impl Snapshot {
    /// Returns the version number of the whole.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the port, if there is one of that number.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortInfo> {
        self.ports.get(id.index())?.as_deref()
    }

    /// Returns the network, if there is one of that number.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&NetworkInfo> {
        self.networks.get(id.index())?.as_ref().map(|scope| &*scope.info)
    }

    /// Returns the ports of a network, in ascending order.
    pub fn members(&self, id: NetworkId) -> &[PortId] {
        self.networks.get(id.index()).and_then(Option::as_ref).map_or(&[], |scope| &scope.members)
    }

    /// Says whether the host itself owns `address`; the gateway answers for it.
    pub fn is_host_address(&self, address: &IpAddr) -> bool {
        self.host_addresses.contains(address)
    }

    /// Returns what the routing domains share.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Returns the routing domain of a network.
    pub fn domain(&self, id: NetworkId) -> Option<&Domain> {
        self.network(id)?.domain.as_deref()
    }

    /// Returns what a network is to the switch.
    pub fn kind(&self, id: NetworkId) -> DomainKind {
        self.domain(id).map_or(DomainKind::Inside, |domain| domain.spec().kind)
    }

    /// Returns who `address` is in a network, for policies.
    pub fn identity(&self, network: NetworkId, address: Address) -> Identity {
        let port = self.network(network).and_then(|info| info.neighbors.get(&address.ip()));
        match (self.kind(network), port) {
            (DomainKind::Inside, Some(neighbor)) => Identity::port(neighbor.port),
            _ => Identity::network(network),
        }
    }

    /// Returns the MAC that the router has on a port.
    pub fn router_mac(&self, id: PortId) -> Option<MacAddr> {
        let port = self.port(id)?;
        let network = self.network(port.network)?;
        network.domain.as_ref()?;
        port.router_mac.or_else(|| network.gateway.as_ref().map(|gateway| gateway.mac))
    }

    /// Returns the router's own address of a family in a network: where it answers and asks from.
    pub fn own_address(&self, network: NetworkId, v6: bool) -> Option<Address> {
        let gateway = self.network(network)?.gateway.as_ref()?;
        gateway
            .addresses
            .iter()
            .find(|address| address.is_ipv6() == v6)
            .map(|address| Address::from(*address))
    }

    /// Returns the number that a decision about packets between two ports is good for.
    pub fn generation_between(&self, from: PortId, to: PortId) -> u32 {
        let to = self.egress.get(to.index()).map_or(0, |egress| egress.own_generation);
        self.ingress(from).own_generation.wrapping_add(to)
    }

    /// Returns what the fast path reads of an input port; the default of an unknown one caches nothing.
    #[inline(always)]
    pub(crate) fn ingress(&self, id: PortId) -> Ingress {
        self.ingress.get(id.index()).copied().unwrap_or_default()
    }

    /// Returns what the fast path reads of output ports, by port; an unknown one is down.
    #[inline(always)]
    pub(crate) fn egress(&self) -> &[Egress] {
        &self.egress
    }
}

/// Collects ports and networks and makes the next [`Snapshot`]. Kept by the manager from one version to the
/// next, so that what does not change is shared.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    generation: u64,
    /// The generation that was given to a network last. One count for all networks: a port may change its network,
    /// and a number may be given to another network, and neither must meet decisions that were made before.
    last: u32,
    ports: Vec<Option<Arc<PortInfo>>>,
    networks: Vec<Option<Scope>>,
    host_addresses: Arc<HashSet<IpAddr>>,
    router: Arc<Router>,
    /// The generation of each port, and the one that was given last.
    port_generations: Vec<u32>,
    last_port_generation: u32,
}

impl SnapshotBuilder {
    /// Makes a builder without ports and networks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a network.
    pub fn set_network(&mut self, id: NetworkId, info: NetworkInfo) {
        if self.networks.len() <= id.index() {
            self.networks.resize(id.index() + 1, None);
        }
        let before = self.networks[id.index()].take().map(|scope| scope.info);
        let routes_as_before = before.is_some_and(|before| {
            before.domain == info.domain && before.gateway == info.gateway && before.ageing == info.ageing
        });
        let scope = Scope { generation: 0, info: Arc::new(info), members: Arc::new([]) };
        self.networks[id.index()] = Some(scope);
        self.touch(id);
        if !routes_as_before {
            self.touch_ports(|_, port| port.network == id);
        }
    }

    /// Removes a network; its ports must have gone before.
    pub fn remove_network(&mut self, id: NetworkId) {
        if let Some(scope) = self.networks.get_mut(id.index()) {
            *scope = None;
        }
    }

    /// Adds or replaces a port.
    ///
    /// # Panics
    /// When the number is beyond [`MAX_PORTS`].
    pub fn set_port(&mut self, id: PortId, info: PortInfo) {
        assert!(id.index() < MAX_PORTS, "port numbers end at {MAX_PORTS}");
        if self.ports.len() <= id.index() {
            self.ports.resize(id.index() + 1, None);
        }
        let network = info.network;
        self.touch_port(id);
        if let Some(old) = self.ports[id.index()].replace(Arc::new(info)) {
            self.touch(old.network);
        }
        self.touch(network);
    }

    /// Removes a port.
    pub fn remove_port(&mut self, id: PortId) {
        if let Some(old) = self.ports.get_mut(id.index()).and_then(Option::take) {
            self.touch_port(id);
            self.touch(old.network);
        }
    }

    /// Sets what the routing domains share. The flows of those that a policy or translation concerns, now or
    /// before, are decided again, and those of the uplink and the host when a way between networks changed.
    pub fn set_router(&mut self, router: Router) {
        let old = std::mem::replace(&mut self.router, Arc::new(router));
        let new = Arc::clone(&self.router);
        let ways_changed = old.spec() != new.spec();
        let outer = [old.spec().uplink, old.spec().host, new.spec().uplink, new.spec().host];
        let policy_changed = !Arc::ptr_eq(&old.policy, &new.policy);
        let translations_changed = !Arc::ptr_eq(&old.translations, &new.translations);
        let concerns = |policy: &PolicySet, id: PortId, network: NetworkId| {
            policy.concerns(Identity::port(id)) || policy.concerns(Identity::network(network))
        };
        let differs = |id: PortId| {
            let names = |other: &Router| -> Vec<_> {
                other.translations.list().iter().filter(|t| t.port == id).cloned().collect()
            };
            names(&old) != names(&new)
        };
        self.touch_ports(|id, port| {
            ways_changed && outer.contains(&Some(port.network))
                || policy_changed
                    && (concerns(&old.policy, id, port.network) || concerns(&new.policy, id, port.network))
                || translations_changed && (outer.contains(&Some(port.network)) || differs(id))
        });
    }

    /// Sets the addresses of the host itself.
    pub fn set_host_addresses(&mut self, addresses: HashSet<IpAddr>) {
        self.host_addresses = Arc::new(addresses);
    }

    /// Raises the generation of a network: decisions made under it are made again at their next packet.
    fn touch(&mut self, id: NetworkId) {
        if let Some(Some(scope)) = self.networks.get_mut(id.index()) {
            // 0 is no generation: see `Ingress`.
            self.last = ((self.last + 1) & crate::flow_cache::GENERATION_MASK).max(1);
            scope.generation = self.last;
        }
    }

    /// Has everything that passes a port decided again.
    pub fn touch_port(&mut self, id: PortId) {
        if self.port_generations.len() <= id.index() {
            self.port_generations.resize(id.index() + 1, 0);
        }
        self.last_port_generation = self.last_port_generation.wrapping_add(1);
        self.port_generations[id.index()] = self.last_port_generation;
    }

    fn touch_ports(&mut self, mut which: impl FnMut(PortId, &PortInfo) -> bool) {
        for n in 0..self.ports.len() {
            let id = PortId(u16::try_from(n).expect("set_port checked the number"));
            if self.ports[n].as_ref().is_some_and(|port| which(id, port)) {
                self.touch_port(id);
            }
        }
    }

    /// Makes the snapshot of what was set so far.
    pub fn build(&mut self) -> Arc<Snapshot> {
        self.generation += 1;
        let mut members: Vec<Vec<PortId>> = vec![Vec::new(); self.networks.len()];
        let mut ingress = vec![Ingress::default(); self.ports.len()];
        let mut egress = vec![Egress::default(); self.ports.len()];
        for (n, port) in self.ports.iter().enumerate() {
            let Some(port) = port else { continue };
            let Some(Some(scope)) = self.networks.get(port.network.index()) else { continue };
            let id = PortId(u16::try_from(n).expect("set_port checked the number"));
            members[port.network.index()].push(id);
            if !port.up {
                continue;
            }
            let router_mac = scope.info.domain.as_ref().and_then(|_| {
                port.router_mac.or_else(|| scope.info.gateway.as_ref().map(|gateway| gateway.mac))
            });
            let own_generation = self.port_generations[n];
            ingress[n] = Ingress {
                generation: scope.generation,
                refresh: Tick::refresh(scope.info.ageing),
                untagged: port.vlan.untagged().unwrap_or_default(),
                guards_ip: !port.guard.addresses.is_empty(),
                tracked: scope.info.domain.as_ref().is_some_and(|domain| domain.spec().tracked),
                router_mac: router_mac.unwrap_or_default(),
                own_generation,
            };
            egress[n] = Egress {
                frame_len: port.mtu.saturating_add(ETHERNET_LEN),
                own_generation,
                router_mac: router_mac.unwrap_or_default(),
            };
        }
        for (scope, members) in self.networks.iter_mut().zip(members) {
            if let Some(scope) = scope
                && *scope.members != *members
            {
                scope.members = members.into();
            }
        }
        Arc::new(Snapshot {
            generation: self.generation,
            ports: self.ports.clone(),
            networks: self.networks.clone(),
            host_addresses: Arc::clone(&self.host_addresses),
            router: Arc::clone(&self.router),
            ingress,
            egress,
        })
    }
}

/// Bytes of an Ethernet header without a tag.
const ETHERNET_LEN: u32 = 14;

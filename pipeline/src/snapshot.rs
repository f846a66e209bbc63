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
use packet::{Address, MacAddr, NetworkId, PortId, VlanId, Vni};

use crate::flow_cache::Tick;
use crate::policy::{Identity, PolicySet};

mod domain;
mod network;
mod overlay;
mod port;
mod router;
mod translations;

pub use domain::{Domain, DomainKind, DomainSpec, Hop, Route};
pub use network::{Gateway, Neighbor, NetworkInfo};
pub(crate) use overlay::Overlay;
pub use overlay::{Dscp, OVERHEAD_V4, OVERHEAD_V6, OverlayInfo, TunnelInfo, mtu_within};
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
    /// It is a tunnel: its frames know the endpoint that they came from.
    pub(crate) is_tunnel: bool,
    /// Packets of the overlay come by it.
    pub(crate) is_underlay: bool,
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
    /// Of a tunnel: its UDP port, which is 0 for all others.
    pub(crate) udp_port: u16,
    /// Of a tunnel: its identifier, as the last word of a VXLAN header.
    pub(crate) vni: [u8; 4],
}

impl Egress {
    /// Says whether what leaves by the port is packed first.
    #[inline(always)]
    pub(crate) fn is_tunnel(&self) -> bool {
        self.udp_port != 0
    }
}

/// One version of the configuration. See the module header.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    ports: Vec<Option<Arc<PortInfo>>>,
    networks: Vec<Option<Scope>>,
    host_addresses: Arc<HashSet<IpAddr>>,
    router: Arc<Router>,
    overlay: Arc<Overlay>,
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

    /// Returns the overlay.
    #[inline(always)]
    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Returns what all tunnels have in common; `None` when there is no overlay.
    pub fn overlay_info(&self) -> Option<&OverlayInfo> {
        self.overlay.info.as_ref()
    }

    /// Returns the port that is the tunnel of an identifier.
    pub fn tunnel(&self, udp_port: u16, vni: Vni) -> Option<PortId> {
        self.overlay.tunnel(udp_port, vni)
    }

    /// Returns the routing domain of a network.
    pub fn domain(&self, id: NetworkId) -> Option<&Domain> {
        self.network(id)?.domain.as_deref()
    }

    /// Returns what a network is to the switch.
    pub fn kind(&self, id: NetworkId) -> DomainKind {
        self.domain(id).map_or(DomainKind::Inside, |domain| domain.spec().kind)
    }

    /// Says whether a port is a tunnel.
    pub fn is_tunnel(&self, id: PortId) -> bool {
        self.egress.get(id.index()).is_some_and(Egress::is_tunnel)
    }

    /// Returns who `address` is in a network, for policies. Behind a tunnel it is one of the network and no more.
    pub fn identity(&self, network: NetworkId, address: Address) -> Identity {
        let port = self.network(network).and_then(|info| info.neighbors.get(&address.ip()));
        match (self.kind(network), port) {
            (DomainKind::Inside, Some(neighbor)) if !self.is_tunnel(neighbor.port) => {
                Identity::port(neighbor.port)
            }
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
    overlay: Option<OverlayInfo>,
    /// The generation of the overlay, and of the underlay's network at that time.
    overlay_generations: (u32, u32),
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

    /// Sets what the tunnels have in common; `None`: no packet is opened or packed.
    pub fn set_overlay(&mut self, overlay: Option<OverlayInfo>) {
        self.overlay = overlay;
        self.overlay_generations.0 = self.overlay_generations.0.wrapping_add(1);
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
                is_tunnel: port.tunnel.is_some(),
                is_underlay: self.overlay.as_ref().is_some_and(|overlay| overlay.network == port.network),
            };
            egress[n] = Egress {
                frame_len: port.mtu.saturating_add(ETHERNET_LEN),
                own_generation,
                router_mac: router_mac.unwrap_or_default(),
                udp_port: port.tunnel.map_or(0, |tunnel| tunnel.udp_port),
                vni: port.tunnel.map_or(0, |tunnel| tunnel.vni.0 << 8).to_be_bytes(),
            };
        }
        for (scope, members) in self.networks.iter_mut().zip(members) {
            if let Some(scope) = scope
                && *scope.members != *members
            {
                scope.members = members.into();
            }
        }
        let overlay = Arc::new(self.build_overlay());
        Arc::new(Snapshot {
            overlay,
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

impl SnapshotBuilder {
    fn build_overlay(&mut self) -> Overlay {
        let underlay =
            self.overlay.as_ref().and_then(|overlay| self.networks.get(overlay.network.index())?.as_ref());
        let (generation, before) = self.overlay_generations;
        let now = underlay.map_or(0, |scope| scope.generation);
        let generation = if now == before { generation } else { generation.wrapping_add(1) };
        self.overlay_generations = (generation, now);
        let ports = self.ports.iter().zip(0..).filter_map(|(port, n)| Some((PortId(n), &**port.as_ref()?)));
        Overlay::new(self.overlay.clone(), generation, ports.filter(|(_, port)| port.up))
    }
}

/// Bytes of an Ethernet header without a tag.
const ETHERNET_LEN: u32 = 14;

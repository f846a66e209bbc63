//! The configuration that workers see: immutable, replaced as a whole.
//!
//! The manager builds a [`Snapshot`] from the intent and publishes it; each worker adopts it between two
//! turns. It is a tree of `Arc`s, so a change rebuilds only the part it touches. What the packet path reads of
//! every packet is also laid out flat, in [`Ingress`] and [`Egress`], indexed by port.
//!
//! A cached decision names the generation of the network that it was made under. The manager raises that
//! number when anything about the network or its ports changes; the number travels inside the snapshot, so no
//! worker can pair an old snapshot with a new generation.
//!
//! Limits: 4096 ports, 65 535 networks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use packet::{MacAddr, NetworkId, PortId, VlanId};

use crate::flow_cache::Tick;

/// The most ports a switch can have: a cache entry has 12 bits for one.
pub const MAX_PORTS: usize = 4096;

/// Which VLANs a port carries, and which of them untagged (IEEE 802.1Q-2022, 6.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanMode {
    /// One VLAN, untagged on the wire. [`VlanId::UNTAGGED`] is a network without VLANs.
    Access(VlanId),
    /// Several VLANs, tagged, but for the native one.
    Trunk {
        /// The VLANs carried tagged.
        allowed: Box<VlanSet>,
        /// The VLAN of untagged frames; without one they are dropped.
        native: Option<VlanId>,
    },
}

impl VlanMode {
    /// Returns the VLAN of a frame that arrives with `tag` (`None`: no tag), or `None` when it is not carried.
    /// A tag with VLAN 0 only carries a priority (IEEE 802.1Q-2022, 9.6): the frame counts as untagged.
    pub fn classify(&self, tag: Option<VlanId>) -> Option<VlanId> {
        let tag = tag.filter(|vlan| *vlan != VlanId::UNTAGGED);
        match (self, tag) {
            (VlanMode::Access(vlan), None) => Some(*vlan),
            (VlanMode::Access(_), Some(_)) => None,
            (VlanMode::Trunk { native, .. }, None) => *native,
            (VlanMode::Trunk { allowed, .. }, Some(vlan)) => allowed.contains(vlan).then_some(vlan),
        }
    }

    /// Returns whether frames of `vlan` leave with a tag, or `None` when the VLAN is not carried.
    pub fn egress_tag(&self, vlan: VlanId) -> Option<bool> {
        match self {
            VlanMode::Access(access) => (*access == vlan).then_some(false),
            VlanMode::Trunk { native, .. } if *native == Some(vlan) => Some(false),
            VlanMode::Trunk { allowed, .. } => allowed.contains(vlan).then_some(true),
        }
    }

    /// Returns the VLAN of untagged frames.
    pub fn untagged(&self) -> Option<VlanId> {
        self.classify(None)
    }
}

/// A set of VLANs.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// The set without members.
    pub const EMPTY: VlanSet = VlanSet([0; 64]);

    /// Returns the set of all VLANs that a tag may name: 1 to 4094.
    pub fn all() -> Self {
        (1..=VlanId::MAX.0).map(VlanId).collect()
    }

    /// Adds a VLAN; those beyond 4094 are not VLANs and are ignored.
    pub fn insert(&mut self, vlan: VlanId) {
        if vlan <= VlanId::MAX {
            self.0[usize::from(vlan.0 / 64)] |= 1 << (vlan.0 % 64);
        }
    }

    /// Says whether `vlan` is in the set.
    pub fn contains(&self, vlan: VlanId) -> bool {
        vlan <= VlanId::MAX && self.0[usize::from(vlan.0 / 64)] & 1 << (vlan.0 % 64) != 0
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(vlans: I) -> Self {
        let mut set = Self::EMPTY;
        vlans.into_iter().for_each(|vlan| set.insert(vlan));
        set
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..=VlanId::MAX.0).filter(|v| self.contains(VlanId(*v)))).finish()
    }
}

/// The source addresses that a port may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The only source MAC. `None`: any that is a station's.
    pub mac: Option<MacAddr>,
    /// The only source IP addresses; IPv6 link-local and the unspecified address (DHCP, DAD) are always
    /// allowed. Empty: any.
    pub addresses: Vec<IpAddr>,
}

/// A port as the pipeline sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// The network it belongs to.
    pub network: NetworkId,
    /// Frames may enter and leave. False while the device is down or the port is disabled.
    pub up: bool,
    /// The VLANs it carries.
    pub vlan: VlanMode,
    /// What its source addresses must be.
    pub guard: Guard,
    /// No traffic with other isolated ports of the network.
    pub isolated: bool,
    /// Longest packet without the Ethernet header and tag, in bytes; checked when a frame leaves.
    pub mtu: u32,
    /// Most stations learned behind it.
    pub stations: u32,
    /// Most flooded frames a second (broadcast, multicast, unknown unicast). `None`: no limit.
    pub storm: Option<u32>,
}

impl PortInfo {
    /// Returns a port of `network` with everything at its default: up, untagged, unguarded, MTU 1500.
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            up: true,
            vlan: VlanMode::Access(VlanId::UNTAGGED),
            guard: Guard::default(),
            isolated: false,
            mtu: 1500,
            stations: u32::MAX,
            storm: None,
        }
    }
}

/// A network's own router address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The MAC that all its addresses answer with.
    pub mac: MacAddr,
    /// Its addresses, one a subnet.
    pub addresses: Vec<IpAddr>,
}

/// A network as the pipeline sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInfo {
    /// The router address, when it has one.
    pub gateway: Option<Gateway>,
    /// ARP and neighbour solicitations for known addresses are answered and not flooded.
    pub neighbor_proxy: bool,
    /// How long a learned station lives without sending.
    pub ageing: Duration,
    /// Most stations learned in it.
    pub stations: u32,
    /// Who has which address, as far as the manager knows; answered from here.
    pub neighbors: HashMap<IpAddr, Neighbor>,
}

impl NetworkInfo {
    /// Returns a network with everything at its default: no gateway, ageing 300 s (IEEE 802.1Q-2022, 8.8.3).
    pub fn new() -> Self {
        Self {
            gateway: None,
            neighbor_proxy: true,
            ageing: Duration::from_secs(300),
            stations: u32::MAX,
            neighbors: HashMap::new(),
        }
    }
}

impl Default for NetworkInfo {
    fn default() -> Self {
        Self::new()
    }
}

/// An address whose owner is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// The owner's MAC.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
}

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
}

/// What the packet path reads of the port a frame leaves by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Egress {
    /// Longest frame without a tag, Ethernet header included; 0 while the port is down.
    pub(crate) frame_len: u32,
}

/// One version of the configuration. See the module header.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    ports: Vec<Option<Arc<PortInfo>>>,
    networks: Vec<Option<Scope>>,
    host_addresses: Arc<HashSet<IpAddr>>,
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
        let scope = Scope { generation: 0, info: Arc::new(info), members: Arc::new([]) };
        self.networks[id.index()] = Some(scope);
        self.touch(id);
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
        if let Some(old) = self.ports[id.index()].replace(Arc::new(info)) {
            self.touch(old.network);
        }
        self.touch(network);
    }

    /// Removes a port.
    pub fn remove_port(&mut self, id: PortId) {
        if let Some(old) = self.ports.get_mut(id.index()).and_then(Option::take) {
            self.touch(old.network);
        }
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
            ingress[n] = Ingress {
                generation: scope.generation,
                refresh: Tick::refresh(scope.info.ageing),
                untagged: port.vlan.untagged().unwrap_or_default(),
                guards_ip: !port.guard.addresses.is_empty(),
            };
            egress[n] = Egress { frame_len: port.mtu.saturating_add(ETHERNET_LEN) };
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
            ingress,
            egress,
        })
    }
}

/// Bytes of an Ethernet header without a tag.
const ETHERNET_LEN: u32 = 14;

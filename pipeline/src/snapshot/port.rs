//! A port as the pipeline sees it: what it carries, what may come from it, what it may use up.

use std::net::IpAddr;

use packet::{MacAddr, NetworkId, PortId, VlanId};

use super::TunnelInfo;

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

/// Where packets go that came by a port of the uplink and are not the switch's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HandBack {
    /// Back by the port itself: what stands there tells them from those that leave.
    #[default]
    Here,
    /// By this port, which leads to the host's stack and nowhere else.
    By(PortId),
    /// Nowhere: the device is the switch's alone.
    Nowhere,
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
    /// The MAC that the router has on this port; `None`: the one of the network's gateway.
    pub router_mac: Option<MacAddr>,
    /// Neighbours are looked for by the host's kernel and not by the switch: the device is shared with it.
    pub host_resolves: bool,
    /// On the uplink: where packets go that are the host's.
    pub hand_back: HandBack,
    /// Most connections that packets from here may have open.
    pub connections: u32,
    /// Most of them that nobody has answered yet.
    pub half_open: u32,
    /// It is the tunnel of its network: it has no device.
    pub tunnel: Option<TunnelInfo>,
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
            router_mac: None,
            host_resolves: false,
            hand_back: HandBack::Here,
            connections: u32::MAX,
            half_open: u32::MAX,
            tunnel: None,
        }
    }
}

//! What the host around the switch looks like: its addresses, the devices that lead outside, and the tap to it.
//!
//! Filled by whoever follows the host by netlink; read by [`crate::compile`]. All of it is plain data, so that
//! a change is seen by comparing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use packet::{MacAddr, PortId};
use pipeline::HandBack;

/// A device that leads outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkPort {
    /// The number of its port.
    pub id: PortId,
    /// The device's name.
    pub name: String,
    /// The device's MAC, which is ours too.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// It has a carrier.
    pub up: bool,
    /// Where packets go that are not the switch's.
    pub hand_back: HandBack,
    /// The switch's own addresses at it: none where it is shared with the host, whose kernel knows the neighbours.
    pub addresses: Vec<IpAddr>,
    /// How it is used, for people.
    pub mode: String,
    /// Why not better.
    pub notes: Vec<String>,
}

impl UplinkPort {
    /// Says whether the host has a part in the device.
    pub fn is_shared(&self) -> bool {
        self.hand_back != HandBack::Nowhere
    }
}

/// A route of the host that leads outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideRoute {
    /// The destinations.
    pub to: IpNet,
    /// The next hops: the device's port, and the router there, if any.
    pub hops: Vec<OutsideHop>,
}

/// A next hop of a route of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideHop {
    /// The device's port.
    pub port: PortId,
    /// The router; `None`: the destination is on the link.
    pub via: Option<IpAddr>,
    /// The address that the host sends from.
    pub source: Option<IpAddr>,
}

/// The tap that leads to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTap {
    /// The number of its port.
    pub id: PortId,
    /// The MAC of the host's end.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// The host's addresses on it, one a family: the relay's.
    pub addresses: Vec<IpAddr>,
}

/// What is around the switch. See the module header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The host's addresses.
    pub addresses: Vec<IpAddr>,
    /// The devices that lead outside.
    pub uplinks: Vec<UplinkPort>,
    /// The host's routes that use them.
    pub routes: Vec<OutsideRoute>,
    /// Who is where outside, as far as the kernel knows.
    pub neighbors: Vec<(PortId, IpAddr, MacAddr)>,
    /// Addresses outside that another station has, whatever the configuration says.
    pub taken: Vec<IpAddr>,
    /// The MTU of the underlay: the smallest of the devices by which peers are reached. `None` while no device leads
    /// outside.
    pub underlay_mtu: Option<u32>,
    /// Peers whose way takes less than that, with how much.
    pub path_mtus: BTreeMap<IpAddr, u32>,
    /// The tap to the host, unless there is none.
    pub host: Option<HostTap>,
}

impl Surroundings {
    /// Returns the switch's own addresses outside.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.uplinks.iter().flat_map(|uplink| uplink.addresses.iter().copied())
    }
}

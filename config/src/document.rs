//! The TOML tree: one struct a section, one field a key.
//!
//! All of it is plain data with defaults, so that it reads and prints as TOML (files) and as JSON (API) alike.
//! A key that is not here is refused: nothing is accepted that nothing implements. `keys.rs` lists the keys
//! with their types and defaults for error texts and for docs/config.md, and a test keeps the two equal.
//!
//! Printing leaves out what has its default, so a printed file shows what its owner decided.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use packet::MacAddr;
use serde::{Deserialize, Serialize};

use crate::nat::{Egress, FloatingIp, Publish};
use crate::overlay::{Overlay, OverlayPeer, Remote};
use crate::policy::{Assert, Policy};
use crate::routing::{Route, Uplink};
use crate::values::{ByteSize, Cpus, Mtu, Netns, VlanRange};

/// Something of which there are many, known by its name among its kind.
pub trait Object: Clone + PartialEq + Serialize + serde::de::DeserializeOwned {
    /// The section of the file that it is written in, without brackets.
    const SECTION: &'static str;

    /// Returns its name: as given, or made from what it is known by.
    fn name(&self) -> String;
}

/// A whole configuration: what a file says, or all that the daemon is meant to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Document {
    /// The daemon itself. Read at start.
    #[serde(skip_serializing_if = "is_default")]
    pub daemon: Daemon,
    /// The threads that move frames. Read at start, but for `poll` and `budget`.
    #[serde(skip_serializing_if = "is_default")]
    pub workers: Workers,
    /// Sizes of all tables and pools. Read at start.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// The way to the outside.
    #[serde(skip_serializing_if = "is_default")]
    pub uplink: Uplink,
    /// The tunnels between this host and others.
    #[serde(skip_serializing_if = "is_default")]
    pub overlay: Overlay,
    /// The networks, in the order of the file.
    #[serde(rename = "network", skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// The ports, in the order of the file.
    #[serde(rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Stations that are never learned, moved or aged.
    #[serde(rename = "fdb", skip_serializing_if = "Vec::is_empty")]
    pub fdb: Vec<FdbEntry>,
    /// Other hosts of the overlay.
    #[serde(rename = "peer", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<OverlayPeer>,
    /// Stations that are known to be behind peers.
    #[serde(rename = "remote", skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<Remote>,
    /// Where packets go that leave their network.
    #[serde(rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Outside addresses that are ports'.
    #[serde(rename = "floating_ip", skip_serializing_if = "Vec::is_empty")]
    pub floating_ips: Vec<FloatingIp>,
    /// L4 ports of the host that lead to ports.
    #[serde(rename = "publish", skip_serializing_if = "Vec::is_empty")]
    pub publishes: Vec<Publish>,
    /// Outside addresses that connections of ports come from.
    #[serde(rename = "egress", skip_serializing_if = "Vec::is_empty")]
    pub egresses: Vec<Egress>,
    /// Who may reach whom.
    #[serde(rename = "policy", skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// What must be so before a configuration is taken over.
    #[serde(rename = "assert", skip_serializing_if = "Vec::is_empty")]
    pub asserts: Vec<Assert>,
}

impl Document {
    /// Returns the network called `name`.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// Returns the port called `name`.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }

    /// Returns `others` and the objects of `self`, in this order, with the settings of `self`.
    pub fn beside(&self, others: &Document) -> Document {
        fn join<T: Clone>(first: &[T], second: &[T]) -> Vec<T> {
            first.iter().chain(second).cloned().collect()
        }
        Document {
            daemon: self.daemon.clone(),
            workers: self.workers.clone(),
            limits: self.limits.clone(),
            uplink: self.uplink.clone(),
            overlay: self.overlay.clone(),
            networks: join(&others.networks, &self.networks),
            ports: join(&others.ports, &self.ports),
            fdb: join(&others.fdb, &self.fdb),
            peers: join(&others.peers, &self.peers),
            remotes: join(&others.remotes, &self.remotes),
            routes: join(&others.routes, &self.routes),
            floating_ips: join(&others.floating_ips, &self.floating_ips),
            publishes: join(&others.publishes, &self.publishes),
            egresses: join(&others.egresses, &self.egresses),
            policies: join(&others.policies, &self.policies),
            asserts: join(&others.asserts, &self.asserts),
        }
    }

    /// Returns the tree without its objects: the sections that there are once, and what the file asserts.
    pub fn settings(&self) -> Document {
        Document {
            daemon: self.daemon.clone(),
            workers: self.workers.clone(),
            limits: self.limits.clone(),
            uplink: self.uplink.clone(),
            overlay: self.overlay.clone(),
            asserts: self.asserts.clone(),
            ..Document::default()
        }
    }

    /// Prints the tree as TOML that [`Document::parse`] reads back to an equal tree.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every value of the tree has a TOML form")
    }
}

/// `[daemon]`: the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Daemon {
    /// Name of this switch; `None` stands for the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Path of the unix socket of the API.
    pub socket: PathBuf,
    /// Directory of the store.
    pub state_dir: PathBuf,
    /// The least important message that is logged.
    pub log: LogLevel,
    /// Who may reach published ports that do not say it themselves; none: everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish_allow_from: Vec<IpNet>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            name: None,
            socket: "/run/vswitch/vswitch.sock".into(),
            state_dir: "/var/lib/vswitch".into(),
            log: LogLevel::Info,
            publish_allow_from: Vec::new(),
        }
    }
}

/// How important a message must be to be logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What stopped working.
    Error,
    /// And what may stop working.
    Warn,
    /// And what changed.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

/// `[workers]`: the threads that move frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// Where workers run, one a CPU.
    pub cpus: Cpus,
    /// What a worker does while nothing is to be done.
    pub poll: Poll,
    /// Frames that one port may bring in a turn before the next port has its chance; 1 to 256.
    pub budget: u16,
}

impl Default for Workers {
    fn default() -> Self {
        Self { cpus: Cpus::Auto, poll: Poll::Adaptive, budget: 64 }
    }
}

/// What a worker does while nothing is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Spins while there is work, then waits in the kernel.
    #[default]
    Adaptive,
    /// Spins for ever: lowest latency, one core used up.
    Busy,
    /// Always waits in the kernel: least CPU.
    Interrupt,
}

/// `[limits]`: sizes of all tables and pools, fixed at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes for frames, tables, and the kernel's bookkeeping of AF_XDP ports, together; see [`crate::Sizing`].
    pub memory: ByteSize,
    /// Ports at the same time; 1 to 4078.
    pub ports: u16,
    /// Networks at the same time; 1 to 4078, and 4079 with the ports together.
    pub networks: u16,
    /// Stations (MAC addresses) that all networks know together; 16 to 2^20.
    pub stations: u32,
    /// Stations that may be learned on one port that has no `stations` of its own; at least 1.
    pub stations_per_port: u32,
    /// Entries of each worker's flow cache; a power of two from 1024 to 2^24.
    pub flows: u32,
    /// Connections at the same time; 1024 to 2^24.
    pub connections: u32,
    /// Connections of one port that has no `quota` of its own; at least 1.
    pub per_port: u32,
    /// Connections of one port that are not answered yet, when it has no `half_open` of its own; at least 1.
    pub half_open: u32,
    /// IP addresses whose stations are known; 64 to 2^20.
    pub neighbors: u32,
    /// Endpoints of other hosts that are known, over all networks; 0 to 32767.
    pub vteps: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(46),
            ports: 256,
            networks: 64,
            stations: 16384,
            stations_per_port: 4096,
            flows: 32768,
            connections: 32768,
            per_port: 8192,
            half_open: 4096,
            neighbors: 8192,
            vteps: 256,
        }
    }
}

/// `[[network]]`: one layer-2 network; others are reached through its gateway, where a policy allows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Unique name.
    pub name: String,
    /// Address ranges of the network, with no host bits set. None at all: a network without addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// The switch's own addresses, one a subnet; `None` stands for the first address of each subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<Vec<IpAddr>>,
    /// Its identifier in the tunnels to other hosts; `None`: it stays on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The UDP port of its tunnels; `None` stands for that of `[overlay]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan_port: Option<u16>,
    /// Ports of this network never reach one another.
    #[serde(default, skip_serializing_if = "is_default")]
    pub isolated: bool,
    /// The largest IP packet, for every port that has no `mtu` of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mtu: Mtu,
    /// Stations that may be learned in this network; `None` stands for `[limits] stations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stations: Option<u32>,
    /// Seconds after which a learned station that sends nothing is forgotten.
    #[serde(default = "Network::default_ageing", skip_serializing_if = "Network::is_default_ageing")]
    pub ageing: u32,
    /// Broadcast, multicast and unknown-unicast frames a second that one port may send; `None`: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<u32>,
    /// ARP and ND requests for addresses that the switch knows are answered by it.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub arp_proxy: bool,
    /// Connections to the outside come from an address of the uplink.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub masquerade: bool,
    /// Nothing goes outside, and nothing comes from there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub internal: bool,
    /// The host is reached from here, and reaches the ports.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub host: bool,
}

impl Network {
    /// Seconds that a silent station is remembered unless the file says otherwise.
    pub const DEFAULT_AGEING: u32 = 300;

    /// Returns the network `name` with defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            subnets: Vec::new(),
            gateways: None,
            vni: None,
            vxlan_port: None,
            isolated: false,
            mtu: Mtu::Auto,
            stations: None,
            ageing: Self::DEFAULT_AGEING,
            storm: None,
            arp_proxy: true,
            masquerade: true,
            internal: false,
            host: true,
        }
    }

    /// Says whether the host and its ports reach one another: not when the network is closed, `internal` or
    /// `isolated`.
    pub fn joins_host(&self) -> bool {
        self.host && !self.internal && !self.isolated
    }

    /// Returns the switch's own addresses in this network: as given, or the first address of each subnet.
    pub fn gateway_addresses(&self) -> Vec<IpAddr> {
        match &self.gateways {
            Some(addresses) => addresses.clone(),
            None => self.subnets.iter().map(first_address).collect(),
        }
    }

    /// Returns the subnet that `address` is in.
    pub fn subnet_of(&self, address: IpAddr) -> Option<IpNet> {
        self.subnets.iter().copied().find(|subnet| subnet.contains(&address))
    }

    fn default_ageing() -> u32 {
        Self::DEFAULT_AGEING
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default_ageing(ageing: &u32) -> bool {
        *ageing == Self::DEFAULT_AGEING
    }
}

/// `[[port]]`: where a container, namespace or virtual machine is attached to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Unique name.
    pub name: String,
    /// The network it is attached to.
    pub network: String,
    /// How frames get in and out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: PortKind,
    /// Where the far end is put; `None` stands for the host's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// Name of the far end's interface; see [`Port::interface_name`] for `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// Addresses that the far end gets, each from a subnet of the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The far end's MAC; `None` stands for one that the switch makes from the port's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The far end's MTU, in bytes; `None` stands for the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Access port: untagged frames belong to this VLAN, and tagged frames are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Trunk port: frames tagged with these VLANs pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<VlanRange>,
    /// The VLAN that a trunk port's untagged frames belong to; `None`: they are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<u16>,
    /// Frames with a foreign source MAC or IP address are dropped; `None` stands for "when it has addresses".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<bool>,
    /// Never reaches another isolated port of the network.
    #[serde(default, skip_serializing_if = "is_default")]
    pub isolated: bool,
    /// Broadcast, multicast and unknown-unicast frames a second it may send; `None` stands for the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<u32>,
    /// Stations that may be learned here; `None` stands for `[limits] stations_per_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stations: Option<u32>,
    /// Connections that it may have; `None` stands for `[limits] per_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u32>,
    /// Connections of it that may be unanswered; `None` stands for `[limits] half_open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open: Option<u32>,
    /// Queues of the device, 1 to 16; more than one for `tap` and `afxdp` only.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
    /// Words for people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Port {
    /// Returns the port `name` of `network` with defaults.
    pub fn new(name: impl Into<String>, network: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            network: network.into(),
            kind: PortKind::Auto,
            netns: None,
            ifname: None,
            addresses: Vec::new(),
            mac: None,
            mtu: None,
            vlan: None,
            trunk: Vec::new(),
            native: None,
            guard: None,
            isolated: false,
            storm: None,
            stations: None,
            quota: None,
            half_open: None,
            queues: 1,
            labels: BTreeMap::new(),
        }
    }

    /// Returns the name of the far end's interface: as given, else `eth0` in a namespace and `vsw-NAME` in the
    /// host's, cut to the 15 characters that Linux allows.
    pub fn interface_name(&self) -> String {
        match (&self.ifname, &self.netns) {
            (Some(name), _) => name.clone(),
            (None, Some(_)) => "eth0".to_owned(),
            (None, None) => format!("vsw-{}", self.name).chars().take(15).collect(),
        }
    }

    /// Says whether frames with a foreign source are dropped here: as given, else when it has addresses.
    pub fn guarded(&self) -> bool {
        self.guard.unwrap_or(!self.addresses.is_empty())
    }
}

impl Object for Network {
    const SECTION: &'static str = "network";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Object for Port {
    const SECTION: &'static str = "port";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Object for FdbEntry {
    const SECTION: &'static str = "fdb";

    /// `front/02:00:0a:01:00:63`, with the VLAN in the middle when it is given
    fn name(&self) -> String {
        match self.vlan {
            Some(vlan) => format!("{}/{}/{}", self.network, vlan, self.mac),
            None => format!("{}/{}", self.network, self.mac),
        }
    }
}

/// How frames get in and out of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// The best that works: `veth`.
    #[default]
    Auto,
    /// A veth pair, our end read by packet sockets.
    Veth,
    /// A tap device.
    Tap,
    /// A veth pair, our end read by AF_XDP sockets.
    Afxdp,
}

impl PortKind {
    /// Every kind.
    pub const ALL: [PortKind; 4] = [PortKind::Auto, PortKind::Veth, PortKind::Tap, PortKind::Afxdp];

    /// Returns the word of the file.
    pub const fn name(self) -> &'static str {
        match self {
            PortKind::Auto => "auto",
            PortKind::Veth => "veth",
            PortKind::Tap => "tap",
            PortKind::Afxdp => "afxdp",
        }
    }
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no kind of port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no kind of port; allowed: auto, veth, tap, afxdp")]
pub struct PortKindError(String);

impl FromStr for PortKind {
    type Err = PortKindError;

    fn from_str(text: &str) -> Result<Self, PortKindError> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| PortKindError(text.to_owned()))
    }
}

/// `[[fdb]]`: a station that is known to be behind a port; never learned, moved or aged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbEntry {
    /// The network.
    pub network: String,
    /// The station's address.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: String,
    /// The VLAN it is in; `None` stands for the port's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// Who made an object, and so who may take it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The configuration file; `apply` reconciles these.
    File,
    /// A command or another client of the API.
    Cli,
    /// The Docker driver.
    Docker,
    /// The CNI plugin.
    Cni,
    /// The netavark plugin.
    Netavark,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Owner::File => "file",
            Owner::Cli => "cli",
            Owner::Docker => "docker",
            Owner::Cni => "cni",
            Owner::Netavark => "netavark",
        })
    }
}

/// Returns the address after the subnet's own: `.1` or `::1`.
fn first_address(subnet: &IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => IpAddr::V4(u32::from(net.network()).saturating_add(1).into()),
        IpNet::V6(net) => IpAddr::V6(u128::from(net.network()).saturating_add(1).into()),
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(value: &u16) -> bool {
    *value == 1
}

//! From intent to snapshot: the one place where what an operator means becomes what a packet needs.
//!
//! [`Compiler`] keeps the pipeline's builder from one version to the next and sets only what differs, so a
//! change renews the decisions of the networks it touches and no others. Defaults that span objects (a port's
//! MTU is its network's) are resolved here.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use config::{Limits, Network, Port};
use packet::{MacAddr, NetworkId, PortId, VlanId};
use pipeline::{
    Gateway, Guard, Neighbor, NetworkInfo, PortInfo, Snapshot, SnapshotBuilder, VlanMode, VlanSet,
};

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

/// Makes snapshots. See the module header.
#[derive(Debug, Default)]
pub struct Compiler {
    builder: SnapshotBuilder,
    networks: BTreeMap<NetworkId, NetworkInfo>,
    ports: BTreeMap<PortId, PortInfo>,
    host_addresses: HashSet<IpAddr>,
}

impl Compiler {
    /// Makes a compiler whose last snapshot was empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the snapshot of `networks` and the ports in them. `host` holds the host's own addresses.
    pub fn compile(
        &mut self,
        networks: &[(NetworkId, &Network)],
        members: &[Member<'_>],
        limits: &Limits,
        host: HashSet<IpAddr>,
    ) -> Arc<Snapshot> {
        let by_name: BTreeMap<&str, (NetworkId, &Network)> =
            networks.iter().map(|(id, network)| (network.name.as_str(), (*id, *network))).collect();
        let mut wanted_networks: BTreeMap<NetworkId, NetworkInfo> =
            networks.iter().map(|(id, network)| (*id, network_info(network, limits))).collect();
        let mut wanted_ports = BTreeMap::new();
        for member in members {
            let Some((network_id, network)) = by_name.get(member.port.network.as_str()).copied() else {
                continue;
            };
            wanted_ports.insert(member.id, port_info(member, network_id, network, limits));
            if let Some(info) = wanted_networks.get_mut(&network_id) {
                for address in &member.port.addresses {
                    info.neighbors.insert(*address, Neighbor { mac: member.mac, port: member.id });
                }
            }
        }

        for id in self.ports.keys().filter(|id| !wanted_ports.contains_key(id)) {
            self.builder.remove_port(*id);
        }
        for id in self.networks.keys().filter(|id| !wanted_networks.contains_key(id)) {
            self.builder.remove_network(*id);
        }
        for (id, info) in wanted_networks.iter().filter(|(id, info)| self.networks.get(id) != Some(*info)) {
            self.builder.set_network(*id, info.clone());
        }
        for (id, info) in wanted_ports.iter().filter(|(id, info)| self.ports.get(id) != Some(*info)) {
            self.builder.set_port(*id, info.clone());
        }
        if host != self.host_addresses {
            self.builder.set_host_addresses(host.iter().copied().collect());
            self.host_addresses = host;
        }
        self.networks = wanted_networks;
        self.ports = wanted_ports;
        self.builder.build()
    }
}

fn network_info(network: &Network, limits: &Limits) -> NetworkInfo {
    let addresses = network.gateway_addresses();
    let gateway =
        (!addresses.is_empty()).then(|| Gateway { mac: made_mac("gateway", &network.name), addresses });
    NetworkInfo {
        gateway,
        neighbor_proxy: network.arp_proxy,
        ageing: Duration::from_secs(u64::from(network.ageing)),
        stations: network.stations.unwrap_or(limits.stations),
        ..NetworkInfo::new()
    }
}

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

/// Returns the port's MTU: its own, else its network's.
pub fn mtu(port: &Port, network: &Network) -> u16 {
    port.mtu.unwrap_or_else(|| network.mtu.bytes())
}

/// Returns the MAC that the switch makes for `name`: the same in every run, and for a gateway the same on every
/// host, since any of them answers for it.
pub fn made_mac(role: &str, name: &str) -> MacAddr {
    // FNV-1a: the standard library's hasher may change between versions.
    let hash = role.bytes().chain([0]).chain(name.bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The multiplication mixes upwards: the low bits alone would hardly differ between similar names.
    MacAddr::local(hash ^ (hash >> 29))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network { subnets: vec!["10.1.0.0/24".parse().expect("a subnet")], ..Network::new("n") }
    }

    fn member(port: &Port, id: u16) -> Member<'_> {
        Member { id: PortId(id), port, mac: made_mac("port", &port.name), up: true }
    }

    #[test]
    fn defaults_of_a_port_come_from_its_network() {
        let network =
            Network { mtu: config::Mtu::Bytes(9000), isolated: true, storm: Some(100), ..network() };
        let (plain, own) =
            (Port::new("p", "n"), Port { mtu: Some(1400), storm: Some(5), ..Port::new("q", "n") });
        let snapshot = Compiler::new().compile(
            &[(NetworkId(1), &network)],
            &[member(&plain, 0), member(&own, 1)],
            &Limits::default(),
            HashSet::new(),
        );
        let port = snapshot.port(PortId(0)).expect("there");
        assert_eq!((port.mtu, port.isolated, port.storm), (9000, true, Some(100)));
        let port = snapshot.port(PortId(1)).expect("there");
        assert_eq!((port.mtu, port.storm), (1400, Some(5)));
    }

    #[test]
    fn a_port_with_addresses_is_guarded_and_answered_for() {
        let address: IpAddr = "10.1.0.5".parse().expect("an address");
        let port = Port { addresses: vec![address], ..Port::new("p", "n") };
        let network = network();
        let snapshot = Compiler::new().compile(
            &[(NetworkId(0), &network)],
            &[member(&port, 3)],
            &Limits::default(),
            HashSet::new(),
        );
        let mac = made_mac("port", "p");
        assert_eq!(
            snapshot.port(PortId(3)).map(|p| p.guard.clone()),
            Some(Guard { mac: Some(mac), addresses: vec![address] })
        );
        let info = snapshot.network(NetworkId(0)).expect("there");
        assert_eq!(info.neighbors.get(&address), Some(&Neighbor { mac, port: PortId(3) }));
        assert_eq!(
            info.gateway.as_ref().map(|g| g.addresses.clone()),
            Some(vec!["10.1.0.1".parse().expect("an address")])
        );
    }

    #[test]
    fn what_went_is_not_in_the_next_snapshot() {
        let (network, port) = (network(), Port::new("p", "n"));
        let mut compiler = Compiler::new();
        let limits = Limits::default();
        compiler.compile(&[(NetworkId(0), &network)], &[member(&port, 0)], &limits, HashSet::new());
        let snapshot = compiler.compile(&[], &[], &limits, HashSet::new());
        assert!(snapshot.port(PortId(0)).is_none() && snapshot.network(NetworkId(0)).is_none());
    }

    #[test]
    fn made_macs_are_stations_and_differ() {
        let macs: HashSet<MacAddr> = (0..10_000).map(|n| made_mac("port", &format!("c{n}"))).collect();
        assert_eq!(macs.len(), 10_000);
        assert!(macs.iter().all(|mac| mac.is_station()));
        assert_eq!(made_mac("port", "web"), made_mac("port", "web"));
    }
}

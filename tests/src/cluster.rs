//! A cluster: labs that are hosts of one overlay, and the wire between them.
//!
//! ```text
//! host 0: a0 -- front --+-- router --+-- out 192.0.2.1 --+
//!         b0 -- back  --+            |                   |
//! host 1: a1 -- front --+-- router --+-- out 192.0.2.2 --+-- the wire
//!         b1 -- back  --+                                |
//! ...                                                    +
//! ```
//!
//! Both networks are on every host, with the same gateways: front is 10.1.0.0/24 and identifier 101, back is 10.2.0.0/24
//! and 102; the station of host `n` is .1`n`. Every address has an IPv6 twin. What leaves by `out` waits until the test
//! carries it over, or looks at it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use packet::build::{Ip, V4, V6, eth};
use packet::{Address, MacAddr, NetworkId, PortId, Prefix, VlanId, Vni, VtepId};
use pipeline::policy::{PolicySet, Rule};
use pipeline::tables::{At, Kind, NeighborKey, StationKey, VtepKey};
use pipeline::{
    Domain, DomainKind, DomainSpec, Gateway, HandBack, Hop, Limits, Neighbor, NetworkInfo, OverlayInfo,
    Route, Router, RouterSpec, Translations, TunnelInfo, mtu_within,
};

use crate::Lab;
use crate::lab::Received;

/// The two networks, by number.
pub const FRONT: NetworkId = NetworkId(0);
/// The other one.
pub const BACK: NetworkId = NetworkId(1);
const OUTSIDE: NetworkId = NetworkId(2);

/// What all hosts have in common. Change it, then [`Cluster::publish`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// The underlay is IPv6.
    pub v6: bool,
    /// Hosts know one another's endpoints; else they learn up to so many.
    pub learns: Option<u32>,
    /// Every host knows the stations of the others.
    pub known: bool,
    /// Who may speak to whom between the networks.
    pub rules: Vec<Rule>,
    /// What is changed of the overlay's settings.
    pub overlay: fn(&mut OverlayInfo),
    /// The MTU of the underlay.
    pub mtu: u32,
    /// The UDP port of the tunnels.
    pub udp_port: u16,
    /// The device outside is shared with the host.
    pub shared: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            v6: false,
            learns: None,
            known: false,
            rules: Vec::new(),
            overlay: |_| {},
            mtu: 1500,
            udp_port: 4789,
            shared: false,
        }
    }
}

/// The hosts. See the module header.
#[derive(Debug)]
pub struct Cluster {
    /// One lab a host.
    pub hosts: Vec<Lab>,
    /// What they have in common.
    pub plan: Plan,
}

/// Returns the MAC of the station of a network (1: front, 2: back) on a host.
pub const fn mac(net: u8, host: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, net, 10 + host])
}

/// Returns its address.
pub const fn ip(net: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, net, 0, 10 + host)
}

/// Returns its IPv6 address.
pub const fn ip6(net: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, net as u16, 0, 0, 0, 0, 0, 10 + host as u16)
}

/// Returns the gateway's MAC of a network.
pub const fn gateway(net: u8) -> MacAddr {
    MacAddr([2, 0xff, 0, 0, 0, net])
}

/// Returns the MAC of a host's device outside.
pub const fn device(host: u8) -> MacAddr {
    MacAddr([2, 0xee, 0, 0, 0, host + 1])
}

/// Returns the MAC of a host's router in the tunnels.
pub const fn router(host: u8) -> MacAddr {
    MacAddr([0x0a, 0x76, 192, 0, 2, host + 1])
}

/// Returns the address of a host's endpoint.
pub fn endpoint(host: u8, v6: bool) -> Address {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host) + 1).into()
    } else {
        Ipv4Addr::new(192, 0, 2, host + 1).into()
    }
}

/// Starts a packet between two stations of a network.
pub fn between(net: u8, from: u8, to: u8) -> Ip<V4> {
    eth(mac(net, from), mac(net, to)).ipv4(ip(net, from), ip(net, to))
}

/// Starts an IPv6 packet between two stations of a network.
pub fn between6(net: u8, from: u8, to: u8) -> Ip<V6> {
    eth(mac(net, from), mac(net, to)).ipv6(ip6(net, from), ip6(net, to))
}

impl Cluster {
    /// Makes `count` hosts that know one another.
    pub fn new(count: u8) -> Self {
        Self::with(count, Plan::default())
    }

    /// Makes `count` hosts by a plan.
    pub fn with(count: u8, plan: Plan) -> Self {
        let hosts = (0..count).map(lab).collect();
        let mut cluster = Self { hosts, plan };
        cluster.publish();
        cluster
    }

    /// Returns the number that `host` has for the endpoint of `peer`.
    pub fn vtep(&self, host: u8, peer: u8) -> Option<VtepId> {
        let address = endpoint(peer, self.plan.v6);
        self.hosts[usize::from(host)].tables.vteps.find(FRONT, address)
    }

    /// Gives every host its configuration.
    pub fn publish(&mut self) {
        for host in 0..self.count() {
            self.publish_host(host);
        }
    }

    fn count(&self) -> u8 {
        u8::try_from(self.hosts.len()).expect("a few hosts")
    }

    fn publish_host(&mut self, host: u8) {
        let (count, plan) = (self.count(), self.plan.clone());
        let lab = &mut self.hosts[usize::from(host)];
        let now = lab.now();
        let out = lab.id("out");
        let others = (0..count).filter(|other| *other != host);
        for peer in others.clone() {
            for v6 in [false, true] {
                let key = NeighborKey { network: OUTSIDE, port: Some(out), address: endpoint(peer, v6) };
                lab.tables.neighbors.set(key, device(peer), out, Kind::Fixed, now);
            }
            if plan.learns.is_none() {
                lab.tables.vteps.fix(VtepKey { network: None, address: endpoint(peer, plan.v6) }, now);
            }
        }
        for (net, network, tunnel) in [(1, FRONT, "front-tunnel"), (2, BACK, "back-tunnel")] {
            let tunnel = lab.port(tunnel, if net == 1 { "front" } else { "back" }, |port| {
                port.mtu = mtu_within(plan.mtu, plan.v6);
                port.router_mac = Some(router(host));
                port.tunnel = Some(TunnelInfo {
                    vni: Vni(100 + u32::from(net)),
                    udp_port: plan.udp_port,
                    learned_vteps: plan.learns.unwrap_or(0),
                });
            });
            let mut info = network_info(net);
            for station in 0..count {
                let vtep = lab.tables.vteps.find(network, endpoint(station, plan.v6));
                let at = match (station == host, vtep) {
                    (true, _) => At::from(lab.id(if net == 1 { "a" } else { "b" })),
                    (false, Some(_)) if plan.known => At { port: tunnel, vtep },
                    _ => continue,
                };
                let neighbor = Neighbor { mac: mac(net, station), port: at.port };
                for address in [IpAddr::from(ip(net, station)), ip6(net, station).into()] {
                    info.neighbors.insert(address, neighbor);
                    let key = NeighborKey { network, port: None, address: address.into() };
                    lab.tables.neighbors.set(key, mac(net, station), at, Kind::Fixed, now);
                }
                let key = StationKey { network, vlan: VlanId::UNTAGGED, mac: mac(net, station) };
                lab.tables.fdb.fix(key, at, now);
            }
            lab.network(if net == 1 { "front" } else { "back" }, info);
        }
        lab.port("out", "outside", |port| {
            port.router_mac = Some(device(host));
            port.hand_back = if plan.shared { HandBack::Here } else { HandBack::Nowhere };
            port.mtu = plan.mtu;
        });
        lab.network("outside", outside(out, host));
        let spec = RouterSpec {
            uplink: Some(OUTSIDE),
            subnets: [(1, FRONT), (2, BACK)].into_iter().flat_map(subnets).collect(),
            ..RouterSpec::default()
        };
        let policy = Arc::new(PolicySet::new(plan.rules));
        let translations = Translations::new(Vec::new(), Vec::new().into_iter().collect(), (49152, 65535));
        lab.config.set_router(Router::new(spec, policy, Arc::new(translations), Arc::default()));
        let mut overlay = OverlayInfo::new(OUTSIDE, vec![endpoint(host, false), endpoint(host, true)]);
        (plan.overlay)(&mut overlay);
        lab.config.set_overlay(Some(overlay));
        lab.publish();
    }

    /// Sends a frame by a port of a host.
    pub fn send(&mut self, host: u8, port: &str, bytes: impl AsRef<[u8]>) {
        self.hosts[usize::from(host)].send(port, bytes);
    }

    /// Expects that `bytes` left by a port of a host next.
    #[track_caller]
    pub fn receive(&mut self, host: u8, port: &str, bytes: impl AsRef<[u8]>) {
        self.hosts[usize::from(host)].receive(port, bytes);
    }

    /// Takes what left by the device of a host next.
    pub fn on_wire(&mut self, host: u8) -> Option<Received> {
        self.hosts[usize::from(host)].take_whole("out")
    }

    /// Has a host receive from the wire.
    pub fn arrive(&mut self, host: u8, received: &Received) {
        let lab = &mut self.hosts[usize::from(host)];
        let mut frame = lab.pool.alloc_from(&received.bytes).expect("chunks");
        frame.set_checksum(received.checksum);
        frame.set_gso(received.gso);
        lab.send_frame("out", frame);
    }

    /// Carries over what is on the wire, until nothing is; returns how many packets there were.
    pub fn carry(&mut self) -> usize {
        let mut count = 0;
        loop {
            let before = count;
            for host in 0..self.count() {
                while let Some(received) = self.on_wire(host) {
                    let to = received.bytes[5] - 1;
                    assert_eq!(received.bytes[..6], device(to).0, "an address on the wire");
                    self.arrive(to, &received);
                    count += 1;
                }
            }
            if count == before {
                return count;
            }
        }
    }

    /// Expects that nothing (more) left by any port.
    #[track_caller]
    pub fn silent(&mut self) {
        for lab in &mut self.hosts {
            for port in ["a", "b", "out"] {
                lab.silent(port);
            }
        }
    }
}

fn lab(host: u8) -> Lab {
    let limits =
        Limits { ports: 16, networks: 8, stations: 1024, flows: 4096, workers: 1, ..Limits::default() };
    let mut lab = Lab::with_limits(limits);
    for network in ["front", "back", "outside"] {
        lab.network(network, NetworkInfo::new());
    }
    for (net, name, network) in [(1, "a", "front"), (2, "b", "back")] {
        lab.port(name, network, |port| {
            port.guard.mac = Some(mac(net, host));
            port.guard.addresses = vec![ip(net, host).into(), ip6(net, host).into()];
        });
    }
    lab.port("out", "outside", |_| {});
    lab
}

fn subnets((net, network): (u8, NetworkId)) -> [(Prefix, NetworkId); 2] {
    let [v4, v6] = prefixes(net);
    [(v4, network), (v6, network)]
}

fn prefixes(net: u8) -> [Prefix; 2] {
    [
        Prefix::new(Address::v4([10, net, 0, 0]), 24).expect("a prefix"),
        Prefix::new(Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, 0).into(), 64).expect("a prefix"),
    ]
}

fn network_info(net: u8) -> NetworkInfo {
    let own = [IpAddr::from([10, net, 0, 1]), Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, 1).into()];
    let mut routes: Vec<_> = prefixes(net).map(|prefix| (prefix, Route::Hops(vec![Hop::default()]))).to_vec();
    routes.extend(own.map(|own| (Prefix::host(own.into()), Route::Local)));
    NetworkInfo {
        gateway: Some(Gateway { mac: gateway(net), addresses: own.to_vec() }),
        domain: Some(Arc::new(Domain::new(DomainSpec { routes, ..DomainSpec::default() }))),
        ..NetworkInfo::new()
    }
}

fn outside(out: PortId, host: u8) -> NetworkInfo {
    let routes = [false, true].map(|v6| {
        let source = endpoint(host, v6);
        let prefix = Prefix::new(source, if v6 { 64 } else { 24 }).expect("a prefix");
        (prefix, Route::Hops(vec![Hop { port: Some(out), via: Address::UNSPECIFIED, source }]))
    });
    let spec = DomainSpec { kind: DomainKind::Uplink, routes: routes.to_vec(), ..DomainSpec::default() };
    NetworkInfo {
        gateway: Some(Gateway { mac: MacAddr::ZERO, addresses: Vec::new() }),
        domain: Some(Arc::new(Domain::new(spec))),
        ..NetworkInfo::new()
    }
}

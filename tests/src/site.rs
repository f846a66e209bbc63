//! The site: a lab with two networks, an outside and a host, as the daemon would lay it out.
//!
//! ```text
//! web 10.1.0.10, web2 10.1.0.11 -- front --+
//!                                          +-- router -- out: 203.0.113.2, router 203.0.113.1 beyond
//! db  10.2.0.10                 -- back  --+-- host: 203.0.113.2, relay 169.254.7.7
//! ```
//!
//! Every station has an IPv6 address too: the same with `fd00:1::`, `fd00:2::` and `2001:db8::`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use packet::build::{Ip, V4, V6, eth};
use packet::{Address, Instant, MacAddr, NetworkId, PortId, Prefix};
use pipeline::policy::{PolicySet, Rule};
use pipeline::tables::{Kind, NeighborKey, StationKey};
use pipeline::{
    Domain, DomainKind, DomainSpec, Gateway, Hop, Neighbor, NetworkInfo, Route, Router, RouterSpec, Source,
    Translation, Translations,
};

use crate::Lab;

/// A station: where it is and who.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    /// The name of its port.
    pub name: &'static str,
    /// The name of its network.
    pub network: &'static str,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

const fn station(name: &'static str, network: &'static str, net: u8, host: u8) -> Station {
    Station {
        name,
        network,
        mac: MacAddr([2, 0, 0, 0, net, host]),
        v4: Ipv4Addr::new(10, net, 0, host),
        v6: Ipv6Addr::new(0xfd00, net as u16, 0, 0, 0, 0, 0, host as u16),
    }
}

/// A station of the front network.
pub const WEB: Station = station("web", "front", 1, 10);
/// Another.
pub const WEB2: Station = station("web2", "front", 1, 11);
/// A station of the back network.
pub const DB: Station = station("db", "back", 2, 10);
/// The gateways.
pub const FRONT_GW: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 1]);
/// The back network's.
pub const BACK_GW: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 2]);
/// The gateway towards the host.
pub const HOST_GW: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 3]);
/// The MAC of the uplink's device.
pub const UPLINK: MacAddr = MacAddr([2, 0xee, 0, 0, 0, 1]);
/// The router outside.
pub const ROUTER: MacAddr = MacAddr([2, 0xee, 0, 0, 0, 2]);
/// The host's end of its tap.
pub const HOST: MacAddr = MacAddr([2, 0xdd, 0, 0, 0, 1]);
/// The host's address.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The host's IPv6 address.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// A server on the internet.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The same over IPv6.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7);
/// A floating IP.
pub const FLOATING4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The relay's source.
pub const RELAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 7);

/// A lab laid out as in the module header. Change the public fields, then [`Site::publish`].
#[derive(Debug)]
pub struct Site {
    /// The lab.
    pub lab: Lab,
    /// Policies.
    pub rules: Vec<Rule>,
    /// Floating IPs and published ports.
    pub translations: Vec<Translation>,
    /// What stations leave as, beside the host's address.
    pub sources: Vec<((NetworkId, Address), Source)>,
    /// The ports of the host's address that masqueraded connections take.
    pub range: (u16, u16),
    /// What is changed of the two inside domains.
    pub domains: [DomainSpec; 2],
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Makes the site.
    pub fn new() -> Self {
        Self::on(Lab::empty())
    }

    /// Makes the site in a lab without ports.
    pub fn on(lab: Lab) -> Self {
        let inside = DomainSpec { masquerade: true, host: true, ..DomainSpec::default() };
        let mut site = Self {
            lab,
            rules: Vec::new(),
            translations: Vec::new(),
            sources: Vec::new(),
            range: (49152, 65535),
            domains: [inside.clone(), inside],
        };
        for network in ["front", "back", "outside", "host-net"] {
            site.lab.network(network, NetworkInfo::new());
        }
        for station in [WEB, WEB2, DB] {
            let id = site.lab.port(station.name, station.network, |port| {
                port.guard.mac = Some(station.mac);
                port.guard.addresses = vec![station.v4.into(), station.v6.into()];
            });
            let network = site.network(station.network);
            let key = StationKey { network, vlan: packet::VlanId::UNTAGGED, mac: station.mac };
            site.lab.tables.fdb.fix(key, id, Instant::from_nanos(1));
            site.meet(network, None, station.v4.into(), station.mac, id);
            site.meet(network, None, station.v6.into(), station.mac, id);
        }
        let out = site.lab.port("out", "outside", |port| {
            port.router_mac = Some(UPLINK);
            port.host_resolves = true;
        });
        let host = site.lab.port("host", "host-net", |_| {});
        let (outside, host_net) = (site.network("outside"), site.network("host-net"));
        let router6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        site.meet(outside, Some(out), Ipv4Addr::new(203, 0, 113, 1).into(), ROUTER, out);
        site.meet(outside, Some(out), router6.into(), ROUTER, out);
        for address in [IpAddr::from(HOST4), HOST6.into(), RELAY4.into()] {
            site.meet(host_net, None, address, HOST, host);
        }
        site.publish();
        site
    }

    /// Returns the number of a network.
    pub fn network(&self, name: &str) -> NetworkId {
        let names = ["front", "back", "outside", "host-net"];
        let n = names.iter().position(|other| *other == name).expect("a network of the site");
        NetworkId(u16::try_from(n).expect("four"))
    }

    fn meet(&self, network: NetworkId, port: Option<PortId>, address: IpAddr, mac: MacAddr, at: PortId) {
        let key = NeighborKey { network, port, address: address.into() };
        self.lab.tables.neighbors.set(key, mac, at, Kind::Fixed, Instant::from_nanos(1));
    }

    /// Gives the configuration to the pipeline.
    pub fn publish(&mut self) {
        let (outside, host_net) = (self.network("outside"), self.network("host-net"));
        for (n, (name, gateway)) in [("front", FRONT_GW), ("back", BACK_GW)].into_iter().enumerate() {
            let net = u8::try_from(n + 1).expect("two");
            let own4 = Ipv4Addr::new(10, net, 0, 1);
            let own6 = Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, 1);
            let prefix4 = Prefix::new(own4.into(), 24).expect("a prefix");
            let prefix6 = Prefix::new(own6.into(), 64).expect("a prefix");
            let on_link = || Route::Hops(vec![Hop::default()]);
            let mut spec = self.domains[n].clone();
            spec.routes.splice(
                0..0,
                [
                    (prefix4, on_link()),
                    (prefix6, on_link()),
                    (Prefix::host(own4.into()), Route::Local),
                    (Prefix::host(own6.into()), Route::Local),
                ],
            );
            let network = self.network(name);
            spec.tracked |= self.translations.iter().any(|translation| translation.network == network);
            let mut info = NetworkInfo::new();
            info.gateway = Some(Gateway { mac: gateway, addresses: vec![own4.into(), own6.into()] });
            for station in [WEB, WEB2, DB].into_iter().filter(|station| station.network == name) {
                let neighbor = Neighbor { mac: station.mac, port: self.lab.id(station.name) };
                info.neighbors.extend([(station.v4.into(), neighbor), (station.v6.into(), neighbor)]);
            }
            info.domain = Some(Arc::new(Domain::new(spec)));
            self.lab.network(name, info);
        }
        let out = self.lab.id("out");
        let hop = |via: Address, source: Address| Hop { port: Some(out), via, source };
        let router6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let floating = self.translations.iter().filter(|t| t.service.is_none()).map(|t| t.listen.ip());
        let uplink = DomainSpec {
            kind: DomainKind::Uplink,
            routes: vec![
                (
                    Prefix::new(HOST4.into(), 24).expect("a prefix"),
                    Route::Hops(vec![hop(Address::UNSPECIFIED, HOST4.into())]),
                ),
                (Prefix::ALL_V4, Route::Hops(vec![hop(Ipv4Addr::new(203, 0, 113, 1).into(), HOST4.into())])),
                (Prefix::ALL_V6, Route::Hops(vec![hop(router6.into(), HOST6.into())])),
            ],
            ..DomainSpec::default()
        };
        let gateway = Gateway { mac: MacAddr::ZERO, addresses: floating.collect() };
        let info = NetworkInfo {
            gateway: Some(gateway),
            domain: Some(Arc::new(Domain::new(uplink))),
            ..NetworkInfo::new()
        };
        self.lab.network("outside", info);
        let own = [Address::from(HOST4), HOST6.into(), RELAY4.into()];
        let routes = own.map(|own| (Prefix::host(own), Route::Hops(vec![Hop::default()]))).to_vec();
        let spec = DomainSpec { kind: DomainKind::Host, routes, host: true, ..DomainSpec::default() };
        let info = NetworkInfo {
            gateway: Some(Gateway { mac: HOST_GW, addresses: Vec::new() }),
            domain: Some(Arc::new(Domain::new(spec))),
            ..NetworkInfo::new()
        };
        self.lab.network("host-net", info);
        self.lab.config.set_host_addresses(own.iter().map(|own| own.ip()).collect());
        let subnets = [(1u8, "front"), (2, "back")].into_iter().flat_map(|(net, name)| {
            let v4 = Prefix::new(Address::v4([10, net, 0, 0]), 24).expect("a prefix");
            let v6 = Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, 0);
            let v6 = Prefix::new(v6.into(), 64).expect("a prefix");
            [(v4, self.network(name)), (v6, self.network(name))]
        });
        let spec = RouterSpec {
            uplink: Some(outside),
            host: Some(host_net),
            subnets: subnets.collect(),
            relay: vec![RELAY4.into()],
            host_service: vec![RELAY4.into()],
        };
        let policy = Arc::new(PolicySet::new(self.rules.clone()));
        let translations =
            Translations::new(self.translations.clone(), self.sources.iter().copied().collect(), self.range);
        self.lab.config.set_router(Router::new(spec, policy, Arc::new(translations), Arc::default()));
        self.lab.publish();
    }
}

/// Starts a packet that a station sends to its gateway.
pub fn from(station: Station, to: Ipv4Addr) -> Ip<V4> {
    eth(station.mac, gateway(station)).ipv4(station.v4, to)
}

/// Starts an IPv6 packet that a station sends to its gateway.
pub fn from6(station: Station, to: Ipv6Addr) -> Ip<V6> {
    eth(station.mac, gateway(station)).ipv6(station.v6, to)
}

/// Starts a packet that a station receives from its gateway, one hop later.
pub fn to(station: Station, source: Ipv4Addr) -> Ip<V4> {
    eth(gateway(station), station.mac).ipv4(source, station.v4).ttl(63)
}

/// Starts an IPv6 packet that a station receives from its gateway, one hop later.
pub fn to6(station: Station, source: Ipv6Addr) -> Ip<V6> {
    eth(gateway(station), station.mac).ipv6(source, station.v6).ttl(63)
}

/// Returns a station's gateway.
pub fn gateway(station: Station) -> MacAddr {
    if station.network == "front" { FRONT_GW } else { BACK_GW }
}

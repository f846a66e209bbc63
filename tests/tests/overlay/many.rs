//! A thousand identifiers and a thousand endpoints on one host, and stations that move between endpoints.

use std::net::Ipv4Addr;
use std::sync::Arc;

use packet::build::{Packet, eth};
use packet::{Address, Checksum, MacAddr, NetworkId, PortId, Prefix, VlanId, Vni};
use pipeline::tables::{At, Kind, NeighborKey, StationKey, VtepKey};
use pipeline::{
    Domain, DomainKind, DomainSpec, DropReason, Gateway, HandBack, Hop, Limits, NetworkInfo, OverlayInfo,
    Route, TunnelInfo,
};
use tests::Lab;
use tests::cluster::*;
use tests::lab::Received;

const COUNT: u16 = 1000;
const OUTSIDE: NetworkId = NetworkId(0);

/// Returns the address of an endpoint; 0 is this host's.
fn address(n: u16) -> Ipv4Addr {
    let [high, low] = (n + 1).to_be_bytes();
    Ipv4Addr::new(172, 16, high, low)
}

fn station(network: u16, side: u64) -> MacAddr {
    MacAddr::local(u64::from(network) * 2 + side)
}

fn next_hop(n: u16) -> MacAddr {
    MacAddr::local(0xee_0000_0000 + u64::from(n))
}

fn vni(network: u16) -> Vni {
    Vni(u32::from(network) * 7919 + 5)
}

fn inner(from: MacAddr, to: MacAddr, n: u16) -> Packet {
    eth(from, to).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(n, 2).data(b"one of a thousand")
}

/// A host with as many networks, each of which has a station here and one behind an endpoint of its own.
fn host() -> Lab {
    let count = usize::from(COUNT);
    let limits = Limits {
        ports: 2 * count + 1,
        networks: count + 1,
        stations: 4 * count,
        vteps: count,
        flows: 64 * count,
        workers: 1,
        ..Limits::default()
    };
    let mut lab = Lab::with_limits(limits);
    let hop = |out| Hop { port: Some(out), via: Address::UNSPECIFIED, source: address(0).into() };
    let prefix = Prefix::new(address(0).into(), 16).expect("a prefix");
    lab.network("outside", NetworkInfo::new());
    let out = lab.port("out", "outside", |port| {
        port.router_mac = Some(next_hop(0));
        port.hand_back = HandBack::Nowhere;
    });
    let routes = vec![(prefix, Route::Hops(vec![hop(out)]))];
    let spec = DomainSpec { kind: DomainKind::Uplink, routes, ..DomainSpec::default() };
    lab.network(
        "outside",
        NetworkInfo {
            gateway: Some(Gateway { mac: MacAddr::ZERO, addresses: Vec::new() }),
            domain: Some(Arc::new(Domain::new(spec))),
            ..NetworkInfo::new()
        },
    );
    lab.config.set_overlay(Some(OverlayInfo::new(OUTSIDE, vec![address(0).into()])));
    for n in 1..=COUNT {
        let (name, now) = (n.to_string(), lab.now());
        let network = lab.network(&name, NetworkInfo::new());
        let here = lab.port(&format!("s{n}"), &name, |_| {});
        let tunnel = lab.port(&format!("t{n}"), &name, |port| {
            port.mtu = 1450;
            port.tunnel = Some(TunnelInfo { vni: vni(n), udp_port: 4789, learned_vteps: 0 });
        });
        let key = NeighborKey { network: OUTSIDE, port: Some(out), address: address(n).into() };
        lab.tables.neighbors.set(key, next_hop(n), out, Kind::Fixed, now);
        let vtep = lab.tables.vteps.fix(VtepKey { network: None, address: address(n).into() }, now);
        assert!(vtep.is_some(), "room for endpoint {n}");
        let key = |mac| StationKey { network, vlan: VlanId::UNTAGGED, mac };
        assert!(lab.tables.fdb.fix(key(station(n, 0)), here, now));
        assert!(lab.tables.fdb.fix(key(station(n, 1)), At { port: tunnel, vtep }, now));
    }
    lab
}

#[test]
fn a_thousand_networks_and_endpoints_are_told_apart() {
    let mut lab = host();
    for round in 0..3 {
        for n in 1..=COUNT {
            let there = inner(station(n, 0), station(n, 1), n).bytes();
            lab.send(&format!("s{n}"), &there);
            let wire = lab.take("out").expect("packed");
            assert_eq!((&wire[..6], &wire[30..34]), (&next_hop(n).0[..], &address(n).octets()[..]));
            assert_eq!(wire[46..50], (vni(n).0 << 8).to_be_bytes(), "the identifier of network {n}");
            assert_eq!(wire[50..], there);
            let back = inner(station(n, 1), station(n, 0), n);
            let link = eth(next_hop(n), next_hop(0));
            let udp = |from| link.clone().ipv4(from, address(0)).udp(50_000, 4789).without_checksum();
            lab.send("out", udp(address(n)).vxlan(vni(n), back.clone()));
            lab.receive(&format!("s{n}"), back.clone());
            // By another's endpoint, and with another's identifier.
            if round > 0 && n.is_multiple_of(50) {
                let before =
                    [DropReason::VtepSpoof, DropReason::UnknownVni].map(|reason| lab.dropped(reason));
                lab.send("out", udp(address(n - 1)).vxlan(vni(n), back.clone()));
                lab.send("out", udp(address(n)).vxlan(Vni(vni(n).0 + 1), back));
                let after = [DropReason::VtepSpoof, DropReason::UnknownVni].map(|reason| lab.dropped(reason));
                assert_eq!(after, before.map(|count| count + 1), "network {n} in round {round}");
            }
        }
    }
    let hits = lab.tables.counters(0).ledger.cache_hits.get();
    assert_eq!(hits, 4 * u64::from(COUNT), "all but the first packet of each flow");
}

#[test]
fn flows_follow_a_station_to_another_endpoint() {
    let mut cluster = Cluster::with(3, Plan { known: true, rules: super::same::rules(), ..Plan::default() });
    let bridged = between(1, 0, 1).udp(1, 2).data(b"bridged");
    let routed = eth(mac(1, 0), gateway(1)).ipv4(ip(1, 0), ip(2, 1)).udp(1, 2).data(b"routed");
    let to = |cluster: &mut Cluster, packet: &Packet| {
        cluster.send(0, "a", packet.clone());
        let Received { bytes, checksum, .. } = cluster.on_wire(0).expect("a packet");
        assert_eq!(checksum, Checksum::Complete);
        bytes[5] - 1
    };
    for _ in 0..3 {
        assert_eq!([to(&mut cluster, &bridged), to(&mut cluster, &routed)], [1, 1]);
    }
    let hits = |cluster: &Cluster| cluster.hosts[0].tables.counters(0).ledger.cache_hits.get();
    assert_eq!(hits(&cluster), 4);
    let vtep = cluster.vtep(0, 2);
    let lab = &cluster.hosts[0];
    let at = |port: PortId| At { port, vtep };
    let key = StationKey { network: FRONT, vlan: VlanId::UNTAGGED, mac: mac(1, 1) };
    assert!(lab.tables.fdb.fix(key, at(lab.id("front-tunnel")), lab.now()));
    let key = NeighborKey { network: BACK, port: None, address: ip(2, 1).into() };
    lab.tables.neighbors.set(key, mac(2, 1), at(lab.id("back-tunnel")), Kind::Fixed, lab.now());
    for _ in 0..3 {
        assert_eq!([to(&mut cluster, &bridged), to(&mut cluster, &routed)], [2, 2]);
    }
    // The bridged flow was decided anew; the routed one has just another neighbour.
    assert_eq!(hits(&cluster), 4 + 2 + 3);
    cluster.silent();
}

#[test]
fn known_flows_count_as_all_others_do() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let frame = between(1, 0, 1).udp(1, 2).data(&[7; 100]).bytes();
    cluster.send(0, "a", &frame);
    cluster.carry();
    cluster.receive(1, "a", &frame);
    // Four stations were set at each host.
    cluster.hosts[0].changed(&["fdb +4", "port.a.rx +1", "port.front-tunnel.tx +1", "port.out.tx +1"]);
    cluster.hosts[1].changed(&["fdb +4", "port.a.tx +1", "port.front-tunnel.rx +1", "port.out.rx +1"]);
    for _ in 0..2 {
        cluster.send(0, "a", &frame);
        assert_eq!(cluster.carry(), 1);
        cluster.receive(1, "a", &frame);
    }
    cluster.hosts[0].changed(&["port.a.rx +2", "port.front-tunnel.tx +2", "port.out.tx +2"]);
    cluster.hosts[1].changed(&["port.a.tx +2", "port.front-tunnel.rx +2", "port.out.rx +2"]);
    let bytes = |host: usize, port: &str| {
        let lab = &cluster.hosts[host];
        let counters = lab.tables.counters(0).port(lab.id(port));
        (counters.rx_bytes.get(), counters.tx_bytes.get())
    };
    let (inner, outer) = (3 * 142, 3 * 192);
    assert_eq!(
        [bytes(0, "a"), bytes(0, "front-tunnel"), bytes(0, "out")],
        [(inner, 0), (0, inner), (0, outer)]
    );
    assert_eq!(
        [bytes(1, "out"), bytes(1, "front-tunnel"), bytes(1, "a")],
        [(outer, 0), (inner, 0), (0, inner)]
    );
    cluster.silent();
}

#[test]
fn a_full_queue_of_the_underlay_drops_there() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let frame = between(1, 0, 1).udp(1, 2).data(b"x").bytes();
    cluster.send(0, "a", &frame);
    let lab = &mut cluster.hosts[0];
    assert!(lab.take("out").is_some());
    lab.limit_queue("out", 2);
    let port = lab.id("a");
    let frames: Vec<_> = (0..5).map(|_| (port, lab.pool.alloc_from(&frame).expect("chunks"))).collect();
    lab.send_batch(frames);
    assert_eq!(lab.dropped(DropReason::TxFull), 3);
    assert_eq!(lab.tables.counters(0).drops(lab.id("out"), DropReason::TxFull), 3);
    assert_eq!([lab.take("out").is_some(), lab.take("out").is_some()], [true; 2]);
    cluster.silent();
}

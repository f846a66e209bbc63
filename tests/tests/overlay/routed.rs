//! Packets between networks: routed once, at their source host, and tracked at both.

use std::net::Ipv4Addr;
use std::time::Duration;

use packet::Vni;
use packet::build::{arp_reply, arp_request, eth};
use packet::header::tcp_flags::{ACK, SYN};
use pipeline::DropReason;
use pipeline::policy::{Action, Identity, Peer, Rule, Service};
use tests::cluster::*;

fn allow() -> Vec<Rule> {
    let peer = |network| {
        Peer::Identities(vec![Identity::network(network), Identity::port(packet::PortId(network.0))])
    };
    let services = vec![Service::Ports { protocol: 6, first: 80, last: 80 }, Service::Any];
    vec![Rule {
        name: "front->back".into(),
        priority: 1000,
        from: peer(FRONT),
        to: peer(BACK),
        services,
        action: Action::Allow,
        log: false,
        both_ways: false,
    }]
}

fn plan(known: bool) -> Plan {
    Plan { known, rules: allow(), ..Plan::default() }
}

#[test]
fn a_packet_is_routed_at_its_source_and_so_is_the_answer() {
    let mut cluster = Cluster::with(2, plan(true));
    let ask = |flags, seq: u32, ack: u32| {
        eth(mac(1, 0), gateway(1)).ipv4(ip(1, 0), ip(2, 1)).tcp(4000, 80).flags(flags).seq(seq).ack(ack)
    };
    let answer = |flags, seq: u32, ack: u32| {
        eth(mac(2, 1), gateway(2)).ipv4(ip(2, 1), ip(1, 0)).tcp(80, 4000).flags(flags).seq(seq).ack(ack)
    };
    let asked = |flags, seq: u32, ack: u32| {
        let ip = eth(router(0), mac(2, 1)).ipv4(ip(1, 0), ip(2, 1)).ttl(63);
        ip.tcp(4000, 80).flags(flags).seq(seq).ack(ack)
    };
    let answered = |flags, seq: u32, ack: u32| {
        let ip = eth(router(1), mac(1, 0)).ipv4(ip(2, 1), ip(1, 0)).ttl(63);
        ip.tcp(80, 4000).flags(flags).seq(seq).ack(ack)
    };
    cluster.send(0, "a", ask(SYN, 100, 0).data(b"").bytes());
    let wire = cluster.on_wire(0).expect("a packet");
    assert_eq!(wire.bytes[46..49], [0, 0, 102], "it is in the destination's network");
    cluster.arrive(1, &wire);
    cluster.receive(1, "b", asked(SYN, 100, 0).data(b"").bytes());
    cluster.send(1, "b", answer(SYN | ACK, 500, 101).data(b"").bytes());
    let wire = cluster.on_wire(1).expect("an answer");
    assert_eq!(wire.bytes[46..49], [0, 0, 101]);
    cluster.arrive(0, &wire);
    cluster.receive(0, "a", answered(SYN | ACK, 500, 101).data(b"").bytes());
    for n in 0..3 {
        cluster.send(0, "a", ask(ACK, 101 + n, 501 + n).data(b"?").bytes());
        assert_eq!(cluster.carry(), 1);
        cluster.receive(1, "b", asked(ACK, 101 + n, 501 + n).data(b"?").bytes());
        cluster.send(1, "b", answer(ACK, 501 + n, 102 + n).data(b"!").bytes());
        assert_eq!(cluster.carry(), 1);
        cluster.receive(0, "a", answered(ACK, 501 + n, 102 + n).data(b"!").bytes());
    }
    for lab in &cluster.hosts {
        let hits = lab.tables.counters(0).ledger.cache_hits.get();
        assert!(hits >= 2, "{hits} of what came from the tunnel were known flows");
        let stats = lab.tables.connections.stats();
        assert_eq!(stats.open, 1, "one connection, and the same, on each host");
    }
    cluster.silent();
}

#[test]
fn ipv6_is_routed_alike() {
    let mut cluster = Cluster::with(2, plan(true));
    for n in 0..3 {
        let data = [n];
        let ask = eth(mac(1, 0), gateway(1)).ipv6(ip6(1, 0), ip6(2, 1)).udp(4000, 80).data(&data);
        cluster.send(0, "a", ask);
        assert_eq!(cluster.carry(), 1);
        let asked = eth(router(0), mac(2, 1)).ipv6(ip6(1, 0), ip6(2, 1)).ttl(63).udp(4000, 80).data(&data);
        cluster.receive(1, "b", asked);
        cluster.send(1, "b", eth(mac(2, 1), gateway(2)).ipv6(ip6(2, 1), ip6(1, 0)).udp(80, 4000).data(&data));
        assert_eq!(cluster.carry(), 1);
        let answered = eth(router(1), mac(1, 0)).ipv6(ip6(2, 1), ip6(1, 0)).ttl(63).udp(80, 4000).data(&data);
        cluster.receive(0, "a", answered);
    }
    cluster.silent();
}

#[test]
fn both_hosts_look_at_the_policy() {
    let mut cluster = Cluster::with(2, plan(true));
    let back = eth(mac(2, 0), gateway(2)).ipv4(ip(2, 0), ip(1, 1)).udp(1, 2).data(b"x");
    cluster.send(0, "b", back);
    assert_eq!(cluster.hosts[0].dropped(DropReason::Policy), 1);
    // A host that has not heard of the rule yet.
    cluster.plan.rules.clear();
    let asks = || eth(mac(1, 0), gateway(1)).ipv4(ip(1, 0), ip(2, 1)).udp(1, 2).data(b"x");
    cluster.send(0, "a", asks());
    let wire = cluster.on_wire(0).expect("host 0 still has it");
    cluster.publish();
    cluster.arrive(1, &wire);
    assert_eq!(cluster.hosts[1].dropped(DropReason::Policy), 1);
    cluster.silent();
}

#[test]
fn a_station_is_asked_for_by_way_of_its_host() {
    let mut cluster = Cluster::with(2, plan(false));
    let ask = eth(mac(1, 0), gateway(1)).ipv4(ip(1, 0), ip(2, 1)).udp(1, 80).data(b"x");
    cluster.send(0, "a", ask);
    // The question goes into the tunnel with this host's MAC, and to its own stations with the gateway's.
    cluster.receive(0, "b", arp_request(gateway(2), [10, 2, 0, 1], ip(2, 1)));
    let wire = cluster.on_wire(0).expect("a question");
    assert_eq!(wire.bytes[50..], arp_request(router(0), [10, 2, 0, 1], ip(2, 1)).bytes());
    cluster.arrive(1, &wire);
    // Host 1 knows its station, and does not wake it.
    assert_eq!(cluster.carry(), 1);
    cluster.hosts[0].pass(Duration::from_millis(500));
    assert_eq!(cluster.carry(), 1);
    cluster.receive(1, "b", eth(router(0), mac(2, 1)).ipv4(ip(1, 0), ip(2, 1)).ttl(63).udp(1, 80).data(b"x"));
    cluster.silent();
}

#[test]
fn a_host_finds_out_whom_its_peer_looks_for() {
    let mut cluster = Cluster::with(2, plan(false));
    // A virtual machine that nobody was told of.
    let (mac, ip) = (packet::MacAddr([2, 0, 0, 0, 2, 99]), Ipv4Addr::new(10, 2, 0, 99));
    cluster.hosts[1].port("b", "back", |port| port.guard = pipeline::Guard::default());
    cluster.send(0, "a", eth(super::mac(1, 0), gateway(1)).ipv4(super::ip(1, 0), ip).udp(1, 80).data(b"x"));
    let _ = cluster.hosts[0].take("b");
    assert_eq!(cluster.carry(), 1, "the question");
    // Host 1 asks in its own name: its station must not take the peer for its gateway.
    cluster.receive(1, "b", arp_request(gateway(2), [10, 2, 0, 1], ip));
    cluster.send(1, "b", arp_reply(mac, ip, gateway(2), [10, 2, 0, 1]));
    cluster.hosts[0].pass(Duration::from_millis(1500));
    let _ = cluster.hosts[0].take("b");
    assert_eq!(cluster.carry(), 2, "the question once more, and the answer");
    cluster.hosts[0].pass(Duration::from_millis(500));
    assert_eq!(cluster.carry(), 1);
    cluster.receive(1, "b", eth(router(0), mac).ipv4(super::ip(1, 0), ip).ttl(63).udp(1, 80).data(b"x"));
    cluster.silent();
}

#[test]
fn the_gateway_answers_its_own_stations_and_those_it_routes_to() {
    let mut cluster = Cluster::with(2, plan(false));
    // Every host's own.
    for host in 0..2 {
        cluster.send(host, "a", arp_request(mac(1, host), ip(1, host), [10, 1, 0, 1]));
        cluster.receive(host, "a", arp_reply(gateway(1), [10, 1, 0, 1], mac(1, host), ip(1, host)));
    }
    cluster.silent();
    // A station behind an endpoint that is no switch of ours.
    let foreign = packet::MacAddr([2, 0, 0, 0, 1, 99]);
    let arrives = |cluster: &mut Cluster| {
        let inner = arp_request(foreign, [10, 1, 0, 99], [10, 1, 0, 1]);
        let outer = eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]);
        let bytes = outer.udp(1, 4789).vxlan(Vni(101), inner).bytes();
        cluster.arrive(0, &tests::lab::Received { bytes, checksum: packet::Checksum::Complete, gso: None });
    };
    arrives(&mut cluster);
    cluster.silent();
    let lab = &cluster.hosts[0];
    let at = pipeline::tables::At { port: lab.id("front-tunnel"), vtep: cluster.vtep(0, 1) };
    let key = pipeline::tables::NeighborKey {
        network: FRONT,
        port: None,
        address: packet::Address::v4([10, 1, 0, 99]),
    };
    lab.tables.neighbors.set(key, foreign, at, pipeline::tables::Kind::Asker, lab.now());
    arrives(&mut cluster);
    let wire = cluster.on_wire(0).expect("an answer");
    assert_eq!(wire.bytes[50..], arp_reply(router(0), [10, 1, 0, 1], foreign, [10, 1, 0, 99]).bytes());
    cluster.silent();
}

#[test]
fn who_sends_what_is_too_long_for_the_tunnel_is_told() {
    let mut cluster = Cluster::with(2, plan(true));
    // 1450 bytes fit.
    let fits = between(1, 0, 1).udp(1, 2).data(&[7; 1450 - 28]);
    cluster.send(0, "a", fits.clone());
    let wire = cluster.on_wire(0).expect("it fits");
    assert_eq!(wire.bytes.len(), 1514);
    cluster.arrive(1, &wire);
    cluster.receive(1, "a", fits);
    // As by a router, also where there is none between the two.
    for _ in 0..2 {
        cluster.send(0, "a", between(1, 0, 1).udp(1, 2).data(&[7; 1451 - 28]));
        let told = cluster.hosts[0].take("a").expect("an ICMP error");
        assert_eq!(told[6..12], gateway(1).0);
        assert_eq!(told[26..34], [10, 1, 0, 1, 10, 1, 0, 10], "from the gateway to the sender");
        assert_eq!((told[34], told[35], u16::from_be_bytes([told[40], told[41]])), (3, 4, 1450));
    }
    cluster.send(0, "a", between6(1, 0, 1).udp(1, 2).data(&[7; 1451 - 48]));
    let told = cluster.hosts[0].take("a").expect("an ICMPv6 error");
    assert_eq!((told[54], told[55]), (2, 0));
    assert_eq!(told[58..62], 1450_u32.to_be_bytes());
    assert_eq!(cluster.hosts[0].dropped(DropReason::Mtu), 3);
    cluster.send(0, "a", eth(mac(1, 0), gateway(1)).ipv4(ip(1, 0), ip(2, 1)).udp(1, 2).data(&[7; 1451 - 28]));
    let told = cluster.hosts[0].take("a").expect("an ICMP error");
    assert_eq!((told[34], told[35], u16::from_be_bytes([told[40], told[41]])), (3, 4, 1450));
    cluster.silent();
}

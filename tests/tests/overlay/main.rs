//! Networks that reach over several hosts: bridged, routed, flooded, refused.

mod drops;
mod many;
mod offload;
mod outer;
mod routed;
mod same;

use std::time::Duration;

use packet::build::{arp_reply, arp_request, eth, neighbor_solicit};
use packet::{MacAddr, VlanId};
use pipeline::DropReason;
use pipeline::tables::StationKey;
use tests::cluster::*;

/// Returns the broadcast that a host's station sends.
fn shout(net: u8, host: u8) -> Vec<u8> {
    eth(mac(net, host), MacAddr::BROADCAST).raw(0x88b5, b"hello, all of you").padded().bytes()
}

fn key(net: u8, host: u8) -> StationKey {
    let network = if net == 1 { FRONT } else { BACK };
    StationKey { network, vlan: VlanId::UNTAGGED, mac: mac(net, host) }
}

#[test]
fn what_is_flooded_reaches_every_host_once() {
    let mut cluster = Cluster::new(4);
    cluster.send(0, "a", shout(1, 0));
    // A copy for each of the others, and none of theirs for anybody.
    assert_eq!(cluster.carry(), 3);
    for host in 1..4 {
        cluster.receive(host, "a", shout(1, 0));
    }
    cluster.silent();
    let lab = &mut cluster.hosts[0];
    lab.changed(
        &[
            "created +2",
            "port.a.rx +1",
            "port.front-tunnel.tx +3",
            "port.out.tx +3",
            // The four stations of each network were set before, and two of them are here.
        ]
        .iter()
        .copied()
        .chain(["fdb +2"])
        .collect::<Vec<_>>(),
    );
    cluster.hosts[1].changed(&["fdb +3", "port.a.tx +1", "port.front-tunnel.rx +1", "port.out.rx +1"]);
}

#[test]
fn stations_are_learned_with_their_endpoints() {
    let mut cluster = Cluster::new(3);
    cluster.send(0, "a", shout(1, 0));
    cluster.carry();
    cluster.receive(1, "a", shout(1, 0));
    cluster.receive(2, "a", shout(1, 0));
    let found = cluster.hosts[1].tables.fdb.find(key(1, 0)).expect("learned");
    assert_eq!((found.port, found.vtep), (cluster.hosts[1].id("front-tunnel"), cluster.vtep(1, 0)));
    let answer = between(1, 1, 0).udp(1, 2).data(b"to you alone").bytes();
    for _ in 0..3 {
        cluster.send(1, "a", &answer);
        assert_eq!(cluster.carry(), 1);
        cluster.receive(0, "a", &answer);
    }
    // It moves to another host, and says so.
    cluster.hosts[2].port("a", "front", |port| port.guard = pipeline::Guard::default());
    cluster.send(2, "a", shout(1, 0));
    assert_eq!(cluster.carry(), 2);
    cluster.receive(1, "a", shout(1, 0));
    // Where it is set to be, nobody else may be.
    assert_eq!(cluster.hosts[0].dropped(DropReason::VtepSpoof), 1);
    cluster.send(1, "a", &answer);
    cluster.carry();
    cluster.receive(2, "a", &answer);
    cluster.silent();
}

#[test]
fn known_addresses_are_answered_for_and_nothing_is_flooded() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    cluster.send(0, "a", arp_request(mac(1, 0), ip(1, 0), ip(1, 1)).bytes());
    cluster.receive(0, "a", arp_reply(mac(1, 1), ip(1, 1), mac(1, 0), ip(1, 0)).bytes());
    cluster.send(0, "a", neighbor_solicit(mac(1, 0), ip6(1, 0), ip6(1, 1)).bytes());
    let advert = cluster.hosts[0].take("a").expect("an advertisement");
    assert_eq!((advert[54], &advert[advert.len() - 6..]), (136, &mac(1, 1).0[..]));
    let frame = between(1, 0, 1).udp(1, 2).data(b"x").bytes();
    cluster.send(0, "a", &frame);
    assert_eq!(cluster.carry(), 1);
    cluster.receive(1, "a", &frame);
    cluster.silent();
}

#[test]
fn unknown_addresses_are_asked_for_everywhere() {
    let mut cluster = Cluster::new(2);
    let question = arp_request(mac(1, 0), ip(1, 0), ip(1, 1)).bytes();
    cluster.send(0, "a", &question);
    assert_eq!(cluster.carry(), 2, "the question, and the other host's answer for its station");
    cluster.receive(0, "a", arp_reply(mac(1, 1), ip(1, 1), mac(1, 0), ip(1, 0)).bytes());
    // Somebody whom no host knows answers himself.
    let stranger = std::net::Ipv4Addr::new(10, 1, 0, 200);
    cluster.send(0, "a", arp_request(mac(1, 0), ip(1, 0), stranger).bytes());
    assert_eq!(cluster.carry(), 1);
    cluster.receive(1, "a", arp_request(mac(1, 0), ip(1, 0), stranger).bytes());
    cluster.silent();
}

#[test]
fn networks_are_apart() {
    let mut cluster = Cluster::new(2);
    cluster.send(0, "a", shout(1, 0));
    cluster.send(0, "b", shout(2, 0));
    assert_eq!(cluster.carry(), 2);
    cluster.receive(1, "a", shout(1, 0));
    cluster.receive(1, "b", shout(2, 0));
    cluster.silent();
}

#[test]
fn a_loop_through_two_tunnels_dies_at_the_first_host() {
    let mut cluster = Cluster::new(3);
    // Two hosts think that the third's station is behind the other.
    for (host, wrong) in [(0, 1), (1, 0)] {
        let vtep = cluster.vtep(host, wrong);
        let lab = &cluster.hosts[usize::from(host)];
        let at = pipeline::tables::At { port: lab.id("front-tunnel"), vtep };
        assert!(lab.tables.fdb.fix(key(1, 2), at, lab.now()));
    }
    cluster.send(0, "a", between(1, 0, 2).udp(1, 2).data(b"x").bytes());
    assert_eq!(cluster.carry(), 1);
    assert_eq!(cluster.hosts[1].dropped(DropReason::SplitHorizon), 1);
    cluster.silent();
}

#[test]
fn endpoints_are_learned_up_to_a_limit_and_age() {
    let mut cluster = Cluster::with(4, Plan { learns: Some(2), ..Plan::default() });
    // Nobody knows anybody: there is nobody to flood to.
    cluster.send(0, "a", shout(1, 0));
    assert_eq!(cluster.hosts[0].dropped(DropReason::NoListener), 1);
    // The others know host 0, which learns two of them.
    for host in 1..4 {
        let lab = &cluster.hosts[usize::from(host)];
        let key = pipeline::tables::VtepKey { network: None, address: endpoint(0, false) };
        lab.tables.vteps.fix(key, lab.now()).expect("room");
        cluster.send(host, "a", shout(1, host));
        cluster.carry();
    }
    cluster.receive(0, "a", shout(1, 1));
    cluster.receive(0, "a", shout(1, 2));
    assert_eq!(cluster.hosts[0].dropped(DropReason::UnknownVtep), 1);
    cluster.send(0, "a", shout(1, 0));
    assert_eq!(cluster.carry(), 2);
    cluster.receive(1, "a", shout(1, 0));
    cluster.receive(2, "a", shout(1, 0));
    // In the other network they are not known.
    cluster.send(0, "b", shout(2, 0));
    assert_eq!(cluster.hosts[0].dropped(DropReason::NoListener), 2);
    // Their stations go, and a minute later they do.
    cluster.hosts[0].tables.fdb.remove(|station| station.vtep.is_some());
    cluster.hosts[0].pass(Duration::from_secs(63));
    cluster.send(3, "a", shout(1, 3));
    cluster.carry();
    cluster.receive(0, "a", shout(1, 3));
    cluster.silent();
}

#[test]
fn a_packet_waits_for_the_next_hop_to_its_endpoint() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let lab = &mut cluster.hosts[0];
    let next_hop = pipeline::tables::NeighborKey {
        network: packet::NetworkId(2),
        port: Some(lab.id("out")),
        address: endpoint(1, false),
    };
    assert!(lab.tables.neighbors.remove(next_hop, lab.now()));
    let frame = between(1, 0, 1).udp(1, 2).data(b"patience").bytes();
    lab.send("a", &frame);
    let question = lab.take("out").expect("a question");
    assert_eq!((&question[12..14], &question[38..42]), (&[8, 6][..], &[192, 0, 2, 2][..]));
    lab.send("a", shout(1, 0));
    lab.silent("out");
    let answer = eth(device(1), device(0)).arp_reply([192, 0, 2, 2], [192, 0, 2, 1]).bytes();
    lab.send("out", answer);
    lab.pass(Duration::from_millis(500));
    assert_eq!(cluster.carry(), 2);
    cluster.receive(1, "a", frame);
    cluster.receive(1, "a", shout(1, 0));
    // One that does not answer.
    let lab = &mut cluster.hosts[0];
    assert!(lab.tables.neighbors.remove(next_hop, lab.now()));
    lab.send("a", shout(1, 0));
    lab.pass(Duration::from_secs(6));
    assert_eq!(lab.dropped(DropReason::Unresolved), 1);
    while lab.take("out").is_some() {}
    cluster.silent();
}

#[test]
fn an_endpoint_that_goes_takes_its_stations_along() {
    let mut cluster = Cluster::new(2);
    cluster.send(1, "a", shout(1, 1));
    cluster.carry();
    cluster.receive(0, "a", shout(1, 1));
    let lab = &mut cluster.hosts[0];
    let vtep = lab.tables.vteps.find(FRONT, endpoint(1, false)).expect("known");
    assert!(lab.tables.forget_vtep(vtep, lab.now()));
    lab.send("a", between(1, 0, 1).udp(1, 2).data(b"x").bytes());
    assert_eq!(lab.dropped(DropReason::NoListener), 1, "nobody is left to flood to");
    cluster.send(1, "a", shout(1, 1));
    cluster.carry();
    assert_eq!(cluster.hosts[0].dropped(DropReason::UnknownVtep), 1);
    cluster.silent();
}

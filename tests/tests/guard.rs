//! The guard of ports with fixed addresses, and the answers to ARP and neighbour solicitations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use packet::MacAddr;
use packet::build::{arp_reply, arp_request, eth, neighbor_solicit};
use packet::header::nd_option;
use pipeline::{DropReason, Gateway, Neighbor, NetworkInfo};
use tests::Lab;

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const GW: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const A4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const B4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const GW4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const HOST4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xb);
const GW6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// Two guarded ports with both families, a third without, and a gateway.
fn lab() -> Lab {
    let mut lab = Lab::new(&["a", "b", "free"]);
    for (name, mac, v4, v6) in [("a", A, A4, A6), ("b", B, B4, B6)] {
        lab.port(name, "net", |port| {
            port.guard.mac = Some(mac);
            port.guard.addresses = vec![v4.into(), v6.into()];
        });
    }
    let neighbors =
        [("a", A, IpAddr::from(A4)), ("a", A, A6.into()), ("b", B, B4.into()), ("b", B, B6.into())];
    let mut info = NetworkInfo::new();
    info.gateway = Some(Gateway { mac: GW, addresses: vec![GW4.into(), GW6.into()] });
    info.neighbors =
        neighbors.into_iter().map(|(port, mac, ip)| (ip, Neighbor { mac, port: lab.id(port) })).collect();
    lab.network("net", info);
    lab.config.set_host_addresses([IpAddr::from(HOST4)].into_iter().collect());
    lab.publish();
    lab
}

fn udp(mac: MacAddr, src: Ipv4Addr) -> Vec<u8> {
    eth(mac, B).ipv4(src, B4).udp(1, 2).data(b"x").bytes()
}

#[test]
fn a_guarded_port_sends_as_itself_only() {
    let mut lab = lab();
    lab.send("b", eth(B, MacAddr::BROADCAST).ipv4(B4, A4).udp(1, 2).data(b"x").bytes());
    lab.take("a");
    lab.take("free");
    // The second one is decided from the cache, the wrong address still found.
    for _ in 0..2 {
        lab.send("a", udp(A, A4));
        lab.receive("b", udp(A, A4));
        lab.send("a", udp(A, B4));
        lab.send("a", udp(MacAddr::local(9), A4));
    }
    lab.silent("b");
    assert_eq!(lab.dropped(DropReason::Spoof), 4);
    assert!(lab.tables.counters(0).ledger.cache_hits.get() > 0);
}

#[test]
fn dhcp_and_link_local_sources_are_allowed() {
    let mut lab = lab();
    lab.send("a", eth(A, MacAddr::BROADCAST).ipv4([0, 0, 0, 0], [255; 4]).udp(68, 67).data(b"x").bytes());
    assert!(lab.take("b").is_some() && lab.take("free").is_some());
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
    lab.send("a", eth(A, MacAddr::BROADCAST).ipv6(link_local, B6).udp(1, 2).data(b"x").bytes());
    assert!(lab.take("b").is_some() && lab.take("free").is_some());
    assert_eq!(lab.dropped(DropReason::Spoof), 0);
}

#[test]
fn nobody_claims_anothers_address_by_arp_or_nd() {
    let mut lab = lab();
    lab.send("a", arp_reply(A, B4, GW, GW4));
    lab.send("a", arp_request(A, B4, B4));
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let group = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    lab.send("a", eth(A, group).ipv6(A6, all_nodes).neighbor_advert(B6, A, 0x20));
    // A router advertisement (RFC 4861, 4.2), behind a destination options header too.
    let advert = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    lab.send("a", eth(A, group).ipv6(A6, all_nodes).raw(58, &advert));
    let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &advert].concat();
    lab.send("a", eth(A, group).ipv6(A6, all_nodes).raw(60, &hidden));
    lab.silent("b");
    lab.silent("free");
    assert_eq!(lab.dropped(DropReason::Spoof), 5);
    lab.send("free", eth(MacAddr::local(7), group).ipv6(A6, all_nodes).raw(58, &advert));
    assert!(lab.take("a").is_some() && lab.take("b").is_some());
}

#[test]
fn a_second_tag_does_not_hide_an_address() {
    let mut lab = lab();
    lab.send("a", eth(A, B).service_vlan(packet::VlanId(7)).ipv4(B4, A4).udp(1, 2).data(b"x").bytes());
    assert_eq!(lab.dropped(DropReason::Spoof), 1);
}

#[test]
fn the_gateways_mac_is_nobodys() {
    let mut lab = lab();
    lab.send("free", eth(GW, B).ipv4(GW4, B4).udp(1, 2).data(b"x").bytes());
    lab.silent("b");
    assert_eq!(lab.dropped(DropReason::Spoof), 1);
    lab.send("a", eth(A, GW).ipv4(A4, HOST4).udp(1, 2).data(b"x").bytes());
    assert_eq!(lab.dropped(DropReason::NoRoute), 1);
}

#[test]
fn arp_for_a_known_address_is_answered_and_not_flooded() {
    let mut lab = lab();
    for (target, mac) in [(B4, B), (GW4, GW), (HOST4, GW)] {
        lab.send("a", arp_request(A, A4, target));
        lab.receive("a", arp_reply(mac, target, A, A4));
        lab.silent("b");
        lab.silent("free");
    }
    lab.changed(&["port.a.rx +3", "port.a.tx +3", "consumed +3", "created +3", "fdb +1"]);
}

#[test]
fn arp_for_an_unknown_address_is_flooded() {
    let mut lab = lab();
    let request = arp_request(A, A4, [10, 0, 0, 99]).bytes();
    lab.send("a", &request);
    lab.receive("b", &request);
    lab.receive("free", &request);
}

#[test]
fn who_probes_for_his_own_address_hears_nothing_and_for_anothers_is_warned() {
    let mut lab = lab();
    lab.send("a", arp_request(A, [0; 4], A4));
    lab.silent("a");
    lab.take("b");
    lab.take("free");
    lab.send("a", arp_request(A, [0; 4], B4));
    lab.receive("a", arp_reply(B, B4, A, [0; 4]));
}

#[test]
fn neighbor_solicitations_are_answered() {
    let mut lab = lab();
    for (target, mac, flags) in [(B6, B, 0x60), (GW6, GW, 0xe0)] {
        lab.send("a", neighbor_solicit(A, A6, target));
        lab.receive("a", eth(mac, A).ipv6(target, A6).neighbor_advert(target, mac, flags));
        lab.silent("b");
    }
    // Duplicate address detection: no source, no option, and the answer goes to all nodes.
    let mut target = [0; 20];
    target[4..].copy_from_slice(&B6.octets());
    let probe = neighbor_solicit(A, Ipv6Addr::UNSPECIFIED, B6).bytes();
    let has_option = probe[14 + 40 + 24..].first() == Some(&nd_option::SOURCE_LINK);
    let probe = if has_option {
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0xb);
        eth(A, MacAddr([0x33, 0x33, 0xff, 0, 0, 0xb]))
            .ipv6(Ipv6Addr::UNSPECIFIED, group)
            .neighbor_solicit(B6, None)
            .bytes()
    } else {
        probe
    };
    lab.send("a", probe);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let answer = eth(B, MacAddr([0x33, 0x33, 0, 0, 0, 1])).ipv6(B6, all_nodes).neighbor_advert(B6, B, 0x20);
    lab.receive("a", answer);
}

#[test]
fn an_isolated_asker_is_not_told_of_isolated_neighbours() {
    let mut lab = lab();
    lab.port("a", "net", |port| port.isolated = true);
    lab.port("b", "net", |port| port.isolated = true);
    lab.send("a", arp_request(A, A4, B4));
    lab.silent("a");
    lab.silent("b");
    assert!(lab.take("free").is_some());
}

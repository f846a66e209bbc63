//! Routing, NAT and policies, packet in and packet out.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use packet::build::eth;
use packet::header::tcp_flags::{ACK, RST, SYN};
use packet::{Address, checksum};
use pipeline::policy::{Action, Identity, Peer, Rule, Service};
use pipeline::{DropReason, PublishedService, Source, Translation};
use tests::site::*;

fn rule(name: &str, from: Peer, to: Peer, services: Vec<Service>, action: Action) -> Rule {
    Rule { name: name.into(), priority: 1000, from, to, services, action, log: false, both_ways: false }
}

fn tcp(port: u16) -> Service {
    Service::Ports { protocol: 6, first: port, last: port }
}

/// The front network may open `port` of the back network.
fn front_to_back(site: &Site, port: u16) -> Rule {
    let peer = |station: Station| {
        let network = Identity::network(site.network(station.network));
        Peer::Identities(vec![network, Identity::port(site.lab.id(station.name))])
    };
    rule("front->back", peer(WEB), peer(DB), vec![tcp(port)], Action::Allow)
}

#[track_caller]
fn valid(frame: &[u8]) {
    assert_eq!(checksum::is_valid(frame), Some(true), "the checksum of {frame:02x?}");
}

/// Returns source address and port, destination address and port of an IPv4 TCP or UDP frame.
fn ends(frame: &[u8]) -> ((Ipv4Addr, u16), (Ipv4Addr, u16)) {
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    ((address(26), port(34)), (address(30), port(36)))
}

#[test]
fn the_gateway_answers_pings() {
    let mut site = Site::new();
    let gateway = Ipv4Addr::new(10, 1, 0, 1);
    site.lab.send("web", from(WEB, gateway).icmp_echo(7, 1).data(b"hello").bytes());
    site.lab.receive(
        "web",
        eth(FRONT_GW, WEB.mac).ipv4(gateway, WEB.v4).icmp_echo_reply(7, 1).data(b"hello").bytes(),
    );
}

#[test]
fn networks_reach_one_another_only_by_a_policy() {
    let mut site = Site::new();
    let syn = from(WEB, DB.v4).tcp(4000, 514).flags(SYN).data(b"").bytes();
    site.lab.send("web", &syn);
    site.lab.silent("db");
    assert_eq!(site.lab.dropped(DropReason::Policy), 1);

    site.rules = vec![front_to_back(&site, 514)];
    site.publish();
    site.lab.send("web", &syn);
    site.lab.receive("db", to(DB, WEB.v4).tcp(4000, 514).flags(SYN).data(b"").bytes());
    // The answer needs no rule of its own.
    site.lab.send("db", from(DB, WEB.v4).tcp(514, 4000).flags(SYN | ACK).ack(1).data(b"").bytes());
    site.lab.receive("web", to(WEB, DB.v4).tcp(514, 4000).flags(SYN | ACK).ack(1).data(b"").bytes());
    // But nothing else may begin.
    site.lab.send("db", from(DB, WEB.v4).tcp(4001, 22).flags(SYN).data(b"").bytes());
    site.lab.send("web", from(WEB, DB.v4).tcp(4001, 22).flags(SYN).data(b"").bytes());
    site.lab.silent("web");
    site.lab.silent("db");
}

#[test]
fn a_policy_that_goes_cuts_running_connections() {
    let mut site = Site::new();
    site.rules = vec![front_to_back(&site, 514)];
    site.publish();
    establish(&mut site, 514);
    site.rules.clear();
    site.publish();
    site.lab.send("web", from(WEB, DB.v4).tcp(4000, 514).flags(ACK).seq(1).ack(1).data(b"x").bytes());
    site.lab.silent("db");
    site.lab.send("db", from(DB, WEB.v4).tcp(514, 4000).flags(ACK).seq(1).ack(1).data(b"x").bytes());
    site.lab.silent("web");
}

/// Opens a connection from `web` to a port of `db`.
fn establish(site: &mut Site, port: u16) {
    site.lab.send("web", from(WEB, DB.v4).tcp(4000, port).flags(SYN).data(b"").bytes());
    site.lab.take("db").expect("the SYN");
    site.lab.send("db", from(DB, WEB.v4).tcp(port, 4000).flags(SYN | ACK).ack(1).data(b"").bytes());
    site.lab.take("web").expect("the SYN-ACK");
    site.lab.send("web", from(WEB, DB.v4).tcp(4000, port).flags(ACK).seq(1).ack(1).data(b"").bytes());
    site.lab.take("db").expect("the ACK");
}

#[test]
fn a_rejected_connection_is_reset() {
    let mut site = Site::new();
    site.rules = vec![rule("no", Peer::Any, Peer::Any, vec![Service::Any], Action::Reject)];
    site.publish();
    site.lab.send("web", from(WEB, DB.v4).tcp(4000, 22).flags(SYN).seq(9).data(b"").bytes());
    let reset = site.lab.take("web").expect("a reset");
    valid(&reset);
    assert_eq!(ends(&reset), ((DB.v4, 22), (WEB.v4, 4000)));
    assert_eq!(reset[47] & RST, RST);
    site.lab.send("web", from(WEB, DB.v4).udp(4000, 22).data(b"?").bytes());
    let icmp = site.lab.take("web").expect("an ICMP error");
    valid(&icmp);
    assert_eq!((icmp[23], icmp[34], icmp[35]), (1, 3, 13));
    assert_eq!(site.lab.dropped(DropReason::Policy), 2);
}

#[test]
fn a_masqueraded_flow_and_its_answers_are_translated() {
    let mut site = Site::new();
    for n in 0..3 {
        site.lab.send("web", from(WEB, SERVER4).udp(50_000, 53).data(b"?").bytes());
        let sent = site.lab.take("out").expect("the question");
        valid(&sent);
        let ((source, port), to) = ends(&sent);
        assert_eq!((source, to), (HOST4, (SERVER4, 53)));
        assert_eq!((&sent[..6], &sent[6..12], sent[22]), (&ROUTER.0[..], &UPLINK.0[..], 63));
        let answer = eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).udp(53, port).data(b"!").bytes();
        site.lab.send("out", answer);
        site.lab.receive("web", to4(SERVER4).udp(53, 50_000).data(b"!").bytes());
        let hits = site.lab.tables.counters(0).ledger.cache_hits.get();
        assert_eq!(hits, 2 * n, "round {n}");
    }
}

#[test]
fn masqueraded_pings_are_cached_and_whole() {
    let mut site = Site::new();
    for n in 0..3 {
        site.lab.send("web", from(WEB, SERVER4).icmp_echo(7, n).data(b"?").bytes());
        let sent = site.lab.take("out").expect("the request");
        valid(&sent);
        assert_eq!(checksum::Sum::new().bytes(&sent[14..34]).fold(), 0xffff, "the IP header of request {n}");
        let id = u16::from_be_bytes([sent[38], sent[39]]);
        assert_ne!(id, 7, "the range does not have it");
        site.lab
            .send("out", eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).icmp_echo_reply(id, n).data(b"?").bytes());
        site.lab.receive("web", to4(SERVER4).icmp_echo_reply(7, n).data(b"?").bytes());
        assert_eq!(site.lab.tables.counters(0).ledger.cache_hits.get(), 2 * u64::from(n), "round {n}");
    }
}

#[test]
fn what_has_no_key_leaves_no_decision_for_others() {
    // A cache in which every decision is in the same place.
    let limits = pipeline::Limits { ports: 16, networks: 8, flows: 4, ..Default::default() };
    let mut site = Site::on(tests::Lab::with_limits(limits));
    site.domains[0].tracked = true;
    site.rules = vec![rule("no", Peer::Any, Peer::Any, vec![Service::Any], Action::Deny)];
    site.publish();
    let other = [&WEB2.mac.0[..], &WEB.mac.0, &[0x88, 0xb5], &[7; 46]].concat();
    for _ in 0..2 {
        site.lab.send("web", &other);
        site.lab.receive("web2", &other);
    }
    // Another that has no key of its own either, for its options, and is denied.
    let ip = eth(WEB.mac, WEB2.mac).ipv4(WEB.v4, WEB2.v4).options(&[1, 1, 1]);
    site.lab.send("web", ip.udp(1, 2).data(b"?").bytes());
    site.lab.silent("web2");
}

#[test]
fn a_missing_udp_checksum_stays_missing() {
    let mut site = Site::new();
    for _ in 0..2 {
        site.lab.send("web", from6(WEB, SERVER6).udp(50_000, 53).without_checksum().data(b"?").bytes());
        assert_eq!(site.lab.take("out").expect("the question")[60..62], [0, 0]);
    }
}

fn to4(source: Ipv4Addr) -> packet::build::Ip<packet::build::V4> {
    to(WEB, source)
}

#[test]
fn what_is_not_ours_goes_back_to_the_host() {
    let mut site = Site::new();
    let ssh = eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).tcp(4000, 22).flags(SYN).data(b"").bytes();
    site.lab.send("out", &ssh);
    site.lab.receive("out", ssh);
    let stale = eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).tcp(443, 50_000).flags(ACK).data(b"x").bytes();
    site.lab.send("out", &stale);
    site.lab.receive("out", stale);
}

fn published(site: &Site, listen: Ipv4Addr, first: u16, last: u16, to: u16) -> Translation {
    Translation {
        name: "published".into(),
        listen: listen.into(),
        service: Some(PublishedService { protocol: 6, first, last, to }),
        network: site.network("front"),
        to: WEB.v4.into(),
        port: site.lab.id("web"),
        allow_from: Vec::new(),
    }
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let mut site = Site::new();
    site.translations = vec![published(&site, HOST4, 8080, 8090, 80)];
    site.publish();
    // From outside, and the client's address is kept.
    site.lab
        .send("out", eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).tcp(4000, 8085).flags(SYN).data(b"").bytes());
    site.lab.receive("web", to(WEB, SERVER4).tcp(4000, 85).flags(SYN).data(b"").bytes());
    site.lab.send("web", from(WEB, SERVER4).tcp(85, 4000).flags(SYN | ACK).ack(1).data(b"").bytes());
    let answer = eth(UPLINK, ROUTER).ipv4(HOST4, SERVER4).ttl(63).tcp(8085, 4000).flags(SYN | ACK).ack(1);
    site.lab.receive("out", answer.data(b"").bytes());
    // From a neighbour in the same network, whose answers come bridged.
    site.lab.send("web2", from(WEB2, HOST4).tcp(4000, 8080).flags(SYN).data(b"").bytes());
    site.lab.receive("web", to(WEB, WEB2.v4).tcp(4000, 80).flags(SYN).data(b"").bytes());
    site.lab.send(
        "web",
        eth(WEB.mac, WEB2.mac).ipv4(WEB.v4, WEB2.v4).tcp(80, 4000).flags(SYN | ACK).ack(1).data(b"").bytes(),
    );
    let back = site.lab.take("web2").expect("the answer");
    valid(&back);
    assert_eq!(ends(&back), ((HOST4, 8080), (WEB2.v4, 4000)));
    // From itself: it sees the gateway.
    site.lab.send("web", from(WEB, HOST4).tcp(4000, 8080).flags(SYN).data(b"").bytes());
    let looped = site.lab.take("web").expect("its own SYN");
    valid(&looped);
    let ((source, port), there) = ends(&looped);
    assert_eq!((source, there), (Ipv4Addr::new(10, 1, 0, 1), (WEB.v4, 80)));
    site.lab.send("web", from(WEB, source).tcp(80, port).flags(SYN | ACK).ack(1).data(b"").bytes());
    let back = site.lab.take("web").expect("its own answer");
    assert_eq!(ends(&back), ((HOST4, 8080), (WEB.v4, 4000)));
    // From the other network.
    site.lab.send("db", from(DB, HOST4).tcp(4000, 8081).flags(SYN).data(b"").bytes());
    site.lab.receive("web", to(WEB, DB.v4).tcp(4000, 81).flags(SYN).data(b"").bytes());
    // By the host's relay, which the container sees as its gateway.
    site.lab.send("host", eth(HOST, HOST_GW).ipv4(RELAY4, WEB.v4).tcp(4000, 80).flags(SYN).data(b"").bytes());
    let relayed = site.lab.take("web").expect("the relay's SYN");
    assert_eq!(ends(&relayed).0.0, Ipv4Addr::new(10, 1, 0, 1));
}

#[test]
fn allow_from_admits_only_what_it_names() {
    let mut site = Site::new();
    let mut translation = published(&site, HOST4, 8080, 8080, 80);
    translation.allow_from = vec![packet::Prefix::host(Address::from(SERVER4))];
    site.translations = vec![translation];
    site.publish();
    let syn =
        |from: Ipv4Addr| eth(ROUTER, UPLINK).ipv4(from, HOST4).tcp(4000, 8080).flags(SYN).data(b"").bytes();
    site.lab.send("out", syn(Ipv4Addr::new(198, 51, 100, 8)));
    site.lab.silent("web");
    assert_eq!(site.lab.dropped(DropReason::Policy), 1);
    site.lab.send("out", syn(SERVER4));
    site.lab.take("web").expect("the SYN");
}

#[test]
fn a_floating_ip_is_a_port_both_ways_and_moves() {
    let mut site = Site::new();
    let front = site.network("front");
    let floating = |site: &Site, station: Station| Translation {
        name: "floating".into(),
        listen: FLOATING4.into(),
        service: None,
        network: front,
        to: station.v4.into(),
        port: site.lab.id(station.name),
        allow_from: Vec::new(),
    };
    site.translations = vec![floating(&site, WEB)];
    site.sources = vec![((front, WEB.v4.into()), Source::Floating(FLOATING4.into()))];
    site.publish();
    let ping = eth(ROUTER, UPLINK).ipv4(SERVER4, FLOATING4).icmp_echo(7, 1).data(b"").bytes();
    site.lab.send("out", &ping);
    site.lab.receive("web", to(WEB, SERVER4).icmp_echo(7, 1).data(b"").bytes());
    site.lab.send("web", from(WEB, SERVER4).icmp_echo_reply(7, 1).data(b"").bytes());
    let reply = eth(UPLINK, ROUTER).ipv4(FLOATING4, SERVER4).ttl(63).icmp_echo_reply(7, 1).data(b"");
    site.lab.receive("out", reply.bytes());
    site.lab.send("web", from(WEB, SERVER4).udp(4000, 53).data(b"?").bytes());
    let sent = site.lab.take("out").expect("the question");
    assert_eq!(ends(&sent).0, (FLOATING4, 4000));
    // Moved: the next packet of the same client reaches the other.
    site.translations = vec![floating(&site, WEB2)];
    site.sources = vec![((front, WEB2.v4.into()), Source::Floating(FLOATING4.into()))];
    site.publish();
    site.lab.send("out", &ping);
    site.lab.receive("web2", to(WEB2, SERVER4).icmp_echo(7, 1).data(b"").bytes());
    site.lab.send("web", from(WEB, SERVER4).udp(4000, 53).data(b"?").bytes());
    let sent = site.lab.take("out").expect("the question");
    assert_eq!(ends(&sent).0.0, HOST4);
}

#[test]
fn a_udp_flow_follows_a_moved_port_at_its_next_packet() {
    let mut site = Site::new();
    let mut translation = published(&site, HOST4, 514, 514, 514);
    translation.service = Some(PublishedService { protocol: 17, first: 514, last: 514, to: 514 });
    site.translations = vec![translation.clone()];
    site.publish();
    let log = eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).udp(4000, 514).data(b"log").bytes();
    for _ in 0..3 {
        site.lab.send("out", &log);
        site.lab.receive("web", to(WEB, SERVER4).udp(4000, 514).data(b"log").bytes());
    }
    translation.to = WEB2.v4.into();
    translation.port = site.lab.id("web2");
    site.translations = vec![translation];
    site.publish();
    site.lab.send("out", &log);
    site.lab.receive("web2", to(WEB2, SERVER4).udp(4000, 514).data(b"log").bytes());
    site.lab.silent("web");
}

#[test]
fn time_to_live_and_mtu_are_reported() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, SERVER4).ttl(1).udp(4000, 33434).data(b"?").bytes());
    let exceeded = site.lab.take("web").expect("an ICMP error");
    valid(&exceeded);
    assert_eq!((exceeded[34], &exceeded[26..30]), (11, &[10, 1, 0, 1][..]));
    site.lab.port("out", "outside", |port| port.mtu = 1300);
    let long = from(WEB, SERVER4).udp(4000, 53).data(&[7; 1400]).bytes();
    site.lab.send("web", may_fragment(&long, 1));
    let pieces: Vec<_> = std::iter::from_fn(|| site.lab.take("out")).collect();
    assert_eq!(pieces.len(), 2);
    site.lab.send("web", long);
    let needed = site.lab.take("web").expect("an ICMP error");
    assert_eq!((needed[34], needed[35], u16::from_be_bytes([needed[40], needed[41]])), (3, 4, 1300));
}

/// Returns an IPv4 frame without "don't fragment", and with an identification.
fn may_fragment(frame: &[u8], id: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20] &= !0x40;
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = checksum::Sum::new().bytes(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn an_error_about_a_masqueraded_packet_finds_its_sender() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, SERVER4).udp(50_000, 53).data(b"a question").bytes());
    let sent = site.lab.take("out").expect("the question");
    let mut quote = vec![3, 4, 0, 0, 0, 0, 0x05, 0x14];
    quote.extend_from_slice(&sent[14..]);
    let sum = checksum::Sum::new().bytes(&quote).checksum();
    quote[2..4].copy_from_slice(&sum.to_be_bytes());
    let far = Ipv4Addr::new(192, 0, 2, 99);
    site.lab.send("out", eth(ROUTER, UPLINK).ipv4(far, HOST4).raw(1, &quote).bytes());
    let error = site.lab.take("web").expect("the error");
    valid(&error);
    assert_eq!((&error[26..30], &error[30..34]), (&far.octets()[..], &WEB.v4.octets()[..]));
    let inner = &error[42..];
    assert_eq!((&inner[12..16], &inner[16..20]), (&WEB.v4.octets()[..], &SERVER4.octets()[..]));
    assert_eq!(u16::from_be_bytes([inner[20], inner[21]]), 50_000);
    assert_eq!(checksum::Sum::new().bytes(&inner[..20]).fold(), 0xffff, "the quoted header");
}

#[test]
fn fragments_are_translated_in_any_order() {
    let mut site = Site::new();
    let whole = from(WEB, SERVER4).udp(4000, 53).data(&[9; 3000]).bytes();
    for (id, order) in (1..).zip([[0, 1, 2], [2, 1, 0], [1, 0, 2]]) {
        let frame = site.lab.pool.alloc_from(&may_fragment(&whole, id)).expect("a chunk");
        let headers = pipeline::headers::Headers::of(frame.bytes()).expect("good").expect("IP");
        let mut pieces = Vec::new();
        let pool = &mut site.lab.pool;
        let cut =
            pipeline::fragmenter::fragment(frame, &headers, 1400, pool, &mut |piece| pieces.push(piece));
        cut.expect("cut");
        let bytes: Vec<_> = pieces.iter().map(|piece| piece.bytes().to_vec()).collect();
        pieces.into_iter().for_each(|piece| site.lab.pool.free(piece));
        assert_eq!(bytes.len(), 3);
        order.iter().for_each(|n| site.lab.send("web", &bytes[*n]));
        let out: Vec<_> = std::iter::from_fn(|| site.lab.take("out")).collect();
        assert_eq!(out.len(), 3, "{order:?}");
        assert!(out.iter().all(|piece| piece[26..30] == HOST4.octets()), "{order:?}");
    }
}

#[test]
fn the_host_and_containers_reach_each_other() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, HOST4).tcp(4000, 22).flags(SYN).data(b"").bytes());
    let syn = eth(HOST_GW, HOST).ipv4(WEB.v4, HOST4).ttl(63).tcp(4000, 22).flags(SYN).data(b"").bytes();
    site.lab.receive("host", syn);
    site.lab.send("host", eth(HOST, HOST_GW).ipv4(HOST4, DB.v4).tcp(4000, 80).flags(SYN).data(b"").bytes());
    site.lab.receive("db", to(DB, HOST4).tcp(4000, 80).flags(SYN).data(b"").bytes());
    // The gateway's address stands for the host.
    site.lab.send("web", from(WEB, Ipv4Addr::new(10, 1, 0, 1)).tcp(4001, 22).flags(SYN).data(b"").bytes());
    let syn = eth(HOST_GW, HOST).ipv4(WEB.v4, RELAY4).ttl(63).tcp(4001, 22).flags(SYN).data(b"").bytes();
    site.lab.receive("host", syn);
    site.lab.send(
        "host",
        eth(HOST, HOST_GW).ipv4(RELAY4, WEB.v4).tcp(22, 4001).flags(SYN | ACK).ack(1).data(b"").bytes(),
    );
    let answer = to(WEB, Ipv4Addr::new(10, 1, 0, 1)).tcp(22, 4001).flags(SYN | ACK).ack(1).data(b"").bytes();
    site.lab.receive("web", answer);
}

#[test]
fn an_internal_network_reaches_nothing_outside() {
    let mut site = Site::new();
    site.domains[0].internal = true;
    site.publish();
    site.lab.send("web", from(WEB, SERVER4).udp(1, 53).data(b"?").bytes());
    site.lab.send("web", from(WEB, HOST4).udp(1, 53).data(b"?").bytes());
    for _ in 0..2 {
        let icmp = site.lab.take("web").expect("unreachable");
        assert_eq!((icmp[34], icmp[35]), (3, 0));
    }
    assert_eq!(site.lab.dropped(DropReason::NoRoute), 2);
}

#[test]
fn ipv6_is_routed_translated_and_cached_alike() {
    let mut site = Site::new();
    for n in 0..3 {
        site.lab.send("web", from6(WEB, SERVER6).udp(50_000, 53).data(b"?").bytes());
        let sent = site.lab.take("out").expect("the question");
        valid(&sent);
        assert_eq!(&sent[22..38], &HOST6.octets());
        let port = u16::from_be_bytes([sent[54], sent[55]]);
        site.lab.send("out", eth(ROUTER, UPLINK).ipv6(SERVER6, HOST6).udp(53, port).data(b"!").bytes());
        site.lab.receive("web", to6(WEB, SERVER6).udp(53, 50_000).data(b"!").bytes());
        assert_eq!(site.lab.tables.counters(0).ledger.cache_hits.get(), 2 * n, "round {n}");
    }
}

#[test]
fn an_unknown_neighbour_is_asked_for_and_the_packet_waits() {
    let mut site = Site::new();
    let silent = Ipv4Addr::new(10, 1, 0, 77);
    let peer = |n| Peer::Identities(vec![Identity::network(n), Identity::port(site.lab.id("db"))]);
    let front = site.network("front");
    site.rules = vec![rule(
        "in",
        peer(site.network("back")),
        Peer::Identities(vec![Identity::network(front)]),
        vec![Service::Any],
        Action::Allow,
    )];
    site.publish();
    site.lab.send("db", from(DB, silent).udp(4000, 7).data(b"hello").bytes());
    for name in ["web", "web2"] {
        let question = site.lab.take(name).expect("an ARP request");
        assert_eq!((&question[12..14], &question[38..42]), (&[8, 6][..], &silent.octets()[..]));
    }
    let mac = packet::MacAddr([2, 0, 0, 0, 1, 77]);
    site.lab.port("web2", "front", |port| port.guard = pipeline::Guard::default());
    site.lab
        .send("web2", packet::build::arp_reply(mac, silent, FRONT_GW, Ipv4Addr::new(10, 1, 0, 1)).bytes());
    site.lab.pass(Duration::from_millis(500));
    let arrived = site.lab.take("web2").expect("the packet");
    assert_eq!(&arrived[..6], &mac.0);
    // One that never answers: the sender is told.
    site.lab.send("db", from(DB, Ipv4Addr::new(10, 1, 0, 78)).udp(4000, 7).data(b"hello").bytes());
    site.lab.pass(Duration::from_secs(6));
    let told = site.lab.take("db").expect("host unreachable");
    assert_eq!((told[34], told[35]), (3, 1));
    while site.lab.take("web").is_some() || site.lab.take("web2").is_some() {}
}

#[test]
fn a_trace_says_what_would_happen_and_changes_nothing() {
    let mut site = Site::new();
    site.rules = vec![front_to_back(&site, 514)];
    site.publish();
    let syn = from(WEB, DB.v4).tcp(4000, 22).flags(SYN).data(b"").bytes();
    let (snapshot, tables) = (Arc::clone(site.lab.pipeline.snapshot()), Arc::clone(&site.lab.tables));
    let trace =
        |bytes: &[u8]| pipeline::trace::trace(&snapshot, &tables, bytes, site.lab.id("web"), site.lab.now());
    let (steps, verdict) = trace(&syn);
    assert!(
        matches!(verdict, pipeline::trace::Verdict::Drop { reason: DropReason::Policy, .. }),
        "{steps:?}"
    );
    let (_, verdict) = trace(&from(WEB, SERVER4).udp(4000, 53).data(b"?").bytes());
    let pipeline::trace::Verdict::Forward { becomes: Some(becomes), .. } = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(becomes.source, Address::from(HOST4));
    assert_eq!(tables.connections.stats().open, 0);
}

#[test]
fn neighbour_discovery_between_stations_is_no_connection() {
    let mut site = Site::new();
    site.domains[0].tracked = true;
    site.rules = vec![rule("none", Peer::Any, Peer::Any, vec![Service::Any], Action::Deny)];
    site.publish();
    let advert = eth(WEB.mac, WEB2.mac).ipv6(WEB.v6, WEB2.v6).neighbor_advert(WEB.v6, WEB.mac, 0x60).bytes();
    site.lab.send("web", &advert);
    site.lab.receive("web2", advert);
    assert_eq!(site.lab.tables.connections.stats().open, 0);
}

#[test]
fn a_link_local_source_is_not_routed() {
    let mut site = Site::new();
    site.lab.port("web", "front", |port| port.guard = pipeline::Guard::default());
    let source = Ipv4Addr::new(169, 254, 1, 1);
    site.lab.send("web", eth(WEB.mac, FRONT_GW).ipv4(source, SERVER4).udp(1, 53).data(b"?").bytes());
    site.lab.silent("out");
    assert_eq!(site.lab.dropped(DropReason::NoRoute), 1);
}

//! What RFC 4787, RFC 5382 and RFC 5508 ask of a NAT, one requirement after another. `docs/nat.md` says which test
//! shows which, and what is not met.

use std::net::Ipv4Addr;
use std::time::Duration;

use packet::build::{Ip, V4, eth};
use packet::checksum;
use packet::header::tcp_flags::{ACK, FIN, RST, SYN};
use pipeline::{DropReason, PublishedService, Source, Translation};
use tests::site::*;

/// Another server on the internet.
const OTHER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
/// A router somewhere on the way.
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// Starts a packet that comes from outside for the host's address.
fn inbound(from: Ipv4Addr) -> Ip<V4> {
    eth(ROUTER, UPLINK).ipv4(from, HOST4)
}

/// Returns source address and port, destination address and port of an IPv4 TCP or UDP frame.
fn ends(frame: &[u8]) -> ((Ipv4Addr, u16), (Ipv4Addr, u16)) {
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    ((address(26), port(34)), (address(30), port(36)))
}

/// Sends a datagram of `web` outside and returns its external port.
#[track_caller]
fn ask(site: &mut Site, port: u16, server: Ipv4Addr) -> u16 {
    site.lab.send("web", from(WEB, server).udp(port, 53).data(b"?").bytes());
    let sent = site.lab.take("out").expect("the question");
    assert_eq!(checksum::is_valid(&sent), Some(true));
    let ((address, external), _) = ends(&sent);
    assert_eq!(address, HOST4);
    external
}

/// Says whether a datagram from a server's port 53 reaches `web`; otherwise it is left to the host.
#[track_caller]
fn answers(site: &mut Site, server: Ipv4Addr, external: u16) -> bool {
    let answer = inbound(server).udp(53, external).data(b"!").bytes();
    site.lab.send("out", &answer);
    let reached = site.lab.take("web").is_some();
    if !reached {
        site.lab.receive("out", answer);
    }
    reached
}

/// Opens a TCP connection of `web`'s port 40000 to the server's port 80, and returns its external port.
fn establish(site: &mut Site) -> u16 {
    site.lab.send("web", from(WEB, SERVER4).tcp(40_000, 80).flags(SYN).seq(100).data(b"").bytes());
    let ((_, external), _) = ends(&site.lab.take("out").expect("the SYN"));
    let answer = inbound(SERVER4).tcp(80, external).flags(SYN | ACK).seq(500).ack(101);
    site.lab.send("out", answer.data(b"").bytes());
    site.lab.take("web").expect("the SYN-ACK");
    site.lab.send("web", from(WEB, SERVER4).tcp(40_000, 80).flags(ACK).seq(101).ack(501).data(b"").bytes());
    site.lab.take("out").expect("the ACK");
    external
}

/// Says whether a segment of the server reaches `web` over its connection; otherwise it is left to the host.
fn segment_passes(site: &mut Site, external: u16, flags: u8) -> bool {
    let segment = inbound(SERVER4).tcp(80, external).flags(flags).seq(501).ack(101).data(b"").bytes();
    site.lab.send("out", &segment);
    let reached = site.lab.take("web").is_some();
    if !reached {
        site.lab.receive("out", segment);
    }
    reached
}

/// Returns an ICMP message with its checksum filled in.
fn message(kind: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend_from_slice(&rest);
    bytes.extend_from_slice(quoted);
    let sum = checksum::Sum::new().bytes(&bytes).checksum();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn published(site: &Site, protocol: u8) -> Translation {
    Translation {
        name: "published".into(),
        listen: HOST4.into(),
        service: Some(PublishedService { protocol, first: 514, last: 514, to: 514 }),
        network: site.network("front"),
        to: WEB.v4.into(),
        port: site.lab.id("web"),
        allow_from: Vec::new(),
    }
}

/// Makes [`FLOATING4`] the address of `web2`.
fn float(site: &mut Site) {
    let front = site.network("front");
    site.translations = vec![Translation {
        name: "floating".into(),
        listen: FLOATING4.into(),
        service: None,
        network: front,
        to: WEB2.v4.into(),
        port: site.lab.id("web2"),
        allow_from: Vec::new(),
    }];
    site.sources = vec![((front, WEB2.v4.into()), Source::Floating(FLOATING4.into()))];
    site.publish();
}

#[test]
fn a_mapping_is_the_same_for_all_destinations() {
    let mut site = Site::new();
    let external = ask(&mut site, 40_000, SERVER4);
    assert_eq!(ask(&mut site, 40_000, OTHER4), external);
    assert_ne!(ask(&mut site, 40_001, SERVER4), external, "and one's own");
    let syn = |to| from(WEB, to).tcp(40_000, 80).flags(SYN).data(b"").bytes();
    let mut open = |to| {
        site.lab.send("web", syn(to));
        ends(&site.lab.take("out").expect("the SYN")).0.1
    };
    assert_eq!(open(SERVER4), open(OTHER4));
}

#[test]
fn a_query_has_one_identifier_for_all_destinations() {
    let mut site = Site::new();
    let mut ping = |to| {
        site.lab.send("web", from(WEB, to).icmp_echo(7, 1).data(b"").bytes());
        let sent = site.lab.take("out").expect("the query");
        assert_eq!(sent[26..30], HOST4.octets());
        u16::from_be_bytes([sent[38], sent[39]])
    };
    let id = ping(SERVER4);
    assert_eq!(ping(OTHER4), id);
    for server in [SERVER4, OTHER4] {
        site.lab.send("out", inbound(server).icmp_echo_reply(id, 1).data(b"").bytes());
        site.lab.receive("web", to(WEB, server).icmp_echo_reply(7, 1).data(b"").bytes());
    }
}

#[test]
fn only_who_was_asked_may_answer() {
    let mut site = Site::new();
    let external = ask(&mut site, 40_000, SERVER4);
    assert!(answers(&mut site, SERVER4, external));
    assert!(!answers(&mut site, OTHER4, external), "another address");
    let other_port = inbound(SERVER4).udp(54, external).data(b"!").bytes();
    site.lab.send("out", &other_port);
    site.lab.receive("out", other_port);
}

#[test]
fn a_udp_mapping_lives_five_minutes_once_answered() {
    let mut site = Site::new();
    let external = ask(&mut site, 40_000, SERVER4);
    site.lab.pass(Duration::from_secs(29));
    assert!(answers(&mut site, SERVER4, external), "within 30 s");
    site.lab.pass(Duration::from_secs(295));
    assert!(answers(&mut site, SERVER4, external), "within 5 min");
    site.lab.pass(Duration::from_secs(310));
    assert!(!answers(&mut site, SERVER4, external), "after 5 min");
}

#[test]
fn a_udp_mapping_that_nobody_answered_lives_half_a_minute() {
    let mut site = Site::new();
    let external = ask(&mut site, 40_000, SERVER4);
    site.lab.pass(Duration::from_secs(35));
    assert!(!answers(&mut site, SERVER4, external));
    assert_eq!(site.lab.tables.connections.stats().open, 0);
}

#[test]
fn outbound_packets_refresh_a_mapping() {
    let mut site = Site::new();
    let external = ask(&mut site, 40_000, SERVER4);
    assert!(answers(&mut site, SERVER4, external));
    for _ in 0..3 {
        site.lab.pass(Duration::from_secs(200));
        assert_eq!(ask(&mut site, 40_000, SERVER4), external);
    }
    site.lab.pass(Duration::from_secs(200));
    assert!(answers(&mut site, SERVER4, external));
}

#[test]
fn a_neighbour_reaches_a_floating_ip() {
    let mut site = Site::new();
    float(&mut site);
    site.lab.send("web", from(WEB, FLOATING4).udp(40_000, 53).data(b"?").bytes());
    site.lab.receive("web2", to(WEB2, WEB.v4).udp(40_000, 53).data(b"?").bytes());
    // The answer comes bridged, and must come from the address that was asked.
    let answer = eth(WEB2.mac, WEB.mac).ipv4(WEB2.v4, WEB.v4).udp(53, 40_000).data(b"!").bytes();
    site.lab.send("web2", answer);
    let back = site.lab.take("web").expect("the answer");
    assert_eq!(ends(&back), ((FLOATING4, 53), (WEB.v4, 40_000)));
    // A query likewise.
    site.lab.send("web", from(WEB, FLOATING4).icmp_echo(7, 1).data(b"").bytes());
    site.lab.receive("web2", to(WEB2, WEB.v4).icmp_echo(7, 1).data(b"").bytes());
}

#[test]
fn an_error_about_a_hairpinned_packet_is_translated() {
    let mut site = Site::new();
    float(&mut site);
    site.lab.send("web", from(WEB, FLOATING4).udp(40_000, 53).data(b"?").bytes());
    let arrived = site.lab.take("web2").expect("the question");
    let error = message(3, 3, [0; 4], &arrived[14..]);
    site.lab.send("web2", eth(WEB2.mac, WEB.mac).ipv4(WEB2.v4, WEB.v4).raw(1, &error).bytes());
    let error = site.lab.take("web").expect("the error");
    assert_eq!(checksum::is_valid(&error), Some(true));
    assert_eq!(error[26..30], FLOATING4.octets());
    assert_eq!(error[42 + 16..42 + 20], FLOATING4.octets(), "and in the quotation");
}

#[test]
fn no_icmp_error_ends_or_refreshes_a_mapping() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, SERVER4).udp(40_000, 53).data(b"?").bytes());
    let sent = site.lab.take("out").expect("the question");
    let external = ends(&sent).0.1;
    let errors = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)];
    for (kind, code) in errors {
        let error = message(kind, code, [0, 0, 5, 0x14], &sent[14..]);
        site.lab.send("out", inbound(FAR).raw(1, &error).bytes());
        let told = site.lab.take("web").expect("the error");
        assert_eq!((told[34], told[35]), (kind, code));
    }
    assert!(answers(&mut site, SERVER4, external));
    site.lab.pass(Duration::from_secs(290));
    let error = message(3, 3, [0; 4], &sent[14..]);
    site.lab.send("out", inbound(FAR).raw(1, &error).bytes());
    site.lab.take("web").expect("the error");
    site.lab.pass(Duration::from_secs(20));
    assert!(!answers(&mut site, SERVER4, external), "an error keeps nothing alive");
}

#[test]
fn no_icmp_error_ends_a_tcp_connection() {
    let mut site = Site::new();
    let external = establish(&mut site);
    site.lab.send("web", from(WEB, SERVER4).tcp(40_000, 80).flags(ACK).seq(101).ack(501).data(b"x").bytes());
    let sent = site.lab.take("out").expect("a segment");
    for (kind, code) in [(3, 1), (3, 2), (3, 3), (11, 0)] {
        let error = message(kind, code, [0; 4], &sent[14..]);
        site.lab.send("out", inbound(FAR).raw(1, &error).bytes());
        site.lab.take("web").expect("the error");
    }
    assert!(segment_passes(&mut site, external, ACK));
}

#[test]
fn an_error_with_a_wrong_checksum_is_no_error() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, SERVER4).udp(40_000, 53).data(b"?").bytes());
    let sent = site.lab.take("out").expect("the question");
    let mut wrong = message(3, 3, [0; 4], &sent[14..]);
    wrong[2] ^= 1;
    let mut quote = sent[14..].to_vec();
    quote[10] ^= 1;
    let wrong_quote = message(3, 3, [0; 4], &quote);
    for error in [wrong, wrong_quote] {
        let frame = inbound(FAR).raw(1, &error).bytes();
        site.lab.send("out", &frame);
        site.lab.silent("web");
        // It may be about the host's own traffic, and the host's kernel looks at it too.
        site.lab.receive("out", frame);
    }
}

#[test]
fn an_error_of_a_container_comes_from_the_address_that_was_asked() {
    let mut site = Site::new();
    site.translations = vec![published(&site, 17)];
    site.publish();
    site.lab.send("out", inbound(SERVER4).udp(4000, 514).data(b"log").bytes());
    let arrived = site.lab.take("web").expect("the message");
    let error = message(3, 3, [0; 4], &arrived[14..]);
    site.lab.send("web", from(WEB, SERVER4).raw(1, &error).bytes());
    let told = site.lab.take("out").expect("the error");
    assert_eq!(checksum::is_valid(&told), Some(true));
    assert_eq!((&told[26..30], &told[30..34]), (&HOST4.octets()[..], &SERVER4.octets()[..]));
    assert_eq!((told[34], told[35]), (3, 3));
    assert_eq!(told[42 + 16..42 + 20], HOST4.octets(), "and in the quotation");
    // One about nothing that we know goes nowhere.
    let mut foreign = arrived[14..].to_vec();
    foreign[21] ^= 1;
    let error = message(3, 3, [0; 4], &foreign);
    site.lab.send("web", from(WEB, SERVER4).raw(1, &error).bytes());
    site.lab.silent("out");
    assert_eq!(site.lab.dropped(DropReason::InvalidState), 1);
}

#[test]
fn a_query_is_answered_for_a_minute() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, SERVER4).icmp_echo(7, 1).data(b"").bytes());
    let sent = site.lab.take("out").expect("the query");
    let id = u16::from_be_bytes([sent[38], sent[39]]);
    let reply = inbound(SERVER4).icmp_echo_reply(id, 1).data(b"").bytes();
    site.lab.pass(Duration::from_secs(58));
    site.lab.send("out", &reply);
    site.lab.take("web").expect("the reply");
    site.lab.pass(Duration::from_secs(65));
    site.lab.send("out", &reply);
    site.lab.silent("web");
    site.lab.receive("out", reply);
}

#[test]
fn both_sides_may_open_at_once() {
    let mut site = Site::new();
    let own = |flags| from(WEB, SERVER4).tcp(40_000, 80).flags(flags);
    site.lab.send("web", own(SYN).seq(100).data(b"").bytes());
    let ((_, external), _) = ends(&site.lab.take("out").expect("the SYN"));
    let theirs = |flags| inbound(SERVER4).tcp(80, external).flags(flags);
    site.lab.send("out", theirs(SYN).seq(500).data(b"").bytes());
    site.lab.receive("web", to(WEB, SERVER4).tcp(80, 40_000).flags(SYN).seq(500).data(b"").bytes());
    site.lab.send("web", own(SYN | ACK).seq(100).ack(501).data(b"").bytes());
    site.lab.take("out").expect("the SYN-ACK");
    site.lab.send("out", theirs(SYN | ACK).seq(500).ack(101).data(b"").bytes());
    site.lab.take("web").expect("the other SYN-ACK");
    site.lab.send("web", own(ACK).seq(101).ack(501).data(b"x").bytes());
    site.lab.take("out").expect("data");
    site.lab.pass(Duration::from_secs(600));
    assert!(segment_passes(&mut site, external, ACK), "it is established");
}

#[test]
fn an_idle_tcp_connection_lives_for_hours() {
    let mut site = Site::new();
    let external = establish(&mut site);
    site.lab.pass(Duration::from_secs(2 * 3600 + 4 * 60));
    assert!(segment_passes(&mut site, external, ACK), "RFC 5382 asks for that");
    site.lab.pass(Duration::from_secs(3 * 3600));
    assert!(segment_passes(&mut site, external, ACK), "and this is ours");
}

#[test]
fn a_closing_tcp_connection_lives_four_minutes() {
    let mut site = Site::new();
    let external = establish(&mut site);
    assert!(segment_passes(&mut site, external, FIN | ACK));
    site.lab.pass(Duration::from_secs(235));
    assert!(segment_passes(&mut site, external, FIN | ACK), "four minutes");
    site.lab.pass(Duration::from_secs(250));
    assert!(!segment_passes(&mut site, external, FIN | ACK), "no more than that");
}

#[test]
fn a_tcp_connection_that_is_not_open_yet_lives_four_minutes() {
    let mut site = Site::new();
    site.lab.send("web", from(WEB, SERVER4).tcp(40_000, 80).flags(SYN).seq(100).data(b"").bytes());
    let ((_, external), _) = ends(&site.lab.take("out").expect("the SYN"));
    let answer = inbound(SERVER4).tcp(80, external).flags(SYN | ACK).seq(500).ack(101).data(b"").bytes();
    site.lab.send("out", &answer);
    site.lab.take("web").expect("the SYN-ACK");
    site.lab.pass(Duration::from_secs(235));
    site.lab.send("out", &answer);
    site.lab.take("web").expect("the SYN-ACK again");
    site.lab.pass(Duration::from_secs(250));
    site.lab.send("out", &answer);
    site.lab.silent("web");
    site.lab.receive("out", answer);
}

#[test]
fn a_reset_in_doubt_is_disproved_by_traffic_within_four_minutes() {
    let mut site = Site::new();
    let external = establish(&mut site);
    let reset = inbound(SERVER4).tcp(80, external).flags(RST).seq(0x7000_0000).data(b"").bytes();
    site.lab.send("out", &reset);
    site.lab.take("web").expect("a reset that its receiver ignores");
    site.lab.pass(Duration::from_secs(235));
    assert!(segment_passes(&mut site, external, ACK), "four minutes");
    site.lab.pass(Duration::from_secs(3 * 3600));
    assert!(segment_passes(&mut site, external, ACK), "it never ended");
    // With nothing that disproves it, it is believed.
    site.lab.send("out", &reset);
    site.lab.take("web").expect("the reset again");
    site.lab.pass(Duration::from_secs(250));
    assert!(!segment_passes(&mut site, external, ACK));
}

#[test]
fn the_same_ends_may_begin_anew_after_a_reset() {
    let mut site = Site::new();
    let external = establish(&mut site);
    assert!(segment_passes(&mut site, external, RST));
    assert_eq!(establish(&mut site), external);
}

#[test]
fn fragments_from_outside_find_their_connection_in_any_order() {
    let mut site = Site::new();
    let external = ask(&mut site, 40_000, SERVER4);
    let whole = inbound(SERVER4).udp(53, external).data(&[9; 3000]).bytes();
    let (header, payload) = (&whole[..34], &whole[34..]);
    let cuts = [(0, 1400), (1400, 2800), (2800, payload.len())];
    let piece = |id: u16, (from, to): (usize, usize)| {
        let mut frame = [header, &payload[from..to]].concat();
        let offset = u16::try_from(from / 8).expect("small") | if to == payload.len() { 0 } else { 0x2000 };
        frame[16..18].copy_from_slice(&u16::try_from(20 + to - from).expect("small").to_be_bytes());
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&offset.to_be_bytes());
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum::Sum::new().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    for (id, order) in (1..).zip([[0, 1, 2], [2, 1, 0], [1, 2, 0]]) {
        order.iter().for_each(|n| site.lab.send("out", piece(id, cuts[*n])));
        let arrived: Vec<_> = std::iter::from_fn(|| site.lab.take("web")).collect();
        assert_eq!(arrived.len(), 3, "{order:?}");
        assert!(arrived.iter().all(|piece| piece[30..34] == WEB.v4.octets()), "{order:?}");
    }
}

#[test]
fn who_gets_no_port_is_told_by_a_drop_of_its_own() {
    let mut site = Site::new();
    site.range = (60_000, 60_000);
    site.publish();
    ask(&mut site, 40_000, SERVER4);
    site.lab.send("web", from(WEB, SERVER4).udp(40_001, 53).data(b"?").bytes());
    site.lab.silent("out");
    assert_eq!(site.lab.dropped(DropReason::SnatExhausted), 1);
    site.lab.silent("web");
}

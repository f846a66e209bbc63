//! Many connections: all that there is room for, and a flood that harms nobody else.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use packet::build::eth;
use packet::header::tcp_flags::{ACK, SYN};
use pipeline::tables::Pool;
use pipeline::{DropReason, Limits, Source};
use tests::Lab;
use tests::site::*;

fn large(connections: usize) -> Site {
    let limits = Limits {
        ports: 64,
        networks: 16,
        stations: 1024,
        flows: 1024,
        connections,
        nat_ports: connections,
        ..Limits::default()
    };
    Site::on(Lab::with_limits(limits))
}

/// Returns the source port of an IPv4 frame.
fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

#[test]
fn sixty_thousand_connections_of_two_ports_to_one_destination_share_one_egress_address() {
    const EACH: u16 = 30_000;
    let mut site = large(1 << 17);
    let front = site.network("front");
    let egress = Ipv4Addr::new(203, 0, 113, 20);
    let pool = Pool { address: egress.into(), first: 1024, last: 65535 };
    site.sources = [WEB, WEB2].map(|station| ((front, station.v4.into()), Source::Masquerade(pool))).to_vec();
    site.publish();
    let mut seen = HashSet::new();
    for n in 0..EACH {
        for station in [WEB, WEB2] {
            // Client ranges as wide as these connections need, and the same for both: every port collides.
            let syn = from(station, SERVER4).tcp(2000 + n, 443).flags(SYN).data(b"").bytes();
            site.lab.send(station.name, syn);
            let sent = site.lab.take("out").unwrap_or_else(|| panic!("connection {n} of {}", station.name));
            assert_eq!(sent[26..30], egress.octets());
            assert!(seen.insert(source_port(&sent)), "two connections leave by port {}", source_port(&sent));
        }
    }
    assert_eq!(seen.len(), 2 * usize::from(EACH));
    assert_eq!(site.lab.tables.connections.stats().open, 2 * usize::from(EACH));
    // Answers find their way: a sample of both.
    for n in [0, 1, EACH / 2, EACH - 1] {
        let syn = from(WEB, SERVER4).tcp(2000 + n, 443).flags(SYN).data(b"").bytes();
        site.lab.send("web", syn);
        let port = source_port(&site.lab.take("out").expect("sent again"));
        let answer = eth(ROUTER, UPLINK).ipv4(SERVER4, egress).tcp(443, port).flags(SYN | ACK).ack(1);
        site.lab.send("out", answer.data(b"").bytes());
        let came = site.lab.take("web").expect("the answer");
        assert_eq!(u16::from_be_bytes([came[36], came[37]]), 2000 + n);
    }
}

#[test]
fn a_shared_address_that_has_no_port_left_is_named() {
    let mut site = large(1 << 15);
    site.range = (50_000, 50_099);
    site.publish();
    // UDP: a mapping is one's own, whatever it is used for (RFC 4787, REQ-1).
    for n in 0..200 {
        site.lab.send("web", from(WEB, SERVER4).udp(2000 + n, 53).data(b"?").bytes());
    }
    let sent = std::iter::from_fn(|| site.lab.take("out")).count() as u64;
    assert!((80..=100).contains(&sent), "{sent} of the 100 ports");
    assert_eq!(site.lab.dropped(DropReason::SnatExhausted), 200 - sent);
}

#[test]
fn a_flood_of_half_open_connections_ends_at_its_ports_quota() {
    let mut site = large(1 << 16);
    site.range = (1024, 65535);
    site.lab.port("web", "front", |port| port.half_open = 1000);
    site.publish();
    for n in 0..20_000_u32 {
        let to = Ipv4Addr::from(0xc633_0000 + n);
        site.lab.send("web", from(WEB, to).tcp(4000, 80).flags(SYN).data(b"").bytes());
        while site.lab.take("out").is_some() {}
        if n % 10 == 0 {
            let port = u16::try_from(2000 + n / 10).expect("2000 at most");
            site.lab.send("db", from(DB, SERVER4).tcp(port, 443).flags(SYN).data(b"").bytes());
            assert!(site.lab.take("out").is_some(), "connection {port} of somebody else");
        }
    }
    let dropped = site.lab.dropped(DropReason::HalfOpen);
    assert!((18_900..=19_000).contains(&dropped), "{dropped} were refused by name");
}

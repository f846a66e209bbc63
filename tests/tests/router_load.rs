//! Many connections: all that there is room for, and a flood that harms nobody else.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use packet::build::eth;
use packet::header::tcp_flags::{ACK, SYN};
use packet::{Batch, PortId};
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

/// Half-open connections of a flood: one SYN after the other, each to another address.
struct Flood {
    syn: Vec<u8>,
    port: PortId,
    sent: u32,
}

impl Flood {
    fn new(site: &Site) -> Self {
        let syn = from(WEB, SERVER4).tcp(4000, 80).flags(SYN).data(b"").bytes();
        Self { syn, port: site.lab.id("web"), sent: 0 }
    }

    /// Sends a batch.
    fn go_on(&mut self, site: &mut Site) {
        let mut frames = Vec::with_capacity(Batch::CAPACITY);
        for _ in 0..Batch::CAPACITY {
            self.sent += 1;
            self.syn[30..34].copy_from_slice(&(0x0b00_0000 + self.sent).to_be_bytes());
            // The sum of the header follows the address, so that it is as good as the first one.
            self.syn[24..26].fill(0);
            let sum = packet::checksum::Sum::new().bytes(&self.syn[14..34]).fold();
            self.syn[24..26].copy_from_slice(&(!sum).to_be_bytes());
            frames.push((self.port, site.lab.pool.alloc_from(&self.syn).expect("chunks enough")));
        }
        site.lab.send_batch(frames);
        while site.lab.take("out").is_some() {}
    }
}

/// `db`, which opens connections one after the other, each a SYN to the same server.
struct Opener {
    site: Site,
    opened: u16,
}

impl Opener {
    fn new() -> Self {
        let mut site = large(1 << 16);
        site.range = (1024, 65535);
        // As the daemon has it by itself.
        site.lab.port("web", "front", |port| port.half_open = 4096);
        site.publish();
        Self { site, opened: 0 }
    }

    /// Opens a batch and returns the time that it takes; a second later all is done. Each goes out.
    fn open(&mut self) -> Duration {
        const BATCH: u16 = 128;
        let Self { site, opened } = self;
        let db = site.lab.id("db");
        let frame = |n| {
            // Who has a port again after all others has none of that time any more.
            let port = 2000 + opened.wrapping_add(n) % 60_000;
            let syn = from(DB, SERVER4).tcp(port, 443).flags(SYN).data(b"").bytes();
            (db, site.lab.pool.alloc_from(&syn).expect("chunks enough"))
        };
        let frames: Vec<_> = (0..BATCH).map(frame).collect();
        *opened = (*opened + BATCH) % 60_000;
        let took = site.lab.send_batch(frames);
        let gone = std::iter::from_fn(|| site.lab.take("out")).count();
        assert_eq!(gone, usize::from(BATCH), "connections of somebody else up to {opened}");
        site.lab.pass(Duration::from_secs(1));
        took
    }
}

#[test]
fn a_million_half_open_connections_leave_somebody_else_his_rate() {
    let [mut quiet, mut flooded] = [Opener::new(), Opener::new()];
    let mut flood = Flood::new(&flooded.site);
    let [mut alone, mut beside] = [Vec::new(), Vec::new()];
    // In turns, since the machine has other things to do, which slow down now the one and now the other.
    while flood.sent < 1_000_000 {
        quiet.open();
        alone.push(quiet.open());
        (0..8).for_each(|_| flood.go_on(&mut flooded.site));
        beside.push(flooded.open());
    }
    // What nothing else slowed down is compared.
    let [alone, beside] = [&mut alone, &mut beside].map(|times| {
        times.sort();
        times[times.len() / 10].as_secs_f64()
    });
    let ratio = alone / beside;
    println!("a batch takes {alone:.7} s alone, {beside:.7} beside the flood: {ratio:.2} of the rate");
    assert!(ratio >= 0.9, "somebody else keeps {ratio:.2} of his rate");
    let refused = flooded.site.lab.dropped(DropReason::HalfOpen);
    assert!(refused > 900_000, "{refused} were refused by name");
}

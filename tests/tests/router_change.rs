//! Changes of the configuration under traffic: a thousand in a second, and no packet is lost, no binding given up.

use std::net::Ipv4Addr;
use std::time::Duration;

use packet::build::eth;
use packet::header::tcp_flags::{ACK, SYN};
use packet::{Address, NetworkId, Prefix};
use pipeline::policy::{Action, Identity, Peer, Rule, Service};
use pipeline::{PublishedService, Route, Source, Translation};
use tests::site::*;

/// A port that is published now and then.
const EXTRA: u16 = 8081;

fn peer(site: &Site, station: Station) -> Peer {
    let network = Identity::network(site.network(station.network));
    Peer::Identities(vec![network, Identity::port(site.lab.id(station.name))])
}

fn allow(name: &str, from: Peer, to: Peer, port: u16) -> Rule {
    Rule {
        name: name.into(),
        priority: 1000,
        from,
        to,
        services: vec![Service::Ports { protocol: 6, first: port, last: port }],
        action: Action::Allow,
        log: false,
        both_ways: false,
    }
}

fn translation(site: &Site, listen: Ipv4Addr, ports: Option<(u16, u16)>, to: Station) -> Translation {
    Translation {
        name: "changing".into(),
        listen: listen.into(),
        service: ports.map(|(first, to)| PublishedService { protocol: 6, first, last: first, to }),
        network: site.network(to.network),
        to: to.v4.into(),
        port: site.lab.id(to.name),
        allow_from: Vec::new(),
    }
}

fn floating(network: NetworkId, station: Station, address: Ipv4Addr) -> ((NetworkId, Address), Source) {
    ((network, station.v4.into()), Source::Floating(address.into()))
}

/// Returns the source port of an IPv4 frame.
fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

/// The configuration after change number `n`: one of four kinds of thing is there, or not, or another one. What the running
/// connections pass by is there always, but not always at the same place.
fn change(site: &mut Site, n: u16) {
    let odd = n / 4 % 2 == 1;
    match n % 4 {
        0 => {
            let own = allow("own", peer(site, WEB), peer(site, DB), 514);
            let other = allow("other", peer(site, DB), peer(site, WEB2), 1000 + n);
            site.rules = if odd { vec![other, own] } else { vec![own] };
        }
        1 => {
            let net = Prefix::new(Address::v4([192, 0, 2, n.to_be_bytes()[1] & 0xf0]), 28).expect("a prefix");
            site.domains[0].routes = if odd { vec![(net, Route::Blackhole)] } else { Vec::new() };
        }
        2 => {
            let mut list = vec![
                translation(site, HOST4, Some((8080, 80)), WEB),
                translation(site, FLOATING4, None, WEB2),
            ];
            if odd {
                list.insert(0, translation(site, HOST4, Some((EXTRA, 81)), WEB));
            }
            site.translations = list;
        }
        _ => {
            let own = floating(site.network("front"), WEB2, FLOATING4);
            let nobody = Station { v4: Ipv4Addr::new(10, 2, 0, 99), ..DB };
            let other = floating(site.network("back"), nobody, Ipv4Addr::new(203, 0, 113, 11));
            site.sources = if odd { vec![other, own] } else { vec![own] };
        }
    }
    site.publish();
}

/// Packets of a running connection, one each way: as they are sent and as they arrive.
struct Running {
    there: (&'static str, Vec<u8>, &'static str, Vec<u8>),
    back: (&'static str, Vec<u8>, &'static str, Vec<u8>),
}

impl Running {
    /// Sends one packet each way, the second an answer to the first as it arrived, and keeps them.
    fn open(
        site: &mut Site,
        (from, to): (&'static str, &'static str),
        sent: Vec<u8>,
        answer: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Self {
        site.lab.send(from, &sent);
        let arrived = site.lab.take(to).expect("it arrives");
        let answer = answer(&arrived);
        site.lab.send(to, &answer);
        let answered = site.lab.take(from).expect("the answer arrives");
        Self { there: (from, sent, to, arrived), back: (to, answer, from, answered) }
    }

    /// Both packets again: they arrive just as they did before.
    fn go_on(&self, site: &mut Site) {
        for (from, sent, to, arrived) in [&self.there, &self.back] {
            site.lab.send(from, sent);
            site.lab.receive(to, arrived);
        }
    }
}

/// Opens a TCP connection with its three segments and returns packets of it.
fn open_tcp(
    site: &mut Site,
    ends: (&'static str, &'static str),
    there: impl Fn(u8) -> Vec<u8>,
    back: impl Fn(&[u8], u8) -> Vec<u8>,
) -> Running {
    Running::open(site, ends, there(SYN), |arrived| back(arrived, SYN | ACK));
    Running::open(site, ends, there(ACK), |arrived| back(arrived, ACK))
}

fn running(site: &mut Site) -> Vec<Running> {
    let mut all = Vec::new();
    // Masqueraded; the same port from two stations, so that one of them gets another.
    for (station, port) in [(WEB, 4000), (WEB, 4001), (DB, 4000), (DB, 50_000)] {
        let question = from(station, SERVER4).udp(port, 53).data(b"?").bytes();
        all.push(Running::open(site, (station.name, "out"), question, |sent| {
            eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).udp(53, source_port(sent)).data(b"!").bytes()
        }));
    }
    let there = |flags| from(WEB, SERVER4).tcp(5000, 443).flags(flags).seq(1).ack(1).data(b"").bytes();
    all.push(open_tcp(site, ("web", "out"), there, |sent, flags| {
        let answer = eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).tcp(443, source_port(sent));
        answer.flags(flags).seq(1).ack(2).data(b"").bytes()
    }));
    // By a published port.
    let there = |flags| {
        let syn = eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).tcp(4000, 8080).flags(flags);
        syn.seq(1).ack(1).data(b"").bytes()
    };
    all.push(open_tcp(site, ("out", "web"), there, |_, flags| {
        from(WEB, SERVER4).tcp(80, 4000).flags(flags).seq(1).ack(2).data(b"").bytes()
    }));
    // By a floating IP, from either side.
    let question = from(WEB2, SERVER4).udp(4000, 53).data(b"?").bytes();
    all.push(Running::open(site, ("web2", "out"), question, |_| {
        eth(ROUTER, UPLINK).ipv4(SERVER4, FLOATING4).udp(53, 4000).data(b"!").bytes()
    }));
    let question = eth(ROUTER, UPLINK).ipv4(SERVER4, FLOATING4).udp(4000, 53).data(b"?").bytes();
    all.push(Running::open(site, ("out", "web2"), question, |_| {
        from(WEB2, SERVER4).udp(53, 4000).data(b"!").bytes()
    }));
    // From network to network, by a policy.
    let there = |flags| from(WEB, DB.v4).tcp(4000, 514).flags(flags).seq(1).ack(1).data(b"").bytes();
    all.push(open_tcp(site, ("web", "db"), there, |_, flags| {
        from(DB, WEB.v4).tcp(514, 4000).flags(flags).seq(1).ack(2).data(b"").bytes()
    }));
    all
}

/// A new connection of each kind, the `n`th: its first packet arrives.
fn begin(site: &mut Site, n: u16, extra: bool) {
    let outside = |port| eth(ROUTER, UPLINK).ipv4(SERVER4, HOST4).tcp(10_000 + n, port).flags(SYN).data(b"");
    let news = [
        ("web", from(WEB, SERVER4).udp(10_000 + n, 53).data(b"?").bytes(), "out"),
        ("db", from(DB, SERVER4).tcp(10_000 + n, 443).flags(SYN).data(b"").bytes(), "out"),
        ("web", from(WEB, DB.v4).tcp(10_000 + n, 514).flags(SYN).data(b"").bytes(), "db"),
        ("out", outside(8080).bytes(), "web"),
        ("web2", from(WEB2, SERVER4).udp(10_000 + n, 53).data(b"?").bytes(), "out"),
        // What is published only now and then is so at once; else it is the host's own affair.
        ("out", outside(EXTRA).bytes(), if extra { "web" } else { "out" }),
    ];
    for (from, sent, to) in news {
        site.lab.send(from, sent);
        assert!(site.lab.take(to).is_some(), "new connection {n} by '{from}' does not reach '{to}'");
    }
}

#[test]
fn a_thousand_changes_a_second_lose_nothing_and_keep_every_binding() {
    let mut site = Site::new();
    (0..4).for_each(|n| change(&mut site, n));
    let running = running(&mut site);
    let mut extra = false;
    for n in 0..1000 {
        change(&mut site, n);
        if n % 4 == 2 {
            extra = site.translations.len() == 3;
        }
        // The first packet after the change is decided anew, the second as the first.
        (0..2).for_each(|_| running.iter().for_each(|running| running.go_on(&mut site)));
        begin(&mut site, n, extra);
        site.lab.pass(Duration::from_millis(1));
    }
    assert_eq!(site.lab.tables.counters(0).ledger.dropped.get(), 0);
    let hits = site.lab.tables.counters(0).ledger.cache_hits.get();
    assert!(hits >= 18_000, "{hits} of 36 000 packets of running connections found their decision");
}

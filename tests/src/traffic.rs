//! Random configurations and packets for a [`Site`], from a seed.
//!
//! Few stations and few ports, so that flows come again and meet what was decided about them; sequence numbers that
//! every receiver can expect, since what connection tracking makes of others depends on what the cache has carried (see
//! `pipeline/src/tables/connections/tcp.rs`).

use std::net::{Ipv4Addr, Ipv6Addr};

use packet::build::{self, Ip, V4, eth};
use packet::checksum::{self, Sum};
use packet::header::{Ipv4Header, Layout, protocol, tcp_flags as flags};
use packet::{Address, Checksum, FramePool, Gso, GsoKind, MacAddr, Prefix};
use pipeline::headers::Headers;
use pipeline::policy::{Action, Identity, Peer, Rule, Service};
use pipeline::{PublishedService, Source, Translation};

use crate::site::{
    DB, FLOATING4, FRONT_GW, HOST, HOST_GW, HOST4, HOST6, RELAY4, ROUTER, SERVER4, SERVER6, Site, UPLINK,
    WEB, WEB2, gateway,
};

/// A floating IPv6 address.
pub const FLOATING6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// The first byte of a TCP side that opened the connection, and of the other side.
const NUMBERS: [u32; 2] = [1000, 2000];

/// A source of chance: xorshift.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd6e8_feb8_6659_fd93) | 1)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % end
    }

    /// Says yes once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Returns one of `list`.
    pub fn one<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A packet on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The port that it comes in by.
    pub port: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What is known of its checksum.
    pub checksum: Checksum,
    /// How it is to be cut.
    pub gso: Option<Gso>,
}

/// What a configuration is made of; the same for every site it is given to.
#[derive(Clone, Debug)]
pub struct Configuration {
    rules: Vec<Rule>,
    translations: Vec<Translation>,
    sources: Vec<(usize, Source)>,
    domains: [(bool, bool, bool, bool); 2],
    mtus: [(&'static str, u32); 5],
}

const STATIONS: [crate::site::Station; 3] = [WEB, WEB2, DB];

impl Configuration {
    /// Makes one up for sites that are laid out like `site`.
    pub fn random(chance: &mut Chance, site: &Site) -> Self {
        let rules = (0..chance.below(8)).map(|n| rule(chance, site, n)).collect();
        let mut translations: Vec<_> = (0..chance.below(4)).map(|n| published(chance, site, n)).collect();
        let mut sources = Vec::new();
        for listen in [Address::from(FLOATING4), FLOATING6.into()] {
            if chance.once_in(2) {
                let n = chance.below(3);
                translations.push(translation(site, n, listen, None));
                sources.push((n, Source::Floating(listen)));
            }
        }
        let mut domain = || {
            let yes = |chance: &mut Chance, times| !chance.once_in(times);
            (yes(chance, 4), chance.once_in(8), yes(chance, 8), chance.once_in(2))
        };
        let domains = [domain(), domain()];
        let mtus =
            ["web", "web2", "db", "out", "host"].map(|port| (port, chance.one(&[1500, 1500, 1500, 1300])));
        Self { rules, translations, sources, domains, mtus }
    }

    /// Gives it to a site.
    pub fn apply(&self, site: &mut Site) {
        site.rules.clone_from(&self.rules);
        site.translations.clone_from(&self.translations);
        site.sources = self
            .sources
            .iter()
            .map(|(n, source)| {
                let Source::Floating(listen) = source else { unreachable!("only these are made") };
                let station = STATIONS[*n];
                let own = if listen.is_v4() { station.v4.into() } else { station.v6.into() };
                ((site.network(station.network), own), *source)
            })
            .collect();
        for (spec, (masquerade, internal, host, tracked)) in site.domains.iter_mut().zip(self.domains) {
            (spec.masquerade, spec.internal, spec.host, spec.tracked) = (masquerade, internal, host, tracked);
        }
        let network = |port| match port {
            "web" | "web2" => "front",
            "db" => "back",
            "out" => "outside",
            _ => "host-net",
        };
        for (name, mtu) in self.mtus {
            site.lab.port(name, network(name), |port| port.mtu = mtu);
        }
        site.publish();
    }
}

fn rule(chance: &mut Chance, site: &Site, n: usize) -> Rule {
    let mut peer = || match chance.below(3) {
        0 => Peer::Any,
        1 => {
            let network = chance.one(&["front", "back", "outside", "host-net"]);
            let mut all = vec![Identity::network(site.network(network))];
            let members = STATIONS.iter().filter(|station| station.network == network);
            all.extend(members.map(|station| Identity::port(site.lab.id(station.name))));
            Peer::Identities(all)
        }
        _ => {
            let address = chance.one(&[Address::from(WEB.v4), SERVER4.into(), WEB.v6.into()]);
            let len = if address.is_v4() { 24 } else { 64 };
            Peer::Prefixes(vec![Prefix::new(address, len).expect("a prefix")])
        }
    };
    let (from, to) = (peer(), peer());
    let services = match chance.below(4) {
        0 => vec![Service::Any],
        1 => vec![Service::Protocol(chance.one(&[protocol::TCP, protocol::UDP, protocol::ICMP, 47]))],
        2 => vec![Service::Ports { protocol: protocol::TCP, first: 53, last: 80 }],
        _ => vec![Service::Ports { protocol: protocol::UDP, first: 53, last: 53 }],
    };
    Rule {
        name: format!("rule {n}").into(),
        priority: chance.one(&[100, 200, 300]),
        from,
        to,
        services,
        action: chance.one(&[Action::Allow, Action::Allow, Action::Allow, Action::Deny, Action::Reject]),
        log: false,
        both_ways: chance.once_in(2),
    }
}

fn published(chance: &mut Chance, site: &Site, n: usize) -> Translation {
    let listens: [Address; 6] = [
        HOST4.into(),
        HOST6.into(),
        FLOATING4.into(),
        FLOATING6.into(),
        Address::v4([0; 4]),
        Address::UNSPECIFIED,
    ];
    let protocol = chance.one(&[protocol::TCP, protocol::UDP]);
    // Ranges that do not overlap.
    let first = [53, 80, 8080, 514][n];
    let to = chance.one(&[53, 80, 9000]);
    let last = first + chance.one(&[0, 5]);
    let (station, listen) = (chance.below(3), chance.one(&listens));
    translation(site, station, listen, Some(PublishedService { protocol, first, last, to }))
}

fn translation(site: &Site, n: usize, listen: Address, service: Option<PublishedService>) -> Translation {
    let station = STATIONS[n];
    Translation {
        name: format!("translation of {listen}").into(),
        listen,
        service,
        network: site.network(station.network),
        to: if listen.is_v4() { station.v4.into() } else { station.v6.into() },
        port: site.lab.id(station.name),
        allow_from: Vec::new(),
    }
}

/// Makes a packet of one of few flows up.
pub fn packet(chance: &mut Chance) -> Sent {
    let (port, source_mac, v4, v6) = match chance.below(8) {
        0..6 => {
            let station = chance.one(&STATIONS);
            (station.name, station.mac, station.v4, station.v6)
        }
        6 => ("out", ROUTER, chance.one(&[SERVER4, Ipv4Addr::new(203, 0, 113, 77)]), SERVER6),
        _ => ("host", HOST, chance.one(&[HOST4, RELAY4]), HOST6),
    };
    let router = match port {
        "web" | "web2" => gateway(WEB),
        "db" => gateway(DB),
        "out" => UPLINK,
        _ => HOST_GW,
    };
    let targets4 = [WEB.v4, WEB2.v4, DB.v4, SERVER4, HOST4, FLOATING4, Ipv4Addr::new(10, 1, 0, 1), SERVER4];
    let targets6 = [WEB.v6, WEB2.v6, DB.v6, SERVER6, HOST6, FLOATING6, SERVER6, SERVER6];
    let to = match chance.below(20) {
        0 => 8,
        1 => 9,
        _ => chance.below(8),
    };
    let mac = match (port, to) {
        // On its own link.
        ("web", 1) if !chance.once_in(4) => WEB2.mac,
        ("web2", 0) if !chance.once_in(4) => WEB.mac,
        _ => router,
    };
    if chance.once_in(30) {
        // Neither IP nor for a router.
        let mut bytes = [&mac.0[..], &source_mac.0, &[0x88, 0xb5]].concat();
        bytes.resize(60, 7);
        return Sent { port, bytes, checksum: Checksum::Complete, gso: None };
    }
    let ethernet = eth(source_mac, mac);
    let ttl = if chance.once_in(20) { chance.one(&[0, 1, 2]) } else { 64 };
    if chance.once_in(3) {
        let to = targets6.get(to).copied().unwrap_or(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x77));
        let mut ip = ethernet.ipv6(v6, to).ttl(ttl);
        if chance.once_in(30) {
            ip = ip.options(&[1, 4, 0, 0, 0, 0]);
        }
        let bytes = transport(chance, ip);
        return finish(chance, port, bytes, false);
    }
    let to = targets4.get(to).copied().unwrap_or(Ipv4Addr::new(10, 1, 0, 77));
    let mut ip: Ip<V4> = ethernet.ipv4(v4, to).ttl(ttl);
    if chance.once_in(30) {
        ip = ip.options(&[1, 1, 1]);
    }
    let bytes = transport(chance, ip);
    finish(chance, port, bytes, true)
}

fn transport<V>(chance: &mut Chance, ip: Ip<V>) -> Vec<u8> {
    let source = chance.one(&[4000, 4001, 50_000]);
    let destination = chance.one(&[53, 80, 8080, 8083, 514]);
    let data = vec![chance.below(256).try_into().unwrap_or(0); length(chance)];
    if chance.once_in(30) {
        let id = chance.below(4).try_into().unwrap_or(0);
        let ip = ip.fragment(id, chance.one(&[0, 0, 64]), chance.once_in(2));
        return ip.raw(protocol::UDP, &build_udp(source, destination, &data)).bytes();
    }
    match chance.below(16) {
        0..7 => {
            let kinds =
                [flags::SYN, flags::ACK, flags::ACK, flags::ACK | 8, flags::ACK | flags::FIN, flags::RST];
            let kinds = if chance.once_in(3) { &kinds[..] } else { &kinds[..4] };
            let kind = if chance.once_in(3) { flags::SYN } else { chance.one(kinds) };
            let (sequence, acknowledgment, data) = match kind {
                flags::SYN => (NUMBERS[0] - 1, 0, &[][..]),
                _ => (NUMBERS[0], NUMBERS[1], &data[..]),
            };
            ip.tcp(source, destination).flags(kind).seq(sequence).ack(acknowledgment).data(data).bytes()
        }
        7..12 => {
            let udp = ip.udp(source, destination);
            if chance.once_in(10) { udp.without_checksum() } else { udp }.data(&data).bytes()
        }
        12..15 => ip.icmp_echo(chance.one(&[0, 7, 4000]), 0).data(&data[..data.len().min(64)]).bytes(),
        _ => ip.raw(chance.one(&[47, protocol::SCTP, 99]), &[0; 40]).bytes(),
    }
}

fn build_udp(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + data.len()).expect("short");
    [&source.to_be_bytes(), &destination.to_be_bytes(), &len.to_be_bytes(), &[0, 0][..], data].concat()
}

fn length(chance: &mut Chance) -> usize {
    match chance.below(8) {
        0 => 0,
        1 => 1390,
        n => n * 3,
    }
}

/// Does to a whole packet what senders and devices do: clears "don't fragment", pads, leaves the checksum to others, or
/// makes it a large one.
fn finish(chance: &mut Chance, port: &'static str, mut bytes: Vec<u8>, v4: bool) -> Sent {
    if v4 && chance.once_in(3) {
        bytes[20] &= !0x40;
        bytes[18] = chance.below(256).try_into().unwrap_or(0);
        Ipv4Header::fill_checksum(&mut bytes[14..]).expect("a header");
    }
    let mut sent = Sent { port, bytes, checksum: Checksum::Complete, gso: None };
    let Ok(Some(headers)) = Headers::of(&sent.bytes) else { return sent };
    let offset = match headers.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 0,
    };
    let field = usize::from(headers.l4) + offset;
    let has_checksum = offset != 0 && !headers.is_fragment() && sent.bytes[field..field + 2] != [0, 0];
    match chance.below(8) {
        0 | 1 if has_checksum => {
            let layout = Layout::of(&sent.bytes).expect("built whole");
            let pseudo = checksum::pseudo(&sent.bytes, &layout).expect("IP").fold();
            sent.bytes[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
            sent.checksum =
                Checksum::Partial { start: headers.l4, offset: offset.try_into().expect("small") };
            let payload = usize::from(headers.l4) + if offset == 16 { 20 } else { 8 };
            if sent.bytes.len() > payload + 2 && headers.tcp_flags & (flags::SYN | flags::RST) == 0 {
                let kind = match (headers.protocol, v4) {
                    (protocol::UDP, _) => GsoKind::Udp,
                    (_, true) => GsoKind::Tcp4,
                    (_, false) => GsoKind::Tcp6,
                };
                let header_len = payload.try_into().expect("short");
                let gso = Gso { kind, size: chance.one(&[2, 600]), header_len, ecn: false, tunnel: None };
                sent.gso = chance.once_in(2).then_some(gso);
            }
        }
        2 => sent.checksum = Checksum::Unknown,
        3 if sent.bytes.len() < 60 => sent.bytes.resize(60, 0),
        _ => {}
    }
    sent
}

/// Returns the answer to what came out of a port, or `None` when it is none that anybody would answer.
pub fn answer(chance: &mut Chance, port: &'static str, bytes: &[u8]) -> Option<Sent> {
    let headers = Headers::of(bytes).ok()??;
    if headers.is_fragment() || headers.options || bytes[0] & 1 != 0 {
        return None;
    }
    let mac = |at: usize| MacAddr(bytes[at..at + 6].try_into().expect("six"));
    let back = eth(mac(0), mac(6));
    let tuple = headers.tuple.inverted();
    let (source, destination) = (tuple.source_port, tuple.destination_port);
    let l4 = usize::from(headers.l4);
    let data = [7; 11];
    macro_rules! over {
        ($ip:expr) => {
            match (headers.protocol, headers.icmp) {
                (protocol::UDP, _) => $ip.udp(source, destination).data(&data).bytes(),
                (protocol::TCP, _) if headers.tcp_flags & flags::RST == 0 => {
                    let word =
                        |at: usize| u32::from_be_bytes(bytes[l4 + at..l4 + at + 4].try_into().expect("four"));
                    let tcp = $ip.tcp(source, destination);
                    if headers.tcp_flags & (flags::SYN | flags::ACK) == flags::SYN {
                        let tcp = tcp.flags(flags::SYN | flags::ACK).seq(NUMBERS[1] - 1);
                        tcp.ack(NUMBERS[0]).bytes()
                    } else {
                        let kinds = [flags::ACK, flags::ACK, flags::ACK, flags::ACK | flags::FIN];
                        let next = if headers.tcp_flags & flags::SYN != 0 { NUMBERS[1] } else { word(4) };
                        let tcp = tcp.flags(chance.one(&kinds)).seq(word(8)).ack(next);
                        tcp.data(&data[..chance.below(11)]).bytes()
                    }
                }
                (protocol::ICMP, Some((8, _))) | (protocol::ICMPV6, Some((128, _))) => {
                    $ip.icmp_echo_reply(source, 0).data(&data[..chance.below(3)]).bytes()
                }
                _ => return None,
            }
        };
    }
    let bytes = match (tuple.source.ip(), tuple.destination.ip()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => over!(back.ipv4(from, to)),
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => over!(back.ipv6(from, to)),
        _ => return None,
    };
    Some(Sent { port, bytes, checksum: Checksum::Complete, gso: None })
}

/// Returns the ICMP error that a router beyond `port` sends about what came out there.
pub fn error(port: &'static str, bytes: &[u8]) -> Option<Sent> {
    let headers = Headers::of(bytes).ok()??;
    if headers.is_icmp_error() || bytes[0] & 1 != 0 {
        return None;
    }
    let mac = |at: usize| MacAddr(bytes[at..at + 6].try_into().expect("six"));
    let back = eth(mac(0), mac(6));
    let quote = &bytes[14..bytes.len().min(14 + 80)];
    let too_big = [0, 0, 0, 0, 0, 0, 5, 20];
    let bytes = match headers.tuple.source.ip() {
        std::net::IpAddr::V4(to) => {
            let mut message = [&too_big[..], quote].concat();
            (message[0], message[1]) = (3, 4);
            let sum = Sum::new().bytes(&message).checksum();
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            back.ipv4(Ipv4Addr::new(192, 0, 2, 99), to).raw(protocol::ICMP, &message).bytes()
        }
        std::net::IpAddr::V6(to) => {
            let mut message = [&too_big[..], quote].concat();
            message[0] = 2;
            let far = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 99);
            back.ipv6(far, to).raw(protocol::ICMPV6, &message).bytes()
        }
    };
    Some(Sent { port, bytes, checksum: Checksum::Complete, gso: None })
}

/// Says whether a frame's checksums are right: the IPv4 header's, and the transport's once what is left to the device is
/// done. `None` when there is nothing to check.
pub fn is_right(pool: &mut FramePool, bytes: &[u8], state: Checksum) -> Option<bool> {
    let headers = Headers::of(bytes).ok()??;
    let l3 = usize::from(headers.l3);
    let header_end = if headers.v6 { l3 } else { l3 + usize::from(bytes[l3] & 15) * 4 };
    if !headers.v6 && Sum::new().bytes(&bytes[l3..header_end]).fold() != 0xffff {
        return Some(false);
    }
    let mut frame = pool.alloc_from(bytes).expect("chunks");
    frame.set_checksum(state);
    let done = checksum::complete(&mut frame);
    let valid = checksum::is_valid(frame.bytes());
    pool.free(frame);
    if done.is_err() { Some(false) } else { valid }
}

/// Returns what an unknown checksum turns out to be.
pub fn resolved(pool: &mut FramePool, bytes: &[u8]) -> Checksum {
    let mut frame = pool.alloc_from(bytes).expect("chunks");
    frame.set_checksum(Checksum::Unknown);
    checksum::resolve(&mut frame);
    let state = frame.checksum();
    pool.free(frame);
    state
}

/// Returns an ARP answer of a station that nobody knows yet.
pub fn newcomer() -> Sent {
    let mac = MacAddr([2, 0, 0, 0, 1, 77]);
    let bytes =
        build::arp_reply(mac, Ipv4Addr::new(10, 1, 0, 77), FRONT_GW, Ipv4Addr::new(10, 1, 0, 1)).bytes();
    Sent { port: "web2", bytes, checksum: Checksum::Complete, gso: None }
}

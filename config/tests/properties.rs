//! Properties of reading, printing, comparing: no text panics, and what is printed reads back equal.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config::{
    Action, Assert, ByteSize, ChangeKind, Cpus, Document, Egress, FdbEntry, FloatingIp, L4Range, LogLevel,
    Mtu, Netns, Network, Object, Peer, Policy, Poll, Port, PortKind, Publish, Route, RouteKind, RouteTo,
    UplinkDevice, UplinkMode, VlanRange,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Numbers that the trees below are made of; every tree made of them is good.
#[derive(Clone, Debug)]
struct Seed {
    networks: Vec<(u8, bool, bool, u16, u32)>,
    ports: Vec<(u8, u8, u8, u16, u32, bool)>,
    fdb: Vec<(u8, u8)>,
    rest: Vec<(u8, u8, u8, u16, bool)>,
    settings: (u8, u8, u16, u32),
}

fn seeds() -> impl Strategy<Value = Seed> {
    (
        prop::collection::vec(any::<(u8, bool, bool, u16, u32)>(), 1..5),
        prop::collection::vec(any::<(u8, u8, u8, u16, u32, bool)>(), 0..12),
        prop::collection::vec(any::<(u8, u8)>(), 0..5),
        prop::collection::vec(any::<(u8, u8, u8, u16, bool)>(), 0..12),
        any::<(u8, u8, u16, u32)>(),
    )
        .prop_map(|(networks, ports, fdb, rest, settings)| Seed { networks, ports, fdb, rest, settings })
}

fn document(seed: &Seed) -> Document {
    let mut document = Document::default();
    let (small, choice, medium, large) = seed.settings;
    document.daemon.name = (small > 9).then(|| format!("host-{small}"));
    document.daemon.log = [LogLevel::Error, LogLevel::Info, LogLevel::Trace][usize::from(choice) % 3];
    document.workers.cpus = if small > 99 { Cpus::List(vec![small.into(), 0]) } else { Cpus::Auto };
    document.workers.poll = [Poll::Adaptive, Poll::Busy, Poll::Interrupt][usize::from(choice) % 3];
    document.workers.budget = medium % 256 + 1;
    document.limits.memory = ByteSize(u64::from(large) + (256 << 20));
    document.limits.flows = 1 << (10 + choice % 8);
    document.uplink.mode = if small % 2 == 0 { UplinkMode::Steer } else { UplinkMode::Afxdp };
    document.uplink.device = match small % 4 {
        0 => UplinkDevice::Auto,
        1 => UplinkDevice::Names(vec!["eth1".into()]),
        2 => UplinkDevice::Names(vec!["eth1".into(), "auto0".into()]),
        _ => UplinkDevice::None,
    };
    document.uplink.dedicated = small % 4 == 1;
    if choice % 2 == 0 && document.uplink.dedicated {
        document.uplink.addresses = vec!["203.0.113.2/24".parse().expect("good")];
        document.uplink.gateway =
            vec!["203.0.113.1".parse().expect("good"), "fe80::1".parse().expect("good")];
        document.uplink.gateway.truncate(usize::from(choice % 3));
    }
    document.uplink.ports = L4Range { first: 1024 + medium / 2, last: 65535 };
    if large % 2 == 0 {
        document.daemon.publish_allow_from = vec!["192.0.2.0/24".parse().expect("good")];
    }

    for (n, (kind, isolated, proxy, medium, large)) in (0_u8..).zip(&seed.networks) {
        let mut network = Network::new(format!("net.{n}"));
        if kind % 2 == 0 {
            network.subnets.push(format!("10.{n}.0.0/16").parse().expect("good"));
        }
        if kind % 3 == 0 {
            network.subnets.push(format!("fd00:{n}::/64").parse().expect("good"));
        }
        if kind % 5 == 0 {
            network.gateways = Some(Vec::new());
        }
        network.isolated = *isolated;
        network.arp_proxy = *proxy;
        network.masquerade = kind % 4 != 0;
        network.internal = kind % 11 == 0;
        network.host = medium % 3 != 0;
        network.mtu = if kind % 7 == 0 { Mtu::Bytes(1280 + medium % 7000) } else { Mtu::Auto };
        network.ageing = large % 1_000_000 + 1;
        network.storm = large.checked_sub(1 << 31).map(|n| n + 1);
        document.networks.push(network);
    }
    for (n, (which, kind, bits, medium, large, flag)) in (0_u8..).zip(&seed.ports) {
        let network = &document.networks[usize::from(*which) % document.networks.len()];
        let mut port = Port::new(format!("port_{n}"), network.name.clone());
        port.kind = PortKind::ALL[usize::from(*kind) % 4];
        port.netns = match bits % 4 {
            0 => None,
            1 => Some(Netns::Name(format!("ns-{n}"))),
            2 => Some(Netns::Path(format!("/run/netns/a b-{n}").into())),
            _ => Some(Netns::Pid(u32::from(n) + 1)),
        };
        for subnet in &network.subnets {
            port.addresses.push(match subnet.network() {
                IpAddr::V4(net) => Ipv4Addr::from(u32::from(net) + 16 + u32::from(n)).into(),
                IpAddr::V6(net) => Ipv6Addr::from(u128::from(net) + 16 + u128::from(n)).into(),
            });
        }
        port.mac = flag.then(|| packet::MacAddr::local(u64::from(n) + 1));
        port.mtu = (bits & 4 != 0).then_some(1280 + medium % 7000);
        match bits >> 6 {
            1 => port.vlan = Some(medium % 4094 + 1),
            2 => {
                let first = medium % 2000 + 1;
                port.trunk = vec![
                    VlanRange { first, last: first + u16::from(*bits) },
                    VlanRange { first: 4000, last: 4000 },
                ];
                port.native = flag.then_some(7);
            }
            _ => {}
        }
        port.guard = (bits & 8 != 0).then_some(*flag);
        port.isolated = *flag;
        port.stations = (bits & 16 != 0).then_some(large % 16384 + 1);
        port.quota = (bits & 32 != 0).then_some(large % document.limits.connections + 1);
        port.half_open = (bits & 1 != 0).then_some(large % 1000 + 1);
        port.queues =
            if matches!(port.kind, PortKind::Tap | PortKind::Afxdp) { u16::from(bits % 4) + 1 } else { 1 };
        port.labels = BTreeMap::from([(format!("tier-{n}"), format!("\"quoted\" ä {large}"))]);
        document.ports.push(port);
    }
    for (n, (which, last)) in (0_u8..).zip(&seed.fdb) {
        let Some(port) = document.ports.get(usize::from(*which)) else { continue };
        let vlan = port.trunk.first().map(|range| range.first);
        let mac = packet::MacAddr([2, 1, 0, 0, n, *last]);
        document.fdb.push(FdbEntry { network: port.network.clone(), mac, port: port.name.clone(), vlan });
    }
    for (n, (kind, which, to, number, flag)) in (0_u8..).zip(&seed.rest) {
        let network = &document.networks[usize::from(*which) % document.networks.len()];
        // Some of these ports are there, some come later.
        let port = format!("port_{}", to % 16);
        let known = document.port(&port);
        let v4 = known.is_none_or(|port| port.addresses.iter().any(|address| address.is_ipv4()));
        match kind % 6 {
            0 => {
                let kind = [RouteKind::Blackhole, RouteKind::Unreachable, RouteKind::Prohibit];
                let to = if *flag {
                    RouteTo::Prefix(format!("10.200.{n}.0/24").parse().expect("good"))
                } else {
                    RouteTo::Default
                };
                let route = Route {
                    network: network.name.clone(),
                    to,
                    via: Vec::new(),
                    kind: kind[usize::from(*number) % 3],
                };
                if !document.routes.iter().any(|other| other.name() == route.name()) {
                    document.routes.push(route);
                }
            }
            1 if v4 => {
                let address = format!("198.51.100.{n}").parse().expect("good");
                document.floating_ips.push(FloatingIp { address, port, to: None });
            }
            2 if v4 => document.publishes.push(Publish {
                name: flag.then(|| format!("publish.{n}")),
                listen: format!("198.51.100.{n}:{}-{}/udp", number / 2 + 1, number / 2 + 3)
                    .parse()
                    .expect("good"),
                to: format!("{port}:7-9").parse().expect("good"),
                allow_from: flag.then(|| "192.0.2.7/32".parse().expect("good")).into_iter().collect(),
            }),
            3 if v4 && !document.egresses.iter().any(|other| other.port == port) => {
                let address = vec![format!("198.51.101.{n}").parse().expect("good")];
                document.egresses.push(Egress {
                    port,
                    address,
                    ports: L4Range { first: number / 2 + 1, last: 60000 },
                });
            }
            4 => {
                let peers = [
                    Peer::Any,
                    Peer::Host,
                    Peer::Outside,
                    Peer::Port(port),
                    Peer::Network(network.name.clone()),
                    "b=1,a=2".parse().expect("good"),
                    "10.0.0.0/8".parse().expect("good"),
                    "fd00::7".parse().expect("good"),
                ];
                let services = ["tcp/1-9", "udp", "icmp/echo-request", "icmpv6/1/2", "any", "protocol/47"];
                let action = [Action::Allow, Action::Deny, Action::Reject][usize::from(*number) % 3];
                let services = services[..usize::from(*to) % 6 + 1].iter().map(|s| s.parse().expect("good"));
                let from = peers[usize::from(*which) % 8].clone();
                let policy =
                    Policy::new(from, peers[usize::from(*to) % 8].clone(), action, services.collect());
                // A policy must not join networks that overlap; its own priority makes its name its own.
                document.policies.push(Policy { priority: u16::from(n), log: *flag, ..policy });
            }
            5 => document.asserts.push(Assert {
                from: port,
                to: format!("{}:{}/tcp", network.name, u16::from(n) + 1).parse().expect("good"),
                expect: [Action::Allow, Action::Deny, Action::Reject][usize::from(*number) % 3],
            }),
            _ => {}
        }
    }
    document
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_equal(seed in seeds()) {
        let document = document(&seed);
        let printed = document.to_toml();
        let read = Document::parse(&printed, "x.toml");
        prop_assert_eq!(read.as_ref(), Ok(&document), "{}", printed);
        let json = serde_json::to_string(&document).expect("has a JSON form");
        prop_assert_eq!(serde_json::from_str::<Document>(&json).expect("reads back"), document);
    }

    #[test]
    fn a_difference_names_what_differs_and_nothing_else(a in seeds(), b in seeds()) {
        let (a, b) = (document(&a), document(&b));
        prop_assert_eq!(a.diff(&a), Vec::new());
        let changes = a.diff(&b);
        let back = b.diff(&a);
        let count = |changes: &[config::Change], kind| changes.iter().filter(|c| c.action == kind).count();
        prop_assert_eq!(count(&changes, ChangeKind::Add), count(&back, ChangeKind::Remove));
        prop_assert_eq!(count(&changes, ChangeKind::Change), count(&back, ChangeKind::Change));
        for port in &b.ports {
            let told = changes.iter().find(|change| change.kind == "port" && change.name == port.name);
            prop_assert_eq!(told.is_none(), a.port(&port.name) == Some(port));
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        look(&text);
    }

    #[test]
    fn no_text_of_our_words_panics(words in prop::collection::vec(word(), 0..60)) {
        look(&words.concat());
    }

    #[test]
    fn no_damaged_file_panics(seed in seeds(), at in any::<prop::sample::Index>(), with in any::<Vec<char>>()) {
        let mut text = document(&seed).to_toml();
        let start = text.floor_char_boundary(at.index(text.len() + 1));
        let end = text.floor_char_boundary((start + with.len()).min(text.len()));
        text.replace_range(start..end, &with.into_iter().collect::<String>());
        look(&text);
    }
}

/// Reads `text`, and looks at every form of what is wrong with it.
fn look(text: &str) {
    if let Err(found) = Document::parse(text, "x.toml") {
        assert!(!found.list().is_empty());
        assert!(!found.render(false).is_empty());
        for finding in found.list() {
            let position = finding.position.expect("a file is at fault");
            assert!(position.line >= 1 && position.column >= 1);
            let span = finding.span.clone().expect("a file is at fault");
            assert!(text.get(span).is_some());
            assert!(!finding.to_string().contains('\n'), "one line a finding: {finding}");
        }
    }
}

fn word() -> impl Strategy<Value = String> {
    let mut words: Vec<String> = [
        "\n",
        " = ",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ", ",
        ".",
        "\"",
        "'",
        "#",
        "-",
        "true",
        "auto",
        "0",
        "4095",
        "1e9",
        "inf",
        "\"10.0.0.0/24\"",
        "\"fd00::/64\"",
        "\"10.0.0.2\"",
        "\"pid:7\"",
        "\"1-9\"",
        "1979-05-27",
        "\"\"\"",
        "ä",
        "\0",
        "\r\n",
        "\"a\"",
        "\"64 MiB\"",
        "\"default\"",
        "\"80-90/tcp\"",
        "\"[::]:80\"",
        "\"web:80\"",
        "\"tcp/80\"",
        "\"label:a=b\"",
        "\"host:22/tcp\"",
        "\"02:00:00:00:00:01\"",
        "99999999999999999999999999999999999999999",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    words.extend(
        config::keys::SECTIONS
            .iter()
            .flat_map(|s| [format!("\n[[{s}]]\n"), format!("\n[{s}]\n"), (*s).to_owned()]),
    );
    words.extend(
        config::keys::KEYS.iter().flat_map(|key| [format!("\n{} = ", key.name), key.name.to_owned()]),
    );
    select(words)
}

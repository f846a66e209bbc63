use std::net::IpAddr;

use packet::build::eth;
use packet::header::{
    EthernetHeader, Header, Icmp, Ipv6, Layout, NdOptions, NeighborSolicit, icmp6, nd_option, protocol,
    tcp_flags,
};
use packet::{Address, FramePool, Gso, GsoKind, MacAddr, Prefix, VlanId};
use proptest::prelude::*;

use super::*;
use crate::headers::Headers;
use crate::random::{GATEWAY, Kind, Random, STATION, is_right, leave_partial, pool, random};
use crate::rewrite::embedded;

const GATEWAY_V4: Address = Address::v4([10, 0, 0, 254]);
const GATEWAY_V6: Address = Address::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe]);

fn headers_of(bytes: &[u8]) -> Headers {
    Headers::of(bytes).expect("well-formed").expect("IP")
}

/// Returns the answer to `question`, its checksums checked, or `None`.
fn answer(pool: &mut FramePool, question: &[u8], answer: Answer) -> Option<Vec<u8>> {
    let mut frame = pool.alloc_from(question).expect("a chunk");
    let written = write(&mut frame, answer).map(|()| frame.bytes().to_vec());
    let finished = frame.is_finished();
    pool.free(frame);
    let bytes = written?;
    assert!(finished);
    if Layout::of(&bytes).expect("well-formed").is_ip() {
        assert!(is_right(&bytes), "{bytes:?}");
    }
    Some(bytes)
}

fn problem() -> impl Strategy<Value = Problem> {
    prop_oneof![
        Just(Problem::TimeExceeded),
        Just(Problem::NetUnreachable),
        Just(Problem::HostUnreachable),
        Just(Problem::PortUnreachable),
        Just(Problem::AdminProhibited),
        (68u32..9000).prop_map(|mtu| Problem::TooBig { mtu }),
        (0u32..60).prop_map(|pointer| Problem::Parameter { pointer }),
    ]
}

fn gateway(v6: bool) -> Address {
    if v6 { GATEWAY_V6 } else { GATEWAY_V4 }
}

proptest! {
    #[test]
    fn echo_is_answered_with_what_it_brought(packet in random()) {
        let packet = Random { kind: Kind::Echo, ports: (packet.ports.0, packet.ports.0), ..packet };
        let reply = answer(&mut pool(), &packet.bytes(), Answer::Echo(GATEWAY));
        let start = eth(GATEWAY, STATION);
        let start = if packet.tagged { start.vlan(VlanId(7)) } else { start };
        let tuple = packet.tuple().inverted();
        let expected = match (tuple.source.ip(), tuple.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                start.ipv4(source, destination).tos(packet.tos).icmp_echo_reply(packet.ports.0, 3)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                start.ipv6(source, destination).tos(packet.tos).icmp_echo_reply(packet.ports.0, 3)
            }
            _ => unreachable!("one family"),
        };
        prop_assert_eq!(reply, Some(expected.data(&packet.data).bytes()));
    }

    #[test]
    fn a_problem_quotes_the_packet(packet in random(), problem in problem(), long in any::<bool>()) {
        let mut packet = packet;
        if long {
            packet.data.resize(1400, 5);
        }
        let question = packet.bytes();
        let l3 = usize::from(headers_of(&question).l3);
        let told = Answer::Problem { problem, from: gateway(packet.v6), mac: GATEWAY };
        let bytes = answer(&mut pool(), &question, told).expect("may be told");
        let headers = headers_of(&bytes);
        prop_assert_eq!((headers.tuple.source, headers.tuple.destination), (gateway(packet.v6), packet.tuple().source));
        prop_assert_eq!(headers.l3 as usize, l3);
        let stations = EthernetHeader::at(&bytes, 0).map(|ethernet| (ethernet.src, ethernet.dst));
        prop_assert_eq!(stations, Some((GATEWAY, STATION)));

        let most = if packet.v6 { 1280 - 48 } else { 576 - 28 };
        let icmp = Icmp::new(&bytes[usize::from(headers.l4)..]).expect("whole");
        prop_assert_eq!(icmp.payload.len(), most.min(question.len() - l3));
        prop_assert_eq!(icmp.payload, &question[l3..l3 + icmp.payload.len()]);
        let rest = u32::from(icmp.header.id.get()) << 16 | u32::from(icmp.header.seq.get());
        match problem {
            Problem::TooBig { mtu } => {
                prop_assert_eq!((headers.icmp, rest), (Some(if packet.v6 { (2, 0) } else { (3, 4) }), mtu));
            }
            Problem::Parameter { pointer } if packet.v6 => {
                prop_assert_eq!((headers.icmp, rest), (Some((4, 0)), pointer));
            }
            Problem::Parameter { pointer } => {
                prop_assert_eq!((headers.icmp, rest), (Some((12, 0)), pointer << 24));
            }
            _ => prop_assert_eq!(rest, 0),
        }
        // What other routers make of it.
        let found = embedded(&bytes, &headers).map(|embedded| embedded.tuple);
        prop_assert_eq!(found, Some(packet.tuple()));
        prop_assert!(!may_report(&headers, GATEWAY), "no error about an error");
    }

    #[test]
    fn any_frame_and_any_state_never_panic(
        packet in random(), noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(), state in 0..3, start in any::<u16>(), offset in any::<u16>(),
        size in 0u16..3000, header_len in any::<u16>(), gso in 0usize..4, tunnel in any::<bool>(), which in 0usize..6,
    ) {
        let mut bytes = packet.bytes();
        for (at, value) in &noise {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        bytes.truncate(bytes.len() - cut.index(40) * usize::from(noise.len() > 4));
        let mut pool = pool();
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        frame.set_checksum(match state {
            0 => Checksum::Complete,
            1 => Checksum::Unknown,
            _ => Checksum::Partial { start, offset },
        });
        let tunnel = packet::Tunnel { outer_l4: start, inner_l3: offset, outer_checksum: tunnel };
        let tunnel = tunnel.outer_checksum.then_some(tunnel);
        let kind = [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp].get(gso).copied();
        frame.set_gso(kind.map(|kind| Gso { kind, size, header_len, ecn: false, tunnel }));
        let question = [
            Answer::Arp(GATEWAY),
            Answer::NeighborAdvert { mac: GATEWAY, router: true },
            Answer::Echo(GATEWAY),
            Answer::Problem { problem: Problem::TimeExceeded, from: gateway(packet.v6), mac: GATEWAY },
            Answer::Reset(GATEWAY),
            Answer::RouterAdvert { mac: GATEWAY, advert: RouterAdvert::new(link_local(GATEWAY), 1800) },
        ][which];
        if write(&mut frame, question).is_some() {
            prop_assert!(is_right(frame.bytes()));
        }
        pool.free(frame);
    }
}

#[test]
fn types_and_codes_are_those_of_the_registry() {
    let v4 = eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 9, 0, 2]).udp(1, 2).bytes();
    let v6 = eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfc; 16]).udp(1, 2).bytes();
    for (problem, four, six) in [
        (Problem::TimeExceeded, (11, 0), (3, 0)),
        (Problem::NetUnreachable, (3, 0), (1, 0)),
        (Problem::HostUnreachable, (3, 1), (1, 3)),
        (Problem::PortUnreachable, (3, 3), (1, 4)),
        (Problem::AdminProhibited, (3, 13), (1, 1)),
    ] {
        for (question, expected) in [(&v4, four), (&v6, six)] {
            let from = gateway(question == &v6);
            let told = Answer::Problem { problem, from, mac: GATEWAY };
            let bytes = answer(&mut pool(), question, told).expect("may be told");
            assert_eq!(headers_of(&bytes).icmp, Some(expected), "{problem:?}");
        }
    }
}

#[test]
fn what_must_not_be_answered_is_not() {
    let told = |v6| Answer::Problem { problem: Problem::TimeExceeded, from: gateway(v6), mac: GATEWAY };
    let refused = |question: packet::build::Packet, v6: bool, why: &str| {
        assert_eq!(answer(&mut pool(), question.as_slice(), told(v6)), None, "{why}");
    };
    let (a, b) = ([10, 0, 0, 1], [10, 9, 0, 2]);
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    refused(eth(STATION, GATEWAY).ipv4([0; 4], b).udp(1, 2).build(), false, "from nobody");
    refused(eth(STATION, GATEWAY).ipv4(a, [224, 0, 0, 9]).udp(1, 2).build(), false, "to a group");
    refused(eth(STATION, GATEWAY).ipv4(a, [255; 4]).udp(1, 2).build(), false, "to all");
    refused(eth(STATION, MacAddr::BROADCAST).ipv4(a, b).udp(1, 2).build(), false, "to all stations");
    refused(eth(STATION, group).ipv4(a, b).udp(1, 2).build(), false, "to a group of stations");
    refused(
        eth(STATION, GATEWAY).ipv4(a, b).fragment(1, 80, true).raw(17, &[0; 16]),
        false,
        "a later fragment",
    );
    refused(eth(STATION, GATEWAY).ipv4(a, b).raw(protocol::ICMP, &[5; 30]), false, "about a redirect");
    refused(eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xff; 16]).udp(1, 2).build(), true, "to a group");
    refused(eth(STATION, GATEWAY).ipv6([0; 16], [0xfd; 16]).udp(1, 2).build(), true, "from nobody");
    refused(eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfc; 16]).raw(58, &[137; 30]), true, "about a redirect");
    refused(
        eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfc; 16]).raw(58, &[99; 30]),
        true,
        "about an unknown error",
    );
    refused(eth(STATION, GATEWAY).ipv4(a, b).udp(1, 2).build(), true, "of the other family");

    let first = eth(STATION, GATEWAY).ipv4(a, b).fragment(1, 0, true).raw(17, &[0; 16]);
    assert!(answer(&mut pool(), first.as_slice(), told(false)).is_some(), "a first fragment");
    let mut broken = eth(STATION, GATEWAY).ipv4(a, b).icmp_echo(1, 2).data(b"hello").bytes();
    *broken.last_mut().expect("data") ^= 1;
    assert_eq!(answer(&mut pool(), &broken, Answer::Echo(GATEWAY)), None, "a broken echo");
    let reply = eth(STATION, GATEWAY).ipv4(a, b).icmp_echo_reply(1, 2).bytes();
    assert_eq!(answer(&mut pool(), &reply, Answer::Echo(GATEWAY)), None, "a reply");
}

#[test]
fn resets_have_the_numbers_of_the_rfc() {
    use tcp_flags::{ACK, FIN, RST, SYN};
    for (flags, data, expected) in [
        (SYN, 0, Some((0, 1001, RST | ACK))),
        (SYN, 5, Some((0, 1006, RST | ACK))),
        (FIN, 3, Some((0, 1004, RST | ACK))),
        (ACK, 7, Some((77, 0, RST))),
        (SYN | ACK, 0, Some((77, 0, RST))),
        (RST, 0, None),
        (RST | ACK, 0, None),
    ] {
        let data = vec![9; data];
        let v4 = |from, to| eth(from, to).ipv4([10, 0, 0, 1], [10, 9, 0, 2]);
        let question = v4(STATION, GATEWAY).options(&[1, 1]).tcp(4000, 22).flags(flags).seq(1000).ack(77);
        let reset = answer(&mut pool(), question.data(&data).as_slice(), Answer::Reset(GATEWAY));
        let expected_v4 = expected.map(|(seq, ack, flags)| {
            let ip = eth(GATEWAY, STATION).ipv4([10, 9, 0, 2], [10, 0, 0, 1]);
            ip.tcp(22, 4000).flags(flags).seq(seq).ack(ack).window(0).bytes()
        });
        assert_eq!(reset, expected_v4);

        let question = eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfc; 16]).options(&[1, 0]).tcp(4000, 22);
        let question = question.flags(flags).seq(1000).ack(77).data(&data);
        let reset = answer(&mut pool(), question.as_slice(), Answer::Reset(GATEWAY));
        let expected_v6 = expected.map(|(seq, ack, flags)| {
            let ip = eth(GATEWAY, STATION).ipv6([0xfc; 16], [0xfd; 16]);
            ip.tcp(22, 4000).flags(flags).seq(seq).ack(ack).window(0).bytes()
        });
        assert_eq!(reset, expected_v6);
    }
    let udp = eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 9, 0, 2]).udp(1, 2).bytes();
    assert_eq!(answer(&mut pool(), &udp, Answer::Reset(GATEWAY)), None);
}

#[test]
fn a_large_frame_is_answered_as_its_first_packet() {
    let mut pool = pool();
    for v6 in [false, true] {
        let packet = Random {
            v6,
            kind: Kind::Tcp,
            source: [1; 16],
            destination: [2; 16],
            ports: (1000, 80),
            ttl: 64,
            tos: 0,
            options: false,
            tagged: false,
            data: vec![6; 20_000],
        };
        let mut frame = pool.alloc_from(&packet.bytes()).expect("a chunk");
        let layout = Layout::of(frame.bytes()).expect("well-formed");
        leave_partial(&mut frame, &layout, 16);
        let kind = if v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
        frame.set_gso(Some(Gso { kind, size: 400, header_len: layout.l4 + 20, ecn: false, tunnel: None }));
        let problem = Problem::TooBig { mtu: 1280 };
        write(&mut frame, Answer::Problem { problem, from: gateway(v6), mac: GATEWAY }).expect("may be told");
        let head = Random { data: vec![6; 400], ..packet }.bytes();
        let icmp_at = usize::from(headers_of(frame.bytes()).l4);
        assert_eq!(frame.bytes()[icmp_at + 8..], head[14..], "with lengths and checksum of the first");
        assert!(frame.is_finished() && is_right(frame.bytes()));
        pool.free(frame);
    }
}

#[test]
fn a_partial_checksum_is_completed_before_it_is_quoted() {
    let mut pool = pool();
    let question = eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 9, 0, 2]).udp(1, 2).data(b"hello");
    let mut frame = question.frame(&mut pool).expect("a chunk");
    let layout = Layout::of(frame.bytes()).expect("well-formed");
    leave_partial(&mut frame, &layout, 6);
    let told = Answer::Problem { problem: Problem::PortUnreachable, from: GATEWAY_V4, mac: GATEWAY };
    write(&mut frame, told).expect("may be told");
    assert_eq!(frame.bytes()[14 + 28..], question.as_slice()[14..]);
    pool.free(frame);
}

#[test]
fn neighbours_are_told_where_an_address_is() {
    let mut pool = pool();
    let request = packet::build::arp_request(STATION, [10, 0, 0, 1], [10, 0, 0, 254]);
    let reply = answer(&mut pool, request.as_slice(), Answer::Arp(GATEWAY));
    let expected = packet::build::arp_reply(GATEWAY, [10, 0, 0, 254], STATION, [10, 0, 0, 1]);
    assert_eq!(reply, Some(expected.bytes()));

    let (asker, target) = ([0xfd; 16], GATEWAY_V6.octets());
    let told = Answer::NeighborAdvert { mac: GATEWAY, router: true };
    let question = packet::build::neighbor_solicit(STATION, asker, target);
    let expected = eth(GATEWAY, STATION).ipv6(target, asker).neighbor_advert(target, GATEWAY, 0xe0);
    assert_eq!(answer(&mut pool, question.as_slice(), told), Some(expected.bytes()));

    let (_, group) = crate::requests::solicited_node(GATEWAY_V6);
    let probe = eth(STATION, MacAddr([0x33, 0x33, 0xff, 0, 0, 0xfe]));
    let probe = probe.ipv6([0; 16], group.octets()).neighbor_solicit(target, None);
    assert!(NeighborSolicit::new(&Ipv6::new(&probe.as_slice()[14..]).expect("whole")).is_some());
    let (mac, all) = ALL_NODES;
    let expected = eth(GATEWAY, mac).ipv6(target, all.octets()).neighbor_advert(target, GATEWAY, 0xa0);
    assert_eq!(answer(&mut pool, probe.as_slice(), told), Some(expected.bytes()));
}

#[test]
fn router_solicitations_are_answered() {
    let mut pool = pool();
    let prefix = Prefix::new(Address::v6([0xfd; 16]), 64).expect("a prefix");
    let advert = RouterAdvert::new(link_local(GATEWAY), 0x0102)
        .with_dhcp(true, false)
        .with_mtu(1400)
        .with_prefix(prefix, true)
        .with_prefix(prefix, false)
        .with_server(GATEWAY_V6);
    let host = link_local(STATION).octets();
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let group = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
    for (source, to) in [(host, (STATION, link_local(STATION))), ([0; 16], ALL_NODES)] {
        let solicit = eth(STATION, group).vlan(VlanId(7)).ipv6(source, routers).ttl(255);
        let solicit = solicit.raw(protocol::ICMPV6, &[icmp6::ROUTER_SOLICIT, 0, 0, 0, 0, 0, 0, 0]);
        let told = Answer::RouterAdvert { mac: GATEWAY, advert };
        let bytes = answer(&mut pool, solicit.as_slice(), told).expect("a question");
        let headers = headers_of(&bytes);
        assert_eq!((headers.tuple.source, headers.tuple.destination), (link_local(GATEWAY), to.1));
        assert_eq!(EthernetHeader::at(&bytes, 0).map(|ethernet| ethernet.dst), Some(to.0));
        assert_eq!((headers.ttl, headers.icmp, headers.l3), (255, Some((icmp6::ROUTER_ADVERT, 0)), 18));
        let message = &bytes[usize::from(headers.l4)..];
        assert_eq!(message[4..16], [64, 0x80, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        let options = NdOptions::new(&message[16..]).expect("well-formed");
        assert_eq!(options.link_address(nd_option::SOURCE_LINK), Some(GATEWAY));
        let of = |kind| options.into_iter().filter(move |(k, _)| *k == kind).map(|(_, body)| body.to_vec());
        assert_eq!(of(nd_option::MTU).next(), Some(vec![0, 0, 0, 0, 5, 0x78]));
        let servers = of(nd_option::RDNSS).next().expect("there");
        assert_eq!((&servers[..6], &servers[6..]), (&[0, 0, 0, 0, 7, 8][..], &GATEWAY_V6.octets()[..]));
        let flags: Vec<_> = of(nd_option::PREFIX).map(|body| (body[0], body[1])).collect();
        assert_eq!(flags, [(64, 0xc0), (64, 0x80)]);
        assert!(of(nd_option::PREFIX).all(|body| body[14..] == prefix.address().octets()));
    }
    let hopped = eth(STATION, group).ipv6(host, routers).raw(protocol::ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let told = Answer::RouterAdvert { mac: GATEWAY, advert };
    assert_eq!(answer(&mut pool, hopped.as_slice(), told), None, "from another link");
}

#[test]
fn link_local_addresses_are_those_of_the_kernel() {
    let mac = MacAddr([0x02, 0x42, 0xac, 0x11, 0, 2]);
    assert_eq!(link_local(mac).to_string(), "fe80::42:acff:fe11:2");
}

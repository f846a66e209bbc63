//! The decision, packet by packet, as the kernel makes it (`BPF_PROG_TEST_RUN`), and against a dull twin in Rust for
//! packets that nobody thought of. Needs root.

use std::net::{Ipv4Addr, Ipv6Addr};

use packet::Vni;
use packet::build::{Packet, arp_request, eth};
use proptest::prelude::*;

use super::*;
use oracle::whose;

mod oracle;

const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FLOAT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const FLOAT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

fn address(ip: impl Into<std::net::IpAddr>) -> Address {
    Address::from(ip.into())
}

fn rules() -> Rules {
    let prefix = |ip: std::net::IpAddr, len| Prefix::new(address(ip), len).expect("a prefix");
    Rules {
        floating: vec![address(FLOAT), address(FLOAT6)],
        published: vec![
            (address(HOST), 6, 8080..=8090),
            (address(HOST), 132, 9000..=9000),
            (address(HOST6), 17, 53..=53),
        ],
        snat: vec![(address(HOST), 49152..=65535), (address(HOST6), 49152..=65535)],
        routed: vec![prefix([10, 1, 0, 0].into(), 24), prefix([0xfd00, 1, 0, 0, 0, 0, 0, 0].into(), 64)],
        tunnels: vec![
            (address(HOST), 4789, 101),
            (address(HOST), 8472, 1),
            (address(HOST), 8472, 103),
            (address(HOST6), 4789, 102),
            (address(HOST6), 50001, 101),
        ],
    }
}

/// The program with its maps, and no device.
struct Lab {
    maps: Maps,
    program: Program,
    /// What it answers when a packet is the host's, and the switch's.
    answers: [u32; 2],
    mark: Option<u32>,
}

impl Lab {
    fn new(rules: &Rules) -> Self {
        let maps = Maps::create().expect("this test needs root");
        Tables::default().change(&maps, &Tables::of(rules)).expect("the rules fit");
        let code = decide::assemble(&maps, US.0, Place::Tc { tap: 1 });
        let program = Program::load("test", PROG_TYPE_SCHED_CLS, 0, 0, &code).expect("the verifier agrees");
        // The next program decides; redirected.
        Self { maps, program, answers: [u32::MAX, 7], mark: Some(0) }
    }

    fn xdp(rules: &Rules) -> Self {
        let maps = Maps::create().expect("this test needs root");
        Tables::default().change(&maps, &Tables::of(rules)).expect("the rules fit");
        let kind = bpf::MAP_TYPE_XSKMAP;
        let spec = bpf::MapSpec { name: "test", kind, key_len: 4, value_len: 4, entries: 1, flags: 0 };
        let sockets = Map::create(spec).expect("a map");
        let code = decide::assemble(&maps, US.0, Place::Xdp { sockets: &sockets, all: false });
        let program =
            Program::load("test", bpf::PROG_TYPE_XDP, bpf::XDP, 0, &code).expect("the verifier agrees");
        // XDP_PASS; XDP_DROP, for want of a socket.
        Self { maps, program, answers: [2, 1], mark: None }
    }

    fn count(&self, reason: Reason) -> u64 {
        let mut values = vec![0; bpf::possible_cpus().expect("sysfs") * 8];
        self.maps.counters.read(&(reason as i32).to_ne_bytes(), &mut values).expect("a counter");
        values.as_chunks::<8>().0.iter().map(|value| u64::from_ne_bytes(*value)).sum()
    }

    /// Runs the program on a frame, and returns what it counted: exactly one reason.
    fn run(&self, frame: &[u8]) -> Reason {
        let before: Vec<_> = Reason::ALL.iter().map(|reason| self.count(*reason)).collect();
        let (result, _) = self.program.run(frame, self.mark).expect("it runs");
        let after = Reason::ALL.iter().map(|reason| self.count(*reason));
        let counted: Vec<_> =
            Reason::ALL.into_iter().zip(before.iter().zip(after)).filter(|(_, (b, a))| **b != *a).collect();
        assert_eq!(counted.len(), 1, "{counted:?}");
        let reason = counted[0].0;
        assert_eq!(result, self.answers[usize::from(reason != Reason::Passed)], "{reason:?}");
        reason
    }

    fn expect(&self, packet: Packet, reason: Reason) {
        let frame = packet.bytes();
        assert_eq!(self.run(&frame), reason, "{frame:02x?}");
    }
}

fn arriving() -> packet::build::Eth {
    eth(ROUTER, US)
}

#[test]
fn ports_of_the_host_are_told_apart() {
    let lab = Lab::new(&rules());
    let tcp = |port| arriving().ipv4(FAR, HOST).tcp(40000, port).build();
    lab.expect(tcp(22), Reason::Passed);
    lab.expect(tcp(8079), Reason::Passed);
    lab.expect(tcp(8080), Reason::Port);
    lab.expect(tcp(8090), Reason::Port);
    lab.expect(tcp(8091), Reason::Passed);
    lab.expect(tcp(49151), Reason::Passed);
    lab.expect(tcp(49152), Reason::Port);
    lab.expect(tcp(65535), Reason::Port);
    // The source port says nothing.
    lab.expect(arriving().ipv4(FAR, HOST).tcp(8080, 22).build(), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, HOST).udp(1, 8080).build(), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, HOST).udp(1, 50000).build(), Reason::Port);
    lab.expect(arriving().ipv4(FAR, HOST).raw(132, &[0, 1, 0x23, 0x28, 0, 0, 0, 0]), Reason::Port);
    lab.expect(arriving().ipv4(FAR, HOST).raw(132, &[0, 1, 0x23, 0x29, 0, 0, 0, 0]), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, HOST).raw(47, &[0; 8]), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, HOST).options(&[1; 40]).tcp(1, 8080).build(), Reason::Port);
    lab.expect(arriving().ipv4(FAR, Ipv4Addr::new(192, 0, 2, 2)).tcp(1, 8080).build(), Reason::Passed);
    lab.expect(arriving().ipv6(FAR6, HOST6).udp(1, 53).build(), Reason::Port);
    lab.expect(arriving().ipv6(FAR6, HOST6).tcp(1, 53).build(), Reason::Passed);
    lab.expect(arriving().ipv6(FAR6, HOST6).tcp(1, 60000).build(), Reason::Port);
}

#[test]
fn only_what_is_for_this_station_is_taken() {
    let lab = Lab::new(&rules());
    lab.expect(eth(ROUTER, MacAddr([2, 0, 0, 0, 0, 3])).ipv4(FAR, FLOAT).udp(1, 2).build(), Reason::Passed);
    lab.expect(eth(ROUTER, MacAddr::BROADCAST).ipv4(FAR, FLOAT).udp(1, 2).build(), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, FLOAT).udp(1, 2).build(), Reason::Floating);
    lab.expect(arriving().ipv4(FAR, FLOAT).raw(47, &[]), Reason::Floating);
    lab.expect(arriving().ipv6(FAR6, FLOAT6).tcp(1, 2).build(), Reason::Floating);
    lab.expect(arriving().vlan(packet::VlanId(5)).ipv4(FAR, FLOAT).udp(1, 2).build(), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, Ipv4Addr::new(10, 1, 0, 9)).udp(1, 2).build(), Reason::Routed);
    lab.expect(arriving().ipv4(FAR, Ipv4Addr::new(10, 1, 1, 9)).udp(1, 2).build(), Reason::Passed);
    lab.expect(
        arriving().ipv6(FAR6, Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9)).udp(1, 2).build(),
        Reason::Routed,
    );
}

#[test]
fn a_marked_packet_passes_and_loses_the_mark() {
    let lab = Lab::new(&rules());
    let frame = arriving().ipv4(FAR, FLOAT).udp(1, 2).bytes();
    assert_eq!(lab.program.run(&frame, Some(decide::MARK.cast_unsigned())).expect("it runs"), (u32::MAX, 0));
    assert_eq!(lab.count(Reason::Returned), 1);
    // Marks of others are no passport.
    assert_eq!(lab.program.run(&frame, Some(1)).expect("it runs").0, 7);
}

#[test]
fn addresses_are_asked_for() {
    let lab = Lab::new(&rules());
    lab.expect(arp_request(ROUTER, FAR, FLOAT), Reason::Arp);
    lab.expect(arp_request(ROUTER, FAR, HOST), Reason::Passed);
    lab.expect(eth(ROUTER, US).arp_reply(FLOAT, HOST), Reason::Arp);
    lab.expect(eth(ROUTER, US).arp_reply(FAR, HOST), Reason::Passed);
    let group = MacAddr([0x33, 0x33, 0xff, 0, 0, 0x77]);
    let solicit = |target: Ipv6Addr| {
        eth(ROUTER, group)
            .ipv6(FAR6, "ff02::1:ff00:77".parse::<Ipv6Addr>().expect("an address"))
            .neighbor_solicit(target, None)
    };
    lab.expect(solicit(FLOAT6), Reason::Neighbor);
    lab.expect(solicit(HOST6), Reason::Passed);
    lab.expect(eth(ROUTER, US).ipv6(FAR6, HOST6).neighbor_advert(FLOAT6, ROUTER, 0x60), Reason::Neighbor);
    lab.expect(eth(ROUTER, US).ipv6(FAR6, HOST6).neighbor_advert(FAR6, ROUTER, 0x60), Reason::Passed);
}

#[test]
fn echo_replies_go_to_who_asked() {
    let lab = Lab::new(&rules());
    lab.expect(arriving().ipv4(FAR, HOST).icmp_echo(50000, 1).build(), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, HOST).icmp_echo_reply(50000, 1).build(), Reason::Echo);
    lab.expect(arriving().ipv4(FAR, HOST).icmp_echo_reply(5000, 1).build(), Reason::Passed);
    lab.expect(arriving().ipv6(FAR6, HOST6).icmp_echo_reply(50000, 1).build(), Reason::Echo);
    lab.expect(arriving().ipv6(FAR6, HOST6).icmp_echo_reply(5000, 1).build(), Reason::Passed);
}

fn error4(kind: u8, sent: Packet) -> Packet {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(&sent.bytes()[14..]);
    arriving().ipv4(FAR, HOST).raw(1, &body)
}

fn error6(kind: u8, sent: Packet) -> Packet {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(&sent.bytes()[14..]);
    arriving().ipv6(FAR6, HOST6).raw(58, &body)
}

#[test]
fn errors_follow_what_they_are_about() {
    let lab = Lab::new(&rules());
    for kind in [3, 4, 11, 12] {
        lab.expect(error4(kind, arriving().ipv4(HOST, FAR).tcp(50000, 80).build()), Reason::IcmpError);
        lab.expect(error4(kind, arriving().ipv4(HOST, FAR).tcp(22, 50000).build()), Reason::Passed);
    }
    lab.expect(error4(5, arriving().ipv4(HOST, FAR).tcp(50000, 80).build()), Reason::Passed);
    lab.expect(error4(3, arriving().ipv4(HOST, FAR).icmp_echo(50000, 1).build()), Reason::IcmpError);
    lab.expect(error4(3, arriving().ipv4(HOST, FAR).icmp_echo(5000, 1).build()), Reason::Passed);
    lab.expect(error4(3, arriving().ipv4(FLOAT, FAR).raw(47, &[0; 8])), Reason::IcmpError);
    for kind in [1, 2, 3, 4] {
        lab.expect(error6(kind, arriving().ipv6(HOST6, FAR6).tcp(50000, 80).build()), Reason::IcmpError);
        lab.expect(error6(kind, arriving().ipv6(HOST6, FAR6).tcp(22, 80).build()), Reason::Passed);
    }
    lab.expect(error6(2, arriving().ipv6(HOST6, FAR6).icmp_echo(50000, 1).build()), Reason::IcmpError);
}

#[test]
fn tunnels_are_told_apart_by_port_and_network() {
    let lab = Lab::new(&rules());
    let inner = || arriving().ipv4(FAR, HOST).tcp(1, 2).build();
    let v4 = |port, vni| arriving().ipv4(FAR, HOST).udp(9999, port).vxlan(Vni(vni), inner());
    lab.expect(v4(4789, 101), Reason::Vxlan);
    lab.expect(v4(4789, 102), Reason::Passed);
    lab.expect(v4(4789, 1), Reason::Passed);
    lab.expect(v4(8472, 1), Reason::Vxlan);
    lab.expect(v4(8472, 103), Reason::Vxlan);
    lab.expect(v4(8472, 101), Reason::Passed);
    lab.expect(v4(4790, 101), Reason::Passed);
    // All ones is no network's, but an entry has it.
    lab.expect(v4(8472, 0x00ff_ffff), Reason::Passed);
    let v6 = |port, vni| arriving().ipv6(FAR6, HOST6).udp(9999, port).vxlan(Vni(vni), inner());
    lab.expect(v6(4789, 102), Reason::Vxlan);
    lab.expect(v6(4789, 101), Reason::Passed);
    lab.expect(v6(8472, 1), Reason::Passed);
    lab.expect(v6(50001, 101), Reason::Vxlan);
    // The port is one that masquerading draws from as well.
    lab.expect(v6(50001, 102), Reason::Port);
    lab.expect(v6(50002, 101), Reason::Port);
}

#[test]
fn the_source_port_of_a_tunnel_claims_nothing() {
    let lab = Lab::new(&Rules { snat: Vec::new(), ..rules() });
    lab.expect(arriving().ipv4(FAR, HOST).udp(4789, 51000).data(&[8; 40]), Reason::Passed);
    lab.expect(arriving().ipv4(FAR, HOST).tcp(9999, 4789).build(), Reason::Passed);
}

#[test]
fn what_is_wrong_with_a_tunnels_packet_is_for_the_switch_to_say() {
    let lab = Lab::new(&rules());
    let udp = |data: &[u8]| arriving().ipv4(FAR, HOST).udp(9999, 4789).data(data);
    for short in 0..8 {
        lab.expect(udp(&[8, 0, 0, 0, 0, 0, 102, 0][..short]), Reason::Vxlan);
    }
    // Without the flag, and with others.
    lab.expect(udp(&[0, 0, 0, 0, 0, 0, 101, 0]), Reason::Vxlan);
    lab.expect(udp(&[0xff, 1, 2, 3, 0, 0, 101, 7]), Reason::Vxlan);
    lab.expect(udp(&[0, 0, 0, 0, 0, 0, 102, 0]), Reason::Passed);
    lab.expect(udp(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Reason::Passed);
    // To a port without tunnels, a short packet is like any other.
    lab.expect(arriving().ipv4(FAR, HOST).udp(9999, 50000).build(), Reason::Port);
}

#[test]
fn errors_about_tunnels_find_who_sent() {
    // Sources as masquerading has them would be reason enough.
    let lab = Lab::new(&Rules { snat: Vec::new(), ..rules() });
    let inner = || arriving().ipv4(FAR, HOST).tcp(1, 2).build();
    let v4 = |to, vni| arriving().ipv4(HOST, FAR).udp(51234, to).vxlan(Vni(vni), inner());
    let v6 = |to, vni| arriving().ipv6(HOST6, FAR6).udp(51234, to).vxlan(Vni(vni), inner());
    lab.expect(error4(3, v4(4789, 101)), Reason::IcmpError);
    lab.expect(error4(3, v4(8472, 1)), Reason::IcmpError);
    lab.expect(error4(3, v4(4789, 102)), Reason::Passed);
    lab.expect(error4(3, v4(4790, 101)), Reason::Passed);
    lab.expect(error6(2, v6(4789, 102)), Reason::IcmpError);
    lab.expect(error6(2, v6(4789, 101)), Reason::Passed);
    lab.expect(error6(2, v6(50001, 101)), Reason::IcmpError);
    // Eight bytes behind the IP header are all that must be there.
    let cut = |sent: Packet, len: usize| {
        let mut bytes = sent.bytes();
        bytes.truncate(len);
        bytes
    };
    for (to, reason) in [(4789, Reason::IcmpError), (8472, Reason::IcmpError), (4790, Reason::Passed)] {
        let error = cut(error4(3, v4(to, 102)), 14 + 20 + 8 + 20 + 8);
        assert_eq!(lab.run(&error), reason, "{to}");
    }
    let error = cut(error6(2, v6(4789, 101)), 14 + 40 + 8 + 40 + 8);
    assert_eq!(lab.run(&error), Reason::IcmpError);
    // Not one about what somebody else sent to such a port.
    lab.expect(
        error4(3, arriving().ipv4(FAR, HOST).udp(51234, 4789).vxlan(Vni(101), inner())),
        Reason::Passed,
    );
}

#[test]
fn fragments_of_tunnels_follow_the_first_one() {
    let lab = Lab::new(&Rules { snat: Vec::new(), ..rules() });
    let first = |id, vni: u8| {
        let header = [8, 0, 0, 0, 0, 0, vni, 0];
        arriving().ipv4(FAR, HOST).fragment(id, 0, true).udp(1, 8472).data(&[&header[..], &[0; 56]].concat())
    };
    let later = |id| arriving().ipv4(FAR, HOST).fragment(id, 72, false).raw(17, &[0; 64]);
    lab.expect(first(1, 1), Reason::Vxlan);
    lab.expect(later(1), Reason::Fragment);
    lab.expect(first(2, 2), Reason::Passed);
    lab.expect(later(2), Reason::Passed);
    lab.expect(later(3), Reason::LostFragment);
}

#[test]
fn fragments_follow_the_first_one() {
    let lab = Lab::new(&rules());
    let first = |id, port: u16| arriving().ipv4(FAR, HOST).fragment(id, 0, true).udp(1, port).data(&[0; 64]);
    let later = |id| arriving().ipv4(FAR, HOST).fragment(id, 72, false).raw(17, &[0; 64]);
    lab.expect(first(1, 50000), Reason::Port);
    lab.expect(later(1), Reason::Fragment);
    lab.expect(first(2, 22), Reason::Passed);
    lab.expect(later(2), Reason::Passed);
    lab.expect(later(3), Reason::LostFragment);
    lab.expect(arriving().ipv4(FAR, FAR).fragment(3, 72, false).raw(17, &[0; 64]), Reason::Passed);

    let first =
        |id, port: u16| arriving().ipv6(FAR6, HOST6).fragment(id, 0, true).udp(1, port).data(&[0; 64]);
    let later = |id| arriving().ipv6(FAR6, HOST6).fragment(id, 72, false).raw(17, &[0; 64]);
    lab.expect(first(1 << 20, 50000), Reason::Port);
    lab.expect(later(1 << 20), Reason::Fragment);
    lab.expect(first(2, 22), Reason::Passed);
    lab.expect(later(2), Reason::Passed);
    lab.expect(later(3), Reason::LostFragment);
}

#[test]
fn extension_headers_are_walked_so_far() {
    let lab = Lab::new(&rules());
    let udp = [0, 1, 0, 53, 0, 8, 0, 0];
    let options = |count: usize| {
        let mut body = Vec::new();
        for n in 1..=count {
            body.extend([if n == count { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        body.extend(udp);
        arriving().ipv6(FAR6, HOST6).raw(if count == 0 { 17 } else { 60 }, &body)
    };
    for count in 0..=6 {
        lab.expect(options(count), Reason::Port);
    }
    lab.expect(options(7), Reason::Passed);
    let mut authenticated = vec![17, 4];
    authenticated.extend([0; 22]);
    authenticated.extend(udp);
    lab.expect(arriving().ipv6(FAR6, HOST6).raw(51, &authenticated), Reason::Port);
}

#[test]
fn rules_change_by_their_difference() {
    let maps = Maps::create().expect("this test needs root");
    let mut tables = Tables::default();
    let mut rules = rules();
    // 4 addresses; TCP, UDP, SCTP and ICMP of two hosts; 2 routed; 5 networks at 4 ports.
    assert_eq!(tables.change(&maps, &Tables::of(&rules)).expect("fits"), 23);
    assert_eq!(tables.change(&maps, &Tables::of(&rules)).expect("fits"), 0);
    rules.floating.pop();
    rules.published.push((address(HOST), 6, 81..=81));
    assert_eq!(tables.change(&maps, &Tables::of(&rules)).expect("fits"), 2);
    let mut adopted = Tables::read(&maps).expect("readable");
    assert_eq!(adopted.change(&maps, &Tables::of(&rules)).expect("fits"), 0);
    assert_eq!(adopted.change(&maps, &Tables::of(&Rules::default())).expect("fits"), 22);
    assert!(maps.ports.keys().expect("readable").is_empty());
}

/// Packets of all kinds that the rules speak of, some bytes of them wrong.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let v4 = || prop::sample::select(vec![HOST, FLOAT, FAR, Ipv4Addr::new(10, 1, 0, 7)]);
    let v6 = || prop::sample::select(vec![HOST6, FLOAT6, FAR6, Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 7)]);
    let port = || prop::sample::select(vec![22_u16, 53, 4789, 8080, 8472, 50001, 8091, 49151, 49152, 65535]);
    let kind = 0..9_u8;
    let base = (v4(), v4(), v6(), v6(), port(), port(), kind, any::<bool>(), 0..4_u32).prop_map(
        |(s4, d4, s6, d6, from, to, kind, is_v6, id)| {
            macro_rules! body {
                ($ip:expr) => {
                    match kind {
                        0 => $ip.tcp(from, to).build(),
                        1 | 7 => $ip.udp(from, to).build(),
                        2 => $ip.icmp_echo(to, 1).build(),
                        3 => $ip.icmp_echo_reply(to, 1).build(),
                        4 => $ip.udp(from, to).vxlan(
                            Vni(if to == 8472 { id } else { 100 + id }),
                            arriving().ipv4(s4, d4).tcp(1, 2),
                        ),
                        5 => $ip.fragment(id, 0, true).udp(from, to).data(&[0; 40]),
                        6 => $ip.fragment(id, 48, false).raw(17, &[0; 40]),
                        _ => $ip.raw(132, &[from.to_be_bytes(), to.to_be_bytes()].concat()),
                    }
                };
            }
            match (is_v6, kind) {
                (false, 7) => arp_request(ROUTER, s4, d4).bytes(),
                (true, 7) => {
                    let group = MacAddr([0x33, 0x33, 0xff, 0, 0, 0x77]);
                    eth(ROUTER, group).ipv6(s6, d6).neighbor_solicit(d6, None).bytes()
                }
                (false, _) => body!(arriving().ipv4(s4, d4)).bytes(),
                (true, _) => body!(arriving().ipv6(s6, d6)).bytes(),
            }
        },
    );
    let wrapped =
        (base, 0..8_u8, any::<u8>()).prop_map(|(frame, wrap, kind)| match (wrap, frame[12..14] == [8, 0]) {
            // As the subject of an ICMP error, of a type that is one more often than not.
            (0 | 1, true) => {
                let mut body = vec![if wrap == 0 { 3 } else { kind % 16 }, 0, 0, 0, 0, 0, 0, 0];
                body.extend(&frame[14..]);
                arriving().ipv4(FAR, HOST).raw(1, &body).bytes()
            }
            (0 | 1, false) => {
                let mut body = vec![if wrap == 0 { 1 } else { kind % 8 }, 0, 0, 0, 0, 0, 0, 0];
                body.extend(&frame[14..]);
                arriving().ipv6(FAR6, HOST6).raw(58, &body).bytes()
            }
            _ => frame,
        });
    let wrong = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (wrapped, wrong, prop::option::weighted(0.2, any::<prop::sample::Index>())).prop_map(
        |(mut frame, wrong, cut)| {
            for (at, byte) in wrong {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            // The kernel runs programs on no frame without a whole IP header.
            frame.truncate(cut.map_or(frame.len(), |cut| 54.max(cut.index(frame.len()))));
            frame
        },
    )
}

#[test]
fn the_programs_decide_as_their_twin() {
    let rules = rules();
    for lab in [Lab::new(&rules), Lab::xdp(&rules)] {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3_000));
        let notes = std::cell::RefCell::new(oracle::Notes::default());
        runner
            .run(&packets(), |frame| {
                let expected = whose(&frame, &rules, US, &mut notes.borrow_mut());
                prop_assert_eq!(lab.run(&frame), expected);
                Ok(())
            })
            .expect("they agree");
    }
}

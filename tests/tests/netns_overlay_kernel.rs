//! Hosts without a switch on the same networks: the kernel's VXLAN device with a bridge, and as flannel sets it up.
//!
//! Needs root, ping, tcpdump, ethtool, bridge.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use packet::build::{Packet, eth};
use packet::{MacAddr, Vni};
use tests::net::overlay::{
    Fabric, Flannel, Listener, OVERHEAD, dropped, everybody_hears, kernel_vtep, v4, v6,
};
use tests::net::{PATIENCE, Proto, Service, Space, Wire, at, need, transfer, wait_for, wait_until};

const MIB: u64 = 1 << 20;
/// The host without a switch, by number: the switches are 0 and 1.
const KERNEL: usize = 4;
/// A host that nobody knows.
const STRANGER: usize = 8;

/// The address of host `n` in the underlay.
fn host(n: usize, is_v6: bool) -> IpAddr {
    if is_v6 { v6(n).into() } else { v4(n).into() }
}

/// Two switches and a kernel, all of them peers on the network `front`, over one family.
fn config(n: usize, is_v6: bool) -> String {
    format!(
        r#"
        [uplink]
        device = "up0"
        [overlay]
        local = "{}"
        peers = ["{}", "{}"]
        [[network]]
        name = "front"
        subnets = ["10.1.0.0/24", "fd00:1::/64"]
        vni = 101
        [[port]]
        name = "f{n}"
        network = "front"
        netns = "@f"
        addresses = ["10.1.0.1{n}", "fd00:1::1{n}"]
        "#,
        host(n, is_v6),
        host(1 - n, is_v6),
        host(KERNEL, is_v6)
    )
}

/// The containers of the two switches and of the kernel.
const ADDRESSES: [[&str; 2]; 3] =
    [["10.1.0.10", "fd00:1::10"], ["10.1.0.11", "fd00:1::11"], ["10.1.0.14", "fd00:1::14"]];

/// Two switches, the kernel's host, and the containers of all three.
struct Site {
    fabric: Fabric,
    kernel: Arc<Space>,
    containers: [Arc<Space>; 3],
}

fn site(is_v6: bool) -> Site {
    need(&["ping", "tcpdump", "ethtool", "bridge"]);
    let fabric = Fabric::with(2, 1500, |n| config(n, is_v6));
    let kernel = fabric.add_plain("kernel", KERNEL, 1500);
    let far = fabric.host(0).space("far");
    let remotes = [host(0, is_v6), host(1, is_v6)];
    let mtu = 1500 - OVERHEAD[usize::from(is_v6)];
    let ends = (host(KERNEL, is_v6), &remotes[..]);
    kernel_vtep(&kernel, &far, 101, ends, &["10.1.0.14/24", "fd00:1::14/64"], mtu);
    let containers = [fabric.host(0).space("f"), fabric.host(1).space("f"), far];
    Site { fabric, kernel, containers }
}

impl Site {
    /// Expects that one container reaches another.
    fn ping(&self, from: usize, to: usize, family: usize) {
        let line = format!("ping -n -c 1 -W 1 {}", ADDRESSES[to][family]);
        let reaches = || self.containers[from].output(&line).status.success();
        assert!(
            wait_until(PATIENCE, reaches),
            "{from} does not reach {to}, family {family}\n{}",
            self.fabric.circumstances()
        );
    }

    fn moves(&self, from: usize, to: usize, family: usize, bytes: u64, what: &str) {
        let target: IpAddr = ADDRESSES[to][family].parse().expect("an address");
        match transfer(&self.containers[from], &self.containers[to], target, bytes) {
            // 8 bits, both ways.
            Ok(time) => println!(
                "{what}, {from} -> {to}, {target}: {:.2} Gbit/s",
                bytes as f64 * 16.0 / time.as_secs_f64() / 1e9
            ),
            Err(error) => {
                panic!("{what}, {from} -> {to}, {target}: {error}\n{}", self.fabric.circumstances())
            }
        }
    }

    /// Expects that no kernel has met a wrong checksum.
    fn checksums_are_right(&self) {
        for space in self.containers.iter().chain([&self.kernel]) {
            for group in ["Tcp", "Udp"] {
                assert_eq!(space.snmp(group, "InCsumErrors"), 0, "{group} in {}", space.name());
            }
        }
    }
}

fn a_kernel_shares_a_network_over(is_v6: bool) {
    let site = site(is_v6);
    // Unknown to each other, both ways, so flooded; then known.
    for (from, to) in [(0, 2), (2, 1), (1, 0), (2, 0)] {
        site.ping(from, to, 0);
        site.ping(from, to, 1);
    }
    // What is for a known station goes to its host only: the second switch's host sees nothing of it.
    let udp = "udp port 4789";
    let mut ears = site.fabric.listen(1, udp);
    for (from, to) in [(0, 2), (2, 0)] {
        site.containers[from].run(&format!("ping -n -c 5 -i 0.05 -W 2 {}", ADDRESSES[to][0]));
    }
    let echoes = ears.heard().into_iter().filter(|line| line.contains("ICMP echo")).collect::<Vec<_>>();
    assert!(echoes.is_empty(), "known unicast is flooded: {echoes:#?}");
    // Groups, from everybody to everybody, once each: nobody sends on what came by a tunnel.
    for group in ["10.1.0.255", "239.7.7.7", "ff05::77"] {
        let group: IpAddr = group.parse().expect("an address");
        let own =
            |n: usize| ADDRESSES[n][usize::from(group.is_ipv6())].parse::<IpAddr>().expect("an address");
        for from in [0, 2] {
            site.containers[from].output("ip route replace 239.0.0.0/8 dev eth0");
            let others = (0..3).filter(|n| *n != from);
            let mut all: Vec<_> = others.map(|n| Listener::new(&site.containers[n], own(n), group)).collect();
            everybody_hears(&site.containers[from], own(from), group, &mut all);
        }
    }
    for offloads in [true, false] {
        let word = if offloads { "on" } else { "off" };
        for (space, device) in site
            .containers
            .iter()
            .map(|space| (space, "eth0"))
            .chain([(&site.kernel, "c0"), (&site.kernel, "up0")])
        {
            for offload in ["tx", "rx", "sg", "tso", "gso", "gro"] {
                space.output(&format!("ethtool -K {device} {offload} {word}"));
            }
        }
        for family in [0, 1] {
            site.moves(0, 2, family, 64 * MIB, &format!("offloads {word}"));
            site.moves(2, 1, family, 64 * MIB, &format!("offloads {word}"));
        }
    }
    site.checksums_are_right();
    site.fabric.balance();
}

#[test]
fn a_kernel_with_vxlan_and_a_bridge_shares_a_network_over_ipv4() {
    a_kernel_shares_a_network_over(false);
}

#[test]
fn a_kernel_with_vxlan_and_a_bridge_shares_a_network_over_ipv6() {
    a_kernel_shares_a_network_over(true);
}

/// The VXLAN packets that arrive at a host from another, as bytes.
fn outer_packets(wire: &mut Wire, from: IpAddr) -> Vec<Vec<u8>> {
    let IpAddr::V4(from) = from else { panic!("over IPv4") };
    wire.received(|frame| {
        frame.len() > 92
            && frame[12..14] == [8, 0]
            && frame[26..30] == from.octets()
            && frame[36..38] == [0x12, 0xb5]
    })
}

#[test]
fn time_to_live_service_and_congestion_are_carried_as_the_rfcs_say() {
    let site = site(false);
    site.ping(0, 2, 0);
    let mut wire = Wire::open(&site.kernel, "up0");
    // RFC 6040, 4.1: the inner mark is copied; RFC 2983: so is the type of service. The time to live is the tunnel's own.
    for tos in [0x00, 0x01, 0x02, 0x03, 0xb8, 0xba] {
        let mut seen = None;
        wait_for(&format!("echo requests of type of service {tos:#x}"), || {
            wire.received(|_| false);
            site.containers[0].output(&format!("ping -n -c 1 -W 1 -t 9 -Q {tos} {}", ADDRESSES[2][0]));
            let all = outer_packets(&mut wire, host(0, false));
            // The inner IPv4 header follows 14 + 20 + 8 + 8 + 14 bytes; an echo request has type 8.
            seen = all.into_iter().find(|p| p[73] == 1 && p[84] == 8 && p[65] == tos);
            seen.is_some()
        });
        let packet = seen.expect("it was waited for");
        assert_eq!(packet[15], tos, "type of service outside");
        assert_eq!((packet[22], packet[72]), (64, 9), "time to live outside and inside");
        let source = u16::from_be_bytes([packet[34], packet[35]]);
        assert!(source >= 49152, "source port {source}");
        assert_eq!(packet[40..42], [0, 0], "no checksum outside, over IPv4");
    }
    // RFC 6040, 4.2: what comes marked outside.
    let macs = (site.kernel.mac("up0"), site.fabric.host(0).host().mac("up0"));
    let (inner_from, inner_to) = (site.containers[2].mac("eth0"), site.containers[0].mac("eth0"));
    let mut into = Wire::open(&site.containers[0], "eth0");
    let mut arrives = |inner: u8, outer: u8| {
        let datagram = eth(inner_from, inner_to)
            .ipv4([10, 1, 0, 14], [10, 1, 0, 10])
            .tos(inner)
            .udp(7, 7)
            .data(&[inner, outer, 0x5a]);
        let bytes = vxlan(macs, (v4(KERNEL), v4(0)), outer, 101, datagram).bytes();
        wire.send(&bytes);
        let mark = [inner, outer, 0x5a];
        let is_it = |frame: &[u8]| frame.windows(3).any(|bytes| bytes == mark);
        into.receive(Duration::from_secs(2), is_it).map(|frame| frame[15])
    };
    assert_eq!(arrives(0x02, 0x03), Some(0x03), "congestion outside is told inside");
    assert_eq!(arrives(0x01, 0x03), Some(0x03));
    assert_eq!(arrives(0x02, 0x00), Some(0x02));
    assert_eq!(arrives(0x00, 0x02), Some(0x00));
    assert_eq!(arrives(0xb9, 0x00), Some(0xb9), "the type of service is the inner packet's");
    assert_eq!(dropped(site.fabric.host(0), "ecn"), 0);
    assert_eq!(arrives(0x00, 0x03), None, "congestion that nobody could be told of");
    assert_eq!(dropped(site.fabric.host(0), "ecn"), 1);
    site.fabric.balance();
}

/// A packet in a tunnel, without a checksum outside.
fn vxlan(
    (from_mac, to_mac): (MacAddr, MacAddr),
    (from, to): (Ipv4Addr, Ipv4Addr),
    tos: u8,
    vni: u32,
    inner: Packet,
) -> Packet {
    eth(from_mac, to_mac).ipv4(from, to).tos(tos).udp(50_000, 4789).vxlan(Vni(vni), inner)
}

/// One switch with a network of identifier 101, on a device that it shares with the host or has for itself.
fn guarded(is_dedicated: bool) -> String {
    let dedicated = if is_dedicated { "dedicated = true\naddresses = [\"203.0.113.1/24\"]" } else { "" };
    format!(
        r#"
        [uplink]
        device = "up0"
        {dedicated}
        [overlay]
        local = "{}"
        peers = ["{}"]
        [[network]]
        name = "front"
        subnets = ["10.1.0.0/24"]
        vni = 101
        [[port]]
        name = "f"
        network = "front"
        netns = "@f"
        addresses = ["10.1.0.10"]
        "#,
        v4(0),
        v4(KERNEL)
    )
}

/// What must not get in, and the reason that it is counted under.
fn whatever_is_wrong_has_a_reason(is_dedicated: bool) {
    let mut fabric = Fabric::new(1, 1500);
    if is_dedicated {
        fabric.host(0).host().run("ip addr flush dev up0");
    }
    fabric.start(|_| guarded(is_dedicated));
    let (peer, stranger) =
        (fabric.add_plain("peer", KERNEL, 1500), fabric.add_plain("stranger", STRANGER, 1500));
    let net = fabric.host(0);
    let (outer_mac, local_mac) = (net.host().mac("up0"), net.space("f").mac("eth0"));
    let far_mac = MacAddr([2, 0, 0, 0, 0x77, 1]);
    let datagram =
        |from: MacAddr| eth(from, local_mac).ipv4([10, 1, 0, 14], [10, 1, 0, 10]).udp(7, 7).data(b"in");
    let from_peer = (peer.mac("up0"), outer_mac);
    let from_stranger = (stranger.mac("up0"), outer_mac);
    let ways = (v4(KERNEL), v4(0));
    let good = vxlan(from_peer, ways, 0, 101, datagram(far_mac));
    // The flags follow Ethernet, IPv4 and UDP headers.
    let mut no_flag = good.as_slice().to_vec();
    no_flag[42] = 0;
    let udp = |bytes: &[u8]| {
        eth(from_peer.0, from_peer.1).ipv4(ways.0, ways.1).udp(50_000, 4789).data(bytes).bytes()
    };
    let header = good.as_slice()[42..50].to_vec();
    let nested = vxlan((far_mac, local_mac), (v4(KERNEL), v4(0)), 0, 101, datagram(far_mac));
    let cases = [
        ("unknown_vni", false, vxlan(from_peer, ways, 0, 999, datagram(far_mac)).bytes()),
        (
            "unknown_vtep",
            true,
            vxlan(from_stranger, (v4(STRANGER), v4(0)), 0, 101, datagram(far_mac)).bytes(),
        ),
        ("vxlan_malformed", false, no_flag),
        ("vxlan_malformed", false, udp(&header)),
        ("vxlan_malformed", false, udp(&[&header[..], &[0; 9]].concat())),
        ("nested", false, vxlan(from_peer, ways, 0, 101, nested).bytes()),
        ("vtep_spoof", false, vxlan(from_peer, ways, 0, 101, datagram(local_mac)).bytes()),
        ("ecn", false, vxlan(from_peer, ways, 3, 101, datagram(far_mac)).bytes()),
    ];
    let mut wires = [Wire::open(&peer, "up0"), Wire::open(&stranger, "up0")];
    let mut inside = Wire::open(&net.space("f"), "eth0");
    // It works at all.
    wait_for("a good packet arrives", || {
        wires[0].send(good.as_slice());
        inside.receive(Duration::from_millis(200), |frame| frame.windows(2).any(|b| b == b"in")).is_some()
    });
    for (reason, by_stranger, bytes) in cases {
        if reason == "unknown_vni" && !is_dedicated {
            // It may be the host's own: its kernel gets it, and says that nobody listens.
            let before = net.host().snmp("Udp", "NoPorts");
            wires[0].send(&bytes);
            wait_for("the host gets what is not ours", || net.host().snmp("Udp", "NoPorts") > before);
            assert_eq!(dropped(net, reason), 0);
            continue;
        }
        let before = dropped(net, reason);
        wires[usize::from(by_stranger)].send(&bytes);
        let counted = wait_until(PATIENCE, || dropped(net, reason) == before + 1);
        assert!(counted, "no drop is named {reason}: {}\n{bytes:02x?}", fabric.circumstances());
    }
    let leaked = inside.received(|frame| frame.windows(2).any(|bytes| bytes == b"in"));
    assert!(leaked.len() < 50, "{leaked:02x?}");
    fabric.balance();
}

#[test]
fn whatever_is_wrong_in_a_tunnel_has_a_reason_on_a_shared_device() {
    whatever_is_wrong_has_a_reason(false);
}

#[test]
fn whatever_is_wrong_in_a_tunnel_has_a_reason_on_a_device_of_the_switchs_own() {
    whatever_is_wrong_has_a_reason(true);
}

/// Starts services on port 80 of containers.
fn serve(containers: &[Arc<Space>; 3], addresses: [&str; 3]) -> Vec<Service> {
    let places = containers.iter().zip(addresses);
    let all = places.flat_map(|place| Proto::ALL.map(|protocol| (place, protocol)));
    all.map(|((space, address), protocol)| Service::start(space, protocol, &at(address, 80))).collect()
}

/// The configuration of a host that takes part in flannel's network; `mac` is that of `flannel.1` on the kernel's host.
fn flannel_config(n: usize, mac: MacAddr) -> String {
    format!(
        r#"
        [uplink]
        device = "up0"
        [overlay]
        local = "{}"
        [[network]]
        name = "pods"
        subnets = ["10.244.{n}.0/24"]
        vni = 1
        vxlan_port = 8472
        [[port]]
        name = "f{n}"
        network = "pods"
        netns = "@f"
        addresses = ["10.244.{n}.10"]
        [[peer]]
        address = "{}"
        network = "pods"
        subnets = ["10.244.{other}.0/24"]
        [[peer]]
        address = "{}"
        network = "pods"
        subnets = ["10.244.{KERNEL}.0/24"]
        mac = "{mac}"
        "#,
        v4(n),
        v4(1 - n),
        v4(KERNEL),
        other = 1 - n,
    )
}

#[test]
fn a_host_set_up_by_flannel_is_a_peer() {
    need(&["ping", "bridge", "ethtool"]);
    let mut fabric = Fabric::new(2, 1500);
    let (kernel, far) = (fabric.add_plain("kernel", KERNEL, 1500), fabric.host(0).space("far"));
    let flannel = Flannel::new(Arc::clone(&kernel), &far, v4(KERNEL).into(), 4);
    for n in [0, 1] {
        // What the switch is called in the tunnels, as the lease of flannel would say.
        flannel.add(v4(n).into(), config::router_mac(v4(n).into()), u8::try_from(n).expect("few"));
    }
    fabric.start(|n| flannel_config(n, flannel.mac));
    let containers = [fabric.host(0).space("f"), fabric.host(1).space("f"), far];
    let addresses = ["10.244.0.10", "10.244.1.10", "10.244.4.10"];
    let _services = serve(&containers, addresses);
    for (from, to) in [(0, 2), (2, 0), (2, 1), (0, 1), (1, 0)] {
        for protocol in Proto::ALL {
            let seen = fabric.host(0).seen(&containers[from], protocol, &at(addresses[to], 80));
            assert_eq!(seen.to_string(), addresses[from], "nothing is translated: {protocol:?}");
        }
    }
    // The kernel's host itself, from the address of its own device.
    wait_for("the host reaches a container", || {
        kernel.output(&format!("ping -n -c 1 -W 1 {}", addresses[0])).status.success()
    });
    for offloads in ["on", "off"] {
        for (space, device) in
            [(&containers[0], "eth0"), (&containers[2], "eth0"), (&kernel, "c0"), (&kernel, "up0")]
        {
            for offload in ["tx", "rx", "sg", "tso", "gso", "gro"] {
                space.output(&format!("ethtool -K {device} {offload} {offloads}"));
            }
        }
        for (from, to) in [(0, 2), (2, 0), (2, 1)] {
            let target: IpAddr = addresses[to].parse().expect("an address");
            match transfer(&containers[from], &containers[to], target, 64 * MIB) {
                Ok(time) => println!("offloads {offloads}, {from} -> {to}: {time:?} for 64 MiB each way"),
                Err(error) => {
                    panic!("offloads {offloads}, {from} -> {to}: {error}\n{}", fabric.circumstances())
                }
            }
        }
    }
    for space in containers.iter().chain([&kernel]) {
        assert_eq!((space.snmp("Tcp", "InCsumErrors"), space.snmp("Udp", "InCsumErrors")), (0, 0));
    }
    fabric.balance();
}

#[test]
fn hosts_of_one_segment_route_to_one_another_without_tunnels() {
    need(&["ping", "tcpdump"]);
    let routed = |n: usize| {
        let peer = |other: usize| {
            format!(
                "[[peer]]\naddress = \"{}\"\nmode = \"routed\"\nsubnets = [\"10.5.{other}.0/24\"]\n",
                v4(other)
            )
        };
        format!(
            r#"
            [uplink]
            device = "up0"
            [[network]]
            name = "pods"
            subnets = ["10.5.{n}.0/24"]
            [[policy]]
            from = "10.5.0.0/16"
            to = "pods"
            allow = ["any"]
            [[port]]
            name = "f{n}"
            network = "pods"
            netns = "@f"
            addresses = ["10.5.{n}.10"]
            {}{}
            "#,
            peer(1 - n),
            peer(KERNEL)
        )
    };
    let mut fabric = Fabric::new(2, 1500);
    // A host that routes by its kernel, as flannel's `host-gw` sets it up.
    let (kernel, far) = (fabric.add_plain("kernel", KERNEL, 1500), fabric.host(0).space("far"));
    kernel.run("sysctl -q -w net.ipv4.ip_forward=1");
    kernel.run(&format!("ip link add c0 type veth peer name eth0 netns {}", far.name()));
    kernel.run("ip link set c0 up");
    kernel.run("ip addr add 10.5.4.1/24 dev c0");
    far.run("ip link set eth0 up");
    far.run("ip addr add 10.5.4.10/24 dev eth0");
    far.run("ip route add default via 10.5.4.1");
    for n in [0, 1] {
        kernel.run(&format!("ip route add 10.5.{n}.0/24 via {} dev up0", v4(n)));
    }
    fabric.start(routed);
    let containers = [fabric.host(0).space("f"), fabric.host(1).space("f"), far];
    let addresses = ["10.5.0.10", "10.5.1.10", "10.5.4.10"];
    let _services = serve(&containers, addresses);
    let mut ears = fabric.listen(0, "udp port 4789");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (2, 1)] {
        for protocol in Proto::ALL {
            let seen = fabric.host(0).seen(&containers[from], protocol, &at(addresses[to], 80));
            assert_eq!(seen.to_string(), addresses[from], "nothing is translated: {protocol:?}");
        }
        let target: IpAddr = addresses[to].parse().expect("an address");
        if let Err(error) = transfer(&containers[from], &containers[to], target, 64 * MIB) {
            panic!("{from} -> {to}: {error}\n{}", fabric.circumstances());
        }
    }
    assert!(ears.heard().is_empty(), "there are tunnels");
    fabric.balance();
}

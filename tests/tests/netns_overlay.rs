//! Networks that reach over several hosts, on the real kernel: three switches, each on a host of its own.
//!
//! Host `n` has a container of each of the networks `front` and `back`, with the addresses .1`n`. The tunnels are over IPv4 or
//! IPv6.
//!
//! Needs root, ping, tcpdump.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use tests::Net;
use tests::net::overlay::{
    Fabric, Listener, OVERHEAD, dropped, everybody_hears, mtu_of, packets, v4, v6, wait_for_mtu,
};
use tests::net::{PATIENCE, Proto, Pulse, Space, at, need, transfer, wait_for};

const HOSTS: usize = 3;
const MIB: u64 = 1 << 20;

/// The address of host `n` in the underlay.
fn end(n: usize, over_v6: bool) -> IpAddr {
    if over_v6 { v6(n).into() } else { v4(n).into() }
}

/// The configuration of host `n` of some, with tunnels over one family.
fn config(n: usize, hosts: usize, over_v6: bool) -> String {
    let peers: Vec<_> =
        (0..hosts).filter(|other| *other != n).map(|other| format!("\"{}\"", end(other, over_v6))).collect();
    format!(
        r#"
        [uplink]
        device = "up0"
        [overlay]
        local = "{}"
        peers = [{}]
        [[network]]
        name = "front"
        subnets = ["10.1.0.0/24", "fd00:1::/64"]
        vni = 101
        [[network]]
        name = "back"
        subnets = ["10.2.0.0/24", "fd00:2::/64"]
        vni = 102
        [[policy]]
        from = "front"
        to = "back"
        allow = ["any"]
        [[port]]
        name = "f"
        network = "front"
        netns = "@f"
        addresses = ["10.1.0.1{n}", "fd00:1::1{n}"]
        [[port]]
        name = "b"
        network = "back"
        netns = "@b"
        addresses = ["10.2.0.1{n}", "fd00:2::1{n}"]
        "#,
        end(n, over_v6),
        peers.join(", ")
    )
}

/// Returns the address of the container of a network (0: front, 1: back) on a host.
fn address(network: usize, host: usize, is_v6: bool) -> IpAddr {
    let text = match is_v6 {
        true => format!("fd00:{}::1{host}", network + 1),
        false => format!("10.{}.0.1{host}", network + 1),
    };
    text.parse().expect("an address")
}

fn container(fabric: &Fabric, network: usize, host: usize) -> std::sync::Arc<Space> {
    fabric.host(host).space(["f", "b"][network])
}

/// Moves bytes both ways, and compares all of them.
fn moves(fabric: &Fabric, from: (usize, usize), to: (usize, usize), is_v6: bool, bytes: u64) {
    let (client, server) = (container(fabric, from.0, from.1), container(fabric, to.0, to.1));
    let target = address(to.0, to.1, is_v6);
    match transfer(&client, &server, target, bytes) {
        Ok(time) => {
            // 8 bits, both ways.
            let gigabits = bytes as f64 * 16.0 / time.as_secs_f64() / 1e9;
            println!("{from:?} -> {to:?}, {target}: {bytes} bytes each way, {gigabits:.2} Gbit/s");
        }
        Err(error) => panic!("{from:?} -> {to:?}, {target}: {error}\n{}", fabric.circumstances()),
    }
}

/// Everything that containers of two networks on three hosts do with one another, over an underlay of this MTU.
fn everything_works_over(mtu: u32, over_v6: bool) {
    need(&["ping"]);
    let start = Instant::now();
    let fabric = Fabric::with(HOSTS, mtu, |n| config(n, HOSTS, over_v6));
    let overhead = OVERHEAD[usize::from(over_v6)];
    for host in 0..HOSTS {
        for network in [0, 1] {
            let inner = mtu_of(&container(&fabric, network, host), "eth0");
            assert_eq!(inner, mtu - overhead, "network {network} on host {host}");
        }
    }
    println!("{:?}: they run", start.elapsed());
    for network in [0, 1] {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            for is_v6 in [false, true] {
                let target = address(network, to, is_v6).to_string();
                fabric.host(from).ping(["f", "b"][network], &target);
                // As large as can be, and not to be cut.
                let size = mtu - overhead - if is_v6 { 48 } else { 28 };
                let line = format!("ping -n -c 1 -W 2 -M do -s {size} {target}");
                let space = container(&fabric, network, from);
                wait_for(&format!("{line} on host {from}"), || space.output(&line).status.success());
                let line = format!("ping -n -c 1 -W 0.1 -M do -s {} {target}", size + 1);
                assert!(
                    !space.output(&line).status.success(),
                    "{line} on host {from}: too large, and passes"
                );
            }
        }
        // A GiB in both directions together, over either kind of underlay.
        let bytes = if network == 0 { 512 } else { 64 };
        moves(&fabric, (network, 0), (network, 1), network == 1, bytes * MIB);
        moves(&fabric, (network, 2), (network, 0), network == 0, 64 * MIB);
        println!("{:?}: bytes of network {network}", start.elapsed());
        for group in [format!("10.{}.0.255", network + 1), "239.7.7.7".into(), "ff05::77".into()] {
            let group: IpAddr = group.parse().expect("an address");
            let own = |host| address(network, host, group.is_ipv6());
            let mut listeners: Vec<_> = (1..HOSTS)
                .map(|host| Listener::new(&container(&fabric, network, host), own(host), group))
                .collect();
            everybody_hears(&container(&fabric, network, 0), own(0), group, &mut listeners);
        }
    }
    println!("{:?}: groups", start.elapsed());
    // From one network to the other: routed where it comes from.
    for is_v6 in [false, true] {
        for (from, to) in [(0, 1), (2, 0), (1, 1)] {
            let target = address(1, to, is_v6).to_string();
            fabric.host(from).ping("f", &target);
            moves(&fabric, (0, from), (1, to), is_v6, 32 * MIB);
        }
    }
    println!("{:?}: routed", start.elapsed());
    for host in fabric.hosts() {
        for reason in ["vxlan_malformed", "unknown_vni", "unknown_vtep", "nested", "vtep_spoof", "ecn"] {
            assert_eq!(dropped(host, reason), 0, "{reason}: {}", host.circumstances());
        }
    }
    for host in 0..HOSTS {
        for network in [0, 1] {
            let space = container(&fabric, network, host);
            assert_eq!(space.snmp("Tcp", "InCsumErrors"), 0);
            assert_eq!(space.snmp("Udp", "InCsumErrors"), 0);
        }
    }
    fabric.balance();
    println!("{:?}: done", start.elapsed());
}

#[test]
fn networks_reach_over_three_hosts_by_ipv4_and_an_mtu_of_1500() {
    everything_works_over(1500, false);
}

#[test]
fn networks_reach_over_three_hosts_by_ipv6_and_an_mtu_of_1500() {
    everything_works_over(1500, true);
}

#[test]
fn networks_reach_over_three_hosts_by_ipv4_and_an_mtu_of_1400() {
    everything_works_over(1400, false);
}

#[test]
fn networks_reach_over_three_hosts_by_ipv6_and_an_mtu_of_1400() {
    everything_works_over(1400, true);
}

#[test]
fn networks_reach_over_three_hosts_by_ipv4_and_an_mtu_of_9000() {
    everything_works_over(9000, false);
}

#[test]
fn networks_reach_over_three_hosts_by_ipv6_and_an_mtu_of_9000() {
    everything_works_over(9000, true);
}

#[test]
fn a_network_of_either_family_beside_the_other_has_the_room_that_its_own_underlay_leaves() {
    let both = |n: usize| {
        let mut text = config(n, 0, false);
        let local = format!("local = [\"{}\", \"{}\"]", v4(n), v6(n));
        text = text.replace(&format!("local = \"{}\"", v4(n)), &local);
        for (network, peer) in [("front", end(1 - n, false)), ("back", end(1 - n, true))] {
            text += &format!("[[peer]]\naddress = \"{peer}\"\nnetwork = \"{network}\"\n");
        }
        text
    };
    let fabric = Fabric::with(2, 1500, both);
    for network in [0, 1] {
        assert_eq!(mtu_of(&container(&fabric, network, 0), "eth0"), 1500 - OVERHEAD[network]);
        fabric.host(0).ping(["f", "b"][network], &address(network, 1, false).to_string());
        moves(&fabric, (network, 0), (network, 1), true, 16 * MIB);
        moves(&fabric, (0, 1), (network, 0), false, 16 * MIB);
    }
    fabric.balance();
}

#[test]
fn a_loop_through_two_tunnels_dies_at_the_first_host() {
    // On either host somebody joins the two networks behind the switch.
    let joined = |n: usize| {
        let port = |name: &str, network: &str| {
            format!(
                "[[port]]\nname = \"{name}\"\nnetwork = \"{network}\"\nnetns = \"@j\"\nifname = \"{name}\"\n\
                 guard = false\n"
            )
        };
        format!("{}{}{}", config(n, 2, false), port("jf", "front"), port("jb", "back"))
    };
    let fabric = Fabric::with(2, 1500, joined);
    fabric.host(0).ping("f", &address(0, 1, false).to_string());
    for host in fabric.hosts() {
        let space = host.space("j");
        space.run("ip link add br0 type bridge mcast_snooping 0");
        space.run("ip link set jf master br0 up");
        space.run("ip link set jb master br0 up");
    }
    for host in fabric.hosts() {
        host.space("j").run("ip link set br0 up");
    }
    let (front, wire) = (container(&fabric, 0, 0), fabric.wire());
    let own = address(0, 0, false);
    let socket = front.inside(|| std::net::UdpSocket::bind((own, 0))).expect("the address is there");
    socket.set_broadcast(true).expect("a socket");
    let before = packets(&wire, "h0") + packets(&wire, "h1");
    for _ in 0..10 {
        let _ = front.inside(|| socket.send_to(b"round and round", ("10.1.0.255", 7777)));
    }
    thread::sleep(Duration::from_secs(1));
    // A loop would be at some ten thousand by now, and would go on.
    let after = packets(&wire, "h0") + packets(&wire, "h1");
    let dead: u64 = fabric
        .hosts()
        .iter()
        .flat_map(|host| ["vtep_spoof", "spoof", "loop", "port_down"].map(|reason| dropped(host, reason)))
        .sum();
    println!("{} packets in the underlay, {dead} stopped", after - before);
    assert!(after - before < 500, "{} packets\n{}", after - before, fabric.circumstances());
    assert!(dead > 0, "{}", fabric.circumstances());
    fabric.balance();
}

#[test]
fn the_policies_of_two_hosts_decide_what_is_routed_between_them() {
    let fabric = Fabric::with(2, 1500, |n| config(n, 2, true));
    let _service: Vec<_> = [(0, "f"), (1, "b")]
        .into_iter()
        .flat_map(|(host, name)| {
            let network = usize::from(name == "b");
            let [a, b] = [false, true].map(|is_v6| address(network, host, is_v6).to_string());
            fabric.host(host).serve(name, [&a, &b], &[80])
        })
        .collect();
    let (front, back) = (container(&fabric, 0, 0), container(&fabric, 1, 1));
    for is_v6 in [false, true] {
        let (there, here) = (address(1, 1, is_v6).to_string(), address(0, 0, is_v6).to_string());
        for protocol in Proto::ALL {
            // With its own address: nothing is translated on the way.
            assert_eq!(fabric.host(0).seen(&front, protocol, &at(&there, 80)).to_string(), here);
            fabric.host(1).unheard(&back, protocol, &at(&here, 80));
        }
    }
    // Either host's policy is enough to refuse it.
    for host in [0, 1] {
        fabric.host(host).vsctl("policy add front back --deny tcp/80 --name no-web --priority 10");
        for is_v6 in [false, true] {
            let there = at(&address(1, 1, is_v6).to_string(), 80);
            fabric.host(0).unheard(&front, Proto::Tcp, &there);
            fabric.host(0).seen(&front, Proto::Udp, &there);
        }
        fabric.host(host).vsctl("policy rm no-web");
        fabric.host(0).seen(&front, Proto::Tcp, &at(&address(1, 1, false).to_string(), 80));
    }
    fabric.balance();
}

fn the_underlays_mtu_changes_during_transfers(over_v6: bool) {
    let fabric = Fabric::with(2, 1500, |n| config(n, 2, over_v6));
    for network in [0, 1] {
        fabric.host(0).ping(["f", "b"][network], &address(network, 1, false).to_string());
    }
    thread::scope(|scope| {
        let transfers = [0, 1].map(|network| {
            let fabric = &fabric;
            scope.spawn(move || moves(fabric, (network, 0), (network, 1), network == 0, 256 * MIB))
        });
        for mtu in [1400, 9000, 1500] {
            fabric.set_mtu(mtu);
            for host in [0, 1] {
                for network in [0, 1] {
                    let space = container(&fabric, network, host);
                    wait_for_mtu(&space, "eth0", mtu - OVERHEAD[usize::from(over_v6)]);
                }
            }
            let going = transfers.iter().filter(|transfer| !transfer.is_finished()).count();
            println!("MTU {mtu}, {going} transfers go on");
            assert!(mtu != 1400 || going == 2, "they were over before anything changed");
            thread::sleep(Duration::from_millis(300));
        }
        transfers.into_iter().for_each(|transfer| transfer.join().expect("it said why"));
    });
    fabric.balance();
}

#[test]
fn a_change_of_the_underlays_mtu_ends_no_transfer_over_ipv4() {
    the_underlays_mtu_changes_during_transfers(false);
}

#[test]
fn a_change_of_the_underlays_mtu_ends_no_transfer_over_ipv6() {
    the_underlays_mtu_changes_during_transfers(true);
}

#[test]
fn a_killed_switch_takes_its_connections_to_other_hosts_up_again() {
    let mut fabric = Fabric::with(2, 1500, |n| config(n, 2, false));
    let pulses = [(0, 0), (1, 1), (0, 1)].map(|(from, to)| {
        let target = address(to, 1, to == 1);
        fabric.host(0).ping(["f", "b"][from], &target.to_string());
        Pulse::start(&container(&fabric, from, 0), &container(&fabric, to, 1), target)
    });
    for host in [0, 1] {
        let beating = |more: u64| {
            let before: Vec<_> = pulses.iter().map(Pulse::beats).collect();
            wait_for("connections go on", || {
                pulses.iter().zip(&before).all(|(pulse, before)| pulse.beats() > before + more)
            });
        };
        beating(20);
        fabric.host_mut(host).kill();
        fabric.host_mut(host).start();
        let start = Instant::now();
        beating(20);
        println!("host {host}: {:?} after the start all go on", start.elapsed());
        assert!(start.elapsed() < PATIENCE);
    }
    pulses.into_iter().for_each(Pulse::end);
    fabric.hosts().iter().for_each(Net::ready);
    fabric.balance();
}

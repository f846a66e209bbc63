//! The way to the outside on the real kernel: masquerade, egress addresses, floating IPs, and what is too large.
//!
//! Needs root, ping, tcpdump.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use packet::MacAddr;
use tests::Net;
use tests::net::outside::{HOST, ROUTER, SERVER, UPLINK};
use tests::net::{
    Call, Caller, Ears, PATIENCE, Proto, Running, Wire, at, ethernet, need, transfer, wait_for,
};

const SITE: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [[port]]
    name = "web"
    network = "front"
    netns = "@web"
    addresses = ["10.1.0.10", "fd00:1::10"]
    [[port]]
    name = "web2"
    network = "front"
    netns = "@web2"
    addresses = ["10.1.0.11", "fd00:1::11"]
"#;

const WEB: [&str; 2] = ["10.1.0.10", "fd00:1::10"];
const WEB2: [&str; 2] = ["10.1.0.11", "fd00:1::11"];
const FLOATING: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];

/// Puts a namespace `far` with the addresses 198.51.100.99 and 2001:db8:fffe::99 behind the router, on a link of a
/// small MTU, and returns its addresses.
fn narrow_way(net: &Net, mtu: u32) -> [&'static str; 2] {
    let (x, far) = (net.space("x"), net.space("far"));
    x.run(&format!("ip link add narrow type veth peer name eth0 netns {}", far.name()));
    x.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    for (space, device, addresses) in [
        (&x, "narrow", ["198.51.100.98/31", "2001:db8:fffe::98/127"]),
        (&far, "eth0", ["198.51.100.99/31", "2001:db8:fffe::99/127"]),
    ] {
        space.run(&format!("ip link set {device} mtu {mtu} up"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            space.run(&format!("ip addr add {address} dev {device} {nodad}"));
        }
    }
    far.run("ip -4 route add default via 198.51.100.98");
    far.run("ip -6 route add default via 2001:db8:fffe::98");
    ["198.51.100.99", "2001:db8:fffe::99"]
}

#[test]
fn what_goes_outside_comes_from_the_host_and_from_egress_addresses_where_given() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("x", SERVER, &[80]);
    let (web, web2) = (net.space("web"), net.space("web2"));
    for family in [0, 1] {
        net.ping("web", SERVER[family]);
        net.ping("web", ROUTER[family]);
        for protocol in Proto::ALL {
            let peer = net.seen(&web, protocol, &at(SERVER[family], 80));
            assert_eq!(peer.to_string(), HOST[family], "{protocol:?}");
        }
    }
    net.vsctl("egress add web2 --ip 203.0.113.7 --ip 2001:db8:1::7 --ports 20000-29999");
    for (family, own) in ["203.0.113.7", "2001:db8:1::7"].into_iter().enumerate() {
        let target = at(SERVER[family], 80);
        for protocol in Proto::ALL {
            assert_eq!(net.seen(&web2, protocol, &target).to_string(), own, "{protocol:?}");
            assert_eq!(net.seen(&web, protocol, &target).to_string(), HOST[family], "{protocol:?}");
        }
        let call = Call::connect(&web2, &target).expect("a connection");
        assert!((20000..=29999).contains(&call.peer().port()), "{}", call.peer());
    }
    net.vsctl("egress rm web2");
    for family in [0, 1] {
        let peer = net.seen(&web2, Proto::Tcp, &at(SERVER[family], 80));
        assert_eq!(peer.to_string(), HOST[family]);
    }
    net.balance();
}

#[test]
fn a_floating_ip_is_its_ports_address_both_ways_and_moves_while_it_is_used() {
    need(&["ping", "tcpdump"]);
    let net = Net::with_outside(SITE);
    let x = net.space("x");
    let _services =
        [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80]), net.serve("x", SERVER, &[80])];
    for (family, address) in FLOATING.into_iter().enumerate() {
        net.vsctl(&format!("fip add {address} web"));
        net.ping("x", address);
        for protocol in Proto::ALL {
            assert_eq!(net.seen(&x, protocol, &at(address, 80)).to_string(), ROUTER[family]);
            let own = net.seen(&net.space("web"), protocol, &at(SERVER[family], 80));
            assert_eq!(own.to_string(), address, "{protocol:?}: the port's own connections");
            let other = net.seen(&net.space("web2"), protocol, &at(SERVER[family], 80));
            assert_eq!(other.to_string(), HOST[family], "{protocol:?}: others are not seen as it");
        }
    }
    for address in FLOATING {
        let mut ears = Ears::listen(&x, "eth0", "arp or icmp6", &net.path(""));
        let log = net.path(&format!("ping{}.log", address.len()));
        let words = ["ping", "-n", "-i", "0.05", "-D", "-O", "-W", "1", address];
        let mut ping = Running::start(x.command(&words), "ping", &log);
        let answers = |text: &str| text.lines().filter(|line| line.contains("bytes from")).count();
        wait_for("it is answered", || answers(&ping.log()) > 5);
        net.vsctl(&format!("fip set {address} --port web2"));
        let before = answers(&ping.log());
        wait_for("it is answered again", || answers(&ping.log()) > before + 20);
        ping.end(nix::sys::signal::Signal::SIGINT);
        // Lines begin with the time, in seconds.
        let log = ping.log();
        let times = log.lines().filter(|line| line.contains("bytes from"));
        let times: Vec<f64> =
            times.filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok()).collect();
        let gap = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        println!("{address}: the longest time between two answers is {gap} s");
        assert!(gap < 1.0, "{gap} s without an answer: {log}");
        let heard = ears.heard();
        let told = heard.iter().any(|line| match address.contains(':') {
            true => line.contains("neighbor advertisement") && line.contains(address),
            false => {
                line.contains(&format!("who-has {address}")) && line.contains(&format!("tell {address}"))
                    || line.contains(&format!("Reply {address} is-at"))
            }
        });
        assert!(told, "nobody is told where {address} is: {heard:#?}");
        // It is the other's now.
        assert_eq!(net.vsctl(&format!("fip show {address}"))["config"]["port"], "web2");
    }
    for (family, address) in FLOATING.into_iter().enumerate() {
        let own = net.seen(&net.space("web2"), Proto::Tcp, &at(SERVER[family], 80));
        assert_eq!(own.to_string(), address);
        net.vsctl(&format!("fip rm {address}"));
        let gone = || !x.output(&format!("ping -n -c 1 -W 1 {address}")).status.success();
        wait_for("nobody answers for it any more", gone);
        let own = net.seen(&net.space("web2"), Proto::Tcp, &at(SERVER[family], 80));
        assert_eq!(own.to_string(), HOST[family]);
    }
    net.balance();
}

#[test]
fn a_narrow_hop_outside_is_found_out_through_nat() {
    let net = Net::with_outside(SITE);
    let far = narrow_way(&net, 1300);
    let web = net.space("web");
    for (family, target) in far.into_iter().enumerate() {
        net.ping("web", target);
        let address: IpAddr = target.parse().expect("an address");
        // Enough that neither end's buffers hold it.
        if let Err(error) = transfer(&web, &net.space("far"), address, 4 << 20) {
            panic!("{target}: {error}\n{}", net.circumstances());
        }
        // A packet of the full size that must not be cut.
        let big = format!("ping -n -c 2 -i 0.2 -W 1 -M do -s {} {target}", [1472, 1452][family]);
        let _ = web.output(&big);
        wait_for("the kernel has learned the MTU", || {
            let _ = web.output(&big);
            web.run(&format!("ip route get {target}")).contains("mtu 1300")
        });
    }
    // And towards a floating IP: what its port sends is too large for the hop, too.
    for (family, floating) in FLOATING.into_iter().enumerate() {
        net.vsctl(&format!("fip add {floating} web2"));
        let target = far[family];
        net.ping("web2", target);
        let address: IpAddr = target.parse().expect("an address");
        if let Err(error) = transfer(&net.space("web2"), &net.space("far"), address, 4 << 20) {
            panic!("{floating} to {target}: {error}\n{}", net.circumstances());
        }
    }
    net.balance();
}

#[test]
fn udp_of_8_kb_passes_both_ways() {
    let net = Net::with_outside(SITE);
    let x = net.space("x");
    let _services =
        [net.serve("x", SERVER, &[80]), net.serve("web2", WEB2, &[80]), net.serve("web", WEB, &[80])];
    let large: Vec<u8> = (0..8192_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let pass = |from: &tests::net::Space, target: &str| {
        net.seen(from, Proto::Udp, target);
        let caller = Caller::new(from, target).expect("a socket");
        for _ in 0..20 {
            if let Err(error) = caller.ask(&large, Duration::from_secs(3)) {
                panic!("{} to {target}: {error}\n{}", from.name(), net.circumstances());
            }
        }
    };
    net.vsctl("publish add 5353/udp web:80");
    for family in [0, 1] {
        pass(&net.space("web"), &at(SERVER[family], 80));
        pass(&x, &at(HOST[family], 5353));
        net.vsctl(&format!("fip add {} web2", FLOATING[family]));
        pass(&x, &at(FLOATING[family], 80));
        pass(&net.space("web2"), &at(SERVER[family], 80));
        // Between two containers, by the floating address.
        pass(&net.space("web"), &at(FLOATING[family], 80));
    }
    net.balance();
}

/// Returns the IPv4 fragments of a UDP packet without checksum, in order.
fn fragments(macs: [MacAddr; 2], ends: [Ipv4Addr; 2], ports: [u16; 2], id: u16, data: &[u8]) -> Vec<Vec<u8>> {
    let mut udp = Vec::new();
    for number in [ports[0], ports[1], u16::try_from(8 + data.len()).expect("it fits"), 0] {
        udp.extend_from_slice(&number.to_be_bytes());
    }
    udp.extend_from_slice(data);
    let pieces: Vec<_> = udp.chunks(1480).collect();
    let last = pieces.len() - 1;
    let fragment = |(n, piece): (usize, &&[u8])| {
        let more = if n == last { 0 } else { 0x2000 };
        let offset = u16::try_from(n * 1480 / 8).expect("it fits") | more;
        let len = u16::try_from(20 + piece.len()).expect("it fits");
        let mut ip = vec![0x45, 0];
        for number in [len, id, offset] {
            ip.extend_from_slice(&number.to_be_bytes());
        }
        ip.extend_from_slice(&[64, 17, 0, 0]);
        ends.iter().for_each(|end| ip.extend_from_slice(&end.octets()));
        let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend_from_slice(piece);
        ethernet(macs[1], macs[0], 0x0800, &ip)
    };
    pieces.iter().enumerate().map(fragment).collect()
}

#[test]
fn fragments_out_of_order_are_carried_through_nat_both_ways() {
    let net = Net::with_outside(SITE);
    let (x, web) = (net.space("x"), net.space("web"));
    let _services = [net.serve("x", SERVER, &[80]), net.serve("web", WEB, &[80])];
    net.vsctl(&format!("fip add {} web", FLOATING[0]));
    net.seen(&web, Proto::Udp, &at(SERVER[0], 80));
    net.seen(&x, Proto::Udp, &at(FLOATING[0], 80));
    let data: Vec<u8> = (0..6000_u32).map(|n| (n % 253).to_le_bytes()[0]).collect();
    let address = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
    let gateway = web.run("ip neigh show 10.1.0.1");
    let gateway = gateway.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
    let gateway: MacAddr = gateway.and_then(|mac| mac.parse().ok()).expect("the gateway has a MAC");
    let macs_in = [web.mac("eth0"), gateway];
    let macs_out = [x.mac("eth0"), net.host().mac(UPLINK)];
    for (n, order) in [[4, 3, 2, 1, 0], [1, 0, 4, 2, 3]].into_iter().enumerate() {
        // The answer is as large, and comes back in fragments that the kernel makes.
        for (space, macs, ends) in [
            (&web, macs_in, [address(WEB[0]), address(SERVER[0])]),
            (&x, macs_out, [address(ROUTER[0]), address(FLOATING[0])]),
        ] {
            let port = 7000 + u16::try_from(n).expect("few");
            let mut wire = Wire::open(space, "eth0");
            let socket = space.inside(|| std::net::UdpSocket::bind((ends[0], port))).expect("it is free");
            socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let frames = fragments(macs, ends, [port, 80], 0x5100 + port, &data);
            for at in order {
                wire.send(&frames[at]);
                thread::sleep(Duration::from_millis(2));
            }
            let mut answer = vec![0; 64 * 1024];
            let len = socket.recv(&mut answer);
            let len = len.unwrap_or_else(|error| {
                panic!("{order:?} from {}: {error}\n{}", space.name(), net.circumstances())
            });
            assert!(answer[..len].ends_with(&data), "{order:?}: other bytes");
        }
    }
    net.balance();
}

#[test]
fn the_gateway_and_the_routers_behind_it_say_when_a_packet_has_lived_too_long() {
    need(&["ping"]);
    let net = Net::with_outside(SITE);
    let far = narrow_way(&net, 1500);
    let web = net.space("web");
    for (family, target) in far.into_iter().enumerate() {
        net.ping("web", target);
        // Hop by hop: the gateway, then the router outside.
        for (hops, who) in [(1, ["10.1.0.1", "fd00:1::1"]), (2, ROUTER)] {
            let line = format!("ping -n -c 1 -W 1 -t {hops} {target}");
            let mut said = String::new();
            wait_for(&format!("{} is named as hop {hops}", who[family]), || {
                said = String::from_utf8_lossy(&web.output(&line).stdout).into_owned();
                said.contains(&format!("From {}", who[family]))
            });
            let exceeded = said.contains("Time to live exceeded") || said.contains("Hop limit");
            assert!(exceeded, "{target}, {hops} hops: {said}");
        }
    }
}

#[test]
fn a_port_reaches_itself_and_its_neighbours_by_outside_addresses() {
    let net = Net::with_outside(SITE);
    let _services = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    net.vsctl("publish add 8080/tcp web:80");
    net.vsctl("publish add 8080/udp web:80");
    for family in [0, 1] {
        net.vsctl(&format!("fip add {} web2", FLOATING[family]));
        for protocol in Proto::ALL {
            for name in ["web", "web2"] {
                for target in [at(HOST[family], 8080), at(FLOATING[family], 80)] {
                    net.seen(&net.space(name), protocol, &target);
                }
            }
        }
    }
    net.balance();
}

#[test]
fn a_connection_through_masquerade_carries_much_and_survives_being_idle() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("x", SERVER, &[80]);
    let web = net.space("web");
    net.seen(&web, Proto::Tcp, &at(SERVER[0], 80));
    let mut call = Call::connect(&web, &at(SERVER[0], 80)).expect("a connection");
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 249).to_le_bytes()[0]).collect();
    let start = Instant::now();
    call.echo(&data, PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", net.circumstances()));
    println!("1 MB there and back took {:?}", start.elapsed());
    std::io::stdout().flush().expect("it is there");
    thread::sleep(Duration::from_secs(2));
    call.echo(b"still here", PATIENCE).expect("the connection goes on");
}

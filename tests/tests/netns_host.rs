//! The host is left alone: whatever it filters, forwards, opens and changes, it and the switch do not disturb each other.
//!
//! Needs root, ping, iptables.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tests::net::outside::{HOST, ROUTER, SERVER, UPLINK};
use tests::net::ways::{Busy, FLOATING, WEB, WEB2, all_ways, connect_from_our_range, site};
use tests::net::{Call, Caller, PATIENCE, Proto, Service, at, need, wait_for, wait_until};

const SYSCTLS: &str = "net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter \
                       net.ipv4.conf.up0.rp_filter net.ipv4.conf.all.forwarding net.ipv6.conf.all.forwarding \
                       net.ipv4.conf.all.accept_local net.ipv4.conf.all.route_localnet net.ipv4.conf.up0.arp_ignore \
                       net.ipv4.conf.all.arp_ignore net.ipv4.conf.up0.proxy_arp";

#[test]
fn a_strict_host_changes_nothing_for_the_switch_and_is_not_changed() {
    need(&["iptables", "ip6tables"]);
    let (mut net, _services) = site("");
    let host = net.host();
    for tables in ["iptables", "ip6tables"] {
        for rule in
            ["-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"]
        {
            host.run(&format!("{tables} {rule}"));
        }
        host.run(&format!("{tables} -P INPUT DROP"));
        host.run(&format!("{tables} -P FORWARD DROP"));
    }
    // Without neighbour discovery there is no IPv6 at all.
    host.run("ip6tables -A INPUT -p icmpv6 -j ACCEPT");
    host.run(
        "sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.ip_forward=0",
    );
    host.run(&format!("sysctl -q -w net.ipv4.conf.{UPLINK}.rp_filter=1"));
    let settings = || {
        let rules = host.run("iptables -S") + &host.run("ip6tables -S") + &host.run("iptables -t nat -S");
        (host.run(&format!("sysctl {SYSCTLS}")), rules)
    };
    let before = settings();
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    all_ways(&net);
    assert_eq!(settings(), before, "the host is left as it was");
    net.stop();
    assert_eq!(settings(), before, "the host is left as it was");
}

#[test]
fn flushing_the_hosts_rules_disturbs_nothing() {
    need(&["iptables"]);
    let (mut net, _services) = site("");
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    let (x, web, host) = (net.space("x"), net.space("web"), net.host());
    let mut calls = Vec::new();
    for (from, target) in [(&web, at(SERVER[0], 80)), (&x, at(HOST[0], 8080)), (&x, at(FLOATING[0], 80))] {
        net.seen(from, Proto::Tcp, &target);
        calls.push(Call::connect(from, &target).expect("a connection"));
    }
    for _ in 0..5 {
        for line in ["iptables -F", "iptables -t nat -F", "ip6tables -F", "iptables -t mangle -F"] {
            host.run(line);
            for call in &mut calls {
                call.echo(&[7; 20_000], Duration::from_secs(2)).expect("it goes on");
            }
        }
    }
    all_ways(&net);
}

#[test]
fn what_the_host_had_open_before_loses_nothing_while_the_switch_comes_dies_and_comes_again() {
    need(&["iptables"]);
    let (mut net, _services) = site("");
    let (host, x) = (net.host(), net.space("x"));

    // A container behind the kernel's own bridge and masquerade.
    let docker = net.space("docker");
    host.run("sysctl -q -w net.ipv4.ip_forward=1");
    host.run("ip link add docker0 type bridge");
    host.run("ip addr add 172.17.0.1/16 dev docker0");
    host.run("ip link set docker0 up");
    host.run(&format!("ip link add dveth type veth peer name eth0 netns {}", docker.name()));
    host.run("ip link set dveth master docker0 up");
    docker.run("ip link set eth0 up");
    docker.run("ip addr add 172.17.0.2/16 dev eth0");
    docker.run("ip route add default via 172.17.0.1");
    host.run("iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE");
    host.run("iptables -t nat -A PREROUTING -p tcp --dport 7070 -j DNAT --to-destination 172.17.0.2:70");
    let _docker = Service::start(&docker, Proto::Tcp, "172.17.0.2:70");

    // A tunnel of the kernel's own.
    for (space, id, other, address) in
        [(&host, "up0", ROUTER[0], "192.168.77.2/24"), (&x, "eth0", HOST[0], "192.168.77.1/24")]
    {
        space.run(&format!("ip link add vx type vxlan id 777 remote {other} dstport 4789 dev {id}"));
        space.run(&format!("ip addr add {address} dev vx"));
        space.run("ip link set vx up");
    }
    let _tunnel = Service::start(&x, Proto::Tcp, "192.168.77.1:80");
    let _echo = Service::start(&host, Proto::Tcp, "203.0.113.2:2222");

    let wait = Duration::from_secs(4);
    let target = at(SERVER[0], 80);
    net.seen(&docker, Proto::Tcp, &target);
    net.seen(&host, Proto::Tcp, "192.168.77.1:80");
    let mut busy = Vec::new();
    for (name, mut call) in [
        ("a connection of the host, in our range", connect_from_our_range(&net, &target)),
        ("a connection of the host, over IPv6", connect_from_our_range(&net, &at(SERVER[1], 80))),
        (
            "a connection behind the kernel's masquerade",
            Call::connect(&docker, &target).expect("a connection"),
        ),
        (
            "a connection to a port that the kernel forwards",
            Call::connect(&x, "203.0.113.2:7070").expect("a connection"),
        ),
        ("a connection to the host", Call::connect(&x, "203.0.113.2:2222").expect("a connection")),
        ("a connection in a tunnel", Call::connect(&host, "192.168.77.1:80").expect("a connection")),
    ] {
        busy.push(Busy::start(name, move || call.echo(&[7; 3000], wait)));
    }
    for (name, space) in
        [("UDP of the host", host.clone()), ("UDP behind the kernel's masquerade", docker.clone())]
    {
        let caller = Caller::new(&space, &target).expect("a socket");
        // While nobody carries them packets may be lost, a flow not: it asks again from the same L4 port.
        busy.push(Busy::start(name, move || {
            let ask = || caller.ask(b"there?", Duration::from_millis(200)).map(drop);
            (0..25).fold(ask(), |last, _| last.or_else(|_| ask()))
        }));
    }
    // New ones, too.
    let (again, where_to) = (docker.clone(), target.clone());
    busy.push(Busy::start("new connections behind the kernel's masquerade", move || {
        Call::connect(&again, &where_to)?.echo(b"new", wait)
    }));
    let (again, where_to) = (host.clone(), target.clone());
    busy.push(Busy::start("new connections of the host", move || {
        Call::connect(&again, &where_to)?.echo(b"new", wait)
    }));

    thread::sleep(Duration::from_millis(500));
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    let web = net.space("web");
    net.seen(&web, Proto::Tcp, &target);
    net.seen(&x, Proto::Tcp, &at(HOST[0], 8080));
    thread::sleep(Duration::from_secs(1));
    net.kill();
    thread::sleep(Duration::from_secs(1));
    net.start();
    net.ready();
    net.seen(&web, Proto::Tcp, &target);
    net.seen(&x, Proto::Tcp, &at(HOST[0], 8080));
    thread::sleep(Duration::from_secs(1));
    busy.into_iter().for_each(Busy::end);
    net.balance();
}

#[test]
fn the_next_fetch_works_when_the_hosts_address_and_default_route_change() {
    let (mut net, _services) = site("");
    let (host, web) = (net.host(), net.space("web"));
    net.start();
    net.ready();
    net.seen(&web, Proto::Tcp, &at(SERVER[0], 80));
    // Another address on the same device.
    host.run("ip addr add 203.0.113.22/24 dev up0");
    host.run("ip addr del 203.0.113.2/24 dev up0");
    host.run("ip addr replace 203.0.113.22/24 dev up0");
    host.run("ip -4 route replace default via 203.0.113.1");
    let mut last = String::new();
    let follows = wait_until(PATIENCE, || {
        last = format!("{:?}", tests::net::ask(&web, Proto::Tcp, &at(SERVER[0], 80)));
        last.contains("203.0.113.22")
    });
    assert!(follows, "{last}\n{}", net.circumstances());
    // Another device, another router.
    net.lead_to("y", "up1", ["192.0.2.2/24", "2001:db8:2::2/64"], ["192.0.2.1/24", "2001:db8:2::1/64"]);
    let y = net.space("y");
    y.run("ip link set lo up");
    y.run(&format!("ip addr add {}/32 dev lo", SERVER[0]));
    y.run(&format!("ip addr add {}/128 dev lo nodad", SERVER[1]));
    let _there = net.serve("y", SERVER, &[80]);
    host.run("ip -4 route replace default via 192.0.2.1");
    host.run("ip -6 route replace default via 2001:db8:2::1");
    host.run("ip link set up0 down");
    for (family, own) in ["192.0.2.2", "2001:db8:2::2"].into_iter().enumerate() {
        let follows = wait_until(PATIENCE, || {
            last = format!("{:?}", tests::net::ask(&web, Proto::Tcp, &at(SERVER[family], 80)));
            last.contains(own)
        });
        assert!(follows, "{own}: {last}\n{}", net.circumstances());
    }
}

#[test]
fn a_container_and_the_host_reach_each_other_by_their_own_addresses() {
    let (mut net, _services) = site("");
    net.start();
    net.ready();
    let (host, web) = (net.host(), net.space("web"));
    let _web = net.serve("web", WEB, &[80]);
    for family in [0, 1] {
        let _host = Proto::ALL.map(|protocol| Service::start(&host, protocol, &at(HOST[family], 90)));
        for protocol in Proto::ALL {
            let peer = net.seen(&web, protocol, &at(HOST[family], 90));
            assert_eq!(peer.to_string(), WEB[family], "the host sees who asks");
            net.seen(&host, protocol, &at(WEB[family], 80));
        }
        net.ping("web", HOST[family]);
        wait_for("the host pings a container", || {
            host.output(&format!("ping -n -c 1 -W 1 {}", WEB[family])).status.success()
        });
    }
    net.balance();
}

#[test]
fn after_cleanup_the_host_is_as_it_was() {
    let (mut net, _services) = site("");
    let host = net.host();
    let pins = format!("/run/vswitch/bpf/{}", net.tag());
    let picture = || {
        let links = host.run("ip -o link");
        let links: Vec<_> = links.lines().map(|line| line.replace("state UNKNOWN ", "")).collect();
        let tcx = host.run("ip -d -o link show dev up0");
        let routes = host.run("ip -4 route show table all") + &host.run("ip -6 route show table all");
        // The kernel's own come when duplicate address detection is through.
        let routes: Vec<_> = routes.lines().filter(|line| !line.contains("fe80:")).collect();
        let rules = host.run("ip rule") + &host.run("ip -6 rule");
        let filters = host.run("tc qdisc show dev up0") + &host.run("tc filter show dev up0 ingress");
        let reserved = host.run("sysctl net.ipv4.ip_local_reserved_ports");
        format!("{links:#?}\n{tcx}\n{routes:#?}\n{rules}\n{filters}\n{reserved}")
    };
    host.run("sysctl -q -w net.ipv4.ip_local_reserved_ports=9000,50000-50010");
    thread::sleep(Duration::from_millis(500));
    let before = picture();
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    all_ways(&net);
    assert_ne!(picture(), before, "there is something to remove");
    assert!(std::path::Path::new(&pins).exists(), "programs are pinned there");
    net.vsctl("cleanup --force");
    net.stop();
    let mut last = String::new();
    let same = wait_until(PATIENCE, || {
        last = picture();
        last == before
    });
    assert!(same, "left behind:\n{last}\nbefore:\n{before}\n{}", net.log());
    assert!(!std::path::Path::new(&pins).exists(), "pins are left in {pins}");
    // And its own L4 ports are its own again.
    let listener = host.inside(|| TcpListener::bind("0.0.0.0:8080")).expect("the port is free");
    let to = listener.local_addr().expect("it is bound");
    let stream: io::Result<TcpStream> = host.inside(|| TcpStream::connect(("127.0.0.1", to.port())));
    stream.expect("the host talks to itself");
}

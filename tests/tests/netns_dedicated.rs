//! A device that is the switch's alone: the switch has addresses there, answers for them, and finds its way by itself.
//!
//! The far end of the pair finishes its checksums: a veth hands partial ones on, and AF_XDP has no word for them.
//!
//! Needs root, ping, ethtool.

use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use tests::Net;
use tests::net::outside::{HOST, ROUTER, SERVER};
use tests::net::ways::{Busy, FLOATING, SITE, WEB, WEB2};
use tests::net::{Call, PATIENCE, Proto, Service, at, need, transfer, wait_for};

const DEDICATED: &str = r#"
    [uplink]
    device = "up0"
    dedicated = true
    addresses = ["203.0.113.2/24", "2001:db8:1::2/64"]
    gateway = ["203.0.113.1", "2001:db8:1::1"]
"#;

/// Makes an outside that the host itself has no address in; no daemon runs yet.
fn site() -> (Net, Vec<Service>) {
    need(&["ethtool", "ping"]);
    let net = Net::new();
    net.make_outside();
    net.host().run("ip -6 route del default");
    net.host().run("ip addr flush dev up0");
    // The host has addresses elsewhere, as where it is administered by.
    net.host().run("ip addr add 192.0.2.9/32 dev lo");
    net.host().run("ip addr add 2001:db8:9::9/128 dev lo");
    net.space("x").run("ethtool -K eth0 tx off");
    net.write_config(&format!("{DEDICATED}{SITE}"));
    let services = net.serve("x", SERVER, &[80]);
    (net, services)
}

#[test]
fn the_switch_has_the_addresses_of_its_own_device() {
    let (mut net, _services) = site();
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    let (x, web, web2, host) = (net.space("x"), net.space("web"), net.space("web2"), net.host());
    for family in [0, 1] {
        // It answers for itself, and says no where nobody listens.
        net.ping("x", HOST[family]);
        net.ping("web", HOST[family]);
        let refused = Call::connect(&x, &at(HOST[family], 81)).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        let neighbors = x.run(&format!("ip neigh show {}", HOST[family]));
        assert!(neighbors.contains(&host.mac("up0").to_string()), "{neighbors}");
        for protocol in Proto::ALL {
            let seen = |from, target: String| net.seen(from, protocol, &target).to_string();
            assert_eq!(seen(&web, at(SERVER[family], 80)), HOST[family]);
            assert_eq!(seen(&web2, at(SERVER[family], 80)), FLOATING[family]);
            assert_eq!(seen(&x, at(HOST[family], 8080)), ROUTER[family]);
            assert_eq!(seen(&x, at(FLOATING[family], 80)), ROUTER[family]);
            assert_eq!(seen(&web2, at(HOST[family], 8080)), WEB2[family]);
            seen(&web, at(HOST[family], 8080));
            seen(&host, at(HOST[family], 8080));
            seen(&host, at(["127.0.0.1", "::1"][family], 8080));
            seen(&host, at(WEB[family], 80));
        }
        net.ping("web", SERVER[family]);
        let server = SERVER[family].parse().expect("an address");
        transfer(&web, &x, server, 2 << 20).expect("it arrives");
        let mut call = Call::connect(&x, &at(HOST[family], 8080)).expect("a connection");
        call.echo(&[9; 1 << 20], PATIENCE).expect("it comes back");
        // Nobody but the switch itself has asked for the router.
        let known = net.get("/v1/neighbors").to_string();
        assert!(known.contains(&format!("\"{}\"", ROUTER[family])), "{known}");
        assert!(!host.run("ip neigh show dev up0").contains(&format!("{} ", ROUTER[family])));
    }
    for space in [&x, &web, &web2] {
        assert_eq!(space.snmp("Tcp", "InCsumErrors"), 0, "{}", space.name());
        assert_eq!(space.snmp("Udp", "InCsumErrors"), 0, "{}", space.name());
    }
    net.balance();
}

#[test]
fn connections_over_a_device_of_the_switchs_own_outlive_it() {
    let (mut net, _services) = site();
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    let (x, web) = (net.space("x"), net.space("web"));
    let mut busy = Vec::new();
    for (name, from, target) in [
        ("masqueraded", &web, at(SERVER[0], 80)),
        ("to a published port", &x, at(HOST[1], 8080)),
        ("to a floating IP", &x, at(FLOATING[0], 80)),
    ] {
        net.seen(from, Proto::Tcp, &target);
        let mut call = Call::connect(from, &target).expect("a connection");
        busy.push(Busy::start(name, move || call.echo(&[7; 3000], Duration::from_secs(10))));
    }
    thread::sleep(Duration::from_millis(500));
    net.kill();
    let silent = x.output(&format!("ping -n -c 1 -W 1 {}", HOST[0]));
    assert!(!silent.status.success(), "nobody is there, and the host does not answer either");
    net.start();
    net.ready();
    net.ping("x", HOST[0]);
    thread::sleep(Duration::from_secs(1));
    busy.into_iter().for_each(Busy::end);
    net.balance();
}

#[test]
fn a_device_becomes_the_switchs_and_the_hosts_again() {
    let (mut net, _services) = site();
    let host = net.host();
    host.run("ip addr add 203.0.113.2/24 dev up0");
    host.run("ip -4 route add default via 203.0.113.1");
    let shared = format!("[uplink]\ndevice = \"up0\"\n{SITE}");
    net.write_config(&shared);
    net.start();
    net.ready();
    let _ssh = Service::start(&host, Proto::Tcp, &at(HOST[0], 22));
    let (x, web) = (net.space("x"), net.space("web"));
    let target = at(SERVER[0], 80);
    for _ in 0..2 {
        net.apply(&shared);
        assert_eq!(net.seen(&web, Proto::Tcp, &target).to_string(), HOST[0]);
        net.seen(&x, Proto::Tcp, &at(HOST[0], 22));
        // With the addresses and routers that the host has there.
        net.apply(&format!("[uplink]\ndevice = \"up0\"\ndedicated = true\n{SITE}"));
        assert_eq!(net.seen(&web, Proto::Tcp, &target).to_string(), HOST[0]);
        wait_for("the switch says that nobody listens", || {
            let answer = Call::connect(&x, &at(HOST[0], 22));
            answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }
    net.vsctl("cleanup --force");
    net.stop();
    net.seen(&x, Proto::Tcp, &at(HOST[0], 22));
}

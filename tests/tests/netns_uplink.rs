//! The other ways to use a device that leads outside: shared by AF_XDP, changed while it is used, and what is done about a
//! device that cannot.
//!
//! The far end of the pair finishes its checksums: a veth hands partial ones on, and AF_XDP has no word for them.
//!
//! Needs root, ping, ethtool.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::Net;
use tests::net::outside::{HOST, SERVER};
use tests::net::ways::{Busy, FLOATING, SITE, WEB, WEB2, all_ways, connect_from_our_range, site};
use tests::net::{Call, Caller, PATIENCE, Proto, Service, at, need, transfer};

const AFXDP: &str = "[uplink]\ndevice = \"up0\"\nmode = \"afxdp\"\n";

/// Has the outside send whole checksums.
fn finish_checksums(net: &Net) {
    need(&["ethtool", "ping"]);
    net.space("x").run("ethtool -K eth0 tx off");
}

/// Returns how a device is used, and the notes about it.
fn mode(net: &Net, device: &str) -> (String, String) {
    let host = net.get("/v1/host");
    let devices = host["uplink"]["devices"].as_array().cloned().unwrap_or_default();
    let found: Option<&Value> = devices.iter().find(|found| found["name"] == device);
    let found = found.unwrap_or_else(|| panic!("{device} leads nowhere: {host:#}"));
    (found["mode"].as_str().unwrap_or_default().to_owned(), found["notes"].to_string())
}

#[test]
fn all_ways_work_over_a_device_that_is_shared_by_afxdp() {
    let (mut net, _services) = site(AFXDP);
    finish_checksums(&net);
    net.start();
    net.ready();
    let (used, notes) = mode(&net, "up0");
    assert!(used.starts_with("afxdp,xdp-native"), "{used} {notes}");
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    all_ways(&net);
    let (x, web, web2) = (net.space("x"), net.space("web"), net.space("web2"));
    for family in [0, 1] {
        net.ping("web", SERVER[family]);
        net.ping("x", FLOATING[family]);
        // Whole frames in both directions, and their checksums.
        let server = SERVER[family].parse().expect("an address");
        transfer(&web, &x, server, 2 << 20).expect("it arrives");
        let mut call = Call::connect(&x, &at(FLOATING[family], 80)).expect("a connection");
        call.echo(&[9; 1 << 20], PATIENCE).expect("it comes back");
    }
    for space in [&x, &web, &web2] {
        assert_eq!(space.snmp("Tcp", "InCsumErrors"), 0, "{}", space.name());
    }
    net.balance();
}

/// Uses a connection out and one in.
fn fetch(net: &Net) {
    net.seen(&net.space("web"), Proto::Tcp, &at(SERVER[0], 80));
    net.seen(&net.space("x"), Proto::Tcp, &at(HOST[0], 8080));
}

#[test]
fn the_host_is_not_disturbed_by_a_device_that_is_shared_by_afxdp() {
    let (mut net, _services) = site(AFXDP);
    finish_checksums(&net);
    let (host, x) = (net.host(), net.space("x"));
    let _ssh = [0, 1].map(|family| Service::start(&host, Proto::Tcp, &at(HOST[family], 22)));
    let wait = Duration::from_secs(4);
    let mut busy = Vec::new();
    for (name, mut call) in [
        ("ssh over IPv4", Call::connect(&x, &at(HOST[0], 22)).expect("a connection")),
        ("ssh over IPv6", Call::connect(&x, &at(HOST[1], 22)).expect("a connection")),
        ("a connection of the host, in our range", connect_from_our_range(&net, &at(SERVER[0], 80))),
        ("the same over IPv6", connect_from_our_range(&net, &at(SERVER[1], 80))),
    ] {
        busy.push(Busy::start(name, move || call.echo(&[7; 3000], wait)));
    }
    let (again, target) = (host.clone(), at(SERVER[0], 80));
    busy.push(Busy::start("new connections of the host", move || {
        Call::connect(&again, &target)?.echo(b"new", wait)
    }));
    thread::sleep(Duration::from_millis(300));
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    fetch(&net);
    thread::sleep(Duration::from_secs(1));
    net.kill();
    // Ours meets silence and no reset, the host's goes on.
    let caller = Caller::new(&x, &at(HOST[0], 8080)).expect("a socket");
    caller.ask(b"there?", Duration::from_millis(700)).expect_err("nobody is there");
    net.start();
    net.ready();
    fetch(&net);
    thread::sleep(Duration::from_secs(1));
    busy.into_iter().for_each(Busy::end);
}

#[test]
fn a_device_changes_its_mode_while_it_is_used() {
    let (mut net, _services) = site("[uplink]\ndevice = \"up0\"\n");
    finish_checksums(&net);
    net.start();
    net.ready();
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    all_ways(&net);
    let (x, web) = (net.space("x"), net.space("web"));
    let wait = Duration::from_secs(5);
    let mut busy = Vec::new();
    for (name, from, target) in [
        ("masqueraded", &web, at(SERVER[0], 80)),
        ("masqueraded, IPv6", &web, at(SERVER[1], 80)),
        ("to a published port", &x, at(HOST[0], 8080)),
        ("to a floating IP", &x, at(FLOATING[1], 80)),
    ] {
        let mut call = Call::connect(from, &target).expect("a connection");
        busy.push(Busy::start(name, move || call.echo(&[7; 3000], wait)));
    }
    for wanted in ["afxdp", "steer", "afxdp", "steer"] {
        net.apply(&format!("[uplink]\ndevice = \"up0\"\nmode = \"{wanted}\"\n{SITE}"));
        let (used, notes) = mode(&net, "up0");
        assert!(used.starts_with(wanted), "{used} {notes}");
        all_ways(&net);
        thread::sleep(Duration::from_millis(300));
    }
    busy.into_iter().for_each(Busy::end);
    net.balance();
}

#[test]
fn a_device_that_cannot_do_afxdp_is_steered_and_says_why_unless_it_was_named() {
    let (mut net, _services) = site("[uplink]\nmode = \"afxdp\"\n");
    finish_checksums(&net);
    // A bridge has no driver that could run the program, and leads outside by the host's default route.
    let host = net.host();
    host.run("ip link add outer type bridge");
    host.run("ip addr flush dev up0");
    host.run("ip link set up0 master outer");
    host.run("ip link set outer up");
    for (address, router) in [("203.0.113.2/24", "203.0.113.1"), ("2001:db8:1::2/64", "2001:db8:1::1")] {
        let v6 = address.contains(':');
        host.run(&format!("ip addr add {address} dev outer {}", if v6 { "nodad" } else { "" }));
        host.run(&format!("ip {} route replace default via {router}", if v6 { "-6" } else { "-4" }));
    }
    net.start();
    net.ready();
    let (used, notes) = mode(&net, "outer");
    assert!(used.starts_with("steer,vnet_hdr"), "{used} {notes}");
    assert!(notes.contains("native XDP is not possible on outer"), "{notes}");
    let _web = [net.serve("web", WEB, &[80]), net.serve("web2", WEB2, &[80])];
    all_ways(&net);
    let doctor = net.get("/v1/doctor").to_string();
    assert!(doctor.contains("native XDP is not possible on outer"), "{doctor}");

    // Who names it is told, and nothing has changed.
    net.apply(&format!("[uplink]\ndevice = \"outer\"\n{SITE}"));
    let said = net.apply_refused(&format!("[uplink]\ndevice = \"outer\"\nmode = \"afxdp\"\n{SITE}"));
    assert!(said.contains("native XDP is not possible on outer"), "{said}");
    assert!(said.contains("allowed: mode = \"steer\""), "{said}");
    assert!(mode(&net, "outer").0.starts_with("steer,"));
    all_ways(&net);
    net.balance();
}

//! Addresses outside: whether they are free is found out before the switch takes them, and neighbours are found where the
//! host's kernel cannot ask.
//!
//! Needs root, ping.

use tests::Net;
use tests::net::outside::{ROUTER, SERVER};
use tests::net::ways::{FLOATING, WEB2, site};
use tests::net::{Proto, at, need, wait_for};

/// Addresses of the outside's subnets that the router has as well.
const OTHERS: [&str; 2] = ["203.0.113.77", "2001:db8:1::77"];

/// Returns what a station outside does with an address of its own.
fn outside(net: &Net, verb: &str, address: &str) {
    let (length, nodad) = if address.contains(':') { (64, "nodad") } else { (24, "") };
    net.space("x").run(&format!("ip addr {verb} {address}/{length} dev eth0 {nodad}"));
}

#[test]
fn an_address_that_another_station_has_is_refused_by_its_name() {
    need(&["ping"]);
    let (mut net, _services) = site("");
    net.start();
    net.ready();
    let mac = net.space("x").mac("eth0").to_string();
    for address in OTHERS {
        outside(&net, "add", address);
        let said = net.refused(&format!("fip add {address} web"));
        assert!(said.contains(&mac) && said.contains("up0") && said.contains(address), "{said}");
        assert!(net.api("GET", &format!("/v1/floating_ips/{address}"), None).is_err(), "it was not taken");
        let said = net.refused(&format!("egress add web --ip {address}"));
        assert!(said.contains(&mac), "{said}");
        outside(&net, "del", address);
        net.vsctl(&format!("fip add {address} web"));
        net.ping("x", address);
    }
    let said = net.refused("fip add 203.0.113.2 web");
    assert!(said.contains("the host itself has it"), "{said}");
    net.balance();
}

#[test]
fn a_floating_ip_that_another_station_took_meanwhile_is_given_up_until_it_is_free() {
    let (mut net, _services) = site("");
    net.start();
    net.ready();
    let _web2 = net.serve("web2", WEB2, &[80]);
    let (x, mac) = (net.space("x"), net.space("x").mac("eth0").to_string());
    for (family, address) in FLOATING.into_iter().enumerate() {
        assert_eq!(net.seen(&x, Proto::Tcp, &at(address, 80)).to_string(), ROUTER[family]);
        net.kill();
        outside(&net, "add", address);
        net.start();
        net.ready();
        let shown = || net.vsctl(&format!("fip show {address}"));
        wait_for("it is given up", || shown()["state"] == "pending");
        let reason = shown()["reason"].to_string();
        assert!(reason.contains(&mac) && reason.contains("up0"), "{reason}");
        assert!(net.log().contains(&format!("station {mac} at up0 has {address}")), "{}", net.log());
        let doctor = net.get("/v1/doctor").to_string();
        assert!(doctor.contains(&mac), "{doctor}");
        // Its port is seen as the host meanwhile.
        let own = net.seen(&net.space("web2"), Proto::Tcp, &at(SERVER[family], 80));
        assert_ne!(own.to_string(), address);
        outside(&net, "del", address);
        wait_for("it is used again", || shown()["state"] == "active");
        assert_eq!(net.seen(&x, Proto::Tcp, &at(address, 80)).to_string(), ROUTER[family]);
    }
    net.balance();
}

#[test]
fn a_next_hop_is_found_at_a_device_without_a_link_local_address() {
    let (mut net, _services) = site("");
    let host = net.host();
    host.run("ip -6 addr flush dev up0 scope link");
    assert!(!host.run("ip -6 addr show dev up0").contains("fe80"));
    host.run("ip -6 neigh flush dev up0");
    net.start();
    net.ready();
    net.seen(&net.space("web"), Proto::Tcp, &at(SERVER[1], 80));
    net.ping("web", ROUTER[1]);
    net.balance();
}

#[test]
fn a_trace_names_the_outside_and_the_host() {
    let (mut net, _services) = site("");
    net.start();
    net.ready();
    net.seen(&net.space("web"), Proto::Tcp, &at(SERVER[0], 80));
    let said = |line: &str| net.vsctl(line).to_string();
    let out = said(&format!("trace --from web tcp {}", at(SERVER[0], 80)));
    assert!(out.contains("into network 'outside'") && out.contains("by port 'up0'"), "{out}");
    let host = said("trace --from web tcp 203.0.113.2:22");
    assert!(host.contains("into network 'host'") && host.contains("by port 'host'"), "{host}");
}

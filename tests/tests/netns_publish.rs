//! Published ports on the real kernel, from every place that they can be reached from.
//!
//! Needs root.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::Duration;

use tests::Net;
use tests::net::outside::{HOST, ROUTER, SERVER};
use tests::net::{Call, Caller, PATIENCE, Proto, Service, at, wait_for};

const SITE: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [[network]]
    name = "back"
    subnets = ["10.2.0.0/24", "fd00:2::/64"]
    [[port]]
    name = "web"
    network = "front"
    netns = "@web"
    addresses = ["10.1.0.10", "fd00:1::10"]
    [[port]]
    name = "near"
    network = "front"
    netns = "@near"
    addresses = ["10.1.0.11", "fd00:1::11"]
    [[port]]
    name = "other"
    network = "back"
    netns = "@other"
    addresses = ["10.2.0.10", "fd00:2::10"]
"#;

const WEB: [&str; 2] = ["10.1.0.10", "fd00:1::10"];
const NEAR: [&str; 2] = ["10.1.0.11", "fd00:1::11"];
const OTHER: [&str; 2] = ["10.2.0.10", "fd00:2::10"];

#[test]
fn a_published_port_is_reached_from_every_place_and_sees_who_asks() {
    let net = Net::with_outside(&format!(
        "{SITE}
        [[publish]]
        listen = \"8080/tcp\"
        to = \"web:80\"
        [[publish]]
        listen = \"8080/udp\"
        to = \"web:80\"
        "
    ));
    let _services = net.serve("web", WEB, &[80]);
    let host = net.host();
    for (family, loopback) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        for protocol in Proto::ALL {
            let target = at(HOST[family], 8080);
            let is = |address: &str| address.parse::<IpAddr>().expect("an address");
            // From elsewhere the source is kept.
            let places = [("x", ROUTER), ("near", NEAR), ("other", OTHER)];
            for (name, addresses) in places {
                let peer = net.seen(&net.space(name), protocol, &target);
                assert_eq!(peer, is(addresses[family]), "{name} to {target}/{}", protocol.name());
            }
            // What comes to the host's own stack, or back to where it came from, has a source of the switch's.
            for (space, target) in
                [(net.space("web"), &target), (host.clone(), &target), (host.clone(), &at(loopback, 8080))]
            {
                let peer = net.seen(&space, protocol, target);
                println!("{} to {target}/{}: seen as {peer}", space.name(), protocol.name());
                assert_ne!(peer, is(WEB[family]), "{} to {target}", space.name());
            }
        }
    }
    net.balance();
}

#[test]
fn a_range_is_one_rule_and_leads_port_by_port() {
    let net = Net::with_outside(SITE);
    let services: Vec<_> = [80, 85, 90].into_iter().flat_map(|port| net.serve("web", WEB, &[port])).collect();
    net.vsctl("publish add 8080-8090/tcp web:80-90");
    net.vsctl("publish add 8080-8090/udp web:80-90");
    assert_eq!(net.vsctl("publish list").as_array().map(Vec::len), Some(2), "one rule each");
    let (x, host) = (net.space("x"), net.host());
    for protocol in Proto::ALL {
        for family in [0, 1] {
            for port in [8080, 8085, 8090] {
                let peer = net.seen(&x, protocol, &at(HOST[family], port));
                assert_eq!(peer.to_string(), ROUTER[family]);
            }
            net.seen(&host, protocol, &at(["127.0.0.1", "::1"][family], 8085));
            net.unheard(&x, protocol, &at(HOST[family], 8091));
            net.unheard(&x, protocol, &at(HOST[family], 8084));
        }
    }
    drop(services);
    net.vsctl("publish rm 8080-8090/tcp");
    net.unheard(&x, Proto::Tcp, &at(HOST[0], 8080));
}

#[test]
fn a_port_by_chance_is_shown_and_works() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("web", WEB, &[443]);
    net.vsctl("publish add 0/tcp web:443 --name shop");
    let output = net.vsctl_output("publish list");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = table.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u16>().ok());
    let port = numbers.find(|port| (32768..=49151).contains(port));
    let port =
        port.unwrap_or_else(|| panic!("no port that was chosen: {table}\n{}", net.vsctl("publish list")));
    for family in [0, 1] {
        let peer = net.seen(&net.space("x"), Proto::Tcp, &at(HOST[family], port));
        assert_eq!(peer.to_string(), ROUTER[family]);
    }
}

#[test]
fn only_who_is_named_by_allow_from_is_admitted() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("web", WEB, &[80]);
    let allow = format!("--allow-from {}/32 --allow-from {}/128", SERVER[0], SERVER[1]);
    net.vsctl(&format!("publish add 8080/tcp web:80 {allow}"));
    net.vsctl(&format!("publish add 8080/udp web:80 {allow}"));
    let (x, host) = (net.space("x"), net.host());
    for family in [0, 1] {
        let target = at(HOST[family], 8080);
        let (version, length) = [("-4", 32), ("-6", 128)][family];
        for protocol in Proto::ALL {
            net.unheard(&x, protocol, &target);
            net.unheard(&net.space("near"), protocol, &target);
            net.unheard(&host, protocol, &at(["127.0.0.1", "::1"][family], 8080));
        }
        let (host_address, server) = (HOST[family], SERVER[family]);
        x.run(&format!("ip {version} route add {host_address}/{length} dev eth0 src {server}"));
        for protocol in Proto::ALL {
            assert_eq!(net.seen(&x, protocol, &target).to_string(), server);
        }
        x.run(&format!("ip {version} route del {host_address}/{length} dev eth0"));
    }
    let drops = net.get("/v1/drops").to_string();
    assert!(drops.contains("policy"), "who is refused is counted: {drops}");
}

#[test]
fn a_port_that_a_program_of_the_host_has_is_refused_by_its_name_and_one_we_have_is_refused_to_it() {
    let net = Net::with_outside(SITE);
    let host = net.host();
    let bind = |port: u16| host.inside(|| TcpListener::bind(("0.0.0.0", port)));
    let bind_udp = |port: u16| host.inside(|| UdpSocket::bind(("0.0.0.0", port)));
    let taken = bind(8081).expect("it is free");
    let said = net.refused("publish add 8081/tcp web:80");
    let name = std::fs::read_to_string("/proc/self/comm").expect("it is there");
    let pid = std::process::id().to_string();
    assert!(said.contains(name.trim()) && said.contains(&pid), "its owner, {name} {pid}, is named: {said}");
    assert_eq!(net.vsctl("publish list").as_array().map(Vec::len), Some(0));
    drop(taken);
    net.vsctl("publish add 8081/tcp web:80");
    net.vsctl("publish add 8081/udp web:80");
    for refused in [bind(8081).map(drop), bind_udp(8081).map(drop)] {
        assert_eq!(refused.map_err(|error| error.kind()), Err(std::io::ErrorKind::AddrInUse));
    }
    net.vsctl("publish rm 8081/tcp");
    net.vsctl("publish rm 8081/udp");
    wait_for("the host gets its port back", || bind(8081).is_ok() && bind_udp(8081).is_ok());
}

#[test]
fn a_udp_flow_follows_its_published_port_at_the_next_packet_and_a_tcp_one_ends() {
    let net = Net::with_outside(SITE);
    let web = Service::start(&net.space("web"), Proto::Udp, "10.1.0.10:53");
    let near = Service::start(&net.space("near"), Proto::Udp, "10.1.0.11:53");
    let _tcp = Service::start(&net.space("web"), Proto::Tcp, "10.1.0.10:53");
    net.vsctl("publish add 5353/udp web:53");
    net.vsctl("publish add 5353/tcp web:53");
    let (x, target) = (net.space("x"), at(HOST[0], 5353));
    net.seen(&x, Proto::Udp, &target);
    let caller = Caller::new(&x, &target).expect("a socket");
    caller.ask(b"one", PATIENCE).expect("an answer of web");
    let mut call = Call::connect(&x, &target).expect("a connection");
    call.echo(b"one", PATIENCE).expect("it is carried");
    // From here on only the other one answers.
    drop(web);
    net.vsctl("publish set 5353/udp --to near:53");
    net.vsctl("publish set 5353/tcp --to near:53");
    caller.ask(b"two", Duration::from_secs(1)).unwrap_or_else(|error| panic!("{error}\n{}", net.log()));
    assert!(call.echo(b"two", Duration::from_secs(1)).is_err(), "the connection to web goes on");
    drop(near);
}

//! Policies on the real kernel: what is refused, how that is told, and changes while connections are open.
//!
//! Needs root, ping.

use std::io;
use std::time::{Duration, Instant};

use tests::Net;
use tests::net::outside::{HOST, SERVER};
use tests::net::{Call, PATIENCE, Proto, Service, ask, at, wait_for, wait_until};

const SITE: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [[network]]
    name = "mgmt"
    subnets = ["10.2.0.0/24", "fd00:2::/64"]
    [[port]]
    name = "web"
    network = "front"
    netns = "@web"
    addresses = ["10.1.0.10", "fd00:1::10"]
    [[port]]
    name = "log"
    network = "mgmt"
    netns = "@log"
    addresses = ["10.2.0.10", "fd00:2::10"]
"#;
const LOG: [&str; 2] = ["10.2.0.10", "fd00:2::10"];

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

#[test]
fn networks_are_apart_until_a_policy_joins_them_and_again_when_it_goes() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("log", LOG, &[22, 514]);
    let web = net.space("web");
    for family in [0, 1] {
        for protocol in Proto::ALL {
            net.unheard(&web, protocol, &at(LOG[family], 514));
        }
        assert!(!web.output(&format!("ping -n -c 1 -W 1 {}", LOG[family])).status.success());
    }
    net.vsctl("policy add front mgmt --allow tcp/514 --name logs");
    let mut calls = Vec::new();
    for family in [0, 1] {
        net.seen(&web, Proto::Tcp, &at(LOG[family], 514));
        net.unheard(&web, Proto::Tcp, &at(LOG[family], 22));
        net.unheard(&web, Proto::Udp, &at(LOG[family], 514));
        // The other direction is not meant.
        let _back = net.serve("web", ["10.1.0.10", "fd00:1::10"], &[514]);
        net.unheard(&net.space("log"), Proto::Tcp, &at(["10.1.0.10", "fd00:1::10"][family], 514));
        let call = Call::connect(&web, &at(LOG[family], 514));
        calls.push(call.unwrap_or_else(|error| panic!("{error}\n{}", net.circumstances())));
    }
    for call in &mut calls {
        call.echo(b"a line", PATIENCE).expect("it is allowed");
    }
    net.vsctl("policy rm logs");
    for call in &mut calls {
        let start = Instant::now();
        let cut = call.echo(b"another", Duration::from_secs(1));
        assert!(cut.is_err(), "it goes on {:?} after the policy went\n{}", start.elapsed(), net.log());
    }
    net.unheard(&web, Proto::Tcp, &at(LOG[0], 514));
    net.balance();
}

#[test]
fn a_replica_is_allowed_as_soon_as_it_has_the_label() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("log", LOG, &[514]);
    net.vsctl("policy add tier=web mgmt --allow tcp/514");
    net.unheard(&net.space("web"), Proto::Tcp, &at(LOG[0], 514));
    let mut best = Duration::MAX;
    for n in 0..4 {
        let name = format!("replica{n}");
        let space = net.space(&name);
        net.vsctl(&format!(
            "port add {name} --network front --netns @{name} --ip 10.1.0.2{n} --ip fd00:1::2{n} --label tier=web"
        ));
        wait_for("its interface is up", || space.output("ip -o addr show dev eth0 up").status.success());
        let start = Instant::now();
        let mut last = None;
        let answered = wait_until(PATIENCE, || {
            last = Some(ask(&space, Proto::Tcp, &at(LOG[0], 514)).map(drop));
            matches!(last, Some(Ok(())))
        });
        assert!(answered, "{name} is refused: {last:?}\n{}", net.circumstances());
        best = best.min(start.elapsed());
        net.seen(&space, Proto::Tcp, &at(LOG[1], 514));
    }
    println!("at best {best:?} after it was there");
    assert!(best < Duration::from_millis(100), "{best:?}");
    // Without the label it is not one of them any more.
    net.vsctl("port set replica0 --label tier=db");
    net.unheard(&net.space("replica0"), Proto::Tcp, &at(LOG[0], 514));
}

#[test]
fn who_is_rejected_is_told_and_who_is_denied_is_not() {
    let net = Net::with_outside(SITE);
    let _services = net.serve("log", LOG, &[22, 23, 514]);
    let web = net.space("web");
    net.vsctl("policy add front mgmt --allow any --priority 3000 --name all");
    net.vsctl("policy add front mgmt --reject tcp/22,udp/22,icmp --name told");
    net.vsctl("policy add front mgmt --deny tcp/23,udp/23 --name untold");
    for (family, address) in LOG.into_iter().enumerate() {
        net.seen(&web, Proto::Tcp, &at(address, 514));
        for protocol in Proto::ALL {
            let told = net.unheard(&web, protocol, &at(address, 22));
            // For UDP the kernel makes it an error of its own, by type and code.
            let is_told = match protocol {
                Proto::Tcp => told.kind() == io::ErrorKind::ConnectionRefused,
                Proto::Udp => !is_timeout(&told),
            };
            assert!(is_told, "{address} {protocol:?}: {told:?}");
            let untold = net.unheard(&web, protocol, &at(address, 23));
            assert!(is_timeout(&untold), "{address} {protocol:?}: {untold:?}");
        }
        let ping = web.output(&format!("ping -n -c 1 -W 1 {address}"));
        let said = String::from_utf8_lossy(&ping.stdout).into_owned();
        let gateway = ["10.1.0.1", "fd00:1::1"][family];
        assert!(!ping.status.success() && said.contains(&format!("From {gateway}")), "{said}");
    }
    let drops = net.vsctl_output("drops");
    let drops = String::from_utf8_lossy(&drops.stdout).into_owned();
    assert!(drops.contains("policy"), "{drops}");
    net.balance();
}

#[test]
fn an_internal_network_reaches_neither_the_outside_nor_the_host_and_is_not_reached() {
    let net = Net::with_outside(
        r#"
        [[network]]
        name = "closed"
        subnets = ["10.3.0.0/24", "fd00:3::/64"]
        internal = true
        [[network]]
        name = "open"
        subnets = ["10.1.0.0/24", "fd00:1::/64"]
        [[port]]
        name = "in"
        network = "closed"
        netns = "@in"
        addresses = ["10.3.0.10", "fd00:3::10"]
        [[port]]
        name = "peer"
        network = "closed"
        netns = "@peer"
        addresses = ["10.3.0.11", "fd00:3::11"]
        [[port]]
        name = "out"
        network = "open"
        netns = "@out"
        addresses = ["10.1.0.10", "fd00:1::10"]
        "#,
    );
    let (inside, host, x) = (net.space("in"), net.host(), net.space("x"));
    let _x = net.serve("x", SERVER, &[80]);
    let _in = net.serve("in", ["10.3.0.10", "fd00:3::10"], &[80]);
    let _host = HOST.map(|address| Service::start(&host, Proto::Tcp, &at(address, 90)));
    for family in [0, 1] {
        net.seen(&net.space("out"), Proto::Tcp, &at(SERVER[family], 80));
        net.seen(&net.space("out"), Proto::Tcp, &at(HOST[family], 90));
        net.ping("in", ["10.3.0.11", "fd00:3::11"][family]);
        for target in [at(SERVER[family], 80), at(HOST[family], 90)] {
            net.unheard(&inside, Proto::Tcp, &target);
        }
        net.unheard(&inside, Proto::Udp, &at(SERVER[family], 80));
        let own = at(["10.3.0.10", "fd00:3::10"][family], 80);
        for space in [&host, &x, &net.space("out")] {
            net.unheard(space, Proto::Tcp, &own);
        }
    }
    net.balance();
}

#[test]
fn two_networks_of_the_same_addresses_go_outside_and_never_meet() {
    let half = |n: u32| {
        format!(
            r#"
            [[network]]
            name = "n{n}"
            subnets = ["10.1.0.0/24", "fd00:1::/64"]
            host = false
            [[port]]
            name = "a{n}"
            network = "n{n}"
            netns = "@a{n}"
            addresses = ["10.1.0.10", "fd00:1::10"]
            [[port]]
            name = "b{n}"
            network = "n{n}"
            netns = "@b{n}"
            addresses = ["10.1.0.1{n}", "fd00:1::1{n}"]
            "#
        )
    };
    let config = half(1) + &half(2);
    let net = Net::with_outside(&config);
    let _x = net.serve("x", SERVER, &[80]);
    let _b1 = net.serve("b1", ["10.1.0.11", "fd00:1::11"], &[80]);
    let _b2 = net.serve("b2", ["10.1.0.12", "fd00:1::12"], &[80]);
    let (a1, a2) = (net.space("a1"), net.space("a2"));
    for family in [0, 1] {
        let of = |n: usize| at([["10.1.0.11", "fd00:1::11"], ["10.1.0.12", "fd00:1::12"]][n][family], 80);
        let own = ["10.1.0.10", "fd00:1::10"][family];
        assert_eq!(net.seen(&a1, Proto::Tcp, &of(0)).to_string(), own);
        assert_eq!(net.seen(&a2, Proto::Tcp, &of(1)).to_string(), own);
        net.unheard(&a1, Proto::Tcp, &of(1));
        net.unheard(&a2, Proto::Tcp, &of(0));
        // The same address and, as far as chance goes, the same L4 port outside: two connections at once.
        let target = at(SERVER[family], 80);
        net.seen(&a1, Proto::Tcp, &target);
        net.seen(&a2, Proto::Tcp, &target);
        let mut calls = [&a1, &a2].map(|space| Call::connect(space, &target).expect("a connection"));
        assert_ne!(calls[0].peer(), calls[1].peer());
        for call in &mut calls {
            assert_eq!(call.peer().ip().to_string(), HOST[family]);
            call.echo(b"mine", PATIENCE).expect("its own answer");
        }
    }
    net.balance();
}

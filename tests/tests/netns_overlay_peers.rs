//! What an operator does and sees of an overlay while it runs: peers and remote stations by commands, endpoints that are
//! learned, the MTU of the way.
//!
//! Host `n` has the container `c`, 10.1.0.1`n`, in the network `front`.
//!
//! Needs root, ping, tcpdump.

use serde_json::Value;
use tests::Net;
use tests::net::overlay::{Fabric, mtu_of, v4, wait_for_mtu};
use tests::net::{need, transfer, wait_for};

/// The configuration of host `n`, without peers.
fn config(n: usize, overlay: &str) -> String {
    format!(
        r#"
        [uplink]
        device = "up0"
        [overlay]
        {overlay}
        [[network]]
        name = "front"
        subnets = ["10.1.0.0/24"]
        vni = 101
        [[port]]
        name = "web"
        network = "front"
        netns = "@c"
        addresses = ["10.1.0.1{n}"]
        "#
    )
}

fn knows(host: &Net, n: usize) -> Option<Value> {
    let views = host.vsctl("peer list");
    let views = views.as_array().expect("a list");
    views.iter().find(|view| view["config"]["address"] == v4(n).to_string()).cloned()
}

/// Says whether a ping from the container of one host to that of another is answered.
fn reaches(fabric: &Fabric, from: usize, to: usize) -> bool {
    let space = fabric.host(from).space("c");
    space.output(&format!("ping -c 1 -W 1 10.1.0.1{to}")).status.success()
}

#[test]
fn peers_come_and_go_by_commands() {
    need(&["ping"]);
    let fabric = Fabric::with(2, 1500, |n| config(n, ""));
    assert!(!reaches(&fabric, 0, 1), "nobody has been told of anybody");
    for (host, other) in [(0, 1), (1, 0)] {
        let added = fabric.host(host).vsctl(&format!("peer add {}", v4(other)));
        assert_eq!(added["owner"], "cli", "{added}");
    }
    wait_for("the ping", || reaches(&fabric, 0, 1));
    let view = knows(fabric.host(0), 1).expect("it is a peer");
    assert_eq!(
        (&view["state"], &view["device"], &view["origin"]),
        (&"active".into(), &"up0".into(), &"peer".into())
    );
    assert_eq!(view["local"], v4(0).to_string(), "{view}");
    assert!(view["stations"].as_u64() >= Some(1), "{view}");
    let refused = fabric.host(0).refused(&format!("peer add {}", v4(1)));
    assert!(refused.contains("peer"), "{refused}");
    fabric.host(0).vsctl(&format!("peer rm {}", v4(1)));
    assert!(knows(fabric.host(0), 1).is_none());
    assert!(!reaches(&fabric, 0, 1));
    fabric.balance();
}

#[test]
fn an_endpoint_is_learned_where_that_is_allowed() {
    need(&["ping"]);
    let fabric = Fabric::with(3, 1500, |n| match n {
        0 => config(n, "learn = 1"),
        _ => config(n, &format!("peers = [\"{}\"]", v4(0))),
    });
    // The first who speaks is learned; there is no room for another.
    wait_for("the ping", || reaches(&fabric, 1, 0));
    let view = knows(fabric.host(0), 1).expect("it has been learned");
    assert_eq!((&view["origin"], &view["owner"]), (&"learned".into(), &Value::Null));
    assert!(reaches(&fabric, 0, 1));
    assert!(!reaches(&fabric, 2, 0));
    assert!(knows(fabric.host(0), 2).is_none());
    assert!(tests::net::overlay::dropped(fabric.host(0), "unknown_vtep") > 0);
    fabric.balance();
}

#[test]
fn nothing_is_flooded_for_a_station_that_is_known() {
    need(&["ping", "tcpdump"]);
    let peers = |n: usize| format!("peers = [\"{}\"]", v4(1 - n));
    let fabric = Fabric::with(2, 1500, |n| config(n, &peers(n)));
    for (host, other) in [(0, 1), (1, 0)] {
        let mac = fabric.host(other).space("c").mac("eth0");
        fabric
            .host(host)
            .vsctl(&format!("remote add front 10.1.0.1{other} --mac {mac} --vtep {}", v4(other)));
    }
    let mut ears = fabric.listen(0, "udp port 4789");
    wait_for("the ping", || reaches(&fabric, 0, 1));
    let heard = ears.heard();
    let is_asked = heard.iter().filter(|line| line.contains("who-has") || line.contains("ff:ff:ff:ff:ff:ff"));
    assert_eq!(is_asked.count(), 0, "{heard:#?}");
    assert!(heard.iter().any(|line| line.contains("echo request")), "{heard:#?}");
    let stations = fabric.host(0).vsctl("fdb list");
    let is_there = |view: &Value| view["kind"] == "remote" && view["peer"] == v4(1).to_string();
    assert!(stations.as_array().is_some_and(|views| views.iter().any(is_there)), "{stations}");
    let views = fabric.host(0).vsctl("remote list");
    assert_eq!((&views[0]["name"], &views[0]["state"]), (&"front/10.1.0.11".into(), &"active".into()));
    // A station that is elsewhere now is sent to there, and here to nobody.
    fabric.host(0).vsctl("remote set front 10.1.0.11 --vtep 192.0.2.99");
    assert!(!reaches(&fabric, 0, 1));
    fabric.balance();
}

#[test]
fn the_doctor_finds_what_fits_the_way() {
    need(&["ping"]);
    let peers = |n: usize| format!("peers = [\"{}\"]", v4(1 - n));
    let fabric = Fabric::with(2, 1500, |n| config(n, &peers(n)));
    let asked = || {
        let output = fabric.host(0).vsctl_output("doctor mtu");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = asked();
    assert!(code == Some(0) && text.contains("packets of 1500 bytes arrive"), "{text}");
    assert!(text.contains("front 1450"), "{text}");
    // Something between the hosts carries less, and says nothing about it.
    fabric.wire().run("ip link set h1 mtu 1423");
    let (code, text) = asked();
    assert!(code == Some(1) && text.contains("at most 1423 bytes arrive"), "{text}");
    assert!(text.contains("ip link set up0 mtu 1423") && text.contains("follow to 1373"), "{text}");
    fabric.host(0).host().run("ip link set up0 mtu 1423");
    wait_for_mtu(&fabric.host(0).space("c"), "eth0", 1373);
    let (code, text) = asked();
    assert!(code == Some(0) && text.contains("networks up to 1373 fit"), "{text}");
    fabric.host(1).host().run("ip link set up0 down");
    let (code, text) = asked();
    assert!(code == Some(1) && text.contains(&v4(1).to_string()), "{text}");
}

/// Puts two routers between host 0 and host 1, and between these a link of this MTU.
fn separate(fabric: &Fabric, mtu: u32) {
    let (near, far) = (fabric.add_plain("near", 8, 1500), fabric.host(0).space("far"));
    let hosts = [0, 1].map(|n| fabric.host(n).host());
    fabric.wire().run(&format!("ip link set h1 nomaster netns {}", far.name()));
    near.run(&format!("ip link add mid type veth peer name mid netns {}", far.name()));
    for (space, own) in [(&near, "10.99.0.1/30"), (&far, "10.99.0.2/30")] {
        space.run("sysctl -q -w net.ipv4.ip_forward=1");
        space.run(&format!("ip link set mid mtu {mtu} up"));
        space.run(&format!("ip addr add {own} dev mid"));
    }
    far.run("ip link set h1 up");
    far.run("ip addr add 198.51.100.1/24 dev h1");
    hosts[1].run("ip -4 addr flush dev up0");
    hosts[1].run("ip addr add 198.51.100.2/24 dev up0");
    hosts[1].run("ip route add default via 198.51.100.1");
    hosts[0].run(&format!("ip route add default via {}", v4(8)));
    near.run("ip route add 198.51.100.0/24 via 10.99.0.2");
    far.run(&format!("ip route add {}/32 via 10.99.0.1", v4(0)));
}

#[test]
fn a_router_on_the_way_that_takes_less_is_heeded() {
    need(&["ping"]);
    let mut fabric = Fabric::new(2, 1500);
    separate(&fabric, 1400);
    fabric.start(|n| match n {
        0 => config(0, "peers = [\"198.51.100.2\"]"),
        _ => config(1, &format!("peers = [\"{}\"]", v4(0))),
    });
    wait_for("the ping", || reaches(&fabric, 0, 1));
    let containers = [0, 1].map(|n| fabric.host(n).space("c"));
    assert_eq!(mtu_of(&containers[0], "eth0"), 1450, "the interface says what the device takes");
    // The first large packets are what the routers have to refuse.
    let target = "10.1.0.11".parse().expect("an address");
    if let Err(error) = transfer(&containers[0], &containers[1], target, 64 << 20) {
        panic!("{error}\n{}", fabric.circumstances());
    }
    let told = || {
        let output = containers[0].output("ping -c 1 -W 1 -M do -s 1400 10.1.0.11");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    wait_for("the answer of a router", || told().contains("1350"));
    assert!(containers[0].output("ping -c 1 -W 2 -M do -s 1322 10.1.0.11").status.success());
    let log = fabric.host(0).vsctl("log").to_string();
    assert!(log.contains("a router on the way takes 1400 bytes"), "{log}");
    fabric.balance();
}

#[test]
fn taps_follow_the_underlay_too() {
    let fabric = Fabric::with(1, 1500, |n| {
        let text = config(n, "");
        text.replace("netns = \"@c\"", "kind = \"tap\"\nnetns = \"@c\"")
    });
    let space = fabric.host(0).space("c");
    assert_eq!(mtu_of(&space, "eth0"), 1450);
    for mtu in [1400, 9000] {
        fabric.set_mtu(mtu);
        wait_for_mtu(&space, "eth0", mtu - 50);
    }
    fabric.balance();
}

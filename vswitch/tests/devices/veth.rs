//! Veth pairs: made, adopted, replaced, refused, removed.

use packet::MacAddr;
use vswitch::devices::{Devices, VethSpec};

use crate::lab::{Lab, Outcome, runtime};

#[test]
fn veth_is_made_with_both_macs_addresses_and_routes_and_removed_again() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let device = lab.create(lab.veth("web", 10))?;
    assert!(!device.adopted && device.notes.is_empty(), "{device:?}");

    let near = lab.inside("switch", "ip -d link show dev web");
    for word in ["02:00:00:00:01:0a", "NOARP", ",UP", "LOWER_UP", "mtu 1400", "numtxqueues 1 "] {
        assert!(near.contains(word), "{word} is not in {near}");
    }
    let link = lab.inside("web", "ip -d link show dev eth0");
    for word in ["02:00:00:00:00:0a", "LOWER_UP", "mtu 1400"] {
        assert!(link.contains(word), "{word} is not in {link}");
    }
    let addresses = lab.inside("web", "ip addr show dev eth0");
    assert!(addresses.contains("10.1.0.10/24 brd 10.1.0.255"), "{addresses}");
    assert!(addresses.contains("fd00:1::10/64 scope global nodad"), "{addresses}");
    let routes = lab.inside("web", "ip route") + &lab.inside("web", "ip -6 route");
    assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("default via fd00:1::1 dev eth0"), "{routes}");
    assert_eq!(lab.inside("web", "cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
    let addresses = lab.inside("switch", "ip addr show dev web");
    assert!(!addresses.contains("inet"), "our end has an address: {addresses}");

    lab.remove(device.clone())?;
    assert!(lab.inside("switch", "ip link show dev web").contains("does not exist"));
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_pair_that_is_there_is_adopted_and_only_differences_are_repaired() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let first = lab.create(lab.veth("web", 10))?;
    // What a container's owner may do.
    lab.inside("web", "ip addr add 10.9.9.9/32 dev eth0");
    lab.inside("web", "ip neigh add 10.1.0.77 lladdr 02:00:00:00:00:4d dev eth0 nud permanent");
    let before =
        lab.inside("web", "ip -s addr") + &lab.inside("web", "ip route") + &lab.inside("web", "ip neigh");

    // The daemon starts again: same switch, new threads and sockets.
    let again = Lab {
        devices: Devices::start(&lab.name)?,
        name: lab.name.clone(),
        spaces: vec![],
        runtime: runtime()?,
    };
    let second = again.create(lab.veth("web", 10))?;
    assert!(second.adopted);
    assert_eq!((first.near_index, first.far_index), (second.near_index, second.far_index));
    let after =
        lab.inside("web", "ip -s addr") + &lab.inside("web", "ip route") + &lab.inside("web", "ip neigh");
    assert_eq!(without_counters(&before), without_counters(&after));

    let mut other = lab.veth("web", 10);
    other.previous = Some(other.far.clone());
    other.far.mac = MacAddr::local(0x999);
    other.far.mtu = 1280;
    other.far.addresses = vec!["10.1.0.20/24".parse()?, "fd00:1::10/64".parse()?];
    other.drop_ingress = false;
    let third = again.create(other)?;
    assert_eq!((first.near_index, first.far_index), (third.near_index, third.far_index));
    let now = lab.inside("web", "ip addr show dev eth0");
    for word in ["02:00:00:00:09:99", "mtu 1280", "10.1.0.20/24", "fd00:1::10/64", "10.9.9.9/32"] {
        assert!(now.contains(word), "{word} is not in {now}");
    }
    assert!(!now.contains("10.1.0.10/24"), "{now}");
    assert!(lab.inside("switch", "ip link show dev web").contains("mtu 1280"));
    assert!(!lab.inside("switch", "tc qdisc show dev web").contains("clsact"));

    // Renamed inside: still the pair, and said so.
    lab.inside("web", "ip link set eth0 down");
    lab.inside("web", "ip link set eth0 name lan0");
    let renamed = lab.create(lab.veth("web", 10))?;
    assert_eq!((renamed.ifname.as_str(), renamed.far_index), ("lan0", first.far_index));
    assert_eq!(renamed.notes.len(), 1, "{renamed:?}");
    Ok(())
}

fn without_counters(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().chars().all(|c| c.is_ascii_digit() || c == ' ')).collect()
}

#[test]
fn a_pair_for_another_place_is_replaced() -> Outcome {
    let lab = Lab::new(&["web", "db"])?;
    lab.create(lab.veth("web", 10))?;
    let mut moved = lab.veth("web", 10);
    moved.netns = lab.space("db");
    let device = lab.create(moved)?;
    assert!(!device.adopted);
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    assert!(lab.inside("db", "ip addr show dev eth0").contains("10.1.0.10/24"));
    // More queues make another device too.
    let mut wide = lab.veth("web", 10);
    wide.netns = lab.space("db");
    wide.queues = 2;
    assert!(!lab.create(wide.clone())?.adopted);
    assert!(lab.inside("switch", "ip -d link show dev web").contains("numtxqueues 2 numrxqueues 2"));
    assert!(lab.create(wide)?.adopted);
    Ok(())
}

#[test]
fn refusals_name_the_object_and_leave_nothing() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let refused = |change: &dyn Fn(&mut VethSpec)| {
        let mut spec = lab.veth("web", 10);
        change(&mut spec);
        lab.create(spec).expect_err("a refusal").to_string()
    };
    let gone = refused(&|spec| spec.netns = "no-such-netns".to_owned());
    assert!(
        gone.contains("'no-such-netns' not found") && gone.contains("/run/netns/no-such-netns (No such file"),
        "{gone}"
    );
    let gone = refused(&|spec| spec.netns = "pid:4194305".to_owned());
    assert!(gone.contains("/proc/4194305/ns/net"), "{gone}");
    let file = refused(&|spec| spec.netns = "/etc/passwd".to_owned());
    assert_eq!(file, "'/etc/passwd' is no network namespace");
    for bad in ["", "../etc", "pid:x"] {
        let text = refused(&|spec| spec.netns = bad.to_owned());
        assert!(text.contains("is allowed"), "{text}");
    }
    let long = refused(&|spec| spec.far.ifname = "sixteen--letters".to_owned());
    assert!(long.contains("longer than 15"), "{long}");

    lab.inside("web", "ip link add name eth0 type veth peer name other");
    let taken = refused(&|_| {});
    assert_eq!(taken, format!("interface 'eth0' exists already in namespace '{}'", lab.space("web")));

    // A refusal half-way: the pair is made, and the address is not one.
    let half = refused(&|spec| {
        spec.far.ifname = "eth1".to_owned();
        spec.far.addresses.extend("224.0.0.1/24".parse::<ipnet::IpNet>());
        spec.far.gateways = vec!["0.0.0.0".parse().expect("an address")];
    });
    eprintln!("{half}");
    assert!(lab.inside("web", "ip link show dev eth1").contains("does not exist"));
    let left = lab.runtime.block_on(lab.devices.leftovers())?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_default_route_of_others_is_kept() -> Outcome {
    let lab = Lab::new(&["web"])?;
    lab.inside("web", "ip link add name wan type veth peer name other");
    lab.inside("web", "ip addr add 192.0.2.2/24 dev wan");
    lab.inside("web", "ip link set wan up");
    lab.inside("web", "ip route add default via 192.0.2.1 metric 50");
    let mut spec = lab.veth("web", 10);
    spec.far.routes = vec![
        ("10.2.0.0/16".parse()?, Some("10.1.0.1".parse()?)),
        ("10.3.0.0/16".parse()?, None),
        ("10.4.0.0/16".parse()?, Some("169.254.1.1".parse()?)),
    ];
    lab.create(spec.clone())?;
    let routes = lab.inside("web", "ip route");
    assert!(!routes.contains("default via 10.1.0.1"), "{routes}");
    for route in
        ["10.2.0.0/16 via 10.1.0.1 dev eth0", "10.3.0.0/16 dev eth0", "10.4.0.0/16 via 169.254.1.1 dev eth0"]
    {
        assert!(routes.contains(route), "{route} is not in {routes}");
    }
    assert!(lab.inside("web", "ip -6 route").contains("default via fd00:1::1 dev eth0"));
    spec.previous = Some(spec.far.clone());
    spec.far.routes.truncate(1);
    lab.create(spec)?;
    let routes = lab.inside("web", "ip route");
    assert!(
        routes.contains("10.2.0.0/16") && !routes.contains("10.3.0.0/16") && !routes.contains("10.4.0.0/16"),
        "{routes}"
    );
    Ok(())
}

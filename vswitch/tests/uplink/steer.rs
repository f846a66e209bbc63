//! A device that is shared: made, adopted, given back.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use packet::Address;
use ports::steer::{Pair, Reason, Rules, Steering};
use vswitch::devices::host::Host;
use vswitch::uplink::{PINS, Uplink, Way, tap_name};

use crate::lab::{HOST, Lab, OUTSIDE, Outcome, eventually, is_udp};

const FLOATING: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 77);

fn rules() -> Rules {
    Rules {
        floating: vec![Address::from(std::net::IpAddr::V4(FLOATING))],
        published: vec![(Address::from(std::net::IpAddr::V4(HOST)), 17, 8053..=8053)],
        ..Rules::default()
    }
}

/// Sends a datagram from outside to the published port of the host.
fn send(lab: &Lab) {
    lab.within("out", || {
        let socket = UdpSocket::bind((OUTSIDE, 0)).expect("free");
        socket.send_to(b"hello", (HOST, 8053)).expect("sends");
    });
}

fn count(lab: &Lab, uplink: &Uplink, reason: Reason) -> u64 {
    let counters = lab.runtime.block_on(uplink.counters()).expect("readable");
    counters.into_iter().find(|counter| counter.0 == reason).expect("all").1
}

#[test]
fn a_shared_device_is_adopted_and_given_back() -> Outcome {
    let lab = Lab::new()?;
    let before = lab.sh("host", "ip -o link");
    let uplink = lab.start()?;
    assert_eq!(tap_name("d0"), "vsw-up-d0");
    assert!(lab.runtime.block_on(uplink.share("d0", Way::Tap)).is_err(), "there is no tap yet");
    let mut tap = lab.open(&uplink, "vsw-up-d0")?;
    let steered = lab.runtime.block_on(uplink.set_up_tap("d0"))?;
    lab.runtime.block_on(uplink.share("d0", Way::Tap))?;
    assert_eq!((steered.device.name.as_str(), steered.tap.name.as_str()), ("d0", "vsw-up-d0"));
    assert!(lab.runtime.block_on(uplink.set_rules(rules()))? > 0);
    send(&lab);
    tap.expect("the datagram", |frame| is_udp(frame, HOST.into(), b"hello"));
    assert_eq!(lab.sh("host", "cat /proc/sys/net/ipv6/conf/vsw-up-d0/disable_ipv6").trim(), "1");

    // A daemon dies, and another one starts.
    drop((tap, uplink));
    send(&lab);
    let uplink = lab.start()?;
    let mut tap = lab.open(&uplink, "vsw-up-d0")?;
    let again = lab.runtime.block_on(uplink.set_up_tap("d0"))?;
    lab.runtime.block_on(uplink.share("d0", Way::Tap))?;
    assert_eq!(again.tap.index, steered.tap.index);
    assert_eq!(lab.runtime.block_on(uplink.set_rules(rules()))?, 0);
    send(&lab);
    tap.expect("the datagram", |frame| is_udp(frame, HOST.into(), b"hello"));
    assert!(count(&lab, &uplink, Reason::Port) >= 3);

    // The device has another address: what is for the old one is not for us.
    lab.sh("host", "ip link set d0 address 02:00:00:00:00:99");
    lab.sh("out", "ip neigh flush dev o0");
    lab.runtime.block_on(uplink.share("d0", Way::Tap))?;
    send(&lab);
    tap.expect("the datagram", |frame| is_udp(frame, HOST.into(), b"hello") && frame[5] == 0x99);

    drop(tap);
    lab.runtime.block_on(uplink.release("d0"))?;
    assert!(!lab.sh("host", "ip -o link").contains("vsw-"));
    lab.runtime.block_on(uplink.remove_all())?;
    let pins = Path::new(PINS).join(lab.name.replace('.', "%2e"));
    assert!(!pins.exists());
    assert_eq!(before.lines().count(), lab.sh("host", "ip -o link").lines().count());
    Ok(())
}

#[test]
fn a_tap_of_somebody_else_is_left_alone() -> Outcome {
    let lab = Lab::new()?;
    let uplink = lab.start()?;
    lab.sh("host", "ip link add vsw-up-d0 type veth peer name x0");
    let error = lab.runtime.block_on(uplink.share("d0", Way::Tap)).expect_err("it is not ours").to_string();
    assert!(error.contains("'vsw-up-d0' exists already"), "{error}");
    Ok(())
}

#[test]
fn a_kernel_without_tcx_steers_by_classifiers() -> Outcome {
    let lab = Lab::new()?;
    let uplink = lab.start()?;
    let mut tap = lab.open(&uplink, "vsw-up-d0")?;
    lab.sh("host", "ip link set vsw-up-d0 up");
    let pair = Pair {
        device: lab.index("host", "d0"),
        mac: lab.mac("host", "d0"),
        tap: lab.index("host", "vsw-up-d0"),
    };
    let pins = Path::new(PINS).join(format!("classifier-{}", lab.name.replace('.', "-")));
    let steering = lab.within("host", || -> std::io::Result<Steering> {
        let mut steering = Steering::open(&pins)?.without_tcx();
        let mut host = Host::open().map_err(std::io::Error::other)?;
        steering.set_rules(&rules())?;
        steering.attach(pair, &mut host)?;
        // Replaced, not added.
        steering.attach(pair, &mut host)?;
        Ok(steering)
    })?;
    assert_eq!(lab.sh("host", "tc filter show dev d0 ingress").matches("direct-action").count(), 1);
    send(&lab);
    tap.expect("the datagram", |frame| is_udp(frame, HOST.into(), b"hello"));
    lab.within("out", || std::net::TcpStream::connect((HOST, 1)).expect_err("the host says so"));

    let mut steering = steering;
    lab.within("host", || -> std::io::Result<()> {
        let mut host = Host::open().map_err(std::io::Error::other)?;
        steering.detach(pair.device, Some(pair.tap), &mut host)?;
        steering.detach(pair.device, Some(pair.tap), &mut host)
    })?;
    assert_eq!(lab.sh("host", "tc filter show dev d0 ingress").matches("direct-action").count(), 0);
    Steering::remove(&pins)?;
    Ok(())
}

#[test]
fn solicitations_reach_the_device() -> Outcome {
    let lab = Lab::new()?;
    let uplink = lab.start()?;
    let index = lab.index("host", "d0");
    let listens = |group: &str| lab.sh("host", "ip -6 maddr show dev d0").contains(group);
    let set = |addresses: Vec<std::net::Ipv6Addr>| lab.runtime.block_on(uplink.set_groups(index, addresses));
    set(vec!["fd08::77".parse()?, "fd08::88".parse()?])?;
    assert!(listens("ff02::1:ff00:77") && listens("ff02::1:ff00:88"));
    set(vec!["fd08::88".parse()?])?;
    eventually("the group is left", || !listens("ff02::1:ff00:77"));
    assert!(listens("ff02::1:ff00:88"));
    // As many as somebody may want.
    let many = (0..600_u16).map(|n| std::net::Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 1, n)).collect();
    set(many)?;
    assert!(listens("ff02::1:ff01:257"));
    Ok(())
}
